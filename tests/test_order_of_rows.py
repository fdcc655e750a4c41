"""Scores do not depend on the order of rows, images, labels or locations, however many confidences are equal."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpacell.metrics.calibration import calibration_table, expected_calibration_error
from hpacell.metrics.instances import score_instances
from hpacell.metrics.locations import score_locations, summarise_locations
from hpacell.metrics.tissue import THRESHOLDS, choose_thresholds_by_organ, dice_curve, score_tissue

SEEDS = st.integers(0, 2**32 - 1)
NAMES = ("a", "b", "c")


def same(first, second):
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True), rtol=0, atol=1e-12)


@given(SEEDS, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=40, deadline=None)
def test_locations(seed, dtype):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    truth, pred = rng.random((n, 3)) < 0.4, rng.choice([0.0, 0.25, 0.35, 0.5, 1.0], (n, 3)).astype(dtype)
    rows, columns = rng.permutation(n), rng.permutation(3)
    names = [NAMES[i] for i in columns]
    moved_truth, moved = truth[rows][:, columns], pred[rows][:, columns]
    same(score_locations(truth, pred, NAMES).iloc[columns], score_locations(moved_truth, moved, names))
    one, other = summarise_locations(truth, pred, NAMES), summarise_locations(moved_truth, moved, names)
    assert all(other[name] == pytest.approx(value, abs=1e-12) if value is not None else other[name] is None for name, value in one.items())
    error = expected_calibration_error(truth, pred, NAMES)
    same(error.iloc[columns], expected_calibration_error(moved_truth, moved, names))
    tables = calibration_table(truth, pred, NAMES), calibration_table(moved_truth, moved, names)
    same(*(table.sort_values(["location", "bin"]) for table in tables))


def squares(rng, n=8, side=24):
    """A label image of squares that touch and overlap one another."""
    labels = np.zeros((side, side), np.int32)
    for label in range(1, n + 1):
        row, column = rng.integers(0, side - 6, 2)
        labels[row : row + 6, column : column + 6] = label
    return labels


def renumbered(labels, rng):
    """The same cells under other numbers."""
    ids = np.unique(labels[labels > 0])
    table = np.arange(labels.max() + 1)
    table[ids] = rng.permutation(ids)
    return table[labels]


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_instances(seed):
    rng = np.random.default_rng(seed)
    pairs, ious, keys = [(squares(rng), squares(rng)) for _ in range(4)], (0.1, 0.3, 0.5, 0.75), ["level", "image", "iou"]
    kinds, names, order = list("xyxy"), list("abcd"), rng.permutation(4)
    one = score_instances(pairs, ious, names, kinds=kinds).sort_values(keys)
    shuffled = {"names": [names[i] for i in order], "kinds": [kinds[i] for i in order]}
    same(one, score_instances([pairs[i] for i in order], ious, **shuffled).sort_values(keys))
    other = score_instances([tuple(renumbered(image, rng) for image in pairs[i]) for i in order], ious, **shuffled).sort_values(keys)
    same(one.drop(columns="aji"), other.drop(columns="aji"))  # of equally good partners AJI takes the one with the lower number, as its paper does


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_tissue(seed):
    rng = np.random.default_rng(seed)
    truths = [(rng.random((6, 7)) < 0.4).astype(np.uint8) for _ in range(7)]
    maps = [rng.choice(THRESHOLDS, (6, 7)).astype(np.float32) for _ in truths]
    organs, names, order = [str(one) for one in rng.choice(["lung", "colon"], 7)], list("abcdefg"), rng.permutation(7)
    pairs = [(truth, found >= 0.5) for truth, found in zip(truths, maps, strict=True)]
    one, other = score_tissue(pairs, organs, names), score_tissue([pairs[i] for i in order], [organs[i] for i in order], [names[i] for i in order])
    same(one.sort_values(["level", "image"]), other.sort_values(["level", "image"]))
    pixels = rng.permutation(42)
    np.testing.assert_array_equal(dice_curve(truths[0], maps[0]), dice_curve(truths[0].ravel()[pixels].reshape(6, 7), maps[0].ravel()[pixels].reshape(6, 7)))
    found = choose_thresholds_by_organ(zip(truths, maps, strict=True), organs)
    assert found == choose_thresholds_by_organ([(truths[i], maps[i]) for i in order], [organs[i] for i in order])
