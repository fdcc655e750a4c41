"""Every column of the table of cells against scikit-image's regionprops, and boxes against numpy."""

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco
from skimage.measure import regionprops

from hpacell.cells.measurements import INTENSITY_COLUMNS, SHAPE_COLUMNS, cell_columns, measure_cells
from hpacell.masks.boxes import box_areas, box_iou, boxes_of, boxes_of_masks, boxes_on_border, find_boxes, pad_boxes
from hpacell.vocabulary import CHANNELS

#: pycocotools 2.0.11 decodes through an interface that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPES = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)
LABELS = npst.arrays(np.int32, SHAPES, elements=st.sampled_from([0, 0, 0, 1, 2, 5]))


def blobs(shape=(220, 300), n=14, seed=0):
    """Rotated ellipses that overlap, are cut by the border, have holes, and skip some labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for i in range(n):
        centre = (int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0])))
        axes = (int(rng.integers(3, 45)), int(rng.integers(3, 45)))
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, 3 * i + 2, -1)
        if i % 4 == 0:
            cv2.circle(labels, centre, 2, 0, -1)
    return labels


def assert_as_regionprops(table, image, labels):
    regions = regionprops(labels, intensity_image=image)
    assert table.cell_id.tolist() == [r.label for r in regions]
    for row, region in zip(table.itertuples(), regions, strict=True):
        assert (row.row0, row.col0, row.row1, row.col1) == region.bbox
        assert (row.cell_area, row.total_area) == (region.area, region.area_bbox)
        assert row.cell_ratio == pytest.approx(region.extent)
        assert (row.centroid_row, row.centroid_col) == pytest.approx(region.centroid)
        names = set(SHAPE_COLUMNS) - {"centroid_row", "centroid_col", "orientation", "eccentricity"}
        for name in names:
            assert getattr(row, name) == pytest.approx(region[name], rel=1e-9, abs=1e-6), name
        assert row.eccentricity == pytest.approx(region.eccentricity, abs=1e-6)
        if region.eccentricity > 1e-3:  # a round cell has no direction
            # The direction of an axis: -pi/2 and pi/2 are the same one.
            assert np.sin(row.orientation - region.orientation) == pytest.approx(0, abs=1e-6)
        for k, channel in enumerate(CHANNELS[: image.shape[2]]):
            for name in INTENSITY_COLUMNS:
                assert getattr(row, f"{channel}_{name}") == pytest.approx(region[name][k], rel=1e-9, abs=1e-7), name


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("seed", range(3))
def test_columns_are_those_of_regionprops(dtype, seed):
    labels = blobs(seed=seed)
    image = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (*labels.shape, 4), dtype=dtype)
    assert_as_regionprops(measure_cells(image, labels), image, labels)


@settings(max_examples=60, deadline=None)
@given(LABELS)
def test_any_small_shape_is_that_of_regionprops(labels):
    image = np.arange(labels.size * 2, dtype=np.uint8).reshape(*labels.shape, 2)
    assert_as_regionprops(measure_cells(image, labels, channels=CHANNELS[:2]), image, labels)


def test_rows_say_where_the_cell_is():
    labels = blobs(seed=5)
    nuclei = np.where(cv2.erode((labels > 0).astype(np.uint8), np.ones((9, 9))) > 0, labels, 0)
    image = np.zeros((*labels.shape, 4), np.uint8)
    table = measure_cells(image, labels, nuclei, field_id="f", labels="nucleoli|cytosol", pixel_um=0.5)
    for row in table.itertuples():
        mask = labels == row.cell_id
        np.testing.assert_array_equal(coco.decode({"size": list(labels.shape), "counts": row.rle}), mask)
        edge = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
        assert row.on_border == edge
        assert row.nucleus_area == np.count_nonzero(nuclei == row.cell_id)
        assert row.cell_area_um2 == mask.sum() * 0.25
        assert (row.field_id, row.labels) == ("f", "nucleoli|cytosol")
    assert (table.nucleus_area == 0).any()  # some cell has lost its nucleus


@pytest.mark.parametrize("pixel_um", [None, 0.08])
@pytest.mark.parametrize("n_channels", [1, 4])
def test_no_cell_gives_the_same_columns(pixel_um, n_channels):
    labels = blobs()
    image = np.zeros((*labels.shape, n_channels), np.uint8)
    channels = CHANNELS[:n_channels]
    some = measure_cells(image, labels, channels=channels, pixel_um=pixel_um)
    none = measure_cells(image, labels * 0, channels=channels, pixel_um=pixel_um)
    assert len(none) == 0 and len(some) > 0
    assert none.dtypes.to_dict() == some.dtypes.to_dict()
    assert list(some) == list(cell_columns(channels))
    assert some.cell_area_um2.isna().all() == (pixel_um is None)
    assert some.nucleus_area.isna().all()
    assert list(pd.concat([none, some]).dtypes) == list(some.dtypes)


def test_table_goes_through_parquet(tmp_path):
    labels = blobs()
    table = measure_cells(np.zeros((*labels.shape, 4), np.uint8), labels, field_id="f")
    for frame in (table, table[:0]):
        frame.to_parquet(tmp_path / "cells.parquet", index=False)
        back = pd.read_parquet(tmp_path / "cells.parquet")
        pd.testing.assert_frame_equal(back, frame)


def test_nuclei_alone_are_the_cells():
    labels = blobs()
    image = np.zeros((*labels.shape, 1), np.uint8)
    table = measure_cells(image, None, labels, channels=["nucleus"])
    assert table.cell_area.tolist() == table.nucleus_area.tolist()
    assert table.cell_id.tolist() == [i for i in np.unique(labels) if i]


def test_arguments_that_do_not_fit():
    labels = blobs()
    image = np.zeros((*labels.shape, 4), np.uint8)
    with pytest.raises(ValueError, match="expected a field"):
        measure_cells(image[..., 0], labels)
    with pytest.raises(ValueError, match="expected a field"):
        measure_cells(image.astype(np.float64), labels)
    with pytest.raises(ValueError, match="belongs to this field"):
        measure_cells(image, labels[1:])
    with pytest.raises(ValueError, match="segment the field first"):
        measure_cells(image, None)
    with pytest.raises(ValueError, match="integers"):
        measure_cells(image, labels * 1.0)


def test_real_cells(shared_data):
    path = sorted((shared_data / "hpa/scc").glob("*_predictedmask.png"))[1]
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int32)
    image = np.stack(
        [cv2.imread(str(path).replace("predictedmask", c), 0) for c in ("red", "green", "blue", "yellow")], -1
    )
    some = np.unique(labels)[1:7:2]
    labels = np.where(np.isin(labels, some), labels, 0)
    assert_as_regionprops(measure_cells(image, labels), image, labels)


# Boxes ------------------------------------------------------------------------------------------


@given(npst.arrays(np.int32, SHAPES, elements=st.sampled_from([0, 0, 1, 3, 70_000, 2**31 - 1])))
def test_boxes_hold_their_cells_and_no_empty_border(labels):
    ids, boxes = find_boxes(labels)
    np.testing.assert_array_equal(ids, [i for i in np.unique(labels) if i])
    for i, (row0, col0, row1, col1) in zip(ids, boxes, strict=True):
        rows, cols = np.nonzero(labels == i)
        assert (row0, col0, row1, col1) == (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1)
    masks = np.array([labels == i for i in ids]).reshape(-1, *labels.shape)
    np.testing.assert_array_equal(boxes_of_masks(masks), boxes)
    np.testing.assert_array_equal(boxes_of(labels), boxes)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int64, np.uint64])
def test_boxes_of_any_integer_type(dtype):
    labels = np.zeros((5, 6), dtype)
    labels[1:3, 2:] = 1
    assert boxes_of(labels).tolist() == [[1, 2, 3, 6]]
    assert len(boxes_of(np.zeros((0, 4), dtype))) == 0


def test_box_iou_is_that_of_drawn_boxes():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 30, (12, 2, 2)), axis=1)
    boxes = corners.reshape(12, 4)
    drawn = np.zeros((12, 30, 30), bool)
    for mask, (row0, col0, row1, col1) in zip(drawn, boxes, strict=True):
        mask[row0:row1, col0:col1] = True
    flat = drawn.reshape(12, -1).astype(int)
    both, area = flat @ flat.T, flat.sum(1)
    union = area[:, None] + area - both
    np.testing.assert_array_equal(box_areas(boxes), area)
    np.testing.assert_allclose(box_iou(boxes, boxes), np.where(union > 0, both / np.maximum(union, 1), 0))
    np.testing.assert_allclose(box_iou(boxes.astype(np.uint8), boxes), box_iou(boxes, boxes))
    assert box_iou(boxes, np.zeros((0, 4))).shape == (12, 0)


def test_pad_and_border():
    boxes = np.array([[0, 5, 4, 9], [3, 3, 6, 6], [5, 1, 10, 3]])
    assert boxes_on_border(boxes, (10, 20, 4)).tolist() == [True, False, True]
    assert pad_boxes(boxes, 4, (10, 20)).tolist() == [[0, 1, 8, 13], [0, 0, 10, 10], [1, 0, 10, 7]]
