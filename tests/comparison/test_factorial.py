"""Designs, effects and rank correlations on made-up data of which the truth is known."""

import itertools

import numpy as np
import pytest

from rsd.comparison.factorial import alias, contrasts, design, draws, estimate, label, predicts, rank_correlation, terms
from rsd.errors import SettingError


@pytest.mark.parametrize(
    ("num_factors", "half", "num_cells"), [(2, False, 4), (5, False, 32), (5, True, 16), (6, True, 32)]
)
def test_a_design_is_orthogonal_and_begins_with_the_reference(num_factors, half, num_cells):
    cells = design(num_factors, half=half)
    assert cells.shape == (num_cells, num_factors) and len({tuple(cell) for cell in cells.tolist()}) == num_cells
    assert (cells[0] == -1).all()
    columns = np.stack([cells[:, list(term)].prod(axis=1) for term in terms(num_factors)], axis=1)
    assert (columns.T @ columns == num_cells * np.eye(len(terms(num_factors)))).all()
    assert (columns.sum(axis=0) == 0).all()


def test_half_of_five_factors_has_resolution_five():
    """The shortest product of factors that is the same in every cell has five of them, and it is −ABCDE."""
    cells = design(5, half=True)
    constant = [
        one
        for order in range(1, 6)
        for one in itertools.combinations(range(5), order)
        if len(set(cells[:, list(one)].prod(axis=1).tolist())) == 1
    ]
    assert constant == [(0, 1, 2, 3, 4)] and (cells.prod(axis=1) == -1).all()
    assert alias((0,), 5) == "-BCDE" and alias((0, 1), 5) == "-CDE" and alias((0, 1), 6) == "CDEF"
    bcde = cells[:, 1:].prod(axis=1)
    assert (cells[:, 0] == -bcde).all()
    assert [label(cell) for cell in cells.tolist()][:3] == ["(1)", "ab", "ac"]


@pytest.mark.parametrize(
    ("num_factors", "half", "message"),
    [
        (1, False, "1 factors, expected 2 to 7"),
        (8, True, "8 factors, expected 2 to 7"),
        (4, True, "a design of resolution 4, in which effects and interactions of two factors are aliased"),
    ],
)
def test_designs_that_are_refused(num_factors, half, message):
    with pytest.raises(SettingError, match=message):
        design(num_factors, half=half)


def simulated(rates: np.ndarray, num_episodes: int, random: np.random.Generator, spread: float = 0.1) -> np.ndarray:
    """Outcomes [E, N] of cells of these mean success rates [N]; a hard episode is one for every cell."""
    hardness = random.uniform(-spread, spread, size=(num_episodes, 1))
    return (random.random((num_episodes, len(rates))) < np.clip(rates + hardness, 0, 1)).astype(float)


def rates_of(cells: np.ndarray, base: float, effects: dict[tuple[int, ...], float]) -> np.ndarray:
    """Mean rates of cells with these effects, as `Effect.value` counts them."""
    return base + sum(value / 2 * cells[:, list(term)].prod(axis=1) for term, value in effects.items())


def test_known_effects_are_found():
    cells = design(5, half=True)
    truth = {(0,): -0.2, (3,): -0.1, (0, 3): -0.06}
    outcomes = simulated(rates_of(cells, 0.6, truth), 4000, np.random.default_rng(0))
    found = {one.factors: one for one in estimate(outcomes, cells, np.arange(4000) % 10, resamples=500)}
    assert len(found) == 15
    for term, one in found.items():
        assert one.value == pytest.approx(truth.get(term, 0.0), abs=0.02)
        assert one.all_low <= one.low <= one.value <= one.high <= one.all_high
    assert found[0,].high < -0.15 and found[0, 3].high < 0 and found[1,].low < 0 < found[1,].high


def test_an_effect_is_what_it_says_by_hand():
    """Two factors, one episode: only the cell in which both are changed fails."""
    cells = design(2, half=False)
    outcomes = np.array([[1.0, 1.0, 1.0, 0.0]])
    assert contrasts(outcomes, cells, terms(2)).tolist() == [[-0.5, -0.5, -0.5]]
    (first, _, both) = estimate(outcomes, cells, np.zeros(1), resamples=10)
    assert (first.value, both.value) == (-0.5, -0.5)
    with pytest.raises(ValueError, match="no episode"):
        estimate(outcomes[:0], cells, np.zeros(0))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """300 studies of 60 episodes in 6 tasks: the shares of intervals that hold the true effect."""
    cells, random, inside, wide = design(5, half=True), np.random.default_rng(1), [], []
    truth = {(0,): -0.1, (1, 2): 0.05}
    rates, tasks = rates_of(cells, 0.75, truth), np.arange(60) % 6
    for number in range(300):
        for one in estimate(simulated(rates, 60, random), cells, tasks, seed=number, resamples=1000):
            value = truth.get(one.factors, 0.0)
            inside.append(one.low <= value <= one.high)
            wide.append(one.all_low <= value <= one.all_high)
    assert 0.93 < np.mean(inside) < 0.97 and np.mean(wide) > 0.985


def test_episodes_are_drawn_within_their_tasks():
    tasks = np.array([0, 0, 0, 1, 1, 2, 2])
    counts = draws(tasks, seed=0, resamples=200)
    assert np.allclose(counts[:, :3].sum(axis=1), 3) and (counts[:, 3:5].sum(axis=1) == 2).all()
    assert (counts == draws(tasks, seed=0, resamples=200)).all()
    alone = draws(np.array([0, 1, 2, 3]), seed=0, resamples=200)  # one of each: drawn together
    assert np.allclose(alone.sum(axis=1), 4) and alone[:, 0].std() > 0
    assert (draws(np.zeros(1), seed=0, resamples=3) == 1).all()


def test_rank_correlation():
    first = np.array([[1.0, 2.0, 2.0, 4.0], [1.0, 2.0, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    second = np.array([[4.0, 3.0, 1.0, 0.0], [0.0, 5.0, 6.0, 6.5], [5.0, 5.0, 5.0, 5.0]])
    assert rank_correlation(first, second) == pytest.approx([-0.9486833, 1, np.nan], nan_ok=True)
    assert np.isnan(rank_correlation(first[:, :2], second[:, :2])).all()


def test_an_error_that_decides_on_the_loss_predicts_it_and_another_does_not():
    random = np.random.default_rng(2)
    error = np.linspace(0.5, 8, 15)  # of each cell
    shown = error + random.normal(0, 0.5, (12, 15))  # of recorded episodes
    losses = (random.random((100, 15)) < error / 20).astype(float)
    ones, groups = np.ones((100, 15)), (np.zeros(12), np.arange(100) % 10)
    found = predicts(shown, np.ones((12, 15)), losses, ones, groups, resamples=300)
    assert found.value > 0.8 and 0.5 < found.low <= found.value <= found.high <= 1 and found.num_cells == 15
    noise = random.normal(0, 1, (12, 15))
    other = predicts(noise, np.ones((12, 15)), losses, ones, groups, resamples=300)
    assert other.low < 0.3
    nothing = predicts(shown, np.ones((12, 15)), np.zeros((100, 15)), ones, groups, resamples=20)
    assert nothing.value is None and nothing.low is None
