"""Label images and masks: parity with scikit-image, round trips, faults."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import measure, segmentation

from hpacell.masks.labels import (
    check_labels,
    clear_border,
    enlarge_labels,
    label_ids,
    labels_to_masks,
    masks_to_labels,
    relabel,
)

label_images = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]), hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 9)
)


@given(label_images)
def test_relabel_as_scikit_image(labels):
    expected, forward, _ = segmentation.relabel_sequential(labels.astype(np.int64))
    assert np.array_equal(relabel(labels), expected)
    assert np.array_equal(label_ids(labels), np.setdiff1d(np.unique(labels), [0]))


def test_huge_numbers_need_no_huge_table():
    labels = np.zeros((4, 4), np.int64)
    labels[0], labels[2, 1:] = 2**40, 7
    assert label_ids(labels).tolist() == [7, 2**40]
    assert relabel(labels).max() == 2 and relabel(labels)[0, 0] == 2


@given(label_images, st.integers(0, 3))
def test_clear_border_as_scikit_image(labels, buffer):
    if buffer + 1 > min(labels.shape):
        buffer = 0
    labels = measure.label(labels, connectivity=2).astype(labels.dtype)  # scikit-image clears piece by piece
    expected = segmentation.clear_border(labels, buffer_size=buffer)
    cleared = clear_border(labels, buffer)
    assert cleared.dtype == labels.dtype
    assert np.array_equal(cleared, expected)


@given(label_images, st.sampled_from(["smallest", "largest", "first", "last"]))
def test_masks_and_back(labels, overlap):
    masks = labels_to_masks(labels)
    assert masks.dtype == bool and masks.shape == (len(label_ids(labels)), *labels.shape)
    assert masks.sum(0).max(initial=0) <= 1
    assert np.array_equal(masks_to_labels(masks, overlap), relabel(labels))


@given(hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 8))))
def test_who_gets_a_shared_pixel(masks):
    areas = masks.sum((1, 2))
    winners = {"first": lambda inside: inside[0], "last": lambda inside: inside[-1]}
    for overlap, rule in winners.items():
        labels = masks_to_labels(masks, overlap)
        for row, col in np.argwhere(masks.any(0)):
            assert labels[row, col] == rule(np.flatnonzero(masks[:, row, col])) + 1
    for overlap, extreme in (("smallest", np.min), ("largest", np.max)):
        labels = masks_to_labels(masks, overlap)
        assert np.array_equal(labels > 0, masks.any(0))
        for row, col in np.argwhere(masks.any(0)):
            assert areas[labels[row, col] - 1] == extreme(areas[masks[:, row, col]])


def test_no_masks_at_all():
    assert masks_to_labels(np.zeros((0, 3, 5), bool)).shape == (3, 5)
    with pytest.raises(ValueError, match="no mask at all"):
        masks_to_labels([])
    with pytest.raises(ValueError, match="one shape"):
        masks_to_labels([np.ones((2, 2)), np.ones((2, 3))])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2, 2), int), "shape"),
        (np.zeros(4, int), "shape"),
        (np.zeros((2, 2)), "integers"),
        (np.array([[0, -1]]), "from 0"),
    ],
)
def test_no_label_image(labels, message):
    for function in (check_labels, label_ids, relabel, clear_border, labels_to_masks):
        with pytest.raises(ValueError, match=message):
            function(labels)


def test_booleans_are_one_object():
    assert label_ids(np.array([[True, False]])).tolist() == [1]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_enlarged_objects_keep_number_place_and_size(seed, rows, cols):
    rng = np.random.default_rng(seed)
    labels = np.zeros((24, 30), np.int32)
    labels[3:12, 4:13], labels[3:12, 13:25], labels[14:22, 6:20] = rng.choice(np.arange(1, 100), 3, replace=False)
    large = enlarge_labels(labels, (24 * rows, 30 * cols))
    assert np.array_equal(label_ids(large), label_ids(labels))
    for label in label_ids(labels):
        share = (large == label).mean() / (labels == label).mean()
        assert 0.85 < share < 1.15
        assert np.allclose(np.argwhere(large == label).mean(0) / [rows, cols], np.argwhere(labels == label).mean(0), atol=1)


def test_enlarge_does_not_shrink():
    with pytest.raises(ValueError, match="enlarges only"):
        enlarge_labels(np.zeros((4, 4), int), (4, 3))
