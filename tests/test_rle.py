"""Run-length codes against pycocotools, real submissions, real tissue masks, and hostile text."""

import base64
import json
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco

from hpacell.masks import rle
from hpacell.masks.runs import pack_counts, unpack_counts

#: pycocotools 2.0.11 decodes through an interface that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPES = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
MASKS = npst.arrays(bool, SHAPES)
LABELS = npst.arrays(np.int32, SHAPES, elements=st.sampled_from([0, 0, 1, 2, 7, 70_000]))
#: Few, long runs: whole columns and more.
BANDS = st.builds(
    lambda height, runs: (
        np.repeat(np.arange(len(runs)) % 2 == 1, runs)[: sum(runs) // height * height].reshape(-1, height).T
    ),
    st.integers(1, 40),
    st.lists(st.integers(1, 5000), min_size=1, max_size=12),
).filter(lambda mask: mask.size)


def coco_code(mask):
    code = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def naive_kaggle(mask):
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [0]])
    edges = np.flatnonzero(np.diff(flat)) + 1
    return " ".join(f"{start} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))


@given(st.one_of(MASKS, BANDS))
def test_coco_is_pycocotools(mask):
    code = rle.encode_rle(mask)
    assert code == coco_code(mask)
    assert json.loads(json.dumps(code)) == code
    np.testing.assert_array_equal(rle.decode_rle(code), mask)
    np.testing.assert_array_equal(coco.decode(code), mask)


@given(st.one_of(MASKS, BANDS))
def test_kaggle_round_trip(mask):
    text = rle.encode_kaggle(mask)
    assert text == naive_kaggle(mask)
    np.testing.assert_array_equal(rle.decode_kaggle(text, mask.shape), mask)


@given(st.one_of(MASKS, BANDS))
def test_hpa_round_trip(mask):
    text = rle.encode_hpa(mask)
    assert text == rle.encode_hpa(rle.encode_rle(mask)) == rle.encode_hpa(rle.encode_rle(mask)["counts"])
    assert zlib.decompress(base64.b64decode(text)).decode() == coco_code(mask)["counts"]
    np.testing.assert_array_equal(rle.decode_hpa(text, mask.shape), mask)


@given(LABELS)
def test_all_cells_at_once(labels):
    ids = [i for i in np.unique(labels) if i]
    texts = rle.encode_labels_rle(labels)
    assert texts == [coco_code(labels == i)["counts"] for i in ids]
    np.testing.assert_array_equal(rle.decode_labels_rle(texts, labels.shape, ids), labels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 8), (8, 5)])
@pytest.mark.parametrize("kind", ["full", "empty", "first", "last", "edges", "column"])
def test_corners(shape, kind):
    mask = np.zeros(shape, bool)
    if kind == "full":
        mask[:] = True
    elif kind == "first":
        mask[0, 0] = True
    elif kind == "last":
        mask[-1, -1] = True
    elif kind == "edges":
        mask[[0, -1]] = mask[:, [0, -1]] = True
    elif kind == "column":
        mask[:, shape[1] // 2 :] = True
    assert rle.encode_rle(mask) == coco_code(mask)
    np.testing.assert_array_equal(rle.decode_rle(rle.encode_rle(mask)), mask)
    np.testing.assert_array_equal(rle.decode_kaggle(rle.encode_kaggle(mask), shape), mask)
    expected = [coco_code(mask)["counts"]] if mask.any() else []
    assert rle.encode_labels_rle(mask.astype(np.uint16)) == expected


def test_large_non_square_frame():
    rng = np.random.default_rng(0)
    labels = np.zeros((1500, 2100), np.uint16)
    for i in range(1, 60):
        row, col, r = rng.integers(0, 1500), rng.integers(0, 2100), rng.integers(5, 150)
        cv2.circle(labels, (int(col), int(row)), int(r), i, -1)
    ids = [i for i in np.unique(labels) if i]
    texts = rle.encode_labels_rle(labels)
    assert texts == [coco_code(labels == i)["counts"] for i in ids]
    np.testing.assert_array_equal(rle.decode_labels_rle(texts, labels.shape, ids), labels)


def test_counts_as_bytes_and_as_numbers():
    mask = np.eye(5, 7) > 0
    code = coco.encode(np.asfortranarray(mask, np.uint8))
    np.testing.assert_array_equal(rle.decode_rle(code), mask)
    numbers = unpack_counts(code["counts"].decode())
    np.testing.assert_array_equal(rle.decode_rle({"size": [5, 7], "counts": numbers.tolist()}), mask)
    assert rle.encode_hpa({"size": [5, 7], "counts": numbers.tolist()}) == rle.encode_hpa(mask)


# Text from outside ------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.text(max_size=60), st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_any_text_is_a_mask_or_a_value_error(text, shape):
    for decode in (rle.decode_kaggle, rle.decode_hpa, lambda t, s: rle.decode_rle({"size": s, "counts": t})):
        try:
            assert decode(text, shape).shape == shape
        except ValueError as error:
            assert "expected" in str(error) and "got" in str(error)


@settings(max_examples=300)
@given(st.text(alphabet=[chr(c) for c in range(48, 112)], min_size=1, max_size=30))
def test_any_coco_text_is_a_mask_or_a_value_error(text):
    try:
        mask = rle.decode_rle({"size": [4, 6], "counts": text})
    except ValueError as error:
        assert "expected" in str(error) and "got" in str(error)
    else:
        # Other texts may stand for the same mask; pycocotools must agree on what this one says.
        np.testing.assert_array_equal(coco.decode({"size": [4, 6], "counts": text}), mask)


@given(MASKS, st.data())
def test_cut_codes_are_refused_or_differ_in_nothing(mask, data):
    packed = base64.b64decode(rle.encode_hpa(mask))
    cut = base64.b64encode(packed[: data.draw(st.integers(0, len(packed) - 1))]).decode()
    with pytest.raises(ValueError, match="expected"):
        rle.decode_hpa(cut, mask.shape)


def test_bombs_stay_small():
    bomb = base64.b64encode(zlib.compress(b"0" * 50_000_000, 9)).decode()
    with pytest.raises(ValueError, match="more than 40016 bytes"):
        rle.decode_hpa(bomb, (100, 200))
    wide = {"size": [2**20, 2**20], "counts": pack_counts(np.array([2**40]))}
    with pytest.raises(ValueError, match="at most"):
        rle.decode_rle(wide)
    with pytest.raises(ValueError, match="at most"):
        rle.decode_kaggle("1 1", (10**9, 10**9))


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ("", "empty text"),
        ("~", "damaged or in another format"),
        ("PPPP", "was cut"),
        ("P" * 12 + "4", "longer number"),
        ([5, -1, 20], "0 or more"),
        ([1, 2], "another size"),
        (None, "text or numbers"),
    ],
)
def test_bad_counts(counts, said):
    with pytest.raises(ValueError, match=said):
        rle.decode_rle({"size": [4, 6], "counts": counts})


def test_bad_arguments():
    with pytest.raises(ValueError, match="encode_labels_rle for a label image"):
        rle.encode_rle(np.full((3, 3), 255))
    with pytest.raises(ValueError, match="one mask at a time"):
        rle.encode_kaggle(np.zeros((2, 3, 3), bool))
    with pytest.raises(ValueError, match="keep_default_na"):
        rle.decode_kaggle(float("nan"), (3, 3))
    with pytest.raises(ValueError, match="expected 1 ids"):
        rle.decode_labels_rle(["9"], (3, 3), ids=[1, 2])
    with pytest.raises(ValueError, match="add the size"):
        rle.decode_rle("9")


# Real files -------------------------------------------------------------------------------------


def test_real_dsb_submissions(shared_data):
    shapes = {65536: (256, 256), 81920: (256, 320), 361920: (520, 696)}
    real = pd.read_csv(shared_data / "coco/dsb_rle/sub-dsbowl2018_dice.csv")
    for text in real.EncodedPixels[::3]:
        # The text does not hold the frame: any that is large enough and as high gives the same text again.
        last = sum(map(int, text.split()[-2:])) - 1
        shape = next(shape for size, shape in sorted(shapes.items()) if last <= size)
        assert rle.encode_kaggle(rle.decode_kaggle(text, shape)) == text
    full = pd.read_csv(shared_data / "coco/dsb_rle/sub_dsbowl_pt_16_fullmask.csv").EncodedPixels
    for text in full.unique():
        size = int(text.split()[1])
        shape = shapes.get(size, (size, 1))
        assert rle.decode_kaggle(text, shape).all()
        with pytest.raises(ValueError, match="check height and width"):
            rle.decode_kaggle(text, (shape[0] - 1, shape[1]))


def test_real_tissue_masks_agree_with_their_polygons(shared_data):
    frame = pd.read_csv(shared_data / "hubmap/train_fold0_71rows.csv").set_index("id")
    checked = 0
    for path in sorted((shared_data / "hubmap/train_annotations").glob("*.json"))[:12]:
        if int(path.stem) not in frame.index:
            continue
        row = frame.loc[int(path.stem)]
        mask = rle.decode_kaggle(row.rle, (row.img_height, row.img_width))
        assert rle.encode_kaggle(mask) == row.rle
        drawn = np.zeros(mask.shape, np.uint8)
        for ring in json.loads(path.read_text()):
            cv2.fillPoly(drawn, [np.array(ring, np.int32)], 1)
        union = np.count_nonzero(mask | (drawn > 0))
        assert np.count_nonzero(mask & (drawn > 0)) / union >= 0.95
        checked += 1
    assert checked >= 8


def test_tissue_mask_whose_metadata_lack_two_columns(shared_data):
    row = pd.read_csv(shared_data / "hubmap/test_metadata_10078.csv").iloc[0]
    drawn = cv2.imread(str(shared_data / "hubmap/test_mask_10078.png"), cv2.IMREAD_GRAYSCALE) > 0
    assert (row.image_height, row.image_width) == (2023, 2023) and drawn.shape == (2023, 2025)
    np.testing.assert_array_equal(rle.decode_kaggle(row.rle, drawn.shape), drawn)
    # Columns come one after the other, so a frame without the two empty last ones holds the same runs.
    np.testing.assert_array_equal(rle.decode_kaggle(row.rle, (2023, 2023)), drawn[:, :2023])
    with pytest.raises(ValueError, match="check height and width"):
        rle.decode_kaggle(row.rle, (2023, 1900))
    # A COCO code knows its frame, so there the mistake is found.
    code = rle.encode_rle(drawn)
    with pytest.raises(ValueError, match="another size"):
        rle.decode_rle({"size": [2023, 2023], "counts": code["counts"]})
    with pytest.raises(ValueError, match="another size"):
        rle.decode_hpa(rle.encode_hpa(code), (2023, 2023))


def test_real_cells_of_a_field(shared_data):
    path = sorted((shared_data / "hpa/scc").glob("*_predictedmask.png"))[0]
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    ids = [i for i in np.unique(labels) if i]
    texts = rle.encode_labels_rle(labels)
    assert texts[::4] == [coco_code(labels == i)["counts"] for i in ids[::4]]
    np.testing.assert_array_equal(rle.decode_labels_rle(texts, labels.shape, ids), labels)


def test_real_coco_files(shared_data):
    annotations = json.loads((shared_data / "coco/hpa_cells/gt.json").read_text())["annotations"]
    for code in [a["segmentation"] for a in annotations][::25]:
        mask = coco.decode(code)
        np.testing.assert_array_equal(rle.decode_rle(code), mask)
        assert rle.encode_rle(mask)["counts"] == code["counts"]
