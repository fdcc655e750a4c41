"""The command convert: what it writes, what it says, and how it ends."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from hpacell import arguments
from hpacell.cli import main
from hpacell.fields.picture import write_png
from hpacell.masks.coco import read_coco
from hpacell.masks.labels import OVERLAPS, relabel
from hpacell.masks.layouts import LAYOUTS, WRITTEN, find_labelled
from hpacell.pipeline.convert import convert_labelled


@pytest.fixture
def mine(tmp_path):
    """Two images with labels."""
    rng = np.random.default_rng(0)
    for name in "ab":
        write_png(tmp_path / "mine" / "images" / f"{name}.png", rng.integers(0, 255, (12, 9), np.uint8))
        write_png(tmp_path / "mine" / "labels" / f"{name}.png", np.kron(np.arange(12).reshape(4, 3) * 3, np.ones((3, 3))).astype(np.uint16))
    return tmp_path / "mine"


def test_the_options_are_those_of_the_modules():
    assert arguments.LAYOUTS == ("auto", *LAYOUTS) and arguments.CONVERTED == WRITTEN and arguments.OVERLAPS == OVERLAPS


@pytest.mark.parametrize("layout", WRITTEN)
def test_every_layout(mine, tmp_path, capsys, layout):
    assert main(["convert", str(mine), str(tmp_path / "out"), "--to", layout]) == 0
    assert "2 images with 22 cells, labels to" in capsys.readouterr().out
    for before, after in zip(find_labelled(mine), find_labelled(tmp_path / "out"), strict=True):
        np.testing.assert_array_equal(after.read()[0], before.read()[0])
        np.testing.assert_array_equal(relabel(after.read()[1]), relabel(before.read()[1]))


def test_a_bad_image_is_left_out(mine, tmp_path, capsys):
    (mine / "images" / "b.png").write_bytes(b"")
    assert main(["convert", str(mine), str(tmp_path / "out"), "--to", "coco"]) == 1
    shown = capsys.readouterr()
    assert "1 image with 11 cells" in shown.out and "b: the image: left out" in shown.err
    problems = pd.read_csv(tmp_path / "out" / "problems.csv")
    assert problems["image_id"].tolist() == ["b"] and len(read_coco(tmp_path / "out" / "annotations.json").images) == 1


def test_mistakes_are_listed_with_their_annotations(mine, tmp_path, capsys):
    assert main(["convert", str(mine), str(tmp_path / "a.json"), "--category", "nucleus"]) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["categories"][0]["name"] == "nucleus"
    content["annotations"][3]["bbox"][2] = 0
    content["annotations"][7]["image_id"] = 77
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main(["convert", str(tmp_path / "a.json"), str(tmp_path / "b.csv"), "--from", "coco", "--to", "dsb2018_csv"]) == 1
    problems = pd.read_csv(tmp_path / "b.csv.problems.csv")
    assert set(problems["where"]) == {"annotation 4", "annotation 8"}
    assert "2 problems: see" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "b.csv")) == 20
    assert main(["convert", str(tmp_path / "a.json"), str(tmp_path / "c.csv"), "--to", "dsb2018_csv", "--strict"]) == 2
    assert "nothing was written" in capsys.readouterr().err and not (tmp_path / "c.csv").exists()


def test_what_is_there_is_not_written_over(mine, tmp_path, capsys):
    assert main(["convert", str(mine), str(mine), "--to", "labels"]) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert len(find_labelled(mine)) == 2


def test_nothing_to_convert(tmp_path, capsys):
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "expected labelled images" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_cells_of_the_atlas(shared_data, tmp_path, capsys):
    gt = shared_data / "coco" / "hpa_cells" / "gt.json"
    assert main(["convert", str(gt), str(tmp_path / "labels"), "--to", "labels"]) == 0
    assert main(["convert", str(tmp_path / "labels"), str(tmp_path / "again.json")]) == 0
    before, after = read_coco(gt).images, read_coco(tmp_path / "again.json").images
    for one in before:
        (other,) = (image for image in after if image.file_name == one.file_name)
        assert [cell.counts for cell in other.annotations] == [cell.counts for cell in one.annotations]


def test_folders_of_the_bowl(shared_data, tmp_path):
    source = shared_data / "dsb2018" / "kaggle_layout"
    for number, layout in enumerate(("coco", "dsb2018_csv", "ctc", "labels", "dsb2018")):
        assert main(["convert", str(source), str(tmp_path / str(number)), "--to", layout]) == 0
        source = tmp_path / str(number)
    names = pd.read_csv(tmp_path / "2" / "frames.csv").set_index("image_id")["frame"]
    after = {one.image_id: one for one in find_labelled(source)}
    for one in find_labelled(shared_data / "dsb2018" / "kaggle_layout"):
        image, labels = after[names[one.image_id].removesuffix(".tif").replace("/", "_")].read()
        np.testing.assert_array_equal(image, one.read()[0])
        np.testing.assert_array_equal(labels, one.read()[1])


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    source = tmp_path / "a.json"
    mask = {"size": [8, 8], "counts": [9, 3, 52]}
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask, "iscrowd": 0}], "categories": [{"id": 1, "name": "cell"}]}
    source.write_text(json.dumps(content))
    before = source.read_bytes()
    for out in (source, tmp_path / "b.json"):
        (tmp_path / "b.json").write_text("mine")
        with pytest.raises(ValueError, match="expected a new file or folder, got .*, which is there"):
            convert_labelled(source, out, layout="coco", to="coco")
    assert source.read_bytes() == before and (tmp_path / "b.json").read_text() == "mine"


def discs() -> np.ndarray:
    """A label image of four cells of 441 pixels."""
    labels, (rows, cols) = np.zeros((120, 160), np.uint8), np.ogrid[:120, :160]
    for number, (row, col) in enumerate([(30, 30), (30, 80), (80, 40), (80, 120)], 1):
        labels[(rows - row) ** 2 + (cols - col) ** 2 <= 144] = number
    return labels


def masks_of(folder, write):
    """A folder a with an image and a file a cell."""
    labels = discs()
    write_png(folder / "a" / "images" / "a.png", labels)
    (folder / "a" / "masks").mkdir()
    for number in range(1, 5):
        write(folder / "a" / "masks" / f"m{number}", labels == number)
    return folder


WRITERS = {
    "tiff of yes and no": lambda path, mask: tifffile.imwrite(f"{path}.tif", mask),
    "jpeg": lambda path, mask: Image.fromarray(mask.astype(np.uint8) * 255).save(f"{path}.jpg", quality=75),
    "opacity": lambda path, mask: Image.fromarray(np.dstack([np.zeros((120, 160, 3), np.uint8), mask.astype(np.uint8) * 255])).save(f"{path}.png"),
}


@pytest.mark.parametrize("layout", WRITTEN)
@pytest.mark.parametrize("name", WRITERS)
def test_masks_of_every_form_into_every_layout(tmp_path, capsys, name, layout):
    masks_of(tmp_path / "in", WRITERS[name])
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", layout]) == 0
    shown = capsys.readouterr().out
    assert "1 image with 4 cells" in shown
    assert ("half of white" in shown, "opacity" in shown) == (name == "jpeg", name == "opacity")
    (one,) = find_labelled(tmp_path / "out")
    areas = np.bincount(one.read()[1].ravel())[1:]
    assert len(areas) == 4 and np.abs(areas - 441).max() <= (10 if name == "jpeg" else 0)


def test_a_note_is_shown_once_for_all_images(tmp_path):
    for name in "xyz":
        masks_of(tmp_path / "in", WRITERS["jpeg"])
        (tmp_path / "in" / "a").rename(tmp_path / "in" / name)
    report = convert_labelled(tmp_path / "in", tmp_path / "out.json")
    assert len(report.notes) == 3 and str(report).count("half of white") == 1 and "x and 2 other images: masks have soft" in str(report)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_label_image_in_jpeg_is_refused(tmp_path, capsys, ending):
    write_png(tmp_path / "in" / "images" / "a.png", discs())
    (tmp_path / "in" / "labels").mkdir()
    Image.fromarray(discs() * np.uint8(50)).save(tmp_path / "in" / "labels" / f"a.{ending}", "JPEG", quality=90)
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out.json")]) == 2
    assert "a: left out" in (shown := capsys.readouterr().err) and "JPEG, which changes the numbers: save it again" in shown
    assert not (tmp_path / "out.json").exists()


def many(folder, n=70_000):
    """A label image of n cells of one pixel, none beside another, and one of two cells."""
    labels = np.zeros(600 * 600, np.int32)
    labels[np.arange(n) * 5] = np.arange(1, n + 1)
    (folder / "labels").mkdir(parents=True)
    tifffile.imwrite(folder / "labels" / "a.tif", labels.reshape(600, 600), compression="zlib")
    write_png(folder / "labels" / "b.png", np.array([[1, 0, 2]], np.uint8))
    return labels.reshape(600, 600)


def test_more_cells_than_16_bits_number(tmp_path, capsys):
    many(tmp_path / "in")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "ctc"), "--to", "ctc"]) == 1
    shown = capsys.readouterr()
    assert "1 image with 2 cells" in shown.out and "expected at most 65535 cells" in shown.err and "write layout labels or coco" in shown.err
    (one,) = find_labelled(tmp_path / "ctc")
    assert one.read_truth().labels.tolist() == [[1, 0, 2]]
    assert pd.read_csv(tmp_path / "ctc" / "index.csv")["n_cells"].tolist() == [2]
    assert pd.read_csv(tmp_path / "ctc" / "problems.csv")["image_id"].tolist() == ["a"]


@pytest.mark.parametrize("layout", ["labels", pytest.param("coco", marks=pytest.mark.slow), pytest.param("dsb2018_csv", marks=pytest.mark.slow)])
def test_layouts_that_number_any_number_of_cells(tmp_path, layout):
    labels = many(tmp_path / "in")
    report = convert_labelled(tmp_path / "in", tmp_path / "out", to=layout)
    assert report.images["n_cells"].tolist() == [70_000, 2] and not len(report.problems)
    np.testing.assert_array_equal(find_labelled(tmp_path / "out")[0].read_truth().labels, labels)


def test_just_as_many_cells_as_16_bits_number(tmp_path):
    labels = many(tmp_path / "in", 65_535)
    report = convert_labelled(tmp_path / "in", tmp_path / "ctc", to="ctc")
    assert report.images["n_cells"].tolist() == [65_535, 2] and not len(report.problems)
    np.testing.assert_array_equal(find_labelled(tmp_path / "ctc")[0].read_truth().labels, labels)


@pytest.mark.parametrize("layout", WRITTEN)
def test_counts_are_those_of_the_files(tmp_path, layout):
    labels = discs().astype(np.int32)
    labels[labels == 3], labels[labels == 4] = 70_000, 2**31 - 1
    (tmp_path / "in" / "labels").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "in" / "labels" / "a.tif", labels, compression="zlib")
    write_png(tmp_path / "in" / "images" / "a.png", discs())
    report = convert_labelled(tmp_path / "in", tmp_path / "out", to=layout)
    read = find_labelled(tmp_path / "out")[0].read()[1]
    assert report.images["n_cells"].tolist() == [4]
    np.testing.assert_array_equal(read, labels if layout in ("labels", "coco") else discs())
    assert len(report.problems) == (layout == "ctc")


@pytest.mark.parametrize("content", ["sizes", "ids"])
def test_coco_with_real_numbers(tmp_path, capsys, content):
    write_png(tmp_path / "in" / "a.png", discs())
    size, own = (1.0, 1) if content == "sizes" else (1, 1.0)
    annotation = {"id": 1, "image_id": own, "category_id": 1, "iscrowd": 0, "segmentation": [[20, 20, 40, 20, 40, 30, 20, 30]]}
    image = {"id": own, "file_name": "a.png", "height": 120 * size, "width": 160 * size}
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "cell"}]}))
    assert main(["convert", str(tmp_path / "a.json"), str(tmp_path / "out"), "--images", str(tmp_path / "in"), "--to", "labels"]) == 0
    assert "1 image with 1 cell" in capsys.readouterr().out
    assert (find_labelled(tmp_path / "out")[0].read()[1] == 1).sum() == 200
    image["height"] = 120.5
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [annotation], "categories": []}))
    assert main(["convert", str(tmp_path / "a.json"), str(tmp_path / "no"), "--to", "labels"]) == 2
    assert "expected height and width in pixels, got 120.5 and 160" in capsys.readouterr().err
