"""Triton as its tutorials have it: an ensemble of two Python models with FP32 pixels between."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.utils
from guard import guarded
from servers import HERE, Setting, Target, triton_target

from nima_build.server import EmbeddedServer, ServerOptions


@contextlib.contextmanager
def triton_tutorial(setting: Setting) -> Iterator[Target]:
    """The server of it, up."""
    repository = setting.folder / "tutorial"
    _write_tutorial(setting, repository)
    options = ServerOptions(model_repository=repository)
    with EmbeddedServer(options) as server, guarded(server.pid):
        yield triton_target("Triton, tutorial-style", server, setting.photos)


def _write_tutorial(setting: Setting, repository: Path) -> None:
    """The tutorial's two models under the names that the embedded server renders."""
    side = setting.metadata.spec.crop_size
    network, preprocess = repository / "nima_network", repository / "nima_preprocess"
    for model in (network, preprocess, repository / "nima"):
        (model / "1").mkdir(parents=True)
    shutil.copy(HERE / "triton_tutorial" / "preprocess.py", preprocess / "1" / "model.py")
    shutil.copy(HERE / "triton_tutorial" / "network.py", network / "1" / "model.py")
    setting.metadata.save(network / "1" / "model.json")
    graph = onnx.load(setting.onnx).graph
    scaled = next(node for node in graph.node if node.op_type == "Mul")  # (pixels - mean) / std
    onnx.utils.extract_model(
        str(setting.onnx),
        str(network / "1" / "model.onnx"),
        [scaled.output[0]],
        ["DISTRIBUTION", "MEAN", "STD"],
    )
    scores = """output [
  { name: "DISTRIBUTION" data_type: TYPE_FP32 dims: [ 10 ] },
  { name: "MEAN" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "STD" data_type: TYPE_FP32 dims: [ 1 ] }
]
"""
    image = 'input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]\n'
    pixels = f'[ {{ name: "INPUT" data_type: TYPE_FP32 dims: [ 3, {side}, {side} ] }} ]\n'
    group = f"instance_group [ {{ kind: KIND_CPU count: {setting.workers} }} ]\n"
    python = 'backend: "python"\nmax_batch_size: 8\ndynamic_batching { }\n' + group
    maps = "".join(
        f'output_map {{ key: "{n}" value: "{n}" }}\n' for n in ("DISTRIBUTION", "MEAN", "STD")
    )
    (preprocess / "config.pbtxt").write_text(
        f'name: "nima_preprocess"\n{python}{image}output {pixels}'
    )
    (network / "config.pbtxt").write_text(f'name: "nima_network"\n{python}input {pixels}{scores}')
    (repository / "nima" / "config.pbtxt").write_text(
        f'name: "nima"\nplatform: "ensemble"\nmax_batch_size: 8\n{image}{scores}'
        'ensemble_scheduling { step [\n{ model_name: "nima_preprocess" model_version: -1\n'
        'input_map { key: "IMAGE" value: "IMAGE" } output_map { key: "INPUT" value: "INPUT" } },\n'
        '{ model_name: "nima_network" model_version: -1\n'
        f'input_map {{ key: "INPUT" value: "INPUT" }}\n{maps}}}\n] }}\n'
    )
