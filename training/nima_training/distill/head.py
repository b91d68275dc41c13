"""The head fitted on features of the untouched backbone: a convex problem, solved exactly.

It costs one pass over some thousand views and spares fine-tuning the steps in which a random head
sends noise into the backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nima_training import distribution

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
STEPS = 200


def fit_head(
    features: Tensor, labels: Tensor, selection: Tensor, selection_labels: Tensor
) -> tuple[nn.Linear, float, float]:
    """Multinomial regression with an L2 penalty chosen on the selection views.

    Args:
        features: FP32 ``[N, D]``.
        labels: teacher distributions ``[N, 10]``.
        selection: FP32 ``[M, D]``.
        selection_labels: ``[M, 10]``.

    Returns:
        The layer, its penalty and the mean absolute error of its means on the selection views.
    """
    centre, scale = features.mean(0), features.std(0).clamp_min(1e-3)
    best: tuple[nn.Linear, float, float] | None = None
    for penalty in PENALTIES:
        layer = _solve((features - centre) / scale, labels, penalty)
        with torch.no_grad():  # undo the standardisation inside the layer
            layer.weight.div_(scale)
            layer.bias.sub_(layer.weight @ centre)
            predicted = distribution.mean(distribution.probabilities(layer(selection)))
        error = float((predicted - distribution.mean(selection_labels)).abs().mean())
        if best is None or error < best[2]:
            best = (layer, penalty, error)
    assert best is not None
    return best


def _solve(features: Tensor, labels: Tensor, penalty: float) -> nn.Linear:
    layer = nn.Linear(features.shape[1], labels.shape[1])
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.LBFGS(
        layer.parameters(), max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        log_p = torch.log_softmax(layer(features), dim=-1)
        loss = nn.functional.kl_div(log_p, labels, reduction="batchmean")
        loss = loss + penalty * layer.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return layer
