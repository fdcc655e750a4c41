"""Crops against a loop that copies the whole field for each cell, as written by hand."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hpacell.cells.crops import crop_cells, protein_background
from hpacell.cells.measurements import measure_cells
from hpacell.fields.depth import to_uint8
from hpacell.vocabulary import CHANNELS


def naive_crops(image, labels, size, clear_outside, level, pad=0):
    """Whole-frame masked copy for each cell."""
    image, crops = to_uint8(image), []
    for i in [i for i in np.unique(labels) if i]:
        mask = labels == i
        frame = image.copy()
        if clear_outside:
            frame[~mask] = 0
        frame[..., 1] = np.clip(frame[..., 1].astype(int) - level, 0, 255)
        rows, cols = np.nonzero(mask)
        top, left = max(rows.min() - pad, 0), max(cols.min() - pad, 0)
        crop = np.ascontiguousarray(frame[top : rows.max() + 1 + pad, left : cols.max() + 1 + pad])
        scale = size / max(crop.shape[:2])
        height, width = (max(1, round(side * scale)) for side in crop.shape[:2])
        if scale != 1:
            planes = np.moveaxis(crop, 2, 0)
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            crop = np.stack([cv2.resize(plane.copy(), (width, height), interpolation=how) for plane in planes], axis=2)
        square = np.zeros((size, size, image.shape[2]), np.uint8)
        row, col = (size - height) // 2, (size - width) // 2
        square[row : row + height, col : col + width] = crop
        crops.append(square)
    return np.array(crops, np.uint8).reshape(-1, size, size, image.shape[2])


def field(seed=0, shape=(180, 260), n_channels=4, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for i in range(9):
        centre = (int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0])))
        axes = (int(rng.integers(4, 50)), int(rng.integers(4, 50)))
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, 5 * i + 3, -1)
    image = rng.integers(0, 60, (*shape, n_channels)) + 120 * (labels > 0)[..., None]
    return (image * (np.iinfo(dtype).max // 255)).astype(dtype), labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [24, 64, 101])
@pytest.mark.parametrize("clear_outside", [True, False])
@pytest.mark.parametrize("pad", [0, 7])
def test_pixels_are_those_of_the_whole_frame_loop(dtype, size, clear_outside, pad):
    image, labels = field(dtype=dtype)
    level = protein_background(np.ascontiguousarray(to_uint8(image)[..., 1]), labels)
    assert level > 0
    crops = crop_cells(image, labels, size, clear_outside=clear_outside, pad=pad)
    np.testing.assert_array_equal(crops, naive_crops(image, labels, size, clear_outside, level, pad))
    plain = crop_cells(image, labels, size, clear_outside=clear_outside, clean_protein=False, pad=pad)
    np.testing.assert_array_equal(plain, naive_crops(image, labels, size, clear_outside, 0, pad))


@settings(max_examples=60, deadline=None)
@given(
    npst.arrays(
        np.int32, npst.array_shapes(min_dims=2, max_dims=2, max_side=18), elements=st.sampled_from([0, 0, 1, 4])
    ),
    st.integers(1, 20),
    st.booleans(),
)
def test_any_small_cell(labels, size, clear_outside):
    image = np.random.default_rng(0).integers(0, 255, (*labels.shape, 4), dtype=np.uint8)
    crops = crop_cells(image, labels, size, clear_outside=clear_outside, clean_protein=False)
    np.testing.assert_array_equal(crops, naive_crops(image, labels, size, clear_outside, 0))


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels(n_channels):
    image, labels = field(n_channels=n_channels)
    channels = ("a", "b", "c", "d", "e", "f", "g")[:n_channels]
    crops = crop_cells(image, labels, 32, channels=channels)
    np.testing.assert_array_equal(crops, naive_crops(np.dstack([image, image[..., :1]]), labels, 32, True, 0)[..., :-1])


def test_only_the_protein_is_cleaned():
    image, labels = field()
    cleaned, plain = crop_cells(image, labels, 48), crop_cells(image, labels, 48, clean_protein=False)
    np.testing.assert_array_equal(cleaned[..., [0, 2, 3]], plain[..., [0, 2, 3]])
    assert (cleaned[..., 1] <= plain[..., 1]).all() and (cleaned[..., 1] < plain[..., 1]).any()
    moved = ("protein", "nucleus", "er", "microtubules")
    other = crop_cells(image[..., [1, 2, 3, 0]], labels, 48, channels=moved)
    np.testing.assert_array_equal(other, cleaned[..., [1, 2, 3, 0]])


def test_background_level():
    labels = np.zeros((100, 100), np.int32)
    labels[20:80, 20:80] = 1
    rng = np.random.default_rng(0)
    protein = np.where(labels > 0, 150, rng.integers(10, 30, labels.shape)).astype(np.uint8)
    protein[:3] = 200  # a cell that was left out
    assert protein_background(protein, labels) == np.percentile(protein[labels == 0], 10, method="inverted_cdf")
    assert protein_background(protein, np.ones_like(labels)) == np.percentile(protein, 1, method="inverted_cdf")
    assert protein_background(np.zeros_like(protein), labels) == 0


def test_order_is_that_of_the_table():
    image, labels = field(seed=3)
    table = measure_cells(image, labels)
    crops = crop_cells(image, labels, 64, clean_protein=False)
    assert len(crops) == len(table)
    for crop, row in zip(crops, table.itertuples(), strict=True):
        if max(row.height, row.width) <= 64:
            continue
        # Area averaging keeps the mean brightness of the box.
        inside = np.where((labels == row.cell_id)[..., None], image, 0)[row.row0 : row.row1, row.col0 : row.col1]
        share = 64 / max(row.height, row.width)
        assert crop[..., 0].sum() == pytest.approx(inside[..., 0].sum() * share**2, rel=0.05)


def test_no_cell_and_nuclei_only():
    image, labels = field()
    assert crop_cells(image, labels * 0, 40).shape == (0, 40, 40, 4)
    nuclei_only = crop_cells(image[..., 2:3], None, 40, nuclei=labels, channels=["nucleus"])
    np.testing.assert_array_equal(nuclei_only, crop_cells(image[..., 2:3], labels, 40, channels=["nucleus"]))
    assert nuclei_only.dtype == np.uint8 and nuclei_only.shape[3] == 1


def test_arguments_stay_as_they_were():
    image, labels = field()
    before = image.copy(), labels.copy()
    crop_cells(image, labels, 64, clear_outside=False)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])
    fixed = image.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(crop_cells(fixed, labels, 64), crop_cells(image, labels, 64))


def test_arguments_that_do_not_fit():
    image, labels = field()
    with pytest.raises(ValueError, match="expected a field"):
        crop_cells(image, labels, channels=["nucleus"])
    with pytest.raises(ValueError, match="field's size"):
        crop_cells(image, labels.T)
    with pytest.raises(ValueError, match="got neither"):
        crop_cells(image, None)
    with pytest.raises(ValueError, match="size of 1 or more"):
        crop_cells(image, labels, 0)
    with pytest.raises(ValueError, match="pad of 0 or more"):
        crop_cells(image, labels, pad=-1)


def test_real_field(shared_data):
    path = sorted((shared_data / "hpa/scc").glob("*_predictedmask.png"))[0]
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:1100, :1300]
    planes = [cv2.imread(str(path).replace("predictedmask", c), 0) for c in ("red", "green", "blue", "yellow")]
    image = np.stack(planes, axis=2)[:1100, :1300]
    level = protein_background(np.ascontiguousarray(image[..., 1]), labels)
    crops = crop_cells(image, labels, 128, channels=CHANNELS)
    np.testing.assert_array_equal(crops, naive_crops(image, labels, 128, True, level))
