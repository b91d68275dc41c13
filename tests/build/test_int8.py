"""The int8 graph: same function where nothing is rounded, and rounded for the output's sake."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from nima_build import int8
from nima_build.export import ExportError, to_onnx
from nima_build.int8 import _taps, calibration_pixels, to_int8
from nima_build.int8._ranges import equalise
from nima_build.int8._taps import Stream, narrow_places, tapped
from nima_build.int8._weights import LARGEST, refitted, rounded
from nima_build.onnx_session import cpu_session
from nima_client.preprocess import PreprocessSpec

SIDE = 24


def small_network(seed: int = 0, residual: bool = False) -> onnx.ModelProto:
    """PIXELS to MEAN by way of MobileNet's layers: full, depthwise, pointwise, each with ReLU6.

    The depthwise filters are large and nearly cancel, as those of the published MobileNet v1 do.
    """
    rng = np.random.default_rng(seed)
    channels = 16
    first = rng.normal(0, 0.4, (channels, 3, 3, 3))
    depthwise = rng.normal(0, 8, (channels, 1, 3, 3))
    depthwise -= depthwise.mean((2, 3), keepdims=True) - rng.normal(0, 0.1, (channels, 1, 1, 1))
    # Channels of very different reach.
    pointwise = (
        rng.normal(0, 0.3, (channels, channels, 1, 1))
        * np.geomspace(0.05, 2, channels)[:, None, None, None]
    )
    weights = {
        "w0": first,
        "w1": depthwise * 0.2,
        "w2": pointwise,
        "w3": depthwise,
        "w4": pointwise,
    }
    tensors = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    tensors += [
        numpy_helper.from_array(rng.normal(0.3, 0.2, channels).astype(np.float32), f"b{i}")
        for i in range(5)
    ]
    tensors += [
        numpy_helper.from_array(np.float32(value), name)
        for name, value in (("zero", 0), ("six", 6), ("scale", 1 / 255))
    ]
    tensors.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"))
    nodes = [
        helper.make_node("Cast", ["PIXELS"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["x0"]),
    ]
    for i in range(5):
        weight = weights[f"w{i}"]
        group = channels if weight.shape[1] == 1 else 1
        pads = [1, 1, 1, 1] if weight.shape[2] == 3 else [0, 0, 0, 0]
        nodes.append(
            helper.make_node(
                "Conv", [f"x{i}", f"w{i}", f"b{i}"], [f"y{i}"], f"conv{i}", group=group, pads=pads
            )
        )
        nodes.append(helper.make_node("Clip", [f"y{i}", "zero", "six"], [f"x{i + 1}"]))
    last = "x5"
    if residual:
        nodes.append(helper.make_node("Add", ["x5", "x3"], ["sum"]))
        last = "sum"
    nodes.append(helper.make_node("ReduceMean", [last, "axes"], ["MEAN"], keepdims=0))
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("MEAN", TensorProto.FLOAT, ["batch"])],
        tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Smooth images, as photos are: uint8 [40, S, S, 3]."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (40, 4, 4, 3)).astype(float)
    fine = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    for _ in range(3):
        fine = (fine + np.roll(fine, 1, 1) + np.roll(fine, 1, 2) + np.roll(fine, -1, 1)) / 4
    return fine.astype(np.uint8)


def means(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = cpu_session(model.SerializeToString())
    return np.array([session.run(["MEAN"], {"PIXELS": image[None]})[0][0] for image in pixels])


def test_equal_ranges_do_not_change_the_function(pixels: np.ndarray) -> None:
    model, stretched = small_network(), small_network()
    treated = equalise(stretched, [image[None] for image in pixels])
    assert treated == 4, "all but the last, which no convolution reads"
    before = numpy_helper.to_array(model.graph.initializer[2])
    after = numpy_helper.to_array(stretched.graph.initializer[2])
    assert not np.allclose(before, after)
    np.testing.assert_allclose(means(stretched, pixels), means(model, pixels), rtol=1e-4)


def test_tensors_that_others_read_keep_their_ranges(pixels: np.ndarray) -> None:
    model = small_network(residual=True)
    expected = means(model, pixels)
    assert equalise(model, [image[None] for image in pixels]) == 3, "x3 is added elsewhere"
    np.testing.assert_allclose(means(model, pixels), expected, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 5])
def test_rounding_together_moves_the_output_less_than_rounding_each(groups: int) -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(groups, 7, 9))
    common = rng.normal(size=(groups, 400, 1))
    inputs = common + 0.02 * rng.normal(size=(groups, 400, 9))  # neighbours are alike
    moments = inputs.transpose(0, 2, 1) @ inputs / 400
    steps, scale = rounded(weight, moments, 15)
    assert steps.shape == weight.shape
    assert scale.shape == (groups, 7, 1)
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() <= 15
    nearest = np.rint(weight / scale) * scale

    def moved(other: np.ndarray) -> float:
        return float(np.square(inputs @ (other - weight).transpose(0, 2, 1)).mean())

    assert moved(steps * scale) < 0.4 * moved(nearest)


def test_refitted_weights_undo_what_happened_to_the_inputs() -> None:
    rng = np.random.default_rng(3)
    weight, true = rng.normal(size=(1, 4, 6)), rng.normal(size=(1, 500, 6))
    mixing = np.eye(6) + 0.1 * rng.normal(size=(6, 6))
    seen = true @ mixing
    moments, cross = (seen.transpose(0, 2, 1) @ other / 500 for other in (seen, true))
    fitted = refitted(weight, moments, cross)

    def off(candidate: np.ndarray) -> float:
        goal = true @ weight.transpose(0, 2, 1)
        return float(np.square(seen @ candidate.transpose(0, 2, 1) - goal).mean())

    assert off(fitted) < 0.05 * off(weight)
    np.testing.assert_allclose(refitted(weight, moments, moments), weight, atol=1e-9)


def test_narrow_places_are_those_that_all_passes_through() -> None:
    """Of a graph with a branch from x3 to the sum; its constants do not count."""
    found = narrow_places(small_network(residual=True).graph)
    assert [found[name] for name in ("cast", "x0", "y2", "x3")] == ["cast", "x0", "y2", "x3"]
    assert [found[name] for name in ("y3", "x4", "y4", "x5")] == ["x3"] * 4
    assert (found["sum"], found["MEAN"]) == ("sum", "MEAN")
    assert "w0" not in found


@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["from the beginning", "from narrow places"])
def test_stream_gives_each_tensor_and_runs_little_twice(
    pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    sources = []

    def spied(model: onnx.ModelProto, names: list[str], values: list, source: str) -> object:
        sources.append(source)
        return tapped(model, names, values, source)

    images = [image[None] for image in pixels[:3]]
    names = ["x0", "x2", "x3", "y3", "x5", "sum"]
    expected = list(tapped(small_network(residual=True), names, images))
    monkeypatch.setattr(_taps, "tapped", spied)
    monkeypatch.setattr(_taps, "KEPT_BYTES", kept)
    stream = Stream(small_network(residual=True), images)
    for place, name in enumerate(names):
        got = list(stream.at(name))
        assert len(got) == len(images)
        for value, wanted in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, wanted[place], atol=1e-6)
    if kept:
        assert sources == ["PIXELS", "x0", "x2", "x3", "x3", "x3"]
    else:
        assert set(sources) == {"PIXELS"}


def test_whole_graph_is_nearer_than_rounding_each_weight(
    pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_network()
    fitting, held_out = pixels[:30], pixels[30:]
    expected = means(model, held_out)
    fitted = to_int8(model, fitting)
    steps = [numpy_helper.to_array(t) for t in fitted.graph.initializer if t.data_type == 3]
    assert max(np.abs(s.astype(int)).max() for s in steps if s.shape[1:] == (16, 1, 1)) <= LARGEST
    monkeypatch.setattr("nima_build.int8.fit_weights", lambda *_: None)
    monkeypatch.setattr("nima_build.int8.equalise", lambda *_: None)
    plain = to_int8(model, fitting)
    off = np.abs(means(fitted, held_out) - expected).mean()
    assert 0 < off < 0.5 * np.abs(means(plain, held_out) - expected).mean()


def test_equal_constants_are_quantised_each_for_itself(pixels: np.ndarray) -> None:
    """A bias that exporters keep once for three convolutions and an addition."""
    model = small_network(residual=True)
    for node in model.graph.node:
        if node.name in ("conv2", "conv3", "conv4"):
            node.input[2] = "b1"
    for place, node in enumerate(model.graph.node):
        if node.op_type == "ReduceMean":
            model.graph.initializer.append(
                numpy_helper.from_array(np.full((16, 1, 1), 0.5, np.float32), "half")
            )
            add = helper.make_node("Add", ["sum", "half"], ["raised"], "raise")
            node.input[0] = "raised"
            model.graph.node.insert(place, add)
            break
    quantised = to_int8(model, pixels)
    off = np.abs(means(quantised, pixels) - means(model, pixels))
    assert off.max() < 0.05
    names = {tensor.name for tensor in quantised.graph.initializer}
    assert {"b1/conv3_quantized", "half"} <= names


def test_a_dead_channel_keeps_its_bias(pixels: np.ndarray) -> None:
    model = small_network()
    tensors = {t.name: t for t in model.graph.initializer}
    weight = numpy_helper.to_array(tensors["w2"]).copy()
    weight[3] = 0
    bias = numpy_helper.to_array(tensors["b2"]).copy()
    bias[3] = 4.0
    tensors["w2"].CopyFrom(numpy_helper.from_array(weight, "w2"))
    tensors["b2"].CopyFrom(numpy_helper.from_array(bias, "b2"))
    off = np.abs(means(to_int8(model, pixels), pixels) - means(model, pixels))
    assert off.max() < 0.05


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_a_network_of_matrix_multiplications_is_refused(kind: str) -> None:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    from torchvision.models.swin_transformer import SwinTransformer

    network = (
        SwinTransformer([4, 4], 8, [1, 2], [1, 2], [7, 7], num_classes=10)
        if kind == "swin"
        else ConvNeXt([CNBlockConfig(8, 16, 3), CNBlockConfig(16, None, 3)], num_classes=10)
    )
    model = to_onnx(network, PreprocessSpec(resize_size=56, crop_size=56))
    with pytest.raises(ExportError, match="matrix multiplications for the most part"):
        to_int8(model, np.zeros((1, 56, 56, 3), np.uint8))


def test_calibration_photos_are_spread_over_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shade in range(7):
        Image.new("RGB", (32, 32), (shade, 0, 0)).save(tmp_path / f"{shade}.png")
    (tmp_path / "3b.png").symlink_to("nowhere.png")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    spec = PreprocessSpec(resize_size=32, crop_size=32)
    for count, chosen in ((4, [0, 1, 3, 5]), (7, list(range(7))), (200, list(range(7)))):
        monkeypatch.setattr(int8, "CALIBRATION_PHOTOS", count)
        assert calibration_pixels(tmp_path, spec)[:, 0, 0, 0].tolist() == chosen
