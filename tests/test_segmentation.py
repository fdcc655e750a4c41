"""Nuclei and cells: invariants on any input, simulated truth, real fields with a floor, faults."""

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hpacell.cells.blobs import find_blobs, mask_solidity
from hpacell.cells.outlines import tidy_labels, weighted_median
from hpacell.cells.pieces import cut_pieces, find_contacts, join_pieces
from hpacell.cells.segmentation import (
    SegmentationSettings,
    drop_border,
    segment_cells,
    segment_field,
    segment_nuclei,
)
from hpacell.fields.simulate import simulate_field
from hpacell.masks.labels import label_ids
from hpacell.metrics.instances import jaccard, score_instances


def check_segmentation(found, shape):
    """What holds for each segmentation of a field."""
    assert found.nuclei.shape == shape and found.nuclei.dtype == np.int32
    ids = label_ids(found.nuclei)
    assert ids.tolist() == list(range(1, len(ids) + 1))
    if found.cells is not None:
        assert found.cells.shape == shape and found.cells.dtype == np.int32
        assert np.array_equal(label_ids(found.cells), ids)
        inside = found.nuclei > 0
        assert np.array_equal(found.cells[inside], found.nuclei[inside])


def pooled(pairs, iou):
    table = score_instances(pairs, ious=(iou,))
    return table.loc[table["image"] == "pooled", "jaccard"].item()


@pytest.fixture(scope="module")
def simulated():
    return [simulate_field(seed=seed, size=size) for seed, size in ((1, (320, 320)), (2, (256, 384)))]


def test_simulated_fields(simulated):
    found = [segment_field(field.field.image) for field in simulated]
    for field, result in zip(simulated, found, strict=True):
        check_segmentation(result, field.nuclei.shape)
    assert pooled([(field.nuclei, result.nuclei) for field, result in zip(simulated, found, strict=True)], 0.5) > 0.8
    assert pooled([(field.cells, result.cells) for field, result in zip(simulated, found, strict=True)], 0.5) > 0.6


def test_same_field_same_cells(simulated):
    one, two = (segment_field(simulated[0].field.image) for _ in range(2))
    assert np.array_equal(one.nuclei, two.nuclei) and np.array_equal(one.cells, two.cells)


@pytest.mark.parametrize("scale", [0.3, 16.0, 257.0])
def test_brightness_does_not_matter(simulated, scale):
    image = simulated[0].field.image
    scaled = (image * scale).astype(np.float32 if scale < 1 else np.uint16)
    assert jaccard(segment_nuclei(image), segment_nuclei(scaled), 0.7) > 0.85


def test_magnification_does_not_matter(simulated):
    image = simulated[0].field.image
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    found = segment_field(large)
    check_segmentation(found, large.shape[:2])
    small = cv2.resize(found.nuclei, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    assert jaccard(segment_nuclei(image), small, 0.5) > 0.85


def test_small_nuclei_in_a_large_field():
    rng = np.random.default_rng(0)
    field = np.zeros((1100, 1500), np.uint8)
    truth = np.zeros(field.shape, np.int32)
    for k, (row, col) in enumerate(np.argwhere(np.ones((20, 28))) * 52 + 40 + rng.integers(-9, 9, (560, 2)), 1):
        cv2.circle(truth, (int(col), int(row)), 8, k, -1)
    field[truth > 0] = 120
    field = rng.poisson(cv2.GaussianBlur(field, (0, 0), 1.2) + 8.0).astype(np.uint8)
    assert jaccard(truth, segment_nuclei(field, ["nucleus"]), 0.6) > 0.95


def test_touching_nuclei_are_parted():
    canvas = np.zeros((120, 160), np.uint8)
    for centre in ((40, 60), (76, 60), (125, 38), (125, 82)):
        cv2.ellipse(canvas, centre, (18, 22), 0, 0, 360, 150, -1)
    nuclei = segment_nuclei(cv2.GaussianBlur(canvas, (0, 0), 1.5) + np.uint8(10), ["nucleus"])
    assert nuclei.max() == 4


def test_border(simulated):
    image = simulated[0].field.image
    keep, nuclei, cells = (segment_field(image, border=border) for border in ("keep", "nuclei", "cells"))
    assert keep.nuclei.max() >= nuclei.nuclei.max() >= cells.nuclei.max() > 0
    for found, edge in ((nuclei, nuclei.nuclei), (cells, cells.cells)):
        check_segmentation(found, image.shape[:2])
        assert not np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]]).any()


def test_nuclei_only(simulated):
    found = segment_field(simulated[0].field.channel("nucleus"), channels=["nucleus"])
    assert found.cells is None and found.nuclei.max() > 0
    only_protein = segment_field(simulated[0].field.image[..., 1:3], channels=["protein", "nucleus"])
    check_segmentation(only_protein, simulated[0].nuclei.shape)
    assert only_protein.cells is not None


def test_cells_keep_numbers_of_given_nuclei(simulated):
    nuclei = simulated[0].nuclei * 10
    cells = segment_cells(simulated[0].field.image, nuclei)
    assert np.array_equal(label_ids(cells), label_ids(nuclei))
    assert np.array_equal(cells[nuclei > 0], nuclei[nuclei > 0])
    none = segment_cells(simulated[0].field.image, np.zeros_like(nuclei))
    assert not none.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (6, 6), (40, 7), (64, 64)])
@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_fields_hold_nothing(shape, value):
    found = segment_field(np.full((*shape, 4), value, np.uint8))
    check_segmentation(found, shape)
    assert found.nuclei.max() == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(150, 200), (1200, 1300)])
def test_noise_holds_nothing(seed, shape):
    noise = np.random.default_rng(seed).normal(60, 12, (*shape, 4)).clip(0, 255).astype(np.uint8)
    assert segment_field(noise).nuclei.max() <= 2


def test_saturated_field():
    image = np.full((80, 80, 4), 255, np.uint8)
    image[:10] = 0
    check_segmentation(segment_field(image), (80, 80))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16]), st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(4)), elements=st.integers(0, 255)))
def test_anything_may_come(image):
    check_segmentation(segment_field(image), image.shape[:2])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pieces_cover_their_objects(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 50), np.int32)
    for k in range(1, 5):
        cv2.circle(labels, (int(rng.integers(50)), int(rng.integers(40))), int(rng.integers(3, 12)), k, -1)
    labels = tidy_labels(labels, 1)
    smooth = rng.uniform(50, 200, labels.shape).astype(np.float32)
    pieces = cut_pieces(labels, smooth, 12.0)
    assert np.array_equal(pieces > 0, labels > 0)
    for piece in label_ids(pieces):
        assert len(np.unique(labels[pieces == piece])) == 1
    joined = join_pieces(pieces, smooth, 12.0)
    assert np.array_equal(joined > 0, labels > 0)
    assert len(label_ids(joined)) <= len(label_ids(pieces))
    for piece in label_ids(pieces):
        assert len(np.unique(joined[pieces == piece])) == 1


def test_contacts_count_pixel_pairs():
    pieces = np.array([[1, 1, 2], [1, 3, 2], [0, 3, 3]])
    image = np.arange(9.0).reshape(3, 3)
    contacts = find_contacts(pieces, image)
    assert {pair: values[0] for pair, values in contacts.items()} == {(1, 2): 1, (1, 3): 2, (2, 3): 2}
    assert contacts[1, 2][1] == 2 and contacts[1, 3][1] == 4 + 4


def test_blobs_do_not_overlap():
    smooth = cv2.GaussianBlur(np.random.default_rng(5).uniform(0, 255, (60, 60)).astype(np.float32), (0, 0), 3)
    blobs = find_blobs(smooth, np.linspace(smooth.min(), smooth.max(), 12, endpoint=False))
    drawn = np.zeros(smooth.shape, int)
    for blob in blobs:
        drawn += cv2.drawContours(np.zeros(smooth.shape, np.uint8), [blob.contour], -1, 1, -1)
    assert blobs and drawn.max() == 1


@given(hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 50)))
def test_weighted_median_as_repeated_values(values):
    weights = np.arange(1, len(values) + 1)
    repeated = np.sort(np.repeat(values, weights))
    assert weighted_median(values, weights) == repeated[(len(repeated) + 1) // 2 - 1]


def test_solidity_of_convex_and_other_shapes():
    square = np.zeros((30, 30), bool)
    square[5:25, 5:25] = True
    assert mask_solidity(square) > 0.99
    square[5:15, 5:15] = False
    assert mask_solidity(square) < 0.9
    assert mask_solidity(np.zeros((4, 4), bool)) == 0


@pytest.mark.parametrize(
    ("image", "channels", "message"),
    [
        (np.zeros((5, 5, 3), np.uint8), ("microtubules", "protein", "nucleus", "er"), "for the channels"),
        (np.zeros((5, 5), np.uint8), ("nucleus", "er"), "for the channels"),
        (np.zeros((0, 5), np.uint8), ("nucleus",), "for the channels"),
        (np.zeros((5, 5), np.uint8), ("er",), "channel nucleus"),
        (np.full((5, 5), np.nan), ("nucleus",), "finite"),
        (np.zeros((5, 5), complex), ("nucleus",), "finite"),
    ],
)
def test_not_a_field(image, channels, message):
    with pytest.raises(ValueError, match=message):
        segment_field(image, channels)


def test_other_faults(simulated):
    image = simulated[0].field.image
    with pytest.raises(ValueError, match="keep, nuclei, cells"):
        segment_field(image, border="drop")
    with pytest.raises(ValueError, match="nuclei of shape"):
        segment_cells(image, np.zeros((3, 3), int))
    with pytest.raises(ValueError, match="use segment_nuclei"):
        segment_cells(image[..., 2], np.zeros(image.shape[:2], int), channels=["nucleus"])
    assert SegmentationSettings().border == "keep"


def test_hpa_cells_against_the_tool(shared_data):
    folder = shared_data / "hpa" / "scc"
    read = lambda name: cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)  # noqa: E731
    pairs = []
    for path in sorted(folder.glob("*_predictedmask.png"))[:2]:
        name = path.name.removesuffix("_predictedmask.png")
        image = np.stack([read(f"{name}_{colour}.png") for colour in ("red", "green", "blue", "yellow")], axis=-1)
        found = segment_field(image)
        check_segmentation(found, image.shape[:2])
        pairs.append((read(path.name).astype(np.int32), found.cells))
    assert pooled(pairs, 0.5) > 0.78 and pooled(pairs, 0.75) > 0.6


def test_nuclei_outlined_by_people(shared_data):
    import pandas as pd

    folder = shared_data / "dsb2018"
    index = pd.read_csv(folder / "index.csv").query("kind == 'fluorescence'")
    pairs = []
    for name in index["image_id"].iloc[::30]:
        image, truth = (cv2.imread(str(folder / part / f"{name}.png"), cv2.IMREAD_UNCHANGED) for part in ("images", "labels"))
        pairs.append((truth, segment_nuclei(image, ["nucleus"])))
    assert pooled(pairs, 0.5) > 0.75 and pooled(pairs, 0.75) > 0.55


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_numbers_of_nuclei_are_kept(simulated, dtype):
    image = simulated[0].field.image
    found = segment_field(image)
    names = np.r_[0, np.random.default_rng(3).permutation(200)[: found.nuclei.max()] + 10].astype(dtype)
    names[2] = np.iinfo(dtype).max if dtype != np.int64 else 2**31 - 1
    for kept in (names, names * (np.arange(len(names)) != 4)):  # one of them left out
        nuclei = kept[found.nuclei]
        cells = segment_cells(image, nuclei)
        assert cells.dtype == np.int32 and np.array_equal(label_ids(cells), label_ids(nuclei))
        assert np.array_equal(cells[nuclei > 0], nuclei[nuclei > 0])
    assert np.array_equal(segment_cells(image, names[found.nuclei]), names[found.cells])


@pytest.mark.parametrize("border", ["nuclei", "cells"])
def test_cells_at_the_border_are_left_out(simulated, border):
    image = simulated[0].field.image
    whole, found = segment_field(image), segment_field(image, border=border)
    edge = whole.nuclei if border == "nuclei" else whole.cells
    rims = np.unique(np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]]))
    kept = np.setdiff1d(label_ids(whole.cells), rims)
    check_segmentation(found, image.shape[:2])
    assert 0 < len(kept) < whole.cells.max()
    assert np.array_equal(found.cells, np.searchsorted(kept, whole.cells * np.isin(whole.cells, kept)) + np.isin(whole.cells, kept))


def discs(side, across, n=None, gap=2.5, bright=120, dark=12, seed=0, plane=None, free=()):
    """A float32 plane with discs on a jittered grid, and their centres (row, col); none near the `free` (row, col, radius)."""
    rng, step = np.random.default_rng(seed), gap * across
    k = int(side // step)
    centres = (np.argwhere(np.ones((k, k))) + 0.5) * step + rng.uniform(-0.2, 0.2, (k * k, 2)) * (step - 1.25 * across)
    centres = rng.permutation(centres)
    for row, col, radius in free:
        centres = centres[np.hypot(centres[:, 0] - row, centres[:, 1] - col) > radius + across]
    plane = np.full((side, side), dark, np.float32) if plane is None else plane
    for row, col in centres[:n]:
        cv2.circle(plane, (int(16 * col), int(16 * row)), int(8 * across), float(bright), -1, cv2.LINE_8, 4)
    return plane, centres[:n]


def photo(plane, noise=3, seed=0):
    """What a camera makes of a plane."""
    plane = cv2.GaussianBlur(plane, (0, 0), 0.8) + np.random.default_rng(seed).normal(0, noise, plane.shape)
    return plane.clip(0, 255).astype(np.uint8)


def n_hit(nuclei, centres, across):
    """Centres that lie in a nucleus of their own, of about the right area."""
    rows, cols = np.minimum(centres.astype(int), np.array(nuclei.shape) - 1).T
    area = np.bincount(nuclei.ravel())
    return sum(area[label] < 2.5 * np.pi / 4 * across**2 for label in np.unique(nuclei[rows, cols]) if label)


@pytest.mark.parametrize(("side", "across"), [(256, 8), (1000, 8), (1300, 12), (1800, 28)])
def test_small_nuclei_are_found_in_a_field_of_any_size(side, across):
    plane, centres = discs(side, across, n=600)
    found = segment_field(photo(plane), ["nucleus"])
    assert abs(int(found.nuclei.max()) / len(centres) - 1) <= 0.02 and n_hit(found.nuclei, centres, across) >= 0.98 * len(centres)
    assert 0 < found.smallest_px <= across


def test_cells_of_small_nuclei_in_a_large_field():
    plane, centres = discs(1000, 10, n=500, gap=3.5)
    cells = cv2.dilate(plane, np.ones((7, 7))) * 0.4
    image = np.stack([photo(cells, seed=1), photo(cells, seed=2), photo(plane)], axis=-1)
    found = segment_field(image, ["microtubules", "er", "nucleus"])
    check_segmentation(found, plane.shape)
    assert abs(int(found.nuclei.max()) / len(centres) - 1) <= 0.02
    assert (np.bincount(found.cells.ravel())[1:] > np.bincount(found.nuclei.ravel())[1:]).mean() > 0.95


@pytest.mark.parametrize("bright", [120, 30])
def test_an_artefact_does_not_hide_small_nuclei(bright):
    plane, centres = discs(1200, 12, n=500, bright=bright, free=[(600, 600, 100)])
    cv2.circle(plane, (600, 600), 100, 255, -1)
    nuclei = segment_nuclei(photo(plane, 2), ["nucleus"])
    assert n_hit(nuclei, centres, 12) >= 0.98 * len(centres)
    assert int(nuclei.max()) <= len(centres) + 3


def test_large_and_small_nuclei_in_one_field():
    plane, large = discs(1600, 90, n=25, gap=3)
    plane, small = discs(1600, 12, n=80, gap=3, seed=1, plane=plane, free=[(*place, 45) for place in large])
    nuclei = segment_nuclei(photo(plane), ["nucleus"])
    assert n_hit(nuclei, small, 12) >= 78 and int(nuclei.max()) == pytest.approx(105, abs=2)
    rows, cols = large.astype(int).T
    assert len(np.unique(nuclei[rows, cols])) == 25 and (np.bincount(nuclei.ravel())[nuclei[rows, cols]] > 4000).all()


def test_a_few_specks_beside_large_nuclei_stay_debris():
    plane, large = discs(1600, 90, n=40, gap=2)
    for k, (row, col) in enumerate(discs(1600, 10, n=12, gap=4, seed=1, free=[(*place, 45) for place in large])[1]):
        cv2.circle(plane, (int(col), int(row)), 2 + k % 5, 120, -1)
    assert int(segment_nuclei(photo(plane), ["nucleus"]).max()) <= 45


def test_some_small_nuclei_in_a_wide_field_are_not_overlooked():
    plane, centres = discs(1700, 12, n=5, gap=6)
    assert n_hit(segment_nuclei(photo(plane), ["nucleus"]), centres, 12) == 5


def test_colonies_are_not_taken_for_nuclei():
    plane = np.full((1000, 1000), 10, np.float32)
    centres = discs(1000, 12, gap=1.5)[1]
    centres = centres[np.hypot(*(centres % 500 - 250).T) < 130]
    for row, col in centres:
        cv2.circle(plane, (int(16 * col), int(16 * row)), 96, 120.0, -1, cv2.LINE_8, 4)
    assert n_hit(segment_nuclei(photo(plane), ["nucleus"]), centres, 12) >= 0.98 * len(centres)


def test_a_given_diameter_is_used_and_an_impossible_one_refused():
    plane, centres = discs(1000, 12, gap=4)
    found = segment_field(photo(plane), ["nucleus"], diameter=12)
    assert abs(int(found.nuclei.max()) / len(centres) - 1) <= 0.02
    for diameter in (-3, 1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="diameter of nuclei from 3 pixels"):
            segment_field(photo(plane)[:64, :64], ["nucleus"], diameter=diameter)


def test_a_wrong_pixel_size_shows_in_the_smallest_diameter():
    plane, centres = discs(400, 10)
    found = segment_field(photo(plane), ["nucleus"], pixel_um=0.1)  # 3 micrometres are 30 pixels
    assert int(found.nuclei.max()) == 0 and found.smallest_px == pytest.approx(30)
    assert abs(int(segment_field(photo(plane), ["nucleus"], pixel_um=0.1, diameter=10).nuclei.max()) / len(centres) - 1) <= 0.02


@pytest.mark.parametrize("ids", [(1, 2, 3), (3, 1, 2), (2, 7, 70000), (15, 16, 4)])
@pytest.mark.parametrize("border", ["keep", "nuclei", "cells"])
def test_ids_of_nuclei_and_cells_may_differ(ids, border):
    nuclei, cells = np.zeros((2, 12, 60), np.int32)
    for k, label in enumerate(ids):
        cells[2:10, 4 + 16 * k : 14 + 16 * k] = label
    nuclei[4:8, 6:10], nuclei[4:8, 38:42] = ids[0], ids[2]  # the second cell has no nucleus
    nuclei[4:8, 54:58] = max(ids) + 5  # a nucleus has no cell
    found = drop_border(nuclei, cells, border)
    check_segmentation(found, nuclei.shape)
    assert int(found.cells.max()) == 2 and found.cells[5, 24] == 0 and found.nuclei[5, 55] == 0
    assert not drop_border(np.zeros_like(nuclei), cells, border).cells.any()


def test_nuclei_and_cells_of_two_fields_are_refused():
    with pytest.raises(ValueError, match="of one shape"):
        drop_border(np.zeros((4, 5), np.int32), np.zeros((4, 6), np.int32), "keep")


def test_each_given_nucleus_keeps_a_cell_however_small():
    nuclei = np.zeros((1300, 1300), np.int32)
    nuclei[4:1290:13, 4:1290:13] = np.arange(1, 99 * 99 + 1).reshape(99, 99)
    image = np.full((1300, 1300, 2), 90, np.uint8)
    assert len(label_ids(segment_cells(image, nuclei, ["er", "nucleus"]))) == 99 * 99
