"""What starts at random is fitted in closed form first: the head and the hint adapters.

It costs one pass over some thousand views and spares the student the steps in which random layers
send noise into its backbone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nima_training.distill.head import fit_head
from nima_training.distill.student import Student
from nima_training.distill.teacher import FloatTeacher

SELECTING = 8
RIDGE = 1e-3
"""Penalty of the adapters, as a share of the mean variance of their inputs."""


@torch.no_grad()
def fit_fresh(student: Student, teacher: FloatTeacher, inputs: Iterable[Tensor]) -> float:
    """Fit the adapters by least squares and the head by multinomial regression.

    Args:
        student: changed in place.
        teacher: on the same device.
        inputs: normalised FP32 batches ``[B, 3, S, S]``, at least 8; every eighth selects the
            head's penalty.

    Returns:
        The mean absolute error of the head's mean ratings on the selecting batches.

    Raises:
        ValueError: fewer than 8 batches.
    """
    sums: list[tuple[Tensor, Tensor] | None] = [None] * len(teacher.channels)
    pooled: dict[bool, list[Tensor]] = {False: [], True: []}
    labels: dict[bool, list[Tensor]] = {False: [], True: []}
    for number, x in enumerate(inputs):
        target, target_maps = teacher(x)
        _, maps = student(x)
        for depth, (own, theirs) in enumerate(zip(maps, target_maps, strict=True)):
            a, b = _rows(own), theirs.float().movedim(1, -1).flatten(0, -2).double()
            new = (a.T @ a, a.T @ b)
            old = sums[depth]
            sums[depth] = new if old is None else (old[0] + new[0], old[1] + new[1])
        select = number % SELECTING == SELECTING - 1
        pooled[select].append(maps[-1].float().mean((2, 3)).cpu())
        labels[select].append(target.cpu())
    if not pooled[True]:
        raise ValueError(f"fitting the head needs at least {SELECTING} batches of views")
    for adapter, moments in zip(student.hints.adapters, sums, strict=True):
        assert isinstance(adapter, nn.Conv2d)
        assert moments is not None
        _solve_ridge(adapter, *moments)
    with torch.enable_grad():
        layer, _, error = fit_head(
            torch.cat(pooled[False]), torch.cat(labels[False]),
            torch.cat(pooled[True]), torch.cat(labels[True]),
        )  # fmt: skip
    student.linear.load_state_dict(layer.state_dict())
    return error


def _rows(maps: Tensor) -> Tensor:
    """Maps ``[B, C, H, W]`` as FP64 rows ``[B * H * W, C + 1]``, a one at the end of each."""
    rows = maps.float().movedim(1, -1).flatten(0, -2).double()
    return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


def _solve_ridge(adapter: nn.Conv2d, gram: Tensor, cross: Tensor) -> None:
    penalty = RIDGE * gram.diagonal()[:-1].mean() * torch.eye(len(gram), device=gram.device)
    penalty[-1, -1] = 0  # the bias
    solution = torch.linalg.solve(gram + penalty, cross).T.float()
    adapter.weight.copy_(solution[:, :-1, None, None])
    assert adapter.bias is not None
    adapter.bias.copy_(solution[:, -1])
