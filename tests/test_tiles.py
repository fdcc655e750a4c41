"""Windows and blending, and the scale of brightness, against plain definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpacell.fields.intensity import BRIGHTEST, intensity_range, normalise_intensity, scale_intensity, to_channels
from hpacell.fields.tiles import blend_tiles, tile_windows

SIDES = st.integers(1, 150)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.integers(1, 64), st.data())
def test_windows_cover_and_overlap(height, width, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    windows = tile_windows((height, width, 3), size, overlap)
    seen = np.zeros((height, width), int)
    for row0, col0, row1, col1 in windows:
        assert 0 <= row0 < row1 <= height and 0 <= col0 < col1 <= width
        assert (row1 - row0, col1 - col0) == (min(size, height), min(size, width))
        seen[row0:row1, col0:col1] += 1
    assert seen.min() >= 1 and len(set(windows)) == len(windows)
    for axis in range(2):
        places = sorted({(window[axis], window[axis + 2]) for window in windows})
        assert all(stop - start >= overlap for (_, stop), (start, _) in zip(places, places[1:], strict=False))


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES, st.integers(2, 64), st.data())
def test_blending_tiles_of_an_image_gives_the_image(height, width, size, data):
    windows = tile_windows((height, width), size, data.draw(st.integers(0, size - 1)))
    image = np.random.default_rng(height * 151 + width).random((height, width, 2))
    tiles = (image[row0:row1, col0:col1] for row0, col0, row1, col1 in windows)
    np.testing.assert_allclose(blend_tiles(tiles, windows, (height, width)), image, atol=2e-5)  # up to thousands of windows add up in 32 bits


def test_blending_has_no_seam():
    """Two tiles that differ: the step from one pixel to the next stays small, and the middle of a tile is its own."""
    windows = tile_windows((64, 96), 64, 32)
    both = blend_tiles([np.zeros((64, 64)), np.ones((64, 64))], windows, (64, 96))
    assert both.dtype == np.float32 and np.abs(np.diff(both, axis=1)).max() < 0.1
    assert (both[:, :32] == 0).all() and (both[:, 64:] == 1).all()


def test_tiles_that_do_not_fit_are_refused():
    windows = tile_windows((40, 40), 32, 8)
    with pytest.raises(ValueError, match="expected a tile of 32 x 32"):
        blend_tiles([np.zeros((40, 32))] * 4, windows, (40, 40))
    for n, message in ((3, "each of 4 windows, got 3"), (5, "got more")):
        with pytest.raises(ValueError, match=message):
            blend_tiles([np.zeros((32, 32))] * n, windows, (40, 40))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("percentiles", [(1, 99.8), (0, 100), (33.3, 66.6)])
def test_the_range_is_that_of_numpy(dtype, percentiles):
    image = (np.random.default_rng(0).gamma(2, 20, (31, 47, 3))).clip(0, 255).astype(dtype)
    np.testing.assert_allclose(intensity_range(image, percentiles), np.percentile(image, percentiles, axis=(0, 1)))


@pytest.mark.parametrize(("dtype", "side"), [(np.uint8, 10), (np.uint8, 40), (np.uint16, 40), (np.uint16, 300), (np.float32, 40)])
def test_scaling_by_table_and_by_arithmetic_agree(dtype, side):
    image = np.random.default_rng(1).integers(0, 200, (side, side, 2)).astype(dtype)
    low, high = intensity_range(image)
    expected = np.clip((image.astype(np.float64) - low) / (high - low), 0, BRIGHTEST)
    np.testing.assert_allclose(normalise_intensity(image), expected, atol=1e-6)
    np.testing.assert_array_equal(scale_intensity(image[3:9, 2:7], np.stack([low, high])), normalise_intensity(image)[3:9, 2:7])


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 100), st.floats(-50, 5000))
def test_gain_and_offset_of_a_camera_do_not_matter(gain, offset):
    image = np.random.default_rng(2).random((30, 30))
    np.testing.assert_allclose(normalise_intensity(image * gain + offset), normalise_intensity(image), atol=1e-4)


def test_channels_come_by_luminance_and_by_repetition():
    rng = np.random.default_rng(3)
    colour = rng.integers(0, 2**16, (20, 30, 3)).astype(np.uint16)
    grey = to_channels(colour, 1)
    assert grey.dtype == np.uint16 and grey.shape == (20, 30, 1)
    np.testing.assert_allclose(grey[..., 0], colour @ [0.299, 0.587, 0.114], atol=0.6)
    np.testing.assert_array_equal(to_channels(to_channels(grey, 3), 1), grey)
    assert to_channels(colour, 3) is colour
    for image, n in ((colour, 4), (grey, 2), (np.zeros((5, 5, 4)), 1)):
        with pytest.raises(ValueError, match="chooses channels"):
            to_channels(image, n)
