"""Images with known cells in every layout: found, read, written and read again."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from hpacell.fields.image import FieldError
from hpacell.fields.picture import write_png
from hpacell.fields.simulate import simulate_fields
from hpacell.fields.slides import simulate_tissues
from hpacell.masks.coco import write_coco
from hpacell.masks.labelled import LabelFile, LabelledImage, read_label_image
from hpacell.masks.labels import relabel
from hpacell.masks.layouts import LAYOUTS, WRITTEN, detect_layout, find_labelled, write_labelled
from hpacell.masks.tissue import find_tissue_images

KEEPS_NUMBERS = ("coco", "labels", "ctc")
LABELS = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 12)), elements=st.sampled_from([0, 0, 1, 2, 7, 300, 65_535]))


def labelled(folder: Path, name: str, labels: np.ndarray, pixels: np.ndarray | None = None) -> LabelledImage:
    """An image and its label image as files."""
    tifffile.imwrite(folder / f"{name}_labels.tif", labels.astype(np.uint32), photometric="minisblack")
    write_png(folder / f"{name}.png", np.zeros(labels.shape, np.uint8) if pixels is None else pixels)
    return LabelledImage(name, (str(folder / f"{name}.png"),), labels_at=LabelFile(str(folder / f"{name}_labels.tif")))


@given(st.lists(LABELS, min_size=1, max_size=3), st.sampled_from(WRITTEN))
@settings(max_examples=25, deadline=None)
def test_round_trips_lose_nothing(tmp_path_factory, cells, layout):
    folder = tmp_path_factory.mktemp("trip")
    rng = np.random.default_rng(0)
    images = [labelled(folder, f"01_t{i:03d}", labels, rng.integers(0, 255, labels.shape, np.uint8)) for i, labels in enumerate(cells)]
    written = write_labelled(images, folder / "out", layout)
    assert not written.problems and detect_layout(folder / "out") == layout
    found = find_labelled(folder / "out", layout)
    assert [one.image_id for one in found] == [one.image_id for one in images]
    for one, before, labels in zip(found, images, cells, strict=True):
        image, read = one.read()
        np.testing.assert_array_equal(image, before.read_image())
        np.testing.assert_array_equal(read, labels if layout in KEEPS_NUMBERS else relabel(labels))
    shutil.rmtree(folder)


@pytest.mark.parametrize("layout", WRITTEN)
def test_colours_and_stains_survive(tmp_path, layout):
    rng = np.random.default_rng(1)
    labels = np.zeros((20, 30), np.int32)
    labels[2:9, 3:9], labels[10:14, 9:20] = 1, 2
    colour = labelled(tmp_path, "colour", labels, rng.integers(0, 255, (20, 30, 3), np.uint8))
    stains = []
    for word in ("red", "green", "blue", "yellow"):
        write_png(tmp_path / f"stains_{word}.png", rng.integers(0, 60_000, (20, 30), np.uint16))
        stains.append(str(tmp_path / f"stains_{word}.png"))
    images = [colour, LabelledImage("stains", tuple(stains), labels_at=colour.labels_at)]
    write_labelled(images, tmp_path / "out", layout)
    for before, after in zip(images, find_labelled(tmp_path / "out"), strict=True):
        image, read = after.read()
        np.testing.assert_array_equal(image, before.read_image())
        np.testing.assert_array_equal(read, labels)
    assert image.shape == (20, 30, 4) and image.dtype == np.uint16


@pytest.mark.parametrize("layout", WRITTEN)
def test_an_image_without_cells_stays(tmp_path, layout):
    images = [labelled(tmp_path, "empty", np.zeros((5, 6), np.int32))]
    assert write_labelled(images, tmp_path / "out", layout).rows[0]["n_cells"] == 0
    (one,) = find_labelled(tmp_path / "out")
    assert one.read()[1].shape == (5, 6) and not one.read()[1].any()


def test_numbers_beyond_16_bits(tmp_path):
    labels = np.array([[0, 65_536], [2**31 - 1, 3]])
    image = labelled(tmp_path, "a", labels)
    write_labelled([image], tmp_path / "labels", "labels")
    np.testing.assert_array_equal(find_labelled(tmp_path / "labels")[0].read()[1], labels)
    written = write_labelled([image], tmp_path / "ctc", "ctc")
    assert "65535" in written.problems[0]["reason"]
    np.testing.assert_array_equal(find_labelled(tmp_path / "ctc")[0].read()[1], relabel(labels))


def test_bad_images_are_left_out_and_named(tmp_path):
    good = labelled(tmp_path, "good", np.eye(4, dtype=int))
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:-20])
    write_png(tmp_path / "larger.png", np.zeros((5, 4), np.uint8))
    bad = [LabelledImage(name, (str(tmp_path / f"{name}.png"),), labels_at=good.labels_at) for name in ("broken", "larger", "absent")]
    bad += [LabelledImage("../climbs", good.paths, labels_at=good.labels_at), LabelledImage("GOOD", good.paths, labels_at=good.labels_at)]
    for layout in WRITTEN:
        written = write_labelled([good, *bad], tmp_path / layout, layout)
        assert [problem["image_id"] for problem in written.problems] == ["broken", "larger", "absent", "../climbs", "GOOD"]
        assert [one.image_id for one in find_labelled(tmp_path / layout, layout)] == ["01_t000" if layout == "ctc" else "good"]
        assert len(pd.read_csv(tmp_path / layout / "problems.csv")) == 5


@pytest.mark.parametrize("layout", WRITTEN)
def test_a_stop_leaves_nothing_behind(tmp_path, layout):
    good = labelled(tmp_path, "good", np.eye(4, dtype=int))

    def stopping():
        yield good
        raise KeyboardInterrupt

    for name in ("new", "new.json" if layout == "coco" else "new.csv" if layout == "dsb2018_csv" else "other"):
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(KeyboardInterrupt):
            write_labelled(stopping(), tmp_path / name, layout)
        assert sorted(os.listdir(tmp_path)) == before


def test_overlaps_are_counted(tmp_path):
    masks = np.zeros((2, 6, 6), np.uint8)
    masks[0, :4, :4], masks[1, 3:, 3:5] = 255, 255
    for name, mask in zip("ab", masks, strict=True):
        write_png(tmp_path / "x" / "masks" / f"{name}.png", mask)
    write_png(tmp_path / "x" / "images" / "x.png", masks[0])
    for rule, owner in (("smallest", 2), ("largest", 1)):
        _, truth = find_labelled(tmp_path, overlap=rule)[0].read_pair()
        assert truth.overlap_pixels == 1 and truth.labels[3, 3] == owner
    assert write_labelled(find_labelled(tmp_path), tmp_path / "out").rows[0]["overlap_pixels"] == 1


def test_masks_that_cannot_be_used_are_named(tmp_path):
    masks = tmp_path / "x" / "masks"
    full = np.full((4, 4), 255, np.uint8)
    for name, mask in (("a", full), ("b", full[:3]), ("c", 0 * full), ("d", full)):
        write_png(masks / f"{name}.png", mask)
    (masks / "e.png").write_bytes(b"no image")
    write_png(tmp_path / "x" / "images" / "x.png", full)
    _, truth = find_labelled(tmp_path)[0].read_pair()
    assert {name for name, _ in truth.problems} == {"a.png", "b.png", "c.png", "e.png"}  # d covers a
    assert truth.labels.max() == 2


def test_rows_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "rows.csv").write_text("ImageId,EncodedPixels\nx,1 3\nx,9 9 1\nx,50 1\nx,5 2\nx,a b\n")
    write_png(tmp_path / "images" / "x.png", np.zeros((4, 4), np.uint8))
    image, truth = find_labelled(tmp_path / "rows.csv")[0].read_pair()
    assert [name for name, _ in truth.problems] == ["row 3", "row 4", "row 6"]
    np.testing.assert_array_equal(truth.labels[:, :2], [[1, 2], [1, 2], [1, 0], [0, 0]])


def test_simulated_fields(tmp_path):
    simulate_fields(tmp_path, n_fields=2, seed=3, size=(96, 128), workers=1)
    cells, nuclei = find_labelled(tmp_path), find_labelled(tmp_path, target="nuclei")
    assert [one.image_id for one in cells] == [one.image_id for one in nuclei]
    image, labels = cells[0].read()
    assert image.shape == (96, 128, 4) and (labels > 0).sum() > (nuclei[0].read()[1] > 0).sum() > 0
    for channel, colour in enumerate(("red", "green", "blue", "yellow")):
        np.testing.assert_array_equal(image[..., channel], cv2.imread(str(tmp_path / f"{cells[0].image_id}_{colour}.png"), cv2.IMREAD_UNCHANGED))


def test_names_that_look_like_masks(tmp_path):
    for name in ("images", "labels"):
        write_png(tmp_path / name / "a_mask.png", np.eye(3, dtype=np.uint8))
    (one,) = find_labelled(tmp_path)
    assert one.image_id == "a_mask" and one.read()[1].sum() == 3


def test_one_of_two_truths(tmp_path):
    for name, size in (("a_cells", 3), ("a_nuclei", 2), ("b_cells", 4)):
        write_png(tmp_path / f"{name}.png", np.eye(5, dtype=np.uint8) * size)
    write_png(tmp_path / "a.png", np.zeros((5, 5), np.uint8))
    cells, nuclei = find_labelled(tmp_path), find_labelled(tmp_path, target="nuclei")
    assert [one.image_id for one in cells] == ["a", "b"] and cells[0].read()[1].max() == 3
    assert [one.image_id for one in nuclei] == ["a"] and nuclei[0].read()[1].max() == 2
    with pytest.raises(FieldError, match="got the truth alone"):
        cells[1].read()


def test_in_doubt_both_are_named(tmp_path):
    for name in ("images", "labels"):
        write_png(tmp_path / name / "a.png", np.eye(3, dtype=np.uint8))
    write_coco(tmp_path / "cells.json", [("images/a.png", np.eye(3, dtype=int))])
    with pytest.raises(FieldError, match="labels and coco"):
        find_labelled(tmp_path)
    for layout in ("labels", "coco"):
        assert find_labelled(tmp_path, layout)[0].read()[1].sum() == 3


def test_tissue_is_a_layout_whose_units_are_numbered(tmp_path):
    simulate_tissues(tmp_path / "tissue", 3, seed=4, size=(96, 130))
    assert detect_layout(tmp_path / "tissue") == detect_layout(tmp_path / "tissue" / "train.csv") == "hubmap"
    whole = {one.image_id: one for one in find_tissue_images(tmp_path / "tissue")}
    for one in find_labelled(tmp_path / "tissue"):
        image, labels = one.read()
        before, mask = whole[one.image_id].read()
        assert one.kind == whole[one.image_id].kind and np.array_equal(image, before) and np.array_equal(labels > 0, mask == 1)
        assert labels.max() == ndimage.label(mask == 1, np.ones((3, 3)))[1] > 1
    (tmp_path / "tissue" / "train_images").rename(tmp_path / "elsewhere")
    moved = find_labelled(tmp_path / "tissue", images=tmp_path / "elsewhere")
    assert len(moved) == 3 and moved[0].read()[0].shape == (96, 130, 3)
    with pytest.raises(ValueError, match="expected rle or polygons as the target of layout hubmap, got 'nuclei'"):
        find_labelled(tmp_path / "tissue", target="nuclei")
    write_labelled(moved, tmp_path / "labels", "labels")
    assert [np.array_equal(a.read()[1], b.read()[1]) for a, b in zip(moved, find_labelled(tmp_path / "labels"), strict=True)] == [True] * 3


def test_tissue_is_recognised_as_its_reader_does(tmp_path):
    folder = tmp_path / "tissue"
    simulate_tissues(folder, 3, seed=4, size=(96, 130))
    before = [one.read()[1] for one in find_labelled(folder)]
    whole = pd.read_csv(folder / "train.csv")
    (folder / "train.csv").unlink()
    whole.to_csv(folder / "train.csv.gz", index=False)
    assert detect_layout(folder) == detect_layout(folder / "train.csv.gz") == "hubmap"
    assert all(np.array_equal(one.read()[1], labels) for one, labels in zip(find_labelled(folder), before, strict=True))
    whole.drop(columns="organ").to_csv(folder / "submission.csv", index=False)
    (folder / "train.csv.gz").rename(folder / "renamed.csv.gz")
    assert detect_layout(folder) == "hubmap" and len(find_tissue_images(folder)) == 3, "of two, the one with organs"
    (folder / "submission.csv").unlink()
    (folder / "renamed.csv.gz").unlink()
    whole.drop(columns="rle").to_csv(folder / "train.csv", index=False)
    with pytest.raises(FieldError, match="expected labelled images"):
        detect_layout(folder)  # nothing tells where the units are
    (folder / "train_annotations").mkdir()
    for name in whole["id"]:
        (folder / "train_annotations" / f"{name}.json").write_text("[[[10, 10], [40, 10], [40, 30], [10, 30]]]")
    for target in (None, "polygons"):
        assert [one.read()[1].sum() for one in find_labelled(folder, target=target)] == [600] * 3
    with pytest.raises(FieldError, match="check the path, the target"):
        find_labelled(folder, target="rle")


def test_what_was_looked_for_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FieldError, match=r"images/ and labels/.*01_GT/SEG.*notes\.txt"):
        find_labelled(tmp_path)
    for layout in LAYOUTS:
        with pytest.raises(FieldError):
            find_labelled(tmp_path, layout)
    with pytest.raises(FieldError, match="no such file or folder"):
        find_labelled(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.eye(3, dtype=np.float32) * 7, 7), (np.eye(3, dtype=bool), 1), (np.eye(3, dtype=np.int64) * 70_000, 70_000),
        (np.eye(3, dtype=np.float32) * 0.5, None), (np.eye(3, dtype=np.int32) * -1, None), (np.zeros((2, 5, 5), np.uint8), None),
    ],
)  # fmt: skip
def test_label_images_of_all_types(tmp_path, pixels, expected):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack")
    if expected is None:
        with pytest.raises(FieldError, match=r"a\.tif"):
            read_label_image(path)
    else:
        read = read_label_image(path)
        assert read.dtype == np.int32 and read.max() == expected


def test_nuclei_of_the_bowl(shared_data):
    index = pd.read_csv(shared_data / "dsb2018" / "index.csv", index_col="image_id")
    found = find_labelled(shared_data / "dsb2018")
    assert [one.image_id for one in found] == sorted(index.index)
    assert {one.image_id: one.kind for one in found} == index["kind"].to_dict()
    for one in found[::40]:
        image, labels = one.read()
        assert image.shape[2] in (1, 3) and image.shape[:2] == tuple(index.loc[one.image_id, ["height", "width"]])
        assert len(np.unique(labels)) - 1 == index.loc[one.image_id, "n_nuclei"]


def test_folders_of_the_bowl(shared_data):
    fixed = {one.image_id: one for one in find_labelled(shared_data / "dsb2018")}
    folders = find_labelled(shared_data / "dsb2018" / "kaggle_layout")
    assert len(folders) == 4
    for one in (one for one in folders if one.image_id in fixed):
        image, truth = one.read_pair()
        assert (image == fixed[one.image_id].read_image()).all()  # there one channel, as all three are equal
        assert not truth.problems and ((truth.labels > 0) == (fixed[one.image_id].read()[1] > 0)).mean() > 0.995


def test_rows_of_the_bowl(shared_data, tmp_path):
    rows = shared_data / "coco" / "dsb_rle" / "sub-dsbowl2018_dice.csv"
    found = find_labelled(rows)
    frame = pd.read_csv(rows)
    assert len(found) == frame["ImageId"].nunique() and sum(len(one.labels_at.texts) for one in found) == len(frame)
    truth = found[0].read_truth((256, 256))
    mine = frame[frame["ImageId"] == found[0].image_id]
    assert len(np.unique(truth.labels)) - 1 + len(truth.problems) == len(mine)
    with pytest.raises(FieldError, match="folder of the images"):
        found[0].read_truth()


@pytest.mark.parametrize(("name", "gold", "silver"), [("DIC-C2DH-HeLa", 3, 9), ("Fluo-N2DL-HeLa", 4, 4), ("PhC-C2DL-PSC", 2, 4)])
def test_sequences_of_the_challenge(shared_data, tmp_path, name, gold, silver):
    folder = shared_data / "ctc" / name
    assert len(find_labelled(folder)) == gold and len(find_labelled(folder, target="silver")) == silver
    frames = find_labelled(folder, target="tracking")
    image, labels = frames[0].read()
    assert image.shape == (*labels.shape, 1) and labels.max() > 5
    write_labelled(find_labelled(folder), tmp_path / "again", "ctc")
    for before, after in zip(find_labelled(folder), find_labelled(tmp_path / "again"), strict=True):
        assert before.image_id == after.image_id
        for one, other in zip(before.read(), after.read(), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="gold, silver, tracking"):
        find_labelled(folder, target="bronze")
