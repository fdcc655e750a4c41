"""Calibration: known corrections are found, the order of predictions stays, and scikit-learn agrees."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from hpacell.metrics.calibration import (
    FEW_CELLS,
    MAX_SLOPE,
    MIN_SLOPE,
    Calibration,
    calibration_table,
    expected_calibration_error,
    fit_calibration,
)

NAMES = ("nucleoli", "cytosol", "vesicles")


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def example(n=3000, seed=0, slopes=(0.5, 1, 2), offsets=(0, -1, 0.5)):
    """Predictions whose log odds need these slopes and offsets to become honest."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1, 1.5, (n, len(slopes)))
    truth = rng.random(odds.shape) < sigmoid(odds * slopes + offsets)
    return truth, sigmoid(odds)


def test_known_slopes_and_offsets_are_found():
    truth, pred = example(20000)
    calibration = fit_calibration(truth, pred, NAMES)
    np.testing.assert_allclose(calibration.slopes, (0.5, 1, 2), rtol=0.1)
    np.testing.assert_allclose(calibration.offsets, (0, -1, 0.5), atol=0.12)
    assert calibration.locations == NAMES and calibration.notes == ()
    fresh_truth, fresh = example(20000, seed=1)
    before = expected_calibration_error(fresh_truth, fresh).error
    after = expected_calibration_error(fresh_truth, calibration.apply(fresh)).error
    assert (after < 0.015).all() and (before > 0.05).all()


@pytest.mark.parametrize("n", [40, 300, 5000])
def test_logistic_regression_agrees(n):
    truth, pred = example(n, seed=n)
    calibration = fit_calibration(truth, pred, prior=1e-9)
    for k in range(3):
        other = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(np.log(pred[:, [k]] / (1 - pred[:, [k]])), truth[:, k])
        assert calibration.slopes[k] == pytest.approx(other.coef_[0, 0], rel=1e-3)
        assert calibration.offsets[k] == pytest.approx(other.intercept_[0], abs=2e-3)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_order_stays(data):
    """Whatever the truth, even if it is the wrong way round, the order and so every average precision stays."""
    n = data.draw(st.integers(2, 40))
    grid = st.integers(1, 999).map(lambda k: k / 1000)
    pred = data.draw(npst.arrays(np.float64, (n, 2), elements=grid))
    truth = data.draw(npst.arrays(bool, (n, 2)))
    calibration = fit_calibration(truth, pred)
    after = calibration.apply(pred)
    assert np.isfinite(after).all() and after.min() >= 0 and after.max() <= 1
    assert all(MIN_SLOPE <= slope <= MAX_SLOPE for slope in calibration.slopes)
    for k in range(2):
        order = np.argsort(pred[:, k])
        steps, moved = np.diff(pred[order, k]), np.diff(after[order, k])
        assert (moved >= 0).all() and (moved[steps == 0] == 0).all()
        if np.abs(calibration.slopes[k] * 7 + abs(calibration.offsets[k])) < 30:  # within what float64 tells apart
            assert (moved[steps > 0] > 0).all()
            if truth[:, k].any():
                same = average_precision_score(truth[:, k], after[:, k])
                assert same == pytest.approx(average_precision_score(truth[:, k], pred[:, k]), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_nothing_is_likelier_than_the_fit(data):
    n = data.draw(st.integers(3, 30))
    pred = data.draw(npst.arrays(np.float64, (n, 1), elements=st.floats(1e-6, 1 - 1e-6)))
    truth = data.draw(npst.arrays(bool, (n, 1)))
    if truth.all() or not truth.any():
        return
    calibration = fit_calibration(truth, pred, prior=0.1)
    odds = np.log(pred / (1 - pred))[:, 0]

    def loss(slope, offset):
        z = slope * odds + offset
        return (np.logaddexp(0, z) - truth[:, 0] * z).sum() + 0.05 * ((slope - 1) ** 2 + offset**2)

    slope, offset = calibration.slopes[0], calibration.offsets[0]
    for d_slope, d_offset in [(1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)]:
        if slope + d_slope >= MIN_SLOPE:
            assert loss(slope, offset) <= loss(slope + d_slope, offset + d_offset) + 1e-9


def test_locations_with_few_cells():
    truth, pred = example(500)
    truth[:, 0], truth[:, 1] = False, True
    truth[:, 2] = np.arange(500) < 3
    calibration = fit_calibration(truth, pred, NAMES)
    assert calibration.slopes[:2] == (1, 1) and calibration.offsets[:2] == (0, 0)
    np.testing.assert_array_equal(calibration.apply(pred)[:, :2], pred[:, :2])
    assert np.isfinite([calibration.slopes[2], calibration.offsets[2]]).all()
    assert calibration.notes == (
        "nucleoli: none of 500 cells show it, so it stays as it is",
        "cytosol: all of 500 cells show it, so it stays as it is",
        "vesicles: 3 of 500 cells show it, too few to trust the correction",
    )
    truth[np.argsort(-pred[:, 2])[:FEW_CELLS], 2] = True
    truth[np.argsort(-pred[:, 2])[FEW_CELLS:], 2] = False
    assert len(fit_calibration(truth, pred, NAMES).notes) == 2


def test_a_clean_cut_stays_finite():
    """True cells all above the others: without a prior the slope would grow for ever."""
    pred = np.linspace(0.01, 0.99, 200)[:, None]
    calibration = fit_calibration(pred > 0.5, pred)
    assert 1 < calibration.slopes[0] < 20 and abs(calibration.offsets[0]) < 1
    after = calibration.apply(pred)
    assert (after[pred > 0.6] > 0.8).all() and (after[pred < 0.4] < 0.2).all()


def test_a_model_that_is_the_wrong_way_round_is_not_turned():
    truth, pred = example(2000, slopes=(-1,), offsets=(0,))
    calibration = fit_calibration(truth, pred)
    assert calibration.slopes == (MIN_SLOPE,) and "run against the truth" in calibration.notes[0]
    assert calibration.apply(pred).mean() == pytest.approx(truth.mean(), abs=0.01)  # the offset is fitted all the same


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_certain_predictions(kind):
    pred = np.array([[0], [1], [1e-30], [0.5], [0], [1]], np.float64).astype(kind)
    truth = np.array([[0], [1], [0], [1], [1], [0]])
    calibration = fit_calibration(truth, pred)
    after = calibration.apply(pred)
    assert np.isfinite(after).all() and (np.diff(after[np.argsort(pred[:, 0], kind="stable"), 0]) >= 0).all()
    # One certain error in five does not outweigh the rest.
    assert 0 < calibration.slopes[0] < 1


def test_small_probabilities_keep_their_order():
    pred = np.array([[1e-38], [1e-30], [1e-20], [1e-10]], np.float32)
    after = Calibration(("nucleoli",), (0.7,), (1.0,)).apply(pred)
    assert (np.diff(after[:, 0]) > 0).all()


def test_json_and_back():
    truth, pred = example(300)
    truth[:, 1] = False
    calibration = fit_calibration(truth, pred, NAMES)
    text = json.dumps(calibration.to_json(), allow_nan=False)
    back = Calibration.from_json(json.loads(text))
    assert back == calibration
    np.testing.assert_array_equal(back.apply(pred), calibration.apply(pred))


# ------------------------------------------------------------------------------------------------------ table and error


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_bins_hold_all_cells_once(data):
    n, n_bins = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 12))
    pred = data.draw(npst.arrays(np.float64, (n, 1), elements=st.sampled_from([0, 0.1, 0.1, 0.5, 0.9, 1])))
    truth = data.draw(npst.arrays(bool, (n, 1)))
    table = calibration_table(truth, pred, n_bins=n_bins)
    assert table.n.sum() == n and (table.n > 0).all() and len(table) <= n_bins
    assert table.bin.tolist() == list(range(len(table)))
    assert (table.high.to_numpy()[:-1] < table.low.to_numpy()[1:]).all()  # equal probabilities share a bin
    assert (table.n * table.promised).sum() == pytest.approx(pred.sum())
    assert (table.n * table.true).sum() == pytest.approx(truth.sum())
    row = expected_calibration_error(truth, pred, n_bins=n_bins).iloc[0]
    assert row.observed == pytest.approx((table.n * (table.promised - table.true).abs()).sum() / n)
    assert 0 <= row.error <= row.observed


def test_bins_are_of_equal_mass():
    truth, pred = example(1000)
    assert calibration_table(truth, pred, NAMES).n.tolist() == [100] * 30


def test_certain_and_wrong_is_the_worst():
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    assert expected_calibration_error(truth, 1 - truth).observed.tolist() == [1, 1]
    assert expected_calibration_error(truth, 1 - truth).error.tolist() == [1, 1]
    assert expected_calibration_error(truth, truth).error.tolist() == [0, 0]
    assert expected_calibration_error(truth, np.full((4, 2), 0.5)).observed.tolist() == [0, 0]


def test_intervals_widen_with_groups():
    truth, pred = example(300)
    truth, pred = np.repeat(truth, 10, axis=0), np.repeat(pred, 10, axis=0)
    fields = np.repeat([f"f{i}" for i in range(300)], 10)
    cells = expected_calibration_error(truth, pred, n_bootstrap=200)
    grouped = expected_calibration_error(truth, pred, groups=fields, n_bootstrap=200)
    np.testing.assert_allclose(grouped.observed, cells.observed)
    assert (grouped.by_chance > 2 * cells.by_chance).all()  # copies of a cell are no further evidence
    for table in (cells, grouped):
        assert ((table.error_low <= table.error) & (table.error < table.error_high)).all()
    widths = [(table.error_high - table.error_low).mean() for table in (cells, grouped)]
    assert widths[1] > 2 * widths[0]
    again = expected_calibration_error(truth, pred, groups=fields, n_bootstrap=200)
    pd.testing.assert_frame_equal(again, grouped)


def calibrated(n_fields: int, factor: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, promises whose log odds are too large by a factor, and fields of about ten cells."""
    rng = np.random.default_rng(seed)
    field = np.repeat(np.arange(n_fields), rng.poisson(10, n_fields) + 1)
    odds = rng.normal(0, 0.7, n_fields)[field] + rng.normal(0, 1, len(field))
    truth = rng.random(len(field)) < 1 / (1 + np.exp(-odds))
    return truth[:, None], 1 / (1 + np.exp(-factor * odds))[:, None], field


@pytest.mark.parametrize("n_fields", [10, 50])
def test_a_calibrated_model_is_not_said_to_be_off(n_fields):
    rows = []
    for seed in range(40):
        truth, pred, fields = calibrated(n_fields, 1, seed)
        rows.append(expected_calibration_error(truth, pred, groups=fields, n_bootstrap=200, seed=seed).iloc[0])
    table = pd.DataFrame(rows)
    assert table.observed.mean() > 0.04  # what chance shows: 0.05 for both, in 2 and in 10 bins
    assert table.error.mean() < {10: 0.035, 50: 0.025}[n_fields]  # measured in 100 sets: 0.022 and 0.015
    assert (table.error_low <= 0.0015).sum() >= 34  # of 40; 95 and 94 of 100 measured, 34 of 40 or more in 99.7 of 100 tries


def test_a_model_that_is_off_is_said_to_be_so():
    truth, pred, fields = calibrated(2000, 1, 0)
    many = expected_calibration_error(truth, pred, groups=fields).iloc[0]
    assert many.observed - many.error < 0.006  # 22,000 cells: chance adds little (measured 0.004)
    truth, pred, fields = calibrated(2000, 4, 0)
    off = expected_calibration_error(truth, pred, groups=fields).iloc[0]
    assert off.error == pytest.approx(off.observed, abs=0.002) and off.error > 0.15
    few = [expected_calibration_error(*calibrated(20, 4, seed)[:2], groups=calibrated(20, 4, seed)[2]).error[0] for seed in range(20)]
    assert np.mean(few) == pytest.approx(off.error, abs=0.03)  # measured difference 0.003


def test_the_error_does_not_depend_on_the_order_of_rows():
    truth, pred, fields = calibrated(12, 2, 3)
    pred = pred.round(1)
    order = np.random.default_rng(0).permutation(len(pred))
    first = expected_calibration_error(truth, pred, groups=fields, n_bootstrap=50)
    again = expected_calibration_error(truth[order], pred[order], groups=fields[order], n_bootstrap=50)
    pd.testing.assert_frame_equal(first, again, rtol=1e-9)


def test_one_row_a_field_is_not_said_to_be_off():
    """Field-level scores: ten fields, one row each, calibrated; what is observed is chance."""
    rows = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        pred = rng.random((10, 1))
        rows.append(expected_calibration_error(rng.random((10, 1)) < pred, pred, groups=np.arange(10), n_bootstrap=200, seed=seed).iloc[0])
    table = pd.DataFrame(rows)
    assert table.by_chance.mean() > 0.7 * table.observed.mean()  # measured .9; without correction 0
    assert (table.error_low > 0.01).mean() < 0.35  # measured .1; without correction 1


def test_one_group_and_no_cell():
    truth, pred = example(30)
    table = expected_calibration_error(truth, pred, groups=["f"] * 30, n_bootstrap=20)
    assert table[["error_low", "error_high"]].isna().all(axis=None) and table.error.notna().all()
    nearly = expected_calibration_error(truth[:21], pred[:21], groups=np.arange(21) // 3, n_bootstrap=20)  # seven fields
    assert nearly[["error_low", "error_high"]].isna().all(axis=None)
    empty = expected_calibration_error(truth[:0], pred[:0], NAMES, n_bootstrap=20)
    assert empty.n.tolist() == [0, 0, 0] and empty.error.isna().all()
    assert len(calibration_table(truth[:0], pred[:0], NAMES)) == 0
    calibration = fit_calibration(truth[:0], pred[:0], NAMES)
    assert calibration.slopes == (1, 1, 1) and len(calibration.notes) == 3


@pytest.mark.parametrize(
    ("truth", "pred", "said"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), "shape of the probabilities"),
        (np.zeros((3, 3)), np.full((3, 3), 1.5), "apply the sigmoid"),
        (np.zeros((3, 3)), np.full((3, 3), np.nan), "apply the sigmoid"),
        (np.full((3, 3), 0.5), np.zeros((3, 3)), "threshold it first"),
        (np.zeros(3), np.zeros(3), "one column per location"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "expected probabilities"),
    ],
)
def test_arguments_that_do_not_fit(truth, pred, said):
    for function in (calibration_table, expected_calibration_error, fit_calibration):
        with pytest.raises(ValueError, match=said):
            function(truth, pred, NAMES)


def test_other_refusals():
    truth, pred = example(20)
    with pytest.raises(ValueError, match="expected 1 bin or more, got 0"):
        calibration_table(truth, pred, n_bins=0)
    with pytest.raises(ValueError, match="expected a prior above 0"):
        fit_calibration(truth, pred, prior=0)
    with pytest.raises(ValueError, match="one group for each of 20 rows"):
        expected_calibration_error(truth, pred, groups=[1], n_bootstrap=3)
    with pytest.raises(ValueError, match="expected a slope above 0"):
        Calibration(("a",), (-1.0,), (0.0,))
    with pytest.raises(ValueError, match="expected a slope above 0"):
        Calibration.from_json({"locations": ["a", "b"], "slopes": [1], "offsets": [0]})
