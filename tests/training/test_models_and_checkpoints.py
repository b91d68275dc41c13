"""Backbones, checkpoints, and weights put back behind batch norms."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nima_client._files import sha256_file
from nima_client.preprocess import PreprocessSpec
from nima_training import checkpoint_files, distribution
from nima_training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    reference_quantiles,
    save_checkpoint,
)
from nima_training.folded import (
    calibrate_batch_norm,
    conv_norm_pairs,
    load_folded,
    with_folded_norms,
)
from nima_training.models import (
    BACKBONES,
    WeightsError,
    WeightsUnavailable,
    create_model,
    head_module,
)
from nima_training.tflite import CONV, FoldedLayer


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_backbone_gives_ten_logits(backbone: str) -> None:
    size = 96 if BACKBONES[backbone].input_size == 224 else 299
    # 135 million parameters take seconds to draw; shapes need none of them.
    device = torch.device("meta" if backbone == "vgg16" else "cpu")
    with device, torch.inference_mode():
        model = create_model(backbone, "none", dropout=0.5).eval()
        logits = model(torch.zeros(1, 3, size, size))
    assert logits.shape == (1, 10)
    dropouts = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p}
    # VGG16's other one is between two hidden layers, not before the head.
    assert dropouts.pop("classifier.2", None) == (0.5 if backbone == "vgg16" else None)
    assert dropouts == {f"{BACKBONES[backbone].head}.0": 0.5}
    assert [type(part) for part in head_module(model, backbone)] == [nn.Dropout, nn.Linear]  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", sorted(n for n in BACKBONES if BACKBONES[n].weights))
def test_the_input_is_that_of_the_pretrained_weights(backbone: str) -> None:
    weights = BACKBONES[backbone].weights
    assert [BACKBONES[backbone].input_size] == weights.transforms().crop_size  # type: ignore[union-attr, attr-defined]


def test_unknown_backbone_and_absent_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="unknown backbone 'vgg11'"):
        create_model("vgg11")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on the discard port
    with pytest.raises(
        WeightsUnavailable, match=r"place it at .*mobilenet_v3_small.*--weights none"
    ):
        create_model("mobilenet_v3_small")


def test_backbone_weights_from_a_file(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(1)
    source = mobilenet_v3_small()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = create_model("mobilenet_v3_small", tmp_path / "w.pth")
    assert torch.equal(model.state_dict()["features.0.0.weight"], source.features[0][0].weight)
    with pytest.raises(WeightsError, match="do not fit"):
        create_model("mobilenet_v2", tmp_path / "w.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(WeightsError, match="not a state dict of tensors alone"):
            create_model("mobilenet_v2", tmp_path / name)
    torch.save({"epoch": 3, "model": source.state_dict()}, tmp_path / "whole_run.pth")
    with pytest.raises(WeightsError, match="not a state dict of tensors alone"):
        create_model("mobilenet_v2", tmp_path / "whole_run.pth")


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_a_nima_brings_its_head_along(backbone: str, tmp_path: Path) -> None:
    widths = [8] * 13 + [24] if backbone == "mobilenet_v1" else None
    source = create_model(backbone, "none", widths=widths)
    fields = meta(backbone=backbone, **({} if widths is None else {"widths": widths}))
    folder = save_checkpoint(tmp_path / "c", source, fields)
    for weights in (folder, folder / "model.safetensors"):
        model = create_model(backbone, weights).state_dict()
        assert model.keys() == source.state_dict().keys()
        assert all(torch.equal(model[n], value) for n, value in source.state_dict().items())
    with pytest.raises(WeightsError, match=f"is a {backbone}: pass it as the backbone"):
        create_model("resnet50", folder)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="damaged or half copied"):
        create_model(backbone, folder)


def meta(**changes: object) -> dict[str, object]:
    return {
        "name": "tiny", "backbone": "mobilenet_v3_small", "dropout": 0.2,
        "preprocessing": PreprocessSpec().to_dict(),
        "reference": {"set": "numbers", "quantiles": reference_quantiles(np.linspace(3, 7, 500))},
        **changes,
    }  # fmt: skip


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = create_model("mobilenet_v3_small", "none", 0.2).eval()
    save_checkpoint(tmp_path / "c", model, meta())
    loaded = load_checkpoint(tmp_path / "c")
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.model(x), model(x))
    assert loaded.spec == PreprocessSpec()
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "checkpoint.json",
        "model.safetensors",
    ]
    quantiles = loaded.meta["reference"]["quantiles"]
    assert (len(quantiles), quantiles[0], quantiles[50], quantiles[100]) == (101, 3, 5, 7)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    model = create_model("mobilenet_v3_small", "none")
    with pytest.raises(CheckpointError, match="lacks 'name'"):
        save_checkpoint(tmp_path, model, {})
    with pytest.raises(CheckpointError, match="101 ascending"):
        save_checkpoint(tmp_path, model, meta(reference={"set": "x", "quantiles": [2.0, 1.0]}))
    with pytest.raises(CheckpointError, match=r"has no checkpoint\.json"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, model, meta())
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path)
    text = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps({**text, "format": 9}))
    with pytest.raises(CheckpointError, match="format 9"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": None}, "backbone must be text, not None"),
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'"),
        ({"backbone": "mobilenet_v2"}, "cannot be loaded: .* state_dict for MobileNetV2: Missing"),
        ({"dropout": "x"}, "dropout must be a number"),
        ({"dropout": 3}, "dropout probability"),
        ({"widths": [1] * 14}, "widths can be chosen for mobilenet_v1"),
        ({"preprocessing": None}, "preprocessing must be an object"),
        ({"preprocessing": {"size": 224}}, "unknown preprocessing fields"),
        ({"preprocessing": {"crop_size": "a"}}, "cannot be loaded"),
        ({"weights_sha256": None}, "weights_sha256 must be text"),
        ({"reference": {"set": "x", "quantiles": [None] * 101}}, "101 ascending"),
        ({"reference": {"set": "x", "quantiles": [math.nan] * 101}}, "101 ascending"),
        ({"reference": {"set": "x", "quantiles": ["a"] * 101}}, "101 ascending"),
        ({"reference": {"set": "x", "quantiles": 5}}, "101 ascending"),
    ],
)
def test_metadata_of_the_wrong_kind_is_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    save_checkpoint(tmp_path, create_model("mobilenet_v3_small", "none"), meta())
    file = tmp_path / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"[1]", b"3", b"\xff\xfe{}", b"[" * 100_000, b""])
def test_metadata_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is not"):
        load_checkpoint(tmp_path)


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, create_model("mobilenet_v3_small", "none"), meta())
    file, weights = tmp_path / "checkpoint.json", tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    changed = {**json.loads(file.read_text()), "weights_sha256": sha256_file(weights)}
    file.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("failing", ["metadata", "disk"])
def test_a_save_that_fails_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    old, new = (create_model("mobilenet_v3_small", "none") for _ in range(2))
    save_checkpoint(tmp_path, old, meta())
    if failing == "metadata":
        with pytest.raises(CheckpointError, match="metadata is not JSON"):
            save_checkpoint(tmp_path, new, meta(metrics={"spearman": float("nan")}))
        with pytest.raises(CheckpointError, match="metadata is not JSON"):
            save_checkpoint(tmp_path, new, meta(training={"photos": tmp_path}))
    else:
        synced = []

        def full_at_the_second(descriptor: int) -> None:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                synced.append(descriptor)
            if len(synced) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full_at_the_second)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, new, meta())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.json",
        "model.safetensors",
    ]
    kept = load_checkpoint(tmp_path).model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in old.state_dict().items())


def test_a_kill_between_any_two_file_operations_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [create_model("mobilenet_v3_small", "none") for _ in range(3)]
    folder, moments = tmp_path / "c", tmp_path / "moments"
    save_checkpoint(folder, models[0], meta(name="0"))
    (folder / "model.safetensors").chmod(0o640)

    def as_a_kill_would_leave_it() -> None:
        moment = moments / str(len(list(moments.glob("*"))))
        moment.mkdir(parents=True)
        for path in folder.iterdir():
            (moment / path.name).write_bytes(path.read_bytes())

    for name in ("fsync", "chmod", "rename", "replace", "unlink", "remove"):
        real = getattr(os, name)

        def watched(*args: Any, real: Callable[..., None] = real, **options: Any) -> None:
            as_a_kill_would_leave_it()
            real(*args, **options)
            as_a_kill_would_leave_it()

        monkeypatch.setattr(os, name, watched)
    save_checkpoint(folder, models[1], meta(name="1"))
    monkeypatch.undo()
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o640

    def saved(place: Path) -> int:
        """Which of the models a folder holds, name and weights alike."""
        loaded = load_checkpoint(place)
        number = int(loaded.meta["name"])
        own = models[number].state_dict()
        assert all(torch.equal(own[n], value) for n, value in loaded.model.state_dict().items())
        return number

    left = sorted(moments.iterdir(), key=lambda path: int(path.name))
    held = [saved(place) for place in left]
    assert held == sorted(held)
    assert set(held) == {0, 1}
    for place in left:  # and what a kill left is no hindrance to the next save
        save_checkpoint(place, models[2], meta(name="2"))
        assert saved(place) == 2
        assert not list(place.glob("model.?*.safetensors"))
        assert len(list(place.iterdir())) == 2  # nor a hidden file, as large as the weights


def test_reading_while_a_checkpoint_is_replaced_finds_one_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (create_model("mobilenet_v3_small", "none") for _ in range(2))
    save_checkpoint(tmp_path, old, meta(name="old"))
    read = checkpoint_files.read_meta

    def then_replaced(directory: Path) -> dict[str, Any]:
        found = read(directory)
        monkeypatch.undo()
        save_checkpoint(tmp_path, new, meta(name="new"))
        return found

    monkeypatch.setattr(checkpoint_files, "read_meta", then_replaced)
    assert load_checkpoint(tmp_path).meta["name"] == "new"


def test_reference_quantiles_refuse_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        reference_quantiles(np.array([1.0, np.nan]))


def folded_layers(model: nn.Module) -> list[FoldedLayer]:
    generator = torch.Generator().manual_seed(3)
    return [
        FoldedLayer(
            CONV,
            torch.randn(conv.weight.shape, generator=generator) / conv.weight[0].numel() ** 0.5,
            torch.rand(conv.out_channels, generator=generator),
        )
        for conv, _ in conv_norm_pairs(model)
    ]


def test_calibrated_norms_leave_the_function_alone() -> None:
    model = create_model("mobilenet_v2", "none", 0.0).eval()
    layers = folded_layers(model)
    assert load_folded(model, layers) is None
    x = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        before = model(x)
        first = model.features[0][0](x)  # type: ignore[index]
        expected = nn.functional.conv2d(x, layers[0].weight, layers[0].bias, 2, 1)
        torch.testing.assert_close(model.features[0][1](first), expected, atol=1e-5, rtol=1e-4)  # type: ignore[index]
    calibrate_batch_norm(model, x.split(2))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-3)
        inside = model.features[0][0](x)  # type: ignore[index]
    norm = conv_norm_pairs(model)[0][1]
    torch.testing.assert_close(norm.running_mean, inside.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        norm.running_var, inside.var((0, 2, 3), unbiased=False), atol=1e-4, rtol=1e-3
    )


def test_folded_norms_compute_and_learn_the_same() -> None:
    torch.manual_seed(0)
    model = create_model("mobilenet_v2", "none", 0.0)
    load_folded(model, folded_layers(model))
    calibrate_batch_norm(model, [torch.randn(4, 3, 64, 64)])
    model.eval()
    fast = with_folded_norms(model)
    assert [id(p) for p in fast.parameters()] == [id(p) for p in model.parameters()]
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for network in (model, fast):
        model.zero_grad()
        distribution.mean(distribution.probabilities(network(x))).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-3)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 + 1e-3 * a.abs().max().item(), rtol=1e-2)


def test_load_folded_refuses_another_network() -> None:
    model = create_model("mobilenet_v2", "none")
    layers = folded_layers(model)
    with pytest.raises(ValueError, match="52 convolutions, the file 51"):
        load_folded(model, layers[:-1])
    with pytest.raises(ValueError, match="expected a convolution"):
        load_folded(model, layers[::-1])
