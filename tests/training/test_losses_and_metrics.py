"""EMD and metrics against hand-computed values and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from nima_training import distribution, metrics
from nima_training.losses import DistillationLoss, EMDLoss, emd

RATINGS = np.arange(1, 11)


def one_hot(rating: int) -> torch.Tensor:
    return torch.eye(10)[rating - 1]


def random_distributions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(10), count)


@pytest.mark.parametrize(
    ("first", "second", "r", "expected"),
    [
        (1, 10, 1, 9 / 10),  # nine of the ten CDF bins differ by 1
        (1, 10, 2, (9 / 10) ** 0.5),
        (4, 6, 1, 2 / 10),
        (4, 6, 2, (2 / 10) ** 0.5),
        (5, 5, 1, 0.0),
    ],
)
def test_emd_by_hand(first: int, second: int, r: float, expected: float) -> None:
    assert emd(one_hot(first), one_hot(second), r).item() == pytest.approx(expected, abs=1e-6)


def test_emd_of_halves_by_hand() -> None:
    # CDFs differ by 0.5 in bins 1..4 and by 0 elsewhere.
    p = 0.5 * one_hot(1) + 0.5 * one_hot(8)
    q = 0.5 * one_hot(5) + 0.5 * one_hot(8)
    assert emd(p, q, 1).item() == pytest.approx(4 * 0.5 / 10)
    assert emd(p, q, 2).item() == pytest.approx((4 * 0.25 / 10) ** 0.5)


def test_emd_r1_is_scipys_wasserstein_distance_over_ten() -> None:
    p, q = random_distributions(50), random_distributions(50, 1)
    ours = emd(torch.from_numpy(p), torch.from_numpy(q), 1).numpy()
    scipys = [stats.wasserstein_distance(RATINGS, RATINGS, a, b) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(ours, np.array(scipys) / 10, atol=1e-12)
    np.testing.assert_allclose(metrics.emd(p, q, 1), ours, atol=1e-12)
    r2 = emd(torch.from_numpy(p), torch.from_numpy(q), 2).numpy()
    np.testing.assert_allclose(metrics.emd(p, q, 2), r2, atol=1e-6)
    assert (r2 >= ours - 1e-9).all()  # a power mean grows with its exponent


def test_emd_gradient_is_finite_at_a_perfect_prediction() -> None:
    logits = torch.zeros(2, 10, requires_grad=True)
    EMDLoss()(logits, torch.full((2, 10), 0.1)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("r", [1.0, 1.5, 2.0, 3.0, 10.0, 200.0])
def test_emd_and_its_gradient_for_any_exponent(r: float) -> None:
    rng = np.random.default_rng(8)
    logits = torch.from_numpy(rng.normal(0, 2, (30, 10))).requires_grad_()
    near = torch.softmax(logits.detach() + torch.from_numpy(rng.normal(0, 1e-3, (30, 10))), -1)
    target = torch.where(
        torch.arange(30)[:, None] < 15, near, torch.from_numpy(random_distributions(30))
    )

    def loss(values: torch.Tensor) -> torch.Tensor:
        return emd(torch.softmax(values, -1), target, r)

    apart = (torch.softmax(logits, -1) - target).cumsum(-1).abs().detach().numpy()
    largest = apart.max(1)
    expected = largest * ((apart / largest[:, None]) ** r).mean(1) ** (1 / r)
    value = loss(logits)
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-9)
    value.sum().backward()
    assert logits.grad is not None
    step, direction = 1e-7, torch.from_numpy(rng.normal(size=(30, 10)))
    with torch.no_grad():
        slope = (loss(logits + step * direction) - loss(logits - step * direction)) / (2 * step)
    np.testing.assert_allclose((logits.grad * direction).sum(-1), slope, rtol=1e-3, atol=1e-7)


def test_distillation_loss_is_zero_only_at_the_teacher() -> None:
    target = torch.from_numpy(random_distributions(4)).float()
    loss = DistillationLoss()
    assert loss(target.log(), target).item() == pytest.approx(0, abs=1e-6)
    assert loss(torch.zeros(4, 10), target).item() > 0.01


def test_emd_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="r >= 1"):
        emd(one_hot(1), one_hot(2), 0.5)
    with pytest.raises(ValueError, match="shapes differ"):
        emd(torch.zeros(2, 10), torch.zeros(3, 10))


def test_moments_by_hand() -> None:
    p = 0.5 * one_hot(3) + 0.5 * one_hot(7)
    assert distribution.mean(p).item() == pytest.approx(5)
    assert distribution.std(p).item() == pytest.approx(2)
    mean, std = metrics.moments(p.numpy()[None])
    assert (mean[0], std[0]) == (pytest.approx(5), pytest.approx(2))


def test_metrics_equal_scipy_and_numpy() -> None:
    p, q = random_distributions(80, 2), random_distributions(80, 3)
    q = 0.6 * p + 0.4 * q
    result = metrics.evaluate(p, q)
    mean, true_mean = p @ RATINGS, q @ RATINGS
    assert result["pearson_mean"]["value"] == pytest.approx(np.corrcoef(mean, true_mean)[0, 1])
    assert result["spearman_mean"]["value"] == pytest.approx(
        np.corrcoef(stats.rankdata(mean), stats.rankdata(true_mean))[0, 1]
    )
    assert result["kendall_mean"]["value"] == pytest.approx(
        stats.kendalltau(mean, true_mean).statistic
    )
    assert result["accuracy"]["value"] == np.mean((mean > 5) == (true_mean > 5))


def test_a_mean_of_exactly_five_is_not_good() -> None:
    counts = np.random.default_rng(6).integers(0, 60, (4000, 10))
    above = counts @ (RATINGS - 5)
    counts[:, 3] += np.maximum(above, 0)  # each vote of 4 takes one off, each of 6 adds one
    counts[:, 5] += np.maximum(-above, 0)
    p = counts / counts.sum(1, keepdims=True)
    assert (p @ RATINGS > 5).any()  # what rounding makes of some of them
    assert not metrics.is_good(p).any()
    counts[:, 5] += 1
    assert metrics.is_good(counts / counts.sum(1, keepdims=True)).all()
    poor = np.repeat(one_hot(3).numpy()[None], len(p), axis=0)
    assert metrics.evaluate(poor, p)["accuracy"]["value"] == 1
    assert metrics.evaluate(p, poor)["accuracy"]["value"] == 1


def test_bootstrap_interval_covers_the_value_and_shrinks_with_the_set() -> None:
    p, q = random_distributions(400, 4), random_distributions(400, 5)
    q = 0.7 * p + 0.3 * q
    small = metrics.evaluate(p[:40], q[:40], bootstrap=200)["emd_r2"]
    large = metrics.evaluate(p, q, bootstrap=200)["emd_r2"]
    for interval in (small, large):
        assert interval["low"] < interval["value"] < interval["high"]
    assert large["high"] - large["low"] < small["high"] - small["low"]
    assert metrics.evaluate(p, q, bootstrap=20) == metrics.evaluate(p, q, bootstrap=20)


def test_undefined_correlation_is_none_not_nan() -> None:
    constant = np.full((5, 10), 0.1)
    assert metrics.evaluate(constant, random_distributions(5))["pearson_mean"]["value"] is None


def test_ties_are_ties_whatever_the_rounding() -> None:
    # Of ten votes a mean can be had in many ways; FP64 gives them different last bits.
    predicted = random_distributions(200)
    rng = np.random.default_rng(3)
    votes = np.array([rng.multinomial(10, p) for p in random_distributions(200)])
    sums = votes @ np.arange(1, 11)
    mean, _ = metrics.moments(predicted)
    result = metrics.evaluate(predicted, votes / 10)
    assert result["kendall_mean"]["value"] == stats.kendalltau(mean, sums).statistic
    assert result["spearman_mean"]["value"] == pytest.approx(stats.spearmanr(mean, sums).statistic)


def test_equal_predictions_have_no_correlation() -> None:
    for seed in range(20):  # the bits of a mean depend on its row, for some distributions
        equal = np.repeat(random_distributions(1, seed), 27, axis=0)
        result = metrics.evaluate(equal, random_distributions(27), bootstrap=3)
        for name in ("pearson_mean", "spearman_mean", "kendall_mean", "pearson_std"):
            assert result[name] == {"value": None, "low": None, "high": None}


def test_metrics_refuse_nan() -> None:
    bad = random_distributions(3)
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        metrics.evaluate(bad, random_distributions(3))
