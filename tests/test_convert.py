"""The command convert: what it writes, what it says, and how it ends."""

import json

import numpy as np
import pandas as pd
import pytest

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
