"""Pairs and scores of a segmentation: parity with scipy, scikit-learn and plain loops, properties, faults."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import jaccard_score
from sklearn.metrics.cluster import contingency_matrix

from hpacell.metrics.instances import jaccard, score_instances
from hpacell.metrics.matching import iou_matrix, match_labels, match_levels, overlap_matrix

examples = settings(deadline=None)  # the machine may be busy
thresholds = st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0])


@st.composite
def pairs(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=10))
    image = hnp.arrays(np.int64, shape, elements=st.integers(0, 5))
    return draw(image), draw(image)


@examples
@given(pairs())
def test_overlap_as_scikit_learn(pair):
    truth, pred = pair
    matrix = overlap_matrix(truth, pred)
    expected = contingency_matrix(np.r_[truth.ravel(), 0], np.r_[pred.ravel(), 0])  # so that both hold a background
    expected[0, 0] -= 1
    assert np.array_equal(matrix, expected)


@examples
@given(pairs())
def test_iou_as_scikit_learn(pair):
    truth, pred = pair
    matrix = iou_matrix(truth, pred)
    for i, a in enumerate(np.setdiff1d(truth, [0])):
        for j, b in enumerate(np.setdiff1d(pred, [0])):
            assert math.isclose(matrix[i, j], jaccard_score((truth == a).ravel(), (pred == b).ravel()))


@examples
@given(pairs(), thresholds)
def test_most_pairs_as_scipy(pair, iou):
    truth, pred = pair
    match = match_labels(truth, pred, iou)
    matrix = iou_matrix(truth, pred)
    rows, cols = linear_sum_assignment(matrix >= iou, maximize=True)
    assert match.tp == (matrix >= iou)[rows, cols].sum() == len(match.ious)
    assert (match.tp + match.fn, match.tp + match.fp) == matrix.shape
    assert len(set(match.truth_ids)) == len(set(match.pred_ids)) == match.tp
    assert np.all(match.ious >= iou) and np.all(np.diff(match.truth_ids) > 0)
    for a, b, value in zip(match.truth_ids, match.pred_ids, match.ious, strict=True):
        both = (truth == a) & (pred == b)
        assert math.isclose(value, both.sum() / ((truth == a) | (pred == b)).sum())


@examples
@given(pairs(), thresholds)
def test_symmetric_and_falling(pair, iou):
    truth, pred = pair
    there, back = match_labels(truth, pred, iou), match_labels(pred, truth, iou)
    assert (there.tp, there.fp, there.fn) == (back.tp, back.fn, back.fp)
    falling = [match.tp for match in match_levels(truth, pred, (0.1, 0.3, 0.5, 0.7, 0.9, 1.0))]
    assert falling == sorted(falling, reverse=True)


@examples
@given(pairs(), st.permutations(range(1, 6)))
def test_numbers_do_not_matter(pair, order):
    truth, pred = pair
    renamed = np.array([0, *(100 * k for k in order)])[pred]
    assert match_labels(truth, pred)[3:] == match_labels(truth, renamed)[3:]
    assert match_labels(truth, truth)[3:] == (len(np.setdiff1d(truth, [0])), 0, 0)


def test_exactly_at_the_threshold_counts():
    truth, pred = np.ones((1, 5), int), np.array([[1, 1, 1, 0, 0]])
    assert match_labels(truth, pred, 0.6).tp == 1
    assert match_labels(truth, pred, 0.61).tp == 0


def test_more_pairs_before_better_pairs():
    truth = np.array([[1, 1, 1, 1, 2, 2, 0, 0]])
    pred = np.array([[3, 0, 7, 7, 7, 0, 0, 0]])
    match = match_labels(truth, pred, 0.2)  # 7 overlaps 1 more than 2, but 3 has nobody else than 1
    assert match.tp == 2 and match.pred_ids.tolist() == [3, 7]


def test_empty_images():
    empty, one = np.zeros((3, 3), int), np.ones((3, 3), int)
    assert match_labels(empty, one)[3:] == (0, 1, 0)
    assert match_labels(one, empty)[3:] == (0, 0, 1)
    assert math.isnan(jaccard(empty, empty)) and jaccard(one, empty) == 0


@examples
@given(st.lists(pairs(), max_size=4))
def test_pooled_is_the_sum_of_the_images(images):
    table = score_instances(iter(images), ious=(0.5, 0.75))
    pooled = table[table["image"] == "pooled"].set_index("iou")
    for iou in (0.5, 0.75):
        single = table[(table["iou"] == iou) & (table["image"] != "pooled")]
        for count in ("n_truth", "n_pred", "tp", "fp", "fn"):
            assert pooled.loc[iou, count] == single[count].sum()
        for value, (truth, pred) in zip(single["jaccard"], images, strict=True):
            assert math.isclose(value, jaccard(truth, pred, iou)) or math.isnan(value)
        total = pooled.loc[iou, ["tp", "fp", "fn"]].sum()
        if total:
            assert math.isclose(pooled.loc[iou, "jaccard"], pooled.loc[iou, "tp"] / total)


@pytest.mark.parametrize("iou", [0, -0.1, 1.01])
def test_no_threshold(iou):
    with pytest.raises(ValueError, match="IoU above 0"):
        match_labels(np.ones((2, 2), int), np.ones((2, 2), int), iou)


def test_other_sizes():
    with pytest.raises(ValueError, match="shape of truth"):
        overlap_matrix(np.ones((2, 3), int), np.ones((3, 2), int))
    with pytest.raises(ValueError, match="pred of integers"):
        iou_matrix(np.ones((2, 3), int), np.ones((2, 3)))


def test_corrected_masks_of_people_against_the_tool(shared_data):
    """The published agreement of the tool with its corrected output, on a part of its fields."""
    import cv2

    folder = shared_data / "hpa" / "manual_cells"
    names = sorted(path.name for path in (folder / "masks_manual").iterdir())[:12]
    read = lambda kind, name: cv2.imread(str(folder / kind / name), cv2.IMREAD_UNCHANGED).astype(np.int32)  # noqa: E731
    pairs = [(read("masks_manual", name), read("masks_auto", name)) for name in names if (folder / "masks_auto" / name).exists()]
    table = score_instances(pairs, ious=(0.5, 0.9))
    pooled = table[table["image"] == "pooled"]["jaccard"].to_numpy()
    assert pooled[0] > 0.85 and pooled[0] >= pooled[1] > 0.6
