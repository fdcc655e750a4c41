"""The look for small spots: the same in any type and size of plane, whatever the strips it is looked at in."""

import cv2
import numpy as np
import pytest

from hpacell.cells.planes import Planes
from hpacell.cells.sizes import RAYS, REACH, find_spots, halve, hidden_spots


def plane_of(shape, n, seed=0, large=0):
    """Discs of 4 to 7 pixels across, a few large ones, blur and noise, uint8."""
    rng = np.random.default_rng(seed)
    plane = np.full(shape, 15, np.float32)
    for radius, many in ((24, large), (2, n), (3, n // 2)):
        for row, col in rng.integers(0, shape, (many, 2)):
            cv2.circle(plane, (int(col), int(row)), radius, float(rng.integers(40, 220)), -1)
    return (cv2.GaussianBlur(plane, (0, 0), 0.8) + rng.normal(0, 2, shape)).clip(0, 255).astype(np.uint8)


def spots_at_once(plane, least):
    """`find_spots` pixel by pixel, of the whole plane in one piece."""
    plane = plane.astype(np.float64)
    core, wide = (cv2.blur(plane, (k, k)) for k in (3, 9))
    step = max(1, min(plane.shape) // 256)
    noise = np.percentile(np.abs(plane - core)[::step, ::step], 20) / 0.24 + 0.05
    ridge = core + 0.1 * wide
    peak = (core - wide > max(2 * noise, 0.25 * least)) & (ridge >= cv2.dilate(ridge, np.ones((5, 5))) - 1e-9)
    found = []
    for row, col in np.argwhere(peak):
        ways = []
        for down, right in RAYS:
            steps = [max(1, round((0.75 if down and right else 1) * k)) for k in range(2, REACH + 1)]
            places = [(np.clip(row + k * down, 0, plane.shape[0] - 1), np.clip(col + k * right, 0, plane.shape[1] - 1)) for k in steps]
            ways.append(min(core[place] for place in places))
        dark, third, bright = min(ways), sorted(ways)[-3], core[row, col]
        if third < dark + 0.5 * (bright - dark) and bright - dark > least:
            found.append((row, col))
    return set(found)


def places(spots):
    return set(map(tuple, spots[:, :2].astype(int).tolist()))


@pytest.mark.parametrize("shape", [(40, 50), (127, 90), (128, 61), (129, 300), (300, 33), (391, 260)])
@pytest.mark.parametrize("least", [0, 20])
def test_spots_are_those_of_the_whole_plane(shape, least):
    plane = plane_of(shape, shape[0] * shape[1] // 300, large=1)
    expected = spots_at_once(plane, least)
    found = places(find_spots(plane, least))
    assert len(expected) > 2 and len(found ^ expected) <= 0.01 * len(expected)  # ties may fall otherwise


@pytest.mark.parametrize(("dtype", "gain"), [(np.uint16, 1), (np.uint16, 257), (np.float32, 1), (np.float32, 1 / 64)])
def test_the_type_of_a_plane_does_not_matter(dtype, gain):
    plane = plane_of((300, 280), 200)
    one, other = find_spots(plane, 20), find_spots((plane * dtype(gain)).astype(dtype), 20 * gain)
    assert len(one) > 50 and len(places(one) ^ places(other)) <= 0.02 * len(one)  # the least noise that is assumed has no gain
    assert find_spots(plane).dtype == np.float32


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (2, 3), (130, 1), (5, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_planes_without_anything_hold_no_spots(shape, dtype):
    assert find_spots(np.full(shape, 7, dtype)).shape == (0, 5)
    assert halve(np.full(shape, 7, dtype)).dtype == dtype


def test_a_flat_top_is_one_spot():
    plane = np.full((60, 60), 10, np.uint8)
    cv2.circle(plane, (30, 31), 4, 255, -1)
    assert len(find_spots(plane)) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_dim_spots_in_a_quarter_of_the_size_are_seen(dtype):
    plane = np.full((800, 800), 20, np.float32)
    for row, col in np.argwhere(np.ones((12, 12))) * 64 + 40:
        cv2.circle(plane, (int(col), int(row)), 10, 30, -1)
    plane = (cv2.GaussianBlur(plane, (0, 0), 2) + np.random.default_rng(0).normal(0, 1, plane.shape)).clip(0, 255).astype(dtype)
    look = cv2.resize(plane, (200, 200), interpolation=cv2.INTER_AREA).astype(np.float32)
    spots, factor = hidden_spots(plane, look, np.zeros((200, 200), np.int32))
    assert abs(len(spots) - 144) <= 3 and factor in (2, 4)


def test_the_channel_of_nuclei_is_copied_once_and_others_are_not_kept():
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    planes = Planes(image, ["er", "nucleus", "microtubules"])
    for name, channel in (("er", 0), ("nucleus", 1)):
        shrunk = cv2.resize(np.ascontiguousarray(image[..., channel]), (40, 32), interpolation=cv2.INTER_AREA)
        assert np.array_equal(planes.shrink(name, (32, 40)), shrunk) and planes.shrink(name, (32, 40)) is planes.shrink(name, (32, 40))
    assert "nucleus" in planes.known and "er" not in planes.known
    assert np.array_equal(planes.window("er", (64, 80), (slice(3, 9), slice(2, 8))), image[3:9, 2:8, 0])
