"""Prediction: what cannot work is said before any work, and what went wrong on the way is written down."""

import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import hpacell.pipeline.predict as predict
from hpacell.cli import main
from hpacell.fields.find import FieldError
from hpacell.fields.simulate import simulate_fields
from hpacell.models.card import save_classifier
from hpacell.models.evaluation import activation_maps
from hpacell.models.zoo import make_classifier
from hpacell.pipeline.cell_maps import LIKELY, map_cells, surest_cells
from hpacell.pipeline.extract import ExtractSettings
from hpacell.pipeline.predict import predict_fields
from hpacell.vocabulary import CHANNELS, LOCATIONS, LOCATIONS_2018

PARAMETERS = {"filters": [4], "kernels": [3], "units": 0}


def write_model(folder: Path, channels=CHANNELS, locations=LOCATIONS[:3]) -> Path:
    """A classifier that has learned nothing, which is all that is needed here."""
    card = {
        "kind": "classifier", "model": "batch_norm", "model_parameters": PARAMETERS, "crop_shape": [32, 32, len(channels)],
        "channels": list(channels), "locations": list(locations), "crop_parameters": asdict(ExtractSettings(32)),
        "data": {"fields": {}}, "scores": {},
    }  # fmt: skip
    save_classifier(make_classifier("batch_norm", (32, 32, len(channels)), len(locations), **PARAMETERS), card, folder)
    return folder


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    simulate_fields(folder, n_fields=3, seed=4, size=(128, 160), progress=False)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def no_work(monkeypatch):
    """Extraction must not be reached."""
    monkeypatch.setattr(predict, "extract_fields", lambda *_, **__: pytest.fail("work was begun"))


def stacks(fields: Path, folder: Path, order=("red", "green", "blue", "yellow")) -> Path:
    """The same fields with all channels in one file each."""
    import tifffile

    folder.mkdir()
    for path in sorted(fields.glob("*_blue.png")):
        planes = [cv2.imread(str(path).replace("_blue", f"_{colour}"), cv2.IMREAD_UNCHANGED) for colour in order]
        tifffile.imwrite(folder / path.name.replace("_blue.png", ".tif"), np.stack(planes), photometric="minisblack")
    return folder


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (["protein"], "expected the channel nucleus, by which cells are found, got protein: take it along"),
        (["nucleus"], "as the classifier was trained on, got nucleus: give fields that have them"),
        (["er", "nucleus", "protein", "microtubules"], "got er, nucleus, protein, microtubules: name them in this order, --channels micro"),
    ],
)
def test_a_wrong_call_is_refused_before_any_work(fields, model, tmp_path, no_work, channels, message, capsys):
    with pytest.raises(ValueError, match=message):
        predict_fields(fields, model, tmp_path / "out", channels=channels)
    assert not (tmp_path / "out").exists()
    assert main(["predict", str(fields), "--model", str(model), "--out", str(tmp_path / "out"), "--channels", ",".join(channels)]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and len(shown.splitlines()) == 1


def test_files_that_do_not_say_are_opened_before_any_work(fields, tmp_path, no_work):
    small = write_model(tmp_path / "model", ("protein", "nucleus"))
    folder = stacks(fields, tmp_path / "stacks")
    first = sorted(folder.iterdir())[0]
    first.write_bytes(b"not an image")  # the next one is asked
    with pytest.raises(ValueError, match="expected crops with channels protein, nucleus, .* got microtubules, protein, nucleus, er: give fields"):
        predict_fields(folder, small, tmp_path / "out")


def test_of_more_channels_those_of_the_model_are_taken(fields, tmp_path):
    small = write_model(tmp_path / "model", ("nucleus", "protein"))
    report = predict_fields(fields, small, tmp_path / "out", workers=1, overlays=0)
    assert report.extracted.store.channels == ("nucleus", "protein") and len(report.cells) > 3
    named = predict_fields(fields, small, tmp_path / "named", channels=["nucleus", "protein"], workers=1, overlays=0)
    pd.testing.assert_frame_equal(report.cells, named.cells)


def test_stacks_give_the_same_cells(fields, model, tmp_path):
    one = predict_fields(fields, model, tmp_path / "files", workers=1, overlays=0)
    other = predict_fields(stacks(fields, tmp_path / "stacks"), model, tmp_path / "out", workers=1, overlays=0)
    pd.testing.assert_frame_equal(one.cells, other.cells)


def test_locations_of_2018_give_a_table_but_no_submission(fields, tmp_path):
    older = write_model(tmp_path / "model", locations=LOCATIONS_2018)
    out = tmp_path / "out"
    out.mkdir()
    (out / "submission.csv").write_text("of another classifier")
    report = predict_fields(fields, older, out, workers=1, overlays=1)
    cells = pd.read_parquet(out / "cells.parquet")
    assert len([name for name in cells if name.startswith("p_")]) == 28 and len(cells) == len(report.cells) > 3
    assert not (out / "submission.csv").exists()
    assert len(report.notes) == 1 and report.notes[0].startswith("no submission.csv, all else is there: expected locations of")
    assert report.notes[0] in str(report)


def test_the_quarantine_lies_with_the_results(fields, model, tmp_path):
    good = predict_fields(fields, model, tmp_path / "good", workers=1, overlays=0)
    assert (tmp_path / "good" / "quarantine.csv").read_text().splitlines() == ["field_id,reason"]
    assert good.notes == () and len(good.quarantine) == 0 and (tmp_path / "good" / "submission.csv").is_file()
    shutil.copytree(fields, tmp_path / "fields")
    bad = sorted((tmp_path / "fields").glob("*_green.png"))[0]
    bad.write_bytes(b"")
    report = predict_fields(tmp_path / "fields", model, tmp_path / "out", workers=1)
    table = pd.read_csv(tmp_path / "out" / "quarantine.csv", dtype=str)
    assert table["field_id"].tolist() == [bad.name.removesuffix("_green.png")] and bad.name in table["reason"][0]
    assert table.to_dict() == report.quarantine.to_dict()
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2 and str(report).startswith("48 cells of 2 fields in ")


def test_a_picture_that_cannot_be_drawn_stops_nothing(fields, model, tmp_path, monkeypatch):
    def draw(item, folder, width, max_pixels):
        if not drawn:
            drawn.append(item[0].field_id)
            raise FieldError("the file is gone: put it back")
        return write_overlay(item, folder, width, max_pixels)

    drawn, write_overlay = [], predict.write_overlay
    monkeypatch.setattr(predict, "write_overlay", draw)
    report = predict_fields(fields, model, tmp_path / "out", workers=1)
    assert report.quarantine["field_id"].tolist() == drawn
    assert "no picture, but its cells are in the table: the file is gone" in report.quarantine["reason"][0]
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2 and len(report.extracted.quarantine) == 0
    assert set(drawn) < set(pd.read_parquet(tmp_path / "out" / "cells.parquet")["field_id"])


def test_no_overlays_no_bar(fields, model, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HPACELL_PROGRESS")
    predict_fields(fields, model, tmp_path / "out", workers=1, overlays=0)
    shown = capsys.readouterr().err
    assert "predict" in shown and "overlays" not in shown and not (tmp_path / "out" / "overlays").exists()


def test_a_name_that_leaves_the_folder_writes_nothing(fields, model, tmp_path, no_work):
    paths = "|".join(str(path) for path in sorted(fields.glob("*.png"))[:4])
    (tmp_path / "fields.csv").write_text(f"field_id,path\n../../escaped,{paths}\n")
    with pytest.raises(FieldError, match="fields.csv: expected a field's id that can be a file's name, got '../../escaped' in row 2"):
        predict_fields(tmp_path / "fields.csv", model, tmp_path / "a" / "b" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fields.csv"]


def test_maps_show_the_surest_cells_of_each_location(fields, model, tmp_path):
    report = predict_fields(fields, model, tmp_path / "out", workers=1, overlays=0, maps=2)
    chosen = surest_cells(report.cells, LOCATIONS[:3], 2, LIKELY)
    assert list(chosen["location"]) == [name for name in LOCATIONS[:3] for _ in range(2)]
    for location, found in chosen.groupby("location"):
        assert found["probability"].is_monotonic_decreasing and found["probability"].max() == report.cells[f"p_{location}"].max()
    written = sorted((tmp_path / "out" / "maps").iterdir())
    wanted = [report.cells.loc[row, ["field_id", "cell_id"]] for row in chosen["row"]]
    assert sorted("_".join([f"{found.location}_{found.probability:.2f}", cell["field_id"], str(cell["cell_id"])]) for found, cell in zip(chosen.itertuples(), wanted, strict=True)) == [path.stem for path in written]
    side = report.extracted.store.shape[0]
    assert cv2.imread(str(written[0])).shape == (side, 2 * side, 3)
    predict_fields(fields, model, tmp_path / "out", workers=1, overlays=0, maps=1)
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 3  # those of the earlier run are gone


def test_a_map_belongs_to_its_cell_and_location(fields, model, tmp_path):
    report = predict_fields(fields, model, tmp_path / "out", workers=1, overlays=0)
    store, locations = report.extracted.store, LOCATIONS[:3]
    chosen = pd.DataFrame({"row": [5, 2, 5], "location": [locations[1], locations[0], locations[2]]})
    heats = map_cells(report.classifier, store, chosen)
    assert heats.shape == (3, *store.shape[:2]) and heats.min() >= 0 and heats.max() <= 1
    for heat, row, location in zip(heats, chosen["row"], chosen["location"], strict=True):
        np.testing.assert_array_equal(heat, activation_maps(report.classifier.model, store.crops([row])[0])[..., locations.index(location)])


@pytest.mark.parametrize(
    ("name", "gain", "dtype"), [("12 bits", 16, np.uint16), ("shares", 1 / 255, np.float32), ("signed", 16, np.int16)]
)
def test_the_same_field_stored_in_another_way_has_the_same_answers(fields, model, tmp_path, name, gain, dtype):
    import tifffile

    folder = tmp_path / "stacks"
    folder.mkdir()
    for path in sorted(stacks(fields, tmp_path / "eight").iterdir()):
        image = (tifffile.imread(path).astype(np.float64) * gain).astype(dtype)
        tifffile.imwrite(folder / path.name, image, photometric="minisblack", metadata={"axes": "CYX"})
    plain, other = (predict_fields(place, model, tmp_path / f"out_{place.name}", overlays=0, workers=1) for place in (fields, folder))
    names = [column for column in plain.cells if column.startswith("p_")]
    assert len(plain.cells) == len(other.cells) > 10 and np.ptp(plain.cells[names].to_numpy(), axis=0).max() > 0.01
    np.testing.assert_allclose(other.cells[names], plain.cells[names], atol=1e-3)
    for channel in CHANNELS:
        np.testing.assert_allclose(other.cells[f"{channel}_intensity_mean"] / gain, plain.cells[f"{channel}_intensity_mean"], rtol=1e-4)
    np.testing.assert_array_equal(other.cells["cell_area"], plain.cells["cell_area"])
