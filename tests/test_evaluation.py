"""The measures of depth, each beside a computation of its own."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kendalltau

import kdepth
from kdepth import samples
from kdepth.notebook.evaluation import boundary_f1, rank_correlation

Array = NDArray[np.float64]


def scene(seed: int = 0, shape: tuple[int, int] = (24, 32)) -> tuple[Array, Array]:
    """Depth in metres with edges, and a prediction of it with noise."""
    generator = np.random.default_rng(seed)
    depth = np.kron(generator.uniform(1, 20, (shape[0] // 4, shape[1] // 4)), np.ones((4, 4)))
    return depth, depth * np.exp(generator.normal(0.05, 0.2, shape))


def by_hand(d: Array, t: Array) -> dict[str, float]:
    """The formulas of the papers, a pixel at a time."""
    pairs = [(float(a), float(b)) for a, b in zip(d.ravel(), t.ravel(), strict=True) if math.isfinite(b) and b > 0]
    n = len(pairs)
    g = [math.log(a) - math.log(b) for a, b in pairs]
    worst = [max(a / b, b / a) for a, b in pairs]
    return {
        "abs_rel": sum(abs(a - b) / b for a, b in pairs) / n,
        "rmse": math.sqrt(sum((a - b) ** 2 for a, b in pairs) / n),
        "log10": sum(abs(math.log10(a) - math.log10(b)) for a, b in pairs) / n,
        "silog": 100 * math.sqrt(sum(x * x for x in g) / n - (sum(g) / n) ** 2),
        "delta1": sum(w < 1.25 for w in worst) / n,
        "delta2": sum(w < 1.25**2 for w in worst) / n,
        "delta3": sum(w < 1.25**3 for w in worst) / n,
    }


def f1_by_hand(d: Array, t: Array) -> float:
    """Precision and recall over neighbours, in the words of Depth Pro's paper: i occludes j if d(j) / d(i) > factor."""
    height, width = t.shape
    neighbours = [
        ((y, x), (y + dy, x + dx))
        for y, x, (dy, dx) in product(range(height), range(width), ((0, 1), (1, 0), (0, -1), (-1, 0)))
        if 0 <= y + dy < height and 0 <= x + dx < width
    ]
    neighbours = [(i, j) for i, j in neighbours if all(math.isfinite(m[k]) for m in (d, t) for k in (i, j))]
    total = weights = 0.0
    for factor in np.linspace(1.05, 1.25, 10):
        predicted = {(i, j) for i, j in neighbours if d[j] / d[i] > factor}
        true = {(i, j) for i, j in neighbours if t[j] / t[i] > factor}
        if not true:
            continue
        recall = len(predicted & true) / len(true)
        precision = len(predicted & true) / len(predicted) if predicted else 0.0
        total += factor * (2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        weights += factor
    return total / weights


@pytest.mark.parametrize("seed", range(3))
def test_metric_depth_is_scored_as_the_formulas_say(seed: int) -> None:
    depth, predicted = scene(seed)
    found = kdepth.evaluate_depth(1 / predicted, 1 / depth, kind="metric")
    for name, value in by_hand(predicted, depth).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert found.boundary_f1 == pytest.approx(f1_by_hand(predicted, depth), rel=1e-9)
    assert 0.2 < found.boundary_f1 < 0.9
    assert found.num_pixels == depth.size
    # All pairs, of which Kendall's tau counts the ordered ones: no two predictions are equal.
    t, p = depth[::3, ::3].ravel(), predicted[::3, ::3].ravel()
    right = [
        (p[i] < p[j]) == (t[i] < t[j])
        for i, j in combinations(range(len(t)), 2)
        if max(t[i] / t[j], t[j] / t[i]) > 1.03
    ]
    sample = kdepth.evaluate_depth(1 / predicted[::3, ::3], 1 / depth[::3, ::3], kind="metric")
    assert sample.order == pytest.approx(np.mean(right), abs=0.015)
    assert sample.order == pytest.approx((kendalltau(p, t, variant="c").statistic + 1) / 2, abs=0.05)


def test_relative_depth_is_aligned_by_scale_and_shift_in_inverse_depth() -> None:
    depth, predicted = scene()
    relative = 3 / predicted + 7
    found = kdepth.evaluate_depth(relative, 1 / depth, kind="relative")
    scale, shift = np.linalg.lstsq(
        np.stack([relative.ravel(), np.ones(relative.size)], 1), 1 / depth.ravel(), rcond=None
    )[0]
    aligned = 1 / np.clip(scale * relative + shift, 1 / 80, 1e3)
    for name, value in by_hand(aligned, depth).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name
    assert found.boundary_f1 == pytest.approx(f1_by_hand(aligned, depth), rel=1e-6)
    # Another scale and shift is the same prediction; near and far exchanged is not.
    again = kdepth.evaluate_depth(50 * relative - 4, 1 / depth, kind="relative")
    assert again.abs_rel == pytest.approx(found.abs_rel, rel=1e-9)
    assert kdepth.evaluate_depth(-relative, 1 / depth, kind="relative").order == pytest.approx(1 - found.order)
    # A constant is fitted with the mean.
    flat = kdepth.evaluate_depth(np.ones((1, 4)), 1 / np.array([[1.0, 2, 4, 4]]), kind="relative")
    assert flat.abs_rel == pytest.approx(np.mean(np.abs(2 - np.array([1, 2, 4, 4])) / [1, 2, 4, 4]))
    assert (flat.order, flat.boundary_f1) == (0.5, 0)


@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_true_depth_is_perfect_and_a_known_scale_gives_what_it_must(kind: str) -> None:
    truth = next(samples.true_inverse_depth(next(iter(samples.rendered_clips()))))
    found = kdepth.evaluate_depth(truth, truth, kind=kind)  # type: ignore[arg-type]
    assert (found.delta1, found.delta3, found.order, found.boundary_f1) == (1, 1, 1, 1)
    assert max(found.abs_rel, found.rmse, found.log10, found.silog) < 1e-5
    assert 0 < found.num_pixels == np.count_nonzero(truth >= 1 / 80)
    # 30 % too far everywhere.
    scaled = kdepth.evaluate_depth(truth / 1.3, truth, kind=kind, max_depth_m=40)  # type: ignore[arg-type]
    if kind == "relative":
        assert scaled.abs_rel < 1e-5
        return
    deep = kdepth.evaluate_depth(truth / 1.3, np.where(truth > 1.3 / 40, truth, 0), kind="metric", max_depth_m=40)
    assert (deep.abs_rel, deep.log10) == pytest.approx((0.3, math.log10(1.3)), rel=1e-5)
    assert (deep.delta1, deep.delta2, deep.order, deep.boundary_f1) == (0, 1, 1, 1)
    assert deep.silog < 1e-4


def test_what_is_not_known_does_not_count() -> None:
    depth, predicted = scene()
    clean = kdepth.evaluate_depth(1 / predicted[:, 5:], 1 / depth[:, 5:], kind="metric")
    truth, inverse = 1 / depth, 1 / predicted
    truth[:, 0], truth[:, 1], inverse[:, 2], truth[:, 3], truth[:, 4] = 0, np.nan, np.nan, 1 / 81, 1e4
    found = kdepth.evaluate_depth(inverse, truth, kind="metric")
    assert found == clean
    # Predicted beyond the caps is at the caps.
    far = kdepth.evaluate_depth(np.zeros((2, 2)), np.full((2, 2), 1 / 40), kind="metric", max_depth_m=60)
    near = kdepth.evaluate_depth(np.full((2, 2), 1e9), np.full((2, 2), 1.0), kind="metric", min_depth_m=0.5)
    assert (far.abs_rel, near.abs_rel) == (0.5, 0.5)
    assert math.isnan(far.order)
    assert math.isnan(far.boundary_f1)


def test_edges_count_by_their_place_and_side() -> None:
    true = np.ones((6, 6))
    true[:, 3:] = 2
    moved, softer = np.roll(true, 1, 1), true.copy()
    moved[:, 0] = 1
    softer[:, 3:] = 1.15  # an edge for the lower half of the factors alone
    assert boundary_f1(true, true) == 1
    assert boundary_f1(moved, true) == 0
    assert boundary_f1(3 - true, true) == 0
    factors = np.linspace(1.05, 1.25, 10)
    assert boundary_f1(softer, true) == pytest.approx(factors[factors < 1.15].sum() / factors.sum())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"predicted": np.ones((2, 3))}, "one shape"),
        ({"predicted": np.ones(4), "truth": np.ones(4)}, "one shape"),
        ({"kind": "stereo"}, "kind='stereo'"),
        ({"min_depth_m": 5.0, "max_depth_m": 5.0}, "min_depth_m=5.0 and max_depth_m=5.0"),
        ({"max_depth_m": math.inf}, "max_depth_m=inf"),
        ({"truth": np.zeros((2, 2))}, "only 0 pixels"),
    ],
)
def test_what_can_not_be_compared_is_named(change: dict[str, object], says: str) -> None:
    arguments = {"predicted": np.ones((2, 2)), "truth": np.ones((2, 2)), "kind": "metric"} | change
    with pytest.raises(ValueError, match=says):
        kdepth.evaluate_depth(**arguments)  # type: ignore[arg-type]


def test_rank_correlation_of_known_orders() -> None:
    values = np.array([[3.0, 1.0], [2.0, 4.0]])
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    # With ties, by hand: ranks 1.5 1.5 3 4 against 1 2 3 4.
    assert rank_correlation(np.array([5.0, 5.0, 6.0, 7.0]), np.arange(4.0)) == pytest.approx(0.9486833)
    assert rank_correlation(np.array([1.0, np.nan, 2.0]), np.array([1.0, 9.0, 2.0])) == pytest.approx(1)
    assert math.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    assert math.isnan(rank_correlation(np.full(3, np.nan), np.arange(3.0)))
