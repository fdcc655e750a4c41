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


IDS = np.zeros((40, 50), np.int32)
IDS[5:15, 5:15], IDS[20:30, 10:22], IDS[:4, 40:] = 1, 2, 3
IMAGE = np.random.default_rng(0).integers(0, 255, (40, 50, 2)).astype(np.uint8)


def calls():
    from hpacell.cells.measurements import measure_cells
    from hpacell.cells.segmentation import segment_cells
    from hpacell.masks.boxes import find_boxes
    from hpacell.masks.rle import decode_labels_rle, encode_labels_rle
    from hpacell.metrics.matching import match_labels
    from hpacell.models.watershed import make_maps

    channels = ("nucleus", "protein")
    return {
        "label_ids": label_ids, "relabel": relabel, "clear_border": clear_border, "labels_to_masks": labels_to_masks,
        "enlarge": lambda labels: enlarge_labels(labels, (80, 100)), "enlarge to the same": lambda labels: enlarge_labels(labels, (40, 50)),
        "boxes": lambda labels: find_boxes(labels).boxes, "box ids": lambda labels: find_boxes(labels).ids,
        "runs": lambda labels: decode_labels_rle(encode_labels_rle(labels), (40, 50)), "runs with ids": lambda labels: decode_labels_rle(encode_labels_rle(labels), (40, 50), label_ids(labels)),
        "match": lambda labels: match_labels(labels, labels).truth_ids, "match with others": lambda labels: match_labels(IDS, labels).tp,
        "measure": lambda labels: measure_cells(IMAGE, labels, channels=channels)["cell_area"], "segment": lambda labels: label_ids(segment_cells(IMAGE, labels, channels=channels)),
        "maps": make_maps,
    }  # fmt: skip


NUMBERED = ("label_ids", "clear_border", "enlarge", "enlarge to the same", "box ids", "runs with ids", "match", "segment")


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize(
    "labels",
    [
        IDS.astype(np.uint64), IDS.astype(np.uint32), IDS.astype(np.int8), IDS.astype(">u2"), IDS.astype(">i8"), np.asfortranarray(IDS),
        np.repeat(np.repeat(IDS, 2, 0), 2, 1)[::2, ::2], np.ascontiguousarray(IDS.T).T,
    ],
    ids=["uint64", "uint32", "int8", "big-endian uint16", "big-endian int64", "fortran", "strided", "transposed"],
)  # fmt: skip
def test_labels_of_every_type_and_order(name, labels):
    call = calls()[name]
    np.testing.assert_array_equal(call(labels), call(IDS))


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("ids", [[0, 5, 7, 2**63 - 1], [0, 1, 2, 2**31], [0, 1, 2**32 + 1, 2**33 + 1]])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_huge_ids_are_kept(name, ids, dtype):
    call, ids = calls()[name], np.array(ids, dtype)
    expected = call(IDS)
    np.testing.assert_array_equal(call(ids[IDS]), ids.astype(np.int64)[expected] if name in NUMBERED else expected)


@pytest.mark.parametrize("name", calls())
def test_ids_that_int64_cannot_hold_are_refused(name):
    with pytest.raises(ValueError, match="up to 9223372036854775807, got 9223372036854775808: number the objects anew"):
        calls()[name](np.array([0, 5, 7, 2**63], np.uint64)[IDS])


def test_the_remedies_for_arrays_exist():
    huge = np.array([0, 5, 7, 2**63], np.uint64)[IDS]
    np.testing.assert_array_equal(np.unique(huge, return_inverse=True)[1].reshape(huge.shape), IDS)
    with pytest.raises(ValueError, match=r"convert it with astype\(int\)"):
        check_labels(IDS.astype(float))
    for bad in (IDS * 0.5, np.where(IDS, IDS, np.nan)):
        with pytest.raises(ValueError, match=r"number the objects first \(scipy\.ndimage\.label\)"):
            check_labels(bad)
    assert clear_border(IDS.astype(np.uint64)).dtype == np.uint64


def test_enlarged_objects_that_meet_keep_their_places():
    labels = np.zeros((30, 30), np.int32)
    labels[2:14, 2:14], labels[2:14, 14:27], labels[14:27, 8:20] = 5, 9, 2
    large = enlarge_labels(labels, (121, 118))
    assert label_ids(large).tolist() == [2, 5, 9]
    nearest = labels[np.minimum((np.arange(121) + 0.5) * 30 / 121, 29).astype(int)][:, np.minimum((np.arange(118) + 0.5) * 30 / 118, 29).astype(int)]
    assert (large == nearest).mean() > 0.97
    assert (large[12:50, 12:100] > 0).all()  # no gap where two of them meet
