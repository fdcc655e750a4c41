"""Tissue: simulated slides, tiles and back, tissue on glass, masks of the competition, regions of large files, submissions."""

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hpacell.fields.decode import decode_image
from hpacell.fields.image import FieldError
from hpacell.fields.picture import write_png
from hpacell.fields.regions import open_regions
from hpacell.fields.slides import simulate_tissue, simulate_tissues
from hpacell.fields.tiles import OPEN, blend_tiles, cut_tiles, join_tiles, reduce_image, reduce_mask, tile_windows
from hpacell.fields.tissue import find_tissue, tissue_window
from hpacell.files import check_local
from hpacell.masks.rle import encode_kaggle
from hpacell.masks.tissue import (
    TissueRings,
    decode_tissue,
    find_tissue_images,
    find_tissue_table,
    likely_size,
    read_tissue,
    rings_mask,
)
from hpacell.metrics.tissue_submission import (
    read_tissue_submission,
    validate_tissue_submission,
    write_tissue_submission,
)
from hpacell.vocabulary import ORGANS

SIDES = st.integers(1, 90)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / max((one | other).sum(), 1)


# Tiles and back


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, st.integers(1, 120), st.data())
def test_cutting_and_joining_give_the_image_back(height, width, size, data):
    overlap = data.draw(st.integers(0, size - 1).map(lambda n: min(n, 40)).filter(lambda n: n < size and size - n > min(height, width) // 12))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.int32, np.float32, np.float64, bool]))
    shape = (height, width, *data.draw(st.sampled_from([(), (1,), (3,), (5,)])))
    image = np.random.default_rng(height * 91 + width).random(shape)
    image = image > 0.5 if dtype is bool else (image * (1 if dtype in (np.float32, np.float64) else np.iinfo(dtype).max)).astype(dtype)
    cut = cut_tiles(image, size, overlap=overlap)
    back = join_tiles(iter(cut.tiles), cut)
    assert back.dtype == image.dtype and np.array_equal(back, image)
    assert cut.tiles.shape[1:3] == (min(size, height), min(size, width))  # also where a tile is larger than the image


@settings(deadline=None, max_examples=30)
@given(SIDES, SIDES, st.integers(1, 60), st.sampled_from([1, 2, 3, 4]))
def test_reduced_tiles_are_block_means_and_come_back_at_full_size(height, width, size, reduce):
    rng = np.random.default_rng(height + 91 * width)
    image, mask = rng.integers(0, 256, (height, width, 3)).astype(np.uint8), rng.random((height, width)) > 0.6
    cut = cut_tiles(image, size, reduce, mask=mask)
    padded = [np.pad(one, [(0, -height % reduce), (0, -width % reduce), *[(0, 0)] * (one.ndim - 2)], mode="edge") for one in (image, mask)]
    means = [one.reshape(one.shape[0] // reduce, reduce, one.shape[1] // reduce, reduce, -1).mean(axis=(1, 3)) for one in padded]
    small = join_tiles(cut.tiles, cut_tiles(reduce_image(image, reduce), size))
    assert small.shape[:2] == cut.reduced_shape and np.abs(small - means[0]).max() <= 0.51
    for window, tile in zip(cut.windows, cut.masks, strict=True):
        row0, col0, row1, col1 = window
        assert np.array_equal(tile, means[1][row0:row1, col0:col1, 0] >= 0.5)
    assert join_tiles(cut.tiles, cut).shape == image.shape
    flat = cut_tiles(np.full_like(image, 77), size, reduce)
    assert (join_tiles(flat.tiles, flat) == 77).all()


def test_blending_is_the_weighted_mean():
    rng = np.random.default_rng(0)
    windows = tile_windows((70, 90), 32, 20)
    tiles = [rng.random((32, 32, 2)).astype(np.float32) for _ in windows]

    def ramp(start, stop, length):
        place = np.arange(1, stop - start + 1, dtype=float)
        near = np.minimum(place if start else np.inf, place[::-1] if stop < length else np.inf)
        return np.sin(np.pi / 2 * np.minimum(near / ((stop - start + 1) / 2), 1)) ** 2 * np.ones(stop - start)

    total, whole = np.zeros((70, 90)), np.zeros((70, 90, 2))
    for tile, (row0, col0, row1, col1) in zip(tiles, windows, strict=True):
        weight = np.outer(ramp(row0, row1, 70), ramp(col0, col1, 90))
        total[row0:row1, col0:col1] += weight
        whole[row0:row1, col0:col1] += weight[..., None] * tile
    np.testing.assert_allclose(blend_tiles(tiles, windows, (70, 90)), whole / total[..., None], atol=1e-5)


def test_a_mask_keeps_open_pixels_and_the_majority():
    mask = np.zeros((4, 8), np.uint8)
    mask[:2, :2], mask[:2, 2:4], mask[2:, 6:] = 1, [[1, 0], [0, 0]], OPEN
    mask[0, 4:6], mask[1, 6] = [1, OPEN], 1
    assert reduce_mask(mask, 2).tolist() == [[1, 0, 0, 0], [0, 0, 0, OPEN]]
    mask[1, 4] = OPEN  # of the two that are known, one is inside
    assert reduce_mask(mask, 2)[0, 2] == 1
    labels = np.repeat(np.repeat(np.array([[3, 7], [0, 9]]), 4, 0), 4, 1)
    assert reduce_mask(labels, 4).tolist() == [[3, 7], [0, 9]]


def test_empty_tiles_are_dropped_by_the_rule():
    tissue, mask = np.zeros((128, 128), bool), np.zeros((128, 128), np.uint8)
    tissue[:40, :40], mask[120, 120], mask[:30, 100:] = True, 1, OPEN
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    cut = cut_tiles(image, 32, mask=mask, tissue=tissue, least_tissue=0.1)
    assert cut.windows == ((0, 0, 32, 32), (0, 32, 32, 64), (32, 0, 64, 32), (96, 96, 128, 128)) and cut.n_dropped == 12
    back = join_tiles(cut.tiles, cut, fill=9)
    assert np.array_equal(back[:32, :64], image[:32, :64]) and (back[64:96] == 9).all()
    assert len(cut_tiles(image, 32, tissue=tissue, least_tissue=0).windows) == 16
    nothing = cut_tiles(image, 32, tissue=np.zeros_like(tissue))
    assert nothing.tiles.shape == (0, 32, 32, 3) and nothing.n_dropped == 16
    with pytest.raises(ValueError, match="all were left out as empty"):
        join_tiles(nothing.tiles, nothing)


def test_what_cannot_be_cut_is_refused():
    image = np.zeros((20, 30, 3), np.uint8)
    for wrong, message in [
        ({"mask": np.zeros((30, 20))}, "a mask of the size of the image, 20 x 30"), ({"tissue": np.zeros((20, 30, 1))}, "a tissue of the size"),
        ({"reduce": 0}, "a whole number from 1"), ({"reduce": 2.5}, "a whole number"), ({"overlap": 8}, "below the size of 8"),
        ({"tissue": np.ones((20, 30), bool), "least_tissue": 5}, "from 0 to 1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            cut_tiles(image, 8, **wrong)
    with pytest.raises(ValueError, match="one image at a time"):
        cut_tiles(np.zeros((2, 20, 30, 3)), 8)


# Tissue on glass


@pytest.mark.parametrize("organ", ORGANS)
def test_tissue_is_found_on_simulated_slides(organ):
    for seed in range(2):
        slide = simulate_tissue((seed, 11), organ, 192)
        found = find_tissue(slide.image)
        if organ != "lung":  # most of a lung is air, which looks like glass
            assert iou(found, slide.tissue) > 0.9
        assert (found & ~slide.tissue).sum() < 0.03 * found.size
        rgba = np.dstack([slide.image, np.where(slide.tissue, 255, 0).astype(np.uint8)])
        for other in (slide.image[..., 1], slide.image[..., 1:2], slide.image.astype(np.uint16) * 257, rgba):
            assert iou(find_tissue(other), found) > (0.75 if organ == "lung" else 0.9)


def test_ground_of_other_kinds():
    slide = simulate_tissue(3, "largeintestine", 256)
    black = np.where(slide.tissue[..., None], slide.image, 0).astype(np.uint8)
    assert iou(find_tissue(black), slide.tissue) > 0.97  # cut out, on black
    framed = np.pad(slide.image, ((40, 40), (30, 30), (0, 0)))  # a scanner's black frame around bright glass
    assert iou(find_tissue(framed)[40:-40, 30:-30], slide.tissue) > 0.93 and not find_tissue(framed)[:38].any()
    assert not find_tissue(np.full((90, 80, 3), 236, np.uint8)).any() and not find_tissue(np.zeros((90, 80), np.uint8)).any()
    assert find_tissue(slide.image[100:160, 100:160]).mean() > 0.95  # no glass in sight
    dust = np.full((256, 256, 3), 240, np.uint8)
    dust[100:103, 50:53] = 60
    assert not find_tissue(dust).any()


def test_tissue_is_found_on_real_tiles(shared_data):
    """The shares were looked at: an outline drawn on each tile follows the tissue."""
    shares = {"kidney": (0.6, 0.72), "prostate": (0.66, 0.8), "largeintestine": (0.6, 0.72), "spleen": (0.95, 1), "lung": (0.22, 0.36)}
    images = find_tissue_images(shared_data / "hubmap" / "tiles")
    assert sorted(one.kind for one in images) == sorted(ORGANS)
    for one in images:
        image, labels = one.read()
        assert set(np.unique(labels)) == {0, 1, OPEN}
        found = find_tissue(image)
        low, high = shares[one.kind]
        assert low <= found.mean() <= high, one.kind
        stained = (image.min(axis=2) < 170) & (labels == 1)
        assert found[stained].mean() > 0.97  # no unit is lost


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 30), st.integers(1, 30), st.integers(0, 999))
def test_the_window_holds_most_tissue(height, width, high, wide, seed):
    tissue = ndimage.gaussian_filter(np.random.default_rng(seed).random((height, width)), 2) > 0.5
    row0, col0, row1, col1 = tissue_window(tissue, (high, wide))
    high, wide = min(high, height), min(wide, width)
    assert (row1 - row0, col1 - col0) == (high, wide) and 0 <= row0 and row1 <= height and 0 <= col0 and col1 <= width
    most = max(tissue[r : r + high, c : c + wide].sum() for r in range(height - high + 1) for c in range(width - wide + 1))
    assert tissue[row0:row1, col0:col1].sum() == most


# Masks of the competition


def test_all_real_masks_decode_and_encode_to_the_same_text(shared_data):
    folder = shared_data / "hubmap"
    table = read_tissue(folder / "train_fold0_71rows.csv").set_index("field_id")
    golden = {str(one["id"]): one for one in json.loads((folder / "golden_from_figures.json").read_text())}
    overlaps = []
    for field_id, row in table.iterrows():
        mask = decode_tissue(row["rle"], (row["height"], row["width"]), name=field_id)
        assert encode_kaggle(mask) == row["rle"], field_id
        if field_id in golden:
            assert mask.sum() == golden[field_id]["mask_sum"] and ndimage.label(mask[::2, ::2])[1] == golden[field_id]["objects"]
        outlines = folder / "train_annotations" / f"{field_id}.json"
        if outlines.exists():
            drawn = TissueRings(str(outlines), mask.shape).read_truth().labels > 0
            overlaps.append(iou(mask[::2, ::2], drawn[::2, ::2]))
    assert len(table) == 71 and len(overlaps) == 36 and min(overlaps) >= 0.95


def test_a_size_that_contradicts_the_mask_is_told(shared_data):
    """The mask of 10078 lies 2023 x 2025, the table says 2023 x 2023; and a wrong height shears it."""
    folder = shared_data / "hubmap"
    row = read_tissue(folder / "test_metadata_10078.csv").iloc[0]
    kept = cv2.imread(str(folder / "test_mask_10078.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decode_tissue(row["rle"], kept.shape, kept.shape), kept > 0)
    with pytest.raises(FieldError, match="10078: expected an image of the stated size 2023 x 2023, got one of 2023 x 2025.*so the width is wrong; correct the table to 2023 x 2025"):
        decode_tissue(row["rle"], (row["height"], row["width"]), kept.shape, "10078")
    for shape in ((2025, 2023), (2024, 2024), (2100, 2100)):
        with pytest.raises(FieldError, match="correct the size: 2023 high and at least 1986 wide fits"):
            decode_tissue(row["rle"], shape)
    with pytest.raises(FieldError, match="the runs fit columns of 2023 pixels, at least 1986"):
        decode_tissue(row["rle"], (2023, 1900))


@pytest.mark.parametrize("organ", ORGANS)
def test_right_sizes_are_not_doubted_and_wrong_ones_are(organ):
    for seed, shape in enumerate([(128, 128), (200, 170), (256, 300), (300, 256)]):
        mask = simulate_tissue((seed, 5), organ, shape).mask
        runs = encode_kaggle(mask)
        assert likely_size(runs, shape) is None
        assert np.array_equal(decode_tissue(runs, shape), mask)
        if shape[0] != shape[1]:
            assert likely_size(runs, shape[::-1])[0] == pytest.approx(shape[0], abs=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [("5 3 9", "the text was cut"), ("5 3 6 2", "inside the one before"), ("9 2 5 2", "inside the one before"), ("99 9", "check height and width"),
     ("0 4", "count from 1"), ("4 -2", "or more"), ("4 x", "check the format"), ("1e3 4", "check the format")],
)  # fmt: skip
def test_bad_runs_are_refused(text, said):
    with pytest.raises(FieldError, match=f"image 7: .*{said}"):
        decode_tissue(text, (10, 10), name="image 7")


def test_bad_polygons_are_refused(tmp_path):
    square = [[1, 1], [4, 1], [4, 3], [1, 3]]
    assert rings_mask([square, square], (5, 6)).sum() == 6 and not rings_mask([], (5, 6)).any()
    for rings in ([[1, 2, 3]], [[[1, 1], [2, 2]]], [[[1, 1], [2, float("nan")], [3, 1]]], [square, "x"]):
        with pytest.raises(FieldError, match="ring . to be a list of three points"):
            rings_mask(rings, (5, 6))
    path = tmp_path / "7.json"
    for content, said in [("[[[1, 1]", "a JSON file of polygons"), ('{"a": 1}', "a list of rings")]:
        path.write_text(content)
        with pytest.raises(FieldError, match=said):
            TissueRings(str(path), (5, 6)).read_truth()


def test_bad_tables_are_refused_with_the_row(tmp_path):
    simulate_tissues(tmp_path / "set", 2, seed=0, size=64)
    frame = pd.read_csv(tmp_path / "set" / "train.csv").astype(object)
    path = tmp_path / "bad.csv"
    for column, value, said in [
        ("organ", "kidny", "row 3: expected a known organ, got 'kidny': did you mean 'kidney'"), ("sex", "Robot", "row 3: expected Female, Male or nothing"),
        ("age", -4, "row 3: expected an age from 0 to 120"), ("age", 400, "row 3: expected an age"), ("img_width", "", "row 3: expected a height and width"),
        ("img_height", 0, "row 3: expected a height and width"), ("id", frame["id"][0], "every id once"),
    ]:  # fmt: skip
        bad = frame.copy()
        bad.loc[1, column] = value
        bad.to_csv(path, index=False)
        with pytest.raises(ValueError, match=said):
            read_tissue(path)
    missing = frame.copy()
    missing.loc[1, ["age", "sex"]] = ""
    missing.to_csv(path, index=False)
    table = read_tissue(path)
    assert np.isnan(table["age"][1]) and table["sex"][1] == "" and table["sex"][0] in ("Female", "Male")
    frame.drop(columns="img_height").to_csv(path, index=False)
    with pytest.raises(ValueError, match="rename the columns"):
        read_tissue(path)


def test_images_of_tissue_are_found(tmp_path):
    table = simulate_tissues(tmp_path, 6, seed=4, size=(96, 130))
    images = find_tissue_images(tmp_path)
    assert [one.kind for one in images[:5]] == list(ORGANS) and table["group"].nunique() == 3
    for number, one in enumerate(images):
        image, labels = one.read()
        truth = simulate_tissue((4, number), one.kind, (96, 130))
        assert np.array_equal(image, truth.image) and np.array_equal(labels, truth.mask)
    kept = cv2.imread(images[0].paths[0])
    cv2.imwrite(images[0].paths[0], np.dstack([kept, np.full(kept.shape[:2], 255, np.uint8)]))  # transparency is no channel
    cv2.imwrite(images[1].paths[0], kept[..., 0])
    assert images[0].read_image().shape == (96, 130, 3) and images[1].read_image().shape == (96, 130, 1)
    cv2.imwrite(images[2].paths[0], kept[:, :-3])
    with pytest.raises(FieldError, match="an image of the stated size 96 x 130, got one of 96 x 127"):
        images[2].read()
    Path(images[3].paths[0]).unlink()
    without = find_tissue_images(tmp_path)[3]
    assert without.read_truth().labels.shape == (96, 130)
    with pytest.raises(FieldError, match="train_images"):
        without.read_image()
    (tmp_path / "train_annotations").mkdir()
    ring = [[10, 10], [40, 10], [40, 30], [10, 30]]
    (tmp_path / "train_annotations" / f"{images[4].image_id}.json").write_text(json.dumps([ring]))
    assert find_tissue_images(tmp_path, truth="polygons")[4].read()[1].sum() == 600
    pd.read_csv(tmp_path / "train.csv").drop(columns="rle").to_csv(tmp_path / "test.csv", index=False)
    assert find_tissue_images(tmp_path, tmp_path / "test.csv")[0].labels_at is None
    with pytest.raises(ValueError, match="expected a known truth"):
        find_tissue_images(tmp_path, truth="boxes")


def test_images_of_unknown_donors_are_not_one_donor(root, tmp_path):
    """The cell of the workflow that divides the images, without the learning."""
    simulate_tissues(tmp_path, 6, seed=4, size=(96, 130))
    table = pd.read_csv(tmp_path / "train.csv", dtype=str)
    table.assign(group=["d1", "", None, " ", "d1", "d2"]).to_csv(tmp_path / "train.csv.gz", index=False)
    assert find_tissue_table(tmp_path) == str(tmp_path / "train.csv"), "of the two"
    (tmp_path / "train.csv").unlink()
    cells = nbformat.read(root / "nbs" / "workflows" / "tissue.ipynb", 4).cells
    source = next(cell.source for cell in cells if "donors = " in cell.source)
    made = SimpleNamespace(image_id="made", kind="lung", read=lambda: (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)))
    names = {
        "data": str(tmp_path), "csv": "", "truth": "rle", "donor": "group", "n_folds": 3, "fold": 0, "leave_out": "", "seed": 0, "offline": 1, "out": str(tmp_path), "model_folder": str(tmp_path / "model"), "check_local": check_local,
        "offline_augment": [], "np": np, "pd": pd, "Path": Path, "find_tissue_images": find_tissue_images, "find_tissue_table": find_tissue_table, "read_tissue": read_tissue,
        "use_hpacell_style": MagicMock(), "display": MagicMock(), "figure_masks": MagicMock(), "look_through": lambda images: (images, pd.DataFrame(), {}),
        "split_tissue": MagicMock(side_effect=lambda images, *_: {one.image_id: "train" for one in images}), "write_augmented": MagicMock(return_value=[made]),
    }  # fmt: skip
    exec(source, names)
    ids = table["id"].tolist()
    groups = names["split_tissue"].call_args.args[4]
    assert groups == dict(zip(ids, ["d1", *(f"own {name}" for name in ids[1:4]), "d1", "d2"], strict=True))
    assert (names["n_images"], names["n_augmented"], len(names["images"])) == (6, 1, 7)


# Simulated tissue


def test_simulated_slides_are_the_same_for_the_same_seed(tmp_path):
    table = simulate_tissues(tmp_path, 4, seed=2, size=80)
    assert pd.read_csv(tmp_path / "train.csv").equals(simulate_tissues(tmp_path, 4, seed=2, size=80)) and len(table) == 4
    first = simulate_tissues(tmp_path / "other", 2, seed=2, size=80)
    assert first["rle"].tolist() == table["rle"][:2].tolist()
    assert set(table.loc[table["organ"] == "prostate", "sex"]) <= {"Male"} and table["age"].between(21, 84).all()
    with pytest.raises(ValueError, match="choose another folder"):
        simulate_tissues(tmp_path, 4, seed=3, size=80)
    with pytest.raises(ValueError, match="at least 1 image"):
        simulate_tissues(tmp_path, 0)


def test_colour_alone_does_not_tell_a_unit():
    """A table of how often each colour, with that of its surroundings, is inside a unit: the best that colour can do."""

    def codes(image: np.ndarray) -> np.ndarray:
        fine, broad = (one.astype(int) // 32 for one in (image, cv2.GaussianBlur(image, (0, 0), 4)))
        fine, broad = (one[..., 0] * 64 + one[..., 1] * 8 + one[..., 2] for one in (fine, broad))
        return fine * 512 + broad

    slides = [simulate_tissue((9, i), ORGANS[i % 5], 192) for i in range(30)]
    train, held_out = slides[:20], slides[20:]
    inside = sum(np.bincount(codes(one.image)[one.mask], minlength=8**6) for one in train)
    share = (inside + 0.2) / (sum(np.bincount(codes(one.image).ravel(), minlength=8**6) for one in train) + 1)
    best = max(np.mean([2 * ((share[codes(one.image)] > cut) & one.mask).sum() / ((share[codes(one.image)] > cut).sum() + one.mask.sum()) for one in held_out]) for cut in (0.15, 0.25, 0.35, 0.5))
    assert best < 0.65


def test_masks_are_reduced_alike_by_bytes_and_by_fractions():
    mask = np.random.default_rng(0).random((150, 130)) > 0.5
    mask[:40] = mask[:40].cumsum(axis=1) % 2 > 0
    for reduce in range(2, 16):
        blocks = np.pad(mask, [(0, -side % reduce) for side in mask.shape], mode="edge")
        shares = blocks.reshape(blocks.shape[0] // reduce, reduce, -1, reduce).sum(axis=(1, 3))
        assert np.array_equal(reduce_mask(mask, reduce), 2 * shares >= reduce**2), reduce


# Regions of large files


def make_image(height: int = 200, width: int = 333, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (cv2.GaussianBlur(rng.random((height, width, channels)), (0, 0), 3).reshape(height, width, channels) * np.iinfo(dtype).max).astype(dtype)


TIFFS = {
    "tiles": dict(tile=(64, 48), compression="deflate", photometric="rgb"),
    "strips": dict(rowsperstrip=7, compression="lzw", photometric="rgb"),
    "big": dict(tile=(128, 128), photometric="rgb", bigtiff=True, byteorder=">"),
    "mapped": dict(photometric="rgb"),
    "planar": dict(tile=(64, 64), planarconfig="separate", photometric="rgb", compression="zstd"),
    "jpeg": dict(tile=(64, 64), compression="jpeg", photometric="rgb"),
    "float": dict(tile=(32, 32), compression="deflate", predictor=3),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFFS)
def test_windows_of_a_tiff_are_those_of_the_whole(tmp_path, kind):
    image = make_image()
    image = image[..., 0].astype(np.float32) / 7 if kind == "float" else image
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.moveaxis(image, -1, 0) if kind == "planar" else image, **TIFFS[kind])
    whole = np.moveaxis(tifffile.imread(path), 0, -1) if kind == "planar" else tifffile.imread(path).reshape(200, 333, -1)
    rng = np.random.default_rng(1)
    with open_regions(path) as regions:
        assert regions.shape == whole.shape and regions.dtype.itemsize == image.dtype.itemsize
        for _ in range(12):
            (row0, row1), (col0, col1) = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in whole.shape[:2])
            assert np.array_equal(regions.read((row0, col0, row1, col1)), whole[row0:row1, col0:col1])
        assert np.array_equal(regions.read(reduce=4), reduce_image(np.ascontiguousarray(whole), 4))
        cut = cut_tiles(whole.astype(whole.dtype.newbyteorder("=")), 50, 2, 10)
        pairs = list(regions.tiles(50, 2, 10))
        assert [window for window, _ in pairs] == list(cut.windows)
        assert all(np.allclose(tile, same, rtol=1e-6, atol=0) for (_, tile), same in zip(pairs, cut.tiles, strict=True))


def test_channels_on_pages_are_channels(tmp_path):
    image = np.moveaxis(make_image(channels=4, dtype=np.uint16), -1, 0)
    tifffile.imwrite(tmp_path / "slide.ome.tif", image, tile=(64, 64), compression="deflate", metadata={"axes": "CYX"}, photometric="minisblack")
    with open_regions(tmp_path / "slide.ome.tif") as regions:
        assert regions.shape == (200, 333, 4) and np.array_equal(regions.read((3, 4, 90, 130)), np.moveaxis(image, 0, -1)[3:90, 4:130])


@pytest.mark.parametrize("version", [2, 3])
def test_windows_of_zarr_are_those_of_the_array(tmp_path, version):
    zarr = pytest.importorskip("zarr")
    image = np.moveaxis(make_image(dtype=np.uint16), -1, 0)
    group = zarr.open_group(tmp_path / "slide.zarr", mode="w", zarr_format=version)
    group.create_array("0", data=image[None, :, None], chunks=(1, 1, 1, 64, 64))
    notes = [{"axes": [{"name": name} for name in "tczyx"], "datasets": [{"path": "0"}]}]
    group.attrs.update({"multiscales": notes} if version == 2 else {"ome": {"multiscales": notes}})
    np.save(tmp_path / "slide.npy", image)
    for path in (tmp_path / "slide.zarr", tmp_path / "slide.zarr" / "0", tmp_path / "slide.npy"):
        with open_regions(path) as regions:
            assert regions.shape == (200, 333, 3) and np.array_equal(regions.read((5, 6, 77, 301)), np.moveaxis(image, 0, -1)[5:77, 6:301])


def test_images_larger_than_memory(tmp_path):
    """A TIFF of 10.8 GB and a Zarr of 90 GB, all but empty: windows cost what they hold."""
    zarr = pytest.importorskip("zarr")
    across = -(-60_000 // 1024)
    lit = np.full((1024, 1024, 3), 200, np.uint8)
    tiles = (None if number else lit for number in range(across**2))
    tifffile.imwrite(tmp_path / "slide.tif", tiles, shape=(60_000, 60_000, 3), dtype=np.uint8, tile=(1024, 1024), photometric="rgb", bigtiff=True)
    array = zarr.create_array(tmp_path / "slide.zarr", shape=(200_000, 150_000, 3), chunks=(1024, 1024, 3), dtype="uint8")
    array[:1024, :1024] = lit
    assert (tmp_path / "slide.tif").stat().st_size < 5_000_000
    for name in ("slide.tif", "slide.zarr"):
        tracemalloc.start()
        with open_regions(tmp_path / name) as regions:
            part = regions.read((0, 0, 4096, 4096), reduce=4)
            first = [tile for _, tile in zip(range(3), (tile for _, tile in regions.tiles(512, 2)), strict=False)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert part.shape == (1024, 1024, 3) and np.array_equal(part[:256, :256], lit[::4, ::4]) and part.sum(dtype=np.int64) == lit[::4, ::4].sum(dtype=np.int64)
        assert [tile.shape for tile in first] == [(512, 512, 3)] * 3 and peak < 300e6


def test_real_containers_give_the_same_pixels_or_a_clear_error(shared_data):
    folder, same = shared_data / "containers", 0
    paths = sorted(path for place in ("ome", "neubias", "multichannel", "stardist", "pillow_valid") for path in (folder / place).rglob("*.tif*"))
    for path in paths:
        try:
            whole = decode_image(path.read_bytes(), str(path)).pixels
            with open_regions(path) as regions:
                part = regions.read((1, 2, min(40, regions.shape[0]), min(50, regions.shape[1])))
        except FieldError:
            continue
        if part.dtype == whole.dtype and regions.shape == whole.shape:
            assert np.array_equal(part, whole[1:40, 2:50]), path.name
            same += 1
    assert same >= 12
    zarr = pytest.importorskip("zarr")
    path = folder / "zarr" / "blobs_image_v04.ome.zarr"
    kept = np.asarray(zarr.open(path, mode="r")["0"])
    with open_regions(path) as regions:
        assert sorted(regions.shape) == sorted(kept.shape if kept.ndim == 3 else (*kept.squeeze().shape, 1))
        assert regions.read().sum() == kept.sum()


def test_bad_files_have_one_error(shared_data, tmp_path):
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "folder").mkdir()
    tifffile.imwrite(tmp_path / "cut.tif", make_image(400, 400), tile=(64, 64), compression="deflate", photometric="rgb")
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    tifffile.imwrite(tmp_path / "film.tif", np.zeros((5, 30, 30), np.uint8), metadata={"axes": "TYX"}, photometric="minisblack")
    paths = [tmp_path / name for name in ("empty.tif", "text.npy", "folder", "cut.tif", "film.tif", "none.zarr", "none.png")]
    for path in [*paths, "s3://bucket/slide.tif"]:
        with pytest.raises(FieldError, match="expected"), open_regions(path) as regions:
            regions.read()
    for path in (shared_data / "containers" / "pillow_corrupt").glob("*.tif*"):
        try:
            with open_regions(path) as regions:
                if np.prod(regions.shape, dtype=float) < 1e8:
                    regions.read()
        except FieldError as error:
            assert path.name in str(error)


# Submission


def test_a_submission_is_written_read_and_looked_through(tmp_path, shared_data):
    masks = {f"{organ}_1": simulate_tissue(1, organ, 96).mask for organ in ORGANS} | {"empty": np.zeros((96, 96), bool)}
    path = tmp_path / "submission.csv"
    assert write_tissue_submission(path, ((name, mask) for name, mask in masks.items())) == 6
    table = read_tissue_submission(path)
    assert all(np.array_equal(decode_tissue(rle, (96, 96)), masks[name]) for name, rle in zip(table["field_id"], table["rle"], strict=True))
    assert validate_tissue_submission(path, {name: (96, 96) for name in masks}) == []
    write_tissue_submission(tmp_path / "again.csv", table)
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
    assert validate_tissue_submission(path, pd.DataFrame({"field_id": ["kidney_1", "x"], "height": 96, "width": 96}))[-1].startswith("expected a line for image 'x'")
    real = shared_data / "hubmap" / "submission_10078.csv"
    assert validate_tissue_submission(real, read_tissue(shared_data / "hubmap" / "test_metadata_10078.csv")) == []
    assert "line 2: expected runs that line up at a height of 2025" in validate_tissue_submission(real, {"10078": (2025, 2025)})[0]
    assert validate_tissue_submission(shared_data / "hubmap" / "sample_submission.csv") == []


def test_every_problem_of_a_submission_has_its_line(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("ID,RLE\na,1 2 3\nb,5 3 6 2\nb,1 1\nc,99 9\n,1 1\nz,1 1\nd;1 1\ne,\n\n")
    problems = validate_tissue_submission(path, {name: (6, 5) for name in "abcdef"})
    assert [problem.split(":")[0] for problem in problems[:8]] == [f"line {n}" for n in range(1, 9)]
    assert problems[8:] == ["expected a line for image 'f', got none: add one, empty if it has no unit"] or len(problems) == 10
    assert len(validate_tissue_submission(path, max_problems=2)) == 2
    with pytest.raises(ValueError, match="line 1: expected id,rle"):
        read_tissue_submission(path)
    for rows in ([("a", "1 2"), ("a", "3 2")], [("a,b", "1 2")], [("", "1 2")], [("a", "1 2 3")], pd.DataFrame({"id": ["a"], "mask": [""]})):
        with pytest.raises(ValueError, match="expected"):
            write_tissue_submission(tmp_path / "none.csv", rows)
    assert not (tmp_path / "none.csv").exists()
    write_png(tmp_path / "mask.png", np.zeros((3, 3), np.uint8))  # a picture is no submission
    assert validate_tissue_submission(tmp_path / "mask.png")[0].startswith("line 1: expected id,rle")
