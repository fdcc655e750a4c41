"""Scores per location against scikit-learn, and what is said where nothing can be scored."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from hpacell.metrics.bootstrap import MIN_GROUPS, bootstrap_average_precision
from hpacell.metrics.chance import expected_average_precision
from hpacell.metrics.locations import (
    co_occurrence,
    describe_against_chance,
    describe_score_interval,
    score_locations,
    summarise_locations,
)  # fmt: skip
from hpacell.vocabulary import LOCATIONS, decode_labels


def example(n=400, seed=0, decimals=2):
    """Skewed prevalences, ties in the confidences, two locations that nobody carries."""
    rng = np.random.default_rng(seed)
    prevalence = np.linspace(0.6, 0.02, len(LOCATIONS))
    prevalence[[3, 17]] = 0
    truth = rng.random((n, len(LOCATIONS))) < prevalence
    pred = np.clip(0.35 * truth + 0.65 * rng.random(truth.shape), 0, 1).round(decimals)
    return truth.astype(np.float32), pred


def test_each_location_is_as_scikit_learn_says():
    truth, pred = example()
    table = score_locations(truth, pred, threshold=0.4)
    assert table.location.tolist() == list(LOCATIONS)
    taken = pred >= 0.4
    for k, row in enumerate(table.itertuples()):
        assert (row.n, row.n_pos) == (400, truth[:, k].sum())
        if not row.n_pos:
            assert np.isnan([row.average_precision, row.chance, row.f1, row.precision, row.recall]).all()
            continue
        assert row.chance == pytest.approx(expected_average_precision(int(row.n_pos), pred[:, k]))
        assert truth[:, k].mean() < row.chance < truth[:, k].mean() + 0.05  # 400 rows: little more than their share
        assert row.average_precision == pytest.approx(average_precision_score(truth[:, k], pred[:, k]))
        assert row.f1 == pytest.approx(f1_score(truth[:, k], taken[:, k]))
        assert row.precision == pytest.approx(precision_score(truth[:, k], taken[:, k], zero_division=0))
        assert row.recall == pytest.approx(recall_score(truth[:, k], taken[:, k]))


def test_macro_and_micro_are_as_scikit_learn_says():
    truth, pred = example()
    summary = summarise_locations(truth, pred)
    here, taken = truth.any(axis=0), pred >= 0.5
    assert (summary["n"], summary["n_locations"], summary["n_missing"]) == (400, here.sum(), 2)
    for mean in ("macro", "micro"):
        # Locations without a true cell have no macro score; all decisions count in the pool.
        t, p, d = (truth[:, here], pred[:, here], taken[:, here]) if mean == "macro" else (truth, pred, taken)
        assert summary[f"{mean}_average_precision"] == pytest.approx(average_precision_score(t, p, average=mean))
        assert summary[f"{mean}_f1"] == pytest.approx(f1_score(t, d, average=mean, zero_division=0))
        assert summary[f"{mean}_precision"] == pytest.approx(precision_score(t, d, average=mean, zero_division=0))
        assert summary[f"{mean}_recall"] == pytest.approx(recall_score(t, d, average=mean, zero_division=0))
    assert summary["macro_chance"] == pytest.approx(score_locations(truth, pred).chance.mean())
    json.dumps(summary, allow_nan=False)


@settings(deadline=None)
@given(st.data())
def test_average_precision_of_draws(data):
    n = data.draw(st.integers(1, 30))
    truth = data.draw(npst.arrays(bool, n))
    pred = data.draw(npst.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 1.0])))
    weights = data.draw(npst.arrays(np.int64, (2, n), elements=st.integers(0, 3))).astype(float)
    for found, drawn in zip(bootstrap_average_precision(truth, pred, np.arange(n), weights), weights, strict=True):
        if (drawn * truth).sum() == 0:
            assert np.isnan(found)
        else:
            keep = drawn > 0
            assert found == pytest.approx(average_precision_score(truth[keep], pred[keep], sample_weight=drawn[keep]))


def test_good_bad_and_no_predictions():
    truth, pred = example()
    best = score_locations(truth, truth)
    scored = best.n_pos > 0
    assert (best.average_precision[scored] == 1).all() and (best.f1[scored] == 1).all()
    silent = score_locations(truth, np.zeros_like(pred))
    np.testing.assert_allclose(silent.average_precision[scored], silent.chance[scored])  # one long tie is a guess
    assert (silent.precision[scored] == 0).all() and (silent.f1[scored] == 0).all()


def test_thresholds_per_location():
    truth, pred = example()
    each = np.linspace(0.2, 0.8, len(LOCATIONS))
    table = score_locations(truth, pred, threshold=each)
    for k in (0, 9, 18):
        assert table.f1[k] == pytest.approx(f1_score(truth[:, k], pred[:, k] >= each[k]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_threshold_is_reached_as_numpy_says(dtype):
    steps = (np.arange(101) / 100).astype(dtype)[:, None]
    for threshold in (0.35, 0.1, 0.7):
        reached = steps[:, 0] >= threshold
        table = score_locations(reached[:, None], steps, ["a"], threshold=threshold)
        assert (table.precision[0], table.recall[0]) == (1, 1)
        assert co_occurrence(reached[:, None], steps, ["a"], threshold=threshold).iloc[0, 0] == 1


def test_nothing_to_score_has_no_chance():
    assert describe_against_chance(summarise_locations(np.zeros((9, 19)), np.full((9, 19), 0.5), n_bootstrap=5)) == "nothing to compare with chance"


def test_truth_as_labels():
    truth, pred = example(60)
    rows = decode_labels(truth)
    texts = ["|".join(row) for row in rows]
    expected = score_locations(truth, pred)
    for given_truth in (rows, texts, pd.Series(texts), np.array(texts, object), truth > 0, truth.astype(int)):
        pd.testing.assert_frame_equal(score_locations(given_truth, pred), expected)


def test_intervals_hold_the_score_and_widen_with_groups():
    truth, pred = example(300)
    # Ten cells of a field that are copies of one another are one witness, not ten.
    truth, pred = np.repeat(truth[:30], 10, axis=0), np.repeat(pred[:30], 10, axis=0)
    fields = np.repeat([f"field{i}" for i in range(30)], 10)
    cells = score_locations(truth, pred, n_bootstrap=150)
    grouped = score_locations(truth, pred, groups=fields, n_bootstrap=150)
    some = grouped[(grouped.n_pos > 30) & (grouped.n_pos < 270)]
    assert len(some) > 5
    for name in ("average_precision", "f1"):
        assert (some[f"{name}_low"] <= some[name] + 1e-9).all() and (some[f"{name}_high"] >= some[name] - 1e-9).all()
    width = {key: (t.average_precision_high - t.average_precision_low)[some.index].mean() for key, t in
             (("cells", cells), ("grouped", grouped))}  # fmt: skip
    assert width["grouped"] > 1.5 * width["cells"]
    assert grouped[grouped.n_pos == 0][["average_precision_low", "f1_high"]].isna().all(axis=None)
    again = score_locations(truth, pred, groups=fields, n_bootstrap=150)
    pd.testing.assert_frame_equal(again, grouped)
    assert not score_locations(truth, pred, groups=fields, n_bootstrap=150, seed=1).equals(grouped)


def test_intervals_of_the_summary():
    truth, pred = example(200)
    fields = np.arange(200) // 8
    summary = summarise_locations(truth, pred, groups=fields, n_bootstrap=60)
    for name in ("macro_average_precision", "micro_average_precision", "macro_f1", "micro_f1"):
        assert summary[f"{name}_low"] < summary[name] < summary[f"{name}_high"]
    json.dumps(summary, allow_nan=False)
    plain = summarise_locations(truth, pred, groups=fields)
    assert {name: summary[name] for name in plain} == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("n_fields", [1, 2, MIN_GROUPS - 1, MIN_GROUPS])
def test_few_fields_give_no_interval(n_fields):
    truth, pred = example(10 * n_fields)
    fields = np.repeat([f"field{i}" for i in range(n_fields)], 10)
    table = score_locations(truth, pred, groups=fields, n_bootstrap=30)
    summary = summarise_locations(truth, pred, groups=fields, n_bootstrap=30)
    assert summary["n_groups"] == n_fields
    bounds = [name for name in table if name.endswith(("_low", "_high"))]
    shown = describe_score_interval(summary)
    if n_fields < MIN_GROUPS:
        what = "1 field is" if n_fields == 1 else f"{n_fields} fields are"
        assert shown == f"no interval: {what} too few, {MIN_GROUPS} are needed"
        assert table[bounds].isna().all(axis=None) and len(bounds) == 4
        assert all(summary[name] is None for name in summary if name.endswith(("_low", "_high")))
        assert "unknown whether" in describe_against_chance(summary)
    else:
        assert shown == "[{macro_average_precision_low:.3f}, {macro_average_precision_high:.3f}]".format(**summary)
        assert table[bounds].notna().any(axis=None)


def test_one_row_alone_gives_no_interval():
    summary = summarise_locations(["cytosol"], np.full((1, 19), 0.5), n_bootstrap=5)
    assert describe_score_interval(summary, group="cell").startswith("no interval: 1 cell is too few")
    nothing = summarise_locations(np.zeros((9, 19)), np.full((9, 19), 0.5), n_bootstrap=5)
    assert describe_score_interval(nothing) == "no interval: nothing to score"
    assert describe_score_interval(summarise_locations([], np.zeros((0, 19)), n_bootstrap=5)).startswith("no interval: no fields are too few")


@pytest.mark.parametrize(("n_carriers", "known"), [(1, False), (2, False), (3, True), (17, True), (18, False), (20, False)])
def test_a_location_of_few_fields_has_no_interval(n_carriers, known):
    rng = np.random.default_rng(0)
    field = np.repeat(np.arange(20), 10)
    truth = np.stack([field < n_carriers, field % 2 == 0], axis=1)
    pred = 0.5 * truth + rng.random(truth.shape)
    table = score_locations(truth, pred, ["a", "b"], groups=field, n_bootstrap=50)
    ends = ["average_precision_low", "average_precision_high", "f1_low", "f1_high"]
    assert table.loc[0, ends].notna().tolist() == [known] * 4
    assert table.loc[1, ends].notna().all() and table.average_precision.notna().all()
    assert summarise_locations(truth, pred, ["a", "b"], groups=field, n_bootstrap=50)["macro_average_precision_low"] is not None


def test_random_predictions_are_not_better_than_chance():
    """Of 60 sets of 10 to 40 fields none is called better; the ratio to chance is 1 on average."""
    better, ratios = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        field = np.repeat(np.arange((10, 20, 40)[seed % 3]), 6)
        truth = (rng.random((field[-1] + 1, 6)) < 0.15)[field]
        pred = rng.normal(size=(field[-1] + 1, 6))[field] + 0.2 * rng.normal(size=truth.shape)
        found = summarise_locations(truth, pred, list("abcdef"), groups=field, n_bootstrap=100, seed=seed)
        better.append("times chance" in describe_against_chance(found))
        ratios.append(found["macro_average_precision"] / found["macro_chance"])
    assert sum(better) <= 3  # measured: 0
    assert 0.9 < np.mean(ratios) < 1.1  # measured: see below; the share of rows as chance gives 1.8
    truth = np.repeat([[1, 0], [0, 1]], 40, axis=0)
    sure = summarise_locations(truth, truth + np.random.default_rng(0).random(truth.shape), ["a", "b"], groups=np.arange(80) // 4, n_bootstrap=100)
    assert describe_against_chance(sure).startswith("1.9 times chance")


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_rows_changes_nothing(grouped):
    truth, pred = example(120, decimals=1)  # many equal confidences
    fields = np.arange(120) // 6 if grouped else None
    order = np.random.default_rng(3).permutation(120)
    first = score_locations(truth, pred, groups=fields, n_bootstrap=40)
    again = score_locations(truth[order], pred[order], groups=fields[order] if grouped else None, n_bootstrap=40)
    pd.testing.assert_frame_equal(first, again, rtol=1e-12, atol=0)
    summaries = [summarise_locations(t, p, groups=g, n_bootstrap=40) for t, p, g in ((truth, pred, fields), (truth[order], pred[order], fields[order] if grouped else None))]
    assert summaries[0] == pytest.approx(summaries[1], rel=1e-12)


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_score(n):
    nothing, pred = np.zeros((n, 19)), np.full((n, 19), 0.5)
    table = score_locations(nothing, pred, n_bootstrap=5)
    assert table[["average_precision", "f1", "precision", "recall", "f1_low"]].isna().all(axis=None)
    assert (table.n_pos == 0).all() and len(table) == 19
    summary = summarise_locations(nothing, pred, n_bootstrap=5)
    assert summary["macro_average_precision"] is None and summary["micro_f1"] is None
    assert (summary["n"], summary["n_locations"], summary["n_missing"]) == (n, 0, 19)


def test_arguments_that_do_not_fit():
    truth, pred = example(20)
    with pytest.raises(ValueError, match=r"expected truth and predictions \(N, 19\)"):
        score_locations(truth[:, :18], pred)
    with pytest.raises(ValueError, match="expected truth and predictions"):
        score_locations(truth[1:], pred)
    with pytest.raises(ValueError, match="expected finite"):
        score_locations(truth, pred * np.nan)
    with pytest.raises(ValueError, match="threshold it first"):
        score_locations(truth * 0.5, pred)
    with pytest.raises(ValueError, match="did you mean 'cytosol'"):
        score_locations(["cytosool"] * 20, pred)
    with pytest.raises(ValueError, match="one group for each of 20 rows"):
        summarise_locations(truth, pred, groups=[1], n_bootstrap=3)


# -------------------------------------------------------------------------------------------------- what for what


@pytest.mark.parametrize("count", ["all", "wrong", "single"])
def test_each_entry_is_counted_cell_by_cell(count):
    truth, pred = example(120)
    truth[:40] = np.eye(19)[np.random.default_rng(1).integers(0, 2, 40)]  # some with one location
    table, taken = co_occurrence(truth, pred, threshold=0.4, count=count), pred >= 0.4
    assert table.index.tolist() == table.columns.tolist() == list(LOCATIONS)
    for row in range(19):
        for column in range(19):
            here = [
                i
                for i in range(120)
                if truth[i, row]
                and not (count == "wrong" and truth[i, column])
                and not (count == "single" and truth[i].sum() > 1)
            ]
            expected = np.mean(taken[here, column]) if here else np.nan
            assert table.iloc[row, column] == pytest.approx(expected, nan_ok=True)


def test_the_diagonal_is_the_recall():
    truth, pred = example()
    scores = score_locations(truth, pred)
    diagonal = np.diag(co_occurrence(truth, pred))
    np.testing.assert_allclose(diagonal, scores.recall)
    assert np.isnan(np.diag(co_occurrence(truth, pred, count="wrong"))).all()


def test_a_perfect_model_is_never_wrong_and_shows_what_occurs_together():
    truth, _ = example()
    wrong = co_occurrence(truth, truth, count="wrong").to_numpy()
    assert np.nanmax(wrong) == 0
    together = co_occurrence(truth, truth)
    assert together.attrs["n"] == truth.sum(axis=0).tolist()
    np.testing.assert_allclose(together.to_numpy()[0], truth[truth[:, 0] > 0].mean(axis=0))


def test_mean_predictions_instead_of_shares():
    truth, pred = example()
    table = co_occurrence(truth, pred, threshold=None, count="single")
    single = truth.sum(axis=1) == 1
    row = int(np.argmax(truth[single].sum(axis=0)))
    np.testing.assert_allclose(table.iloc[row], pred[single & (truth[:, row] > 0)].mean(axis=0))
    each = np.linspace(0.2, 0.8, len(LOCATIONS))
    np.testing.assert_allclose(co_occurrence(truth, pred, threshold=each).iloc[0], (pred >= each)[truth[:, 0] > 0].mean(axis=0))


def test_co_occurrence_refuses():
    truth, pred = example(20)
    with pytest.raises(ValueError, match="did you mean 'single'"):
        co_occurrence(truth, pred, count="singles")
    with pytest.raises(ValueError, match="expected truth and predictions"):
        co_occurrence(truth[:, :5], pred)
    assert co_occurrence([], np.zeros((0, 19))).isna().all(axis=None)
