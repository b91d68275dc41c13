"""Is the model behind this address a NIMA of our contract, and how do images travel to it?"""

from __future__ import annotations

from nima_client import contract
from nima_client._transport import ModelDescription, TensorInfo
from nima_client.errors import ContractError
from nima_client.results import ModelInfo

_OUTPUTS = {
    contract.OUTPUT_DISTRIBUTION: contract.NUM_RATINGS,
    contract.OUTPUT_MEAN: 1,
    contract.OUTPUT_STD: 1,
}
INPUT_TYPES = ("BYTES", "UINT8")


def check_contract(description: ModelDescription) -> ModelInfo:
    """Hold a server's description against the contract.

    Args:
        description: what the server says of the model.

    Returns:
        What a client needs to know of it.

    Raises:
        ContractError: not a NIMA model, or one of another contract; says which and what to do.
    """
    model = description.name
    inputs = {tensor.name: tensor for tensor in description.inputs}
    image = inputs.get(contract.INPUT_IMAGE)
    if image is None or len(inputs) != 1:
        raise _not_nima(model, f"its inputs are {_names(description.inputs)}, not one IMAGE")
    if image.datatype not in INPUT_TYPES:
        raise _not_nima(model, f"its input IMAGE is {image.datatype}, not BYTES or UINT8")
    outputs = {tensor.name: tensor for tensor in description.outputs}
    for name, width in _OUTPUTS.items():
        tensor = outputs.get(name)
        if tensor is None:
            raise _not_nima(model, f"it has no output {name}")
        if tensor.datatype != "FP32" or tensor.shape[-1:] != (width,):
            raise _not_nima(
                model,
                f"its output {name} is {tensor.datatype} {list(tensor.shape)}, "
                f"not FP32 [-1, {width}]",
            )
    try:
        served = contract.ServedModel.from_parameters(description.parameters)
    except contract.ContractError as error:
        raise _not_nima(model, str(error)) from error
    if served.contract_version != contract.CONTRACT_VERSION:
        side = "server" if served.contract_version < contract.CONTRACT_VERSION else "client"
        raise ContractError(
            f"the server's contract is version {served.contract_version}, this client's is "
            f"{contract.CONTRACT_VERSION}: upgrade the {side}"
        )
    return ModelInfo(
        name=model,
        versions=description.versions,
        input_type=image.datatype,
        max_batch_size=description.max_batch_size or contract.MAX_BATCH_SIZE,
        served=served,
    )


def _not_nima(model: str, why: str) -> ContractError:
    return ContractError(f"the model {model!r} of this server is not NIMA: {why}")


def _names(tensors: tuple[TensorInfo, ...]) -> str:
    return ", ".join(t.name for t in tensors) or "none"
