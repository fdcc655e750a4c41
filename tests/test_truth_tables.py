"""Tables of true cells: from what people outlined, as README says, to a score; and refusals in the file's own words."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpacell.cli import main
from hpacell.masks.rle import decode_rle
from hpacell.metrics import write_truth
from hpacell.metrics.submission import write_submission
from hpacell.metrics.triples import read_true_cells
from hpacell.vocabulary import LOCATIONS


def fenced(text: str, after: str, kind: str) -> str:
    """The first block of a kind after some words of a page."""
    return text[text.index(after) :].split(f"```{kind}\n", 1)[1].split("```", 1)[0]


def test_a_truth_table_from_what_people_outlined(tmp_path, monkeypatch, capsys):
    """As README says: label images and cells.csv as in its example, one call, and a score."""
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "outlined"
    folder.mkdir(parents=True)
    (folder / "cells.csv").write_text(fenced(readme, "How well are your own cells located?", "text"))
    listed = pd.read_csv(folder / "cells.csv", keep_default_na=False)
    images = {}
    for field_id, cells in listed.groupby("field_id"):
        image = images[field_id] = np.zeros((40, 30), np.uint8)
        for cell in cells["cell_id"]:
            image[10 * cell - 8 : 10 * cell, 4:20] = cell
        Image.fromarray(image).save(folder / f"{field_id}_cells.png")
    exec(fenced(readme, "How well are your own cells located?", "python"), {})
    truth, sizes = read_true_cells("data/truth.csv")
    assert truth["location"].tolist() == ["nucleoplasm", "cytosol", LOCATIONS[2]]  # a class number of the competition
    np.testing.assert_array_equal(decode_rle({"counts": truth["rle"][2], "size": [40, 30]}), images["plate1_A01"] == 2)
    assert sizes[["height", "width"]].astype(int).to_numpy().tolist() == [[40, 30]] * 2
    found = pd.read_csv("data/truth.csv", keep_default_na=False).query("labels != ''").assign(p_nucleoplasm=[1.0, 0.0], p_cytosol=[1.0, 0.0])
    found["p_" + LOCATIONS[2]] = [0.0, 1.0]
    write_submission("submission.csv", found.drop(columns="labels"), sizes.astype({"height": int, "width": int}), min_confidence=0.5)
    assert main(["score", "submission.csv", "data/truth.csv"]) == 0
    assert "Mean average precision at mask IoU 0.6: 1.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("field_id,cell_id,labels\na,1,0\n", "got no 2 in cells.csv: add it"),
        ("field_id,cell_id,labels\na,1,0\na,2,0\na,3,0\n", "got no 3 in .*a_cells.png"),
        ("field_id,cell_id,labels\na,1,0\na,2,0\na,2,1\n", "expected each cell of a once"),
        ("Field,Cell,Location\na,1,0\n", "expected the columns field_id, cell_id and labels, got Field, Cell, Location"),
        ("field_id,cell_id,labels\nb,1,0\n", "expected a label image b_cells.png"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(tmp_path, text, message):
    image = np.zeros((20, 20), np.uint8)
    image[2:6, 2:6], image[10:14, 10:14] = 1, 2
    Image.fromarray(image).save(tmp_path / "a_cells.png")
    (tmp_path / "cells.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_truth(tmp_path / "truth.csv", tmp_path)
    assert not (tmp_path / "truth.csv").exists()


@pytest.mark.parametrize("words", [["convert", "t.csv", "out"], ["convert", "t.csv", "out", "--from", "dsb2018_csv"], ["score", "s.csv", "t.csv"]])
def test_messages_speak_of_the_columns_of_the_file(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("Image_ID;Label\na;0\n")
    Path("s.csv").write_text("ID,ImageWidth,ImageHeight,PredictionString\na,10,10,\n")
    assert main(words) == 2
    assert "the columns Image_ID, Label" in capsys.readouterr().err
