"""Pruning by reconstruction, and the loss that trains what is left."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nima_training.distill.half import round_to_half, rounded_rows
from nima_training.distill.matching import Matching, maps_and_logits, varied
from nima_training.distill.prune import STEP, choose_widths, elimination, prune
from nima_training.folded import conv_norm_pairs, folded_weights
from nima_training.mobilenet_v1 import STRIDES, WIDTHS, MobileNetV1, multiply_adds
from nima_training.models import create_model

NARROW = [32, 32, 32, 48, 48, 48, 48, 48, 48, 48, 48, 48, 64, 64]


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(24, 3, 8, 8, generator=generator) * 2 - 1
    fine = torch.rand(24, 3, 64, 64, generator=generator) * 2 - 1
    return 0.7 * nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear") + 0.3 * fine


def teacher_of(widths: list[int], images: Tensor) -> MobileNetV1:
    """A random network with the statistics of ``images``, every layer alive, answers spread."""
    torch.manual_seed(4)
    model = MobileNetV1(dropout=0.0, widths=widths)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, 0.0, 0.5)
    with torch.no_grad():
        model.train()(images)
    model.eval().requires_grad_(False)
    return model


def test_multiply_adds_are_those_of_the_network() -> None:
    counted = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d)
        counted += output[0, 0].numel() * module.weight.numel()

    model = MobileNetV1(widths=NARROW).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 224, 224))
    assert multiply_adds(NARROW) == counted
    assert multiply_adds(WIDTHS) / 1e6 == pytest.approx(568, abs=1)  # Howard et al. (2017): 569
    assert len(STRIDES) == len(WIDTHS)


def test_widths_are_checked() -> None:
    with pytest.raises(ValueError, match="14 positive widths"):
        MobileNetV1(widths=(32, 64))
    with pytest.raises(ValueError, match="not for resnet50"):
        create_model("resnet50", "none", widths=NARROW)
    model = create_model("mobilenet_v1", "none", widths=NARROW)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_elimination_drops_the_redundant_and_knows_what_it_costs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 32, dtype=torch.float64) @ torch.randn(32, 32, dtype=torch.float64)
    x[:, 5] = 2 * x[:, 3] - x[:, 9]  # says nothing new
    readers = torch.randn(20, 32, dtype=torch.float64)
    readers[:, 17] = 0.0  # nobody listens
    x -= x.mean(0)
    order, cost = elimination(x.T @ x / len(x), readers)
    assert len(order) == 32 - STEP
    assert set(order[:2]) & {3, 5, 9}
    assert len(cost) == len(order) + 1
    assert cost[0] == 0
    assert all(a <= b for a, b in itertools.pairwise(cost))
    assert cost[2] < 1e-2 * cost[3]
    y = x @ readers.T
    for removed in (4, 16):
        kept = [c for c in range(32) if c not in order[:removed]]
        solution = torch.linalg.lstsq(x[:, kept], y).solution
        error = (x[:, kept] @ solution - y).square().mean(0).sum()
        assert cost[removed] == pytest.approx(float(error), rel=0.02)


def test_widths_meet_the_budget_and_spare_what_matters() -> None:
    costs = [[0.0] + [1e-3 * n for n in range(1, width - STEP + 1)] for width in NARROW]
    costs[7] = [1e3 * cost for cost in costs[7]]
    budget = 0.6 * multiply_adds(NARROW)
    widths = choose_widths(costs, NARROW, budget)
    assert multiply_adds(widths) <= budget
    assert widths[7] == NARROW[7]
    assert all((full - width) % STEP == 0 for full, width in zip(NARROW, widths, strict=True))
    assert min(widths) >= STEP
    with pytest.raises(ValueError, match="too small: pruning stops at"):
        choose_widths(costs, NARROW, 1e5)


def test_dead_channels_go_and_the_answers_stay(images: Tensor) -> None:
    teacher = teacher_of(NARROW, images)
    dead = {5: range(16), 11: range(16, 32)}
    for part, channels in dead.items():
        norm = teacher.features[part].get_submodule("1.1")
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight[list(channels)] = 0.0
        norm.bias[list(channels)] = 0.0
    smaller = list(NARROW)
    for part in dead:
        smaller[part] -= 16
    pruned = prune(teacher, images, multiply_adds(smaller))
    assert pruned.model.widths == smaller
    for part, channels in dead.items():
        assert not set(pruned.kept[part].tolist()) & set(channels)
    with torch.no_grad():
        theirs, ours = teacher(images), pruned.model(images)
        change = (theirs - theirs.mean(1, keepdim=True)) - (ours - ours.mean(1, keepdim=True))
    assert change.abs().max() < 0.02 * theirs.std()


def test_refitting_beats_cutting(images: Tensor) -> None:
    teacher = teacher_of(NARROW, images)
    pruned = prune(teacher, images, 0.8 * multiply_adds(NARROW))
    cut = MobileNetV1(dropout=0.0, widths=pruned.model.widths).eval()
    state = {}
    for name, value in teacher.state_dict().items():
        part = int(name.split(".")[1]) if name.startswith("features") else 14
        own = cut.state_dict()[name]
        depthwise = part and name.startswith(f"features.{part}.0.")
        if own.dim() > 0:
            value = (
                value[pruned.kept[part - 1 if depthwise else min(part, 13)]]
                if (part < 14)
                else value
            )
            if own.dim() > 1 and own.shape[1] != value.shape[1]:
                value = value[:, pruned.kept[part - 1]]
        state[name] = value
    cut.load_state_dict(state)
    with torch.no_grad():
        maps = [net.features(images) for net in (teacher, pruned.model, cut)]
    target = maps[0][:, pruned.kept[-1]]
    fitted, plain = ((m - target).square().mean() for m in maps[1:])
    assert fitted < 0.5 * plain


def test_a_budget_above_the_teacher_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="prunes nothing"):
        prune(MobileNetV1(widths=NARROW), images, multiply_adds(NARROW))


def test_matching_is_nothing_between_equals_and_leaves_frozen_parts(images: Tensor) -> None:
    teacher = teacher_of(NARROW, images)
    everything = [torch.arange(width) for width in NARROW]
    same = Matching(teacher, teacher, everything, 0.5, 0.3, images)
    assert float(same.loss(images, 0)) == pytest.approx(0, abs=1e-6)
    pruned = prune(teacher, images, 0.9 * multiply_adds(NARROW))
    student = pruned.model
    matching = Matching(teacher, student, pruned.kept, 0.5, 0.3, images)
    matching.loss(images, 6).backward()
    for number, part in enumerate(student.features):
        grads = [p.grad is not None for p in part.parameters()]
        assert not any(grads) if number < 6 else all(grads)
    maps, logits = maps_and_logits(student, images)
    assert [m.shape[1] for m in maps] == [student.widths[part] for part in (7, 9, 11, 12, 13)]
    assert torch.allclose(logits, student(images), atol=1e-5)


def test_training_brings_a_student_nearer(images: Tensor) -> None:
    teacher = teacher_of(NARROW, images)
    student = prune(teacher, images, 0.9 * multiply_adds(NARROW))
    with torch.no_grad():
        for parameter in student.model.features[7:].parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    matching = Matching(teacher, student.model, student.kept, 0.5, 0.3, images)
    optimiser = torch.optim.AdamW(student.model.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = matching.loss(images, 6)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_varied_batches_are_new_but_follow_from_the_generator(images: Tensor) -> None:
    batches = [varied(images, 48, 0.5, np.random.default_rng(seed)) for seed in range(8)]
    assert all(batch.shape == (24, 3, 48, 48) for batch in batches)
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert len({float(batch.double().square().sum()) for batch in batches}) > 3
    again = varied(images, 48, 0.5, np.random.default_rng(5))
    assert torch.equal(batches[5], again)
    assert all(float(batch.abs().max()) <= float(images.abs().max()) + 1e-5 for batch in batches)


def test_rounding_to_half_keeps_what_cancels() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 9) * 20
    weight -= weight.mean(1, keepdim=True)  # large taps that cancel
    weight[:, 4] += 0.01
    bias, inputs = torch.randn(64), torch.rand(64, 1).expand(64, 9) * 3
    rounded, rounded_bias = rounded_rows(weight, bias, inputs)
    assert torch.equal(rounded, rounded.half().float())
    assert torch.equal(rounded_bias, rounded_bias.half().float())
    assert ((rounded - weight).abs() <= weight.abs() * 2**-10 + 1e-6).all()  # a neighbour

    def error(w: Tensor, b: Tensor) -> Tensor:
        return ((w - weight).double() * inputs).sum(1).add(b - bias).abs()

    nearest = error(weight.half().float(), bias.half().float())
    assert error(rounded, rounded_bias).mean() < 0.2 * nearest.mean()


def test_a_rounded_network_answers_the_same_in_half(images: Tensor) -> None:
    model = teacher_of(NARROW, images)
    with torch.no_grad():
        before = model(images)
        round_to_half(model, images)
        after = model(images)
    assert (after - before).abs().mean() < 0.02 * before.std()
    weight, bias = folded_weights(*conv_norm_pairs(model)[3])
    assert torch.allclose(weight, weight.half().float(), rtol=1e-6)
    assert torch.allclose(bias, bias.half().float(), rtol=1e-6)
