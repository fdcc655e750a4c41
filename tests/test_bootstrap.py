"""Intervals against SciPy, and how often they hold the true value; chance against all permutations."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score

from hpacell.metrics.bootstrap import (
    MIN_GROUPS,
    bootstrap_counts,
    bootstrap_interval,
    describe_interval,
    group_codes,
    precision_areas,
    small_sample_factor,
)
from hpacell.metrics.chance import (
    chance_average_precision,
    expected_average_precision,
    small_sample_bias,
    untruncated_share,
)
from hpacell.metrics.locations import score_locations, summarise_locations
from hpacell.metrics.tissue import summarise_tissue


@pytest.mark.parametrize("n", [10, 40, 300])
@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_the_ends_are_those_of_scipy_moved_and_stretched(n, statistic):
    """Exactly, from the same draws: SciPy's percentile interval, its centre moved to the score, its ends stretched."""
    values = np.random.default_rng(n).beta(6, 3, n)
    found = bootstrap((values,), statistic, method="percentile", n_resamples=999, rng=0)
    drawn, (low, high), score = found.bootstrap_distribution, found.confidence_interval, statistic(values)
    apart = small_sample_factor(n) * (np.array([low, high]) - drawn.mean())
    ours = np.array(bootstrap_interval(np.r_[score, drawn], n, (-np.inf, np.inf)))
    np.testing.assert_allclose(ours, score + apart, rtol=1e-12)
    within = np.array(bootstrap_interval(np.r_[score, drawn], n))  # near 0 and 1 the scale of log odds reaches farther
    odds = expit(logit(score) + apart / (score * (1 - score)))
    np.testing.assert_allclose(within, [min(score + apart[0], odds[0]), max(score + apart[1], odds[1])], rtol=1e-12)


def test_many_images_give_the_interval_of_scipy():
    """With 2,000 images shift and stretch do nothing: our draws, and SciPy's by three methods, agree."""
    values = np.random.default_rng(0).beta(6, 3, 2000)
    ours = np.array(bootstrap_interval(bootstrap_counts(2000, 2000) @ values / 2000, 2000))
    for method in ("percentile", "basic", "BCa"):
        theirs = np.array(bootstrap((values,), np.mean, method=method, n_resamples=2000, rng=1).confidence_interval)
        assert np.abs(ours - theirs).max() < 0.1 * np.diff(ours)[0]  # measured .03; other seeds up to .06


def test_small_samples_are_stretched_as_students_t():
    """The mean of normal values: the draws' standard deviation times the factor is that of Student's interval."""
    for n, expected in ((10, 2.2622), (20, 2.0930), (100, 1.9842)):
        shrunk = np.sqrt((n - 1) / n)  # of the draws
        assert small_sample_factor(n) * shrunk * 1.95996 == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n", [MIN_GROUPS, 20, 100])
def test_intervals_hold_the_mean_of_skewed_scores(n):
    """Dice of images, skewed towards 1: the true mean is in 92 of 100 or more (measured in 2,000: 95 to 97)."""
    rng, inside = np.random.default_rng(n), 0
    for seed in range(300):
        values = rng.beta(9, 1.5, n)
        low, high = bootstrap_interval(bootstrap_counts(n, 200, seed) @ values / n, n)
        inside += low <= 9 / 10.5 <= high
    assert inside >= 0.905 * 300  # four standard deviations below 95.5


def test_no_interval_where_nothing_is_known():
    values = np.r_[0.5, np.linspace(0.3, 0.7, 50)]
    assert np.isnan(bootstrap_interval(values, MIN_GROUPS - 1)).all()
    assert np.isfinite(bootstrap_interval(values, MIN_GROUPS)).all()
    assert np.isnan(bootstrap_interval(np.full(50, 0.5), 100)).all()
    assert np.isnan(bootstrap_interval(np.r_[np.nan, values], 100)).all()
    assert np.isnan(bootstrap_interval(np.r_[0.5, np.full(50, np.nan)], 100)).all()
    assert np.isnan(bootstrap_interval(np.array([0.5]), 100)).all()
    assert bootstrap_interval(np.ones(50), 20) == pytest.approx((1 + np.log(0.025) / 20, 1))
    assert bootstrap_interval(np.zeros(50), 20) == pytest.approx((0, -np.log(0.025) / 20))
    assert np.isnan(bootstrap_interval(np.zeros(50), 20, (0, np.inf))).all()
    assert np.isnan(bootstrap_interval(np.zeros(50), 20, (-1, 1))).all()
    many = bootstrap_interval(np.stack([np.full(51, 0.5), values], axis=1), 20)
    assert np.isnan(many).tolist() == [[True, False]] * 2


def test_groups_without_a_score_do_not_count():
    images = pd.DataFrame({"level": "image", "organ": "lung", "image": [f"i{n}" for n in range(20)], "n_truth": 9, "n_pred": 9, "n_ignored": 0})
    values = np.linspace(0.5, 0.9, 20)
    images = images.assign(dice=values, dice_with_background=values, precision=values, recall=np.where(np.arange(20) < 7, values, np.nan))
    row = summarise_tissue(images, n_bootstrap=50).iloc[-1]
    assert np.isnan(row.recall_low) and np.isfinite(row.dice_low)


def test_one_field_with_a_location_says_nothing():
    truth, pred = (np.arange(100) == 0)[:, None], np.linspace(1, 0, 100)[:, None]
    found = summarise_locations(truth, pred, ["a"], groups=np.arange(100), n_bootstrap=100)
    assert found["macro_average_precision"] == 1 and found["macro_average_precision_low"] is None
    three = (np.arange(100) < 3)[:, None]
    table = score_locations(three, pred, ["a"], groups=np.arange(100), n_bootstrap=100)
    assert table.average_precision_low[0] == 0  # three fields without any error: nothing is excluded


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(MIN_GROUPS, 60))
def test_an_interval_holds_its_score_and_stays_within_the_limits(seed, n):
    rng = np.random.default_rng(seed)
    values = bootstrap_counts(n, 60, seed) @ rng.beta(*rng.uniform(0.2, 5, 2), n) / n
    low, high = bootstrap_interval(values, n)
    assert 0 <= low <= values[0] <= high <= 1


def test_words_for_intervals():
    assert describe_interval(0.25, 0.5, 12) == "[0.250, 0.500]"
    assert describe_interval(-0.25, 0.5, 12, sign="+") == "[-0.250, +0.500]"
    assert describe_interval(np.nan, np.nan, 7, "image") == "no interval: 7 images are too few, 8 are needed"
    assert describe_interval(None, None, 0) == "no interval: no fields are too few, 8 are needed"
    assert describe_interval(None, None, 20).startswith("no interval: none was drawn")


def test_groups_are_numbered_by_name():
    assert group_codes(["b", "a", "b"], 3).tolist() == [1, 0, 1]
    assert group_codes(pd.Series(["b", "a", "b"], index=[5, 6, 7]), 3).tolist() == [1, 0, 1]
    assert group_codes([3, 20, 3], 3).tolist() == [1, 0, 1]
    for missing in (None, np.nan, pd.NA):
        with pytest.raises(ValueError, match="got 1 rows without"):
            group_codes(["a", missing, "a"], 3)
    with pytest.raises(ValueError, match="differ in type alone"):
        group_codes([1, "1"], 2)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_equal_confidences_are_taken_together(data):
    """Whatever the order within runs of equal confidence."""
    n = data.draw(st.integers(1, 25))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    sure, hit, image = np.sort(rng.integers(0, 4, n) / 4)[::-1], rng.random(n) < 0.5, rng.integers(0, 3, n)
    total = np.bincount(image, hit, 3) + 1
    order = np.lexsort((rng.random(n), -sure))
    counts = bootstrap_counts(3, 5)
    first = precision_areas(hit, image, total, counts, confidence=sure)
    np.testing.assert_allclose(precision_areas(hit[order], image[order], total, counts, confidence=sure[order]), first, rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------- chance


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), min_size=1, max_size=6), st.data())
def test_chance_is_the_mean_over_all_orders(pred, data):
    n_pos = data.draw(st.integers(1, len(pred)))
    truth = np.arange(len(pred)) < n_pos
    every = [average_precision_score(np.array(order), pred) for order in set(permutations(truth.tolist()))]
    assert expected_average_precision(n_pos, np.array(pred)) == pytest.approx(np.mean(every))


def test_chance_of_one_among_eight_and_of_very_many():
    assert expected_average_precision(1, np.arange(8)) == pytest.approx(np.mean(1 / np.arange(1, 9)))
    assert expected_average_precision(2500, np.arange(10000)) == pytest.approx(0.25, abs=1e-3)
    assert np.isnan(expected_average_precision(0, np.arange(3)))


def test_chance_of_fields_that_are_copies_is_that_of_fields():
    """Ten copies of each of twelve cells: no more evidence than the twelve, but for ties between them."""
    rng = np.random.default_rng(0)
    truth, pred = np.arange(12)[:, None] < 3, rng.random((12, 1))
    field = np.repeat(np.arange(12), 10)
    found = chance_average_precision(truth[field], pred[field], field, n_shuffles=4000)[0]
    exact = expected_average_precision(3, np.repeat(pred[:, 0], 10))  # rows by themselves
    groups = np.mean([average_precision_score(truth[rng.permutation(12)][field, 0], pred[field, 0]) for _ in range(4000)])
    assert found == pytest.approx(groups, abs=0.012)  # standard error .003 each; two of them
    assert found > exact + 0.05


def test_bias_of_few_rows():
    assert small_sample_bias(0.34, 0.34, 0.125) == pytest.approx(0.215)
    assert small_sample_bias(1.0, 0.34, 0.125) == 0
    assert small_sample_bias(0.2, 0.34, 0.125) == pytest.approx(0.215)  # worse than chance: no more than all of it
    assert small_sample_bias(0.5, 0.3, 0.4) == 0
    assert small_sample_bias(1.0, 1.0, 1.0) == 0


def test_the_share_of_locations_that_are_seen():
    """Rare locations that happen to be seen: the mean of the corrected share is near the true one, that of the plain one is not."""
    carriers = np.random.default_rng(0).binomial(10, 0.15, 20000)
    seen = carriers[carriers > 0]
    assert (seen / 10).mean() == pytest.approx(0.187, abs=0.005)
    assert untruncated_share(seen, 10).mean() == pytest.approx(0.13, abs=0.03)
    assert untruncated_share(np.array([1]), 10)[0] == pytest.approx(0, abs=1e-9)
    assert untruncated_share(np.array([10]), 10)[0] == pytest.approx(1, abs=1e-9)
    assert untruncated_share(np.array([50]), 100)[0] == pytest.approx(0.5, abs=1e-6)


def test_seven_images_of_tissue_have_no_interval():
    images = pd.DataFrame({"level": "image", "organ": ["lung"] * 7 + ["kidney"] * 8, "image": [f"i{n}" for n in range(15)], "n_truth": 9, "n_pred": 9, "n_ignored": 0})
    images = images.assign(**dict.fromkeys(("dice", "dice_with_background", "precision", "recall"), np.linspace(0.5, 0.9, 15)))
    table = summarise_tissue(images, n_bootstrap=50).set_index("image")
    assert table.loc[["lung", "kidney", "all"], "dice_low"].notna().tolist() == [False, True, True]
