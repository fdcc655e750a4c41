"""Fields to cells to locations, with faults on the way."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from pycocotools import mask as coco

from hpacell.cli import main
from hpacell.feed.remote import fetch_store
from hpacell.feed.store import read_store
from hpacell.fields.find import find_fields
from hpacell.fields.image import FieldError, Reading
from hpacell.fields.read import read_field
from hpacell.fields.simulate import simulate_fields
from hpacell.masks.rle import decode_labels_rle
from hpacell.metrics.submission import read_submission, validate_submission
from hpacell.models.training import TrainingSettings, train_classifier
from hpacell.pipeline.extract import ExtractSettings, extract_fields
from hpacell.pipeline.predict import predict_fields
from hpacell.pipeline.segment import segment_fields

SMALL = ExtractSettings(crop_size=32)


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    """Six simulated fields, not square."""
    folder = tmp_path_factory.mktemp("fields")
    simulate_fields(folder, n_fields=6, seed=3, size=(192, 256))
    return folder


@pytest.fixture(scope="module")
def store(fields, tmp_path_factory):
    return extract_fields(fields, tmp_path_factory.mktemp("store") / "store", labels=fields / "labels.csv", settings=SMALL, workers=1).store


@pytest.fixture(scope="module")
def model(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    train_classifier(store, folder, TrainingSettings(model_parameters={"filters": (4, 8), "kernels": (5, 3)}, epochs=1, n_folds=3))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files but the sums that save time, which know when a file was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "signatures.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def ids_of(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix("_blue.png") for path in folder.glob("*_blue.png"))


def test_workers_do_not_change_a_byte(fields, store, tmp_path):
    extract_fields(fields, tmp_path / "store", labels=fields / "labels.csv", settings=SMALL, workers=2)
    assert content(tmp_path / "store") == content(Path(store.folder))


def test_rows_and_crops_belong_together(fields, store):
    index = store.index
    assert len(index) == len(store.crops(np.arange(len(store)))) > 20
    labels = pd.read_csv(fields / "labels.csv", dtype=str)
    assert set(store.fields["field_id"]) == set(labels["ID"])
    for field_id, cells in index.groupby("field_id"):
        image = decode_labels_rle(list(cells["rle"]), (192, 256), list(cells["cell_id"]))
        assert (np.bincount(image.ravel(), minlength=cells["cell_id"].max() + 1)[cells["cell_id"]] == cells["cell_area"]).all(), field_id
        assert (cells["cell_ratio"] <= 1).all() and (cells["total_area"] == cells["height"] * cells["width"]).all()
    assert {"field_id", "cell_id", "row0", "col0", "row1", "col1", "height", "width", "total_area", "cell_area", "cell_ratio", "rle", "labels"} <= set(index)


def test_only_what_changed_is_made_again(fields, tmp_path):
    work = tmp_path / "fields"
    shutil.copytree(fields, work)
    run = {"store": tmp_path / "store", "labels": work / "labels.csv", "settings": SMALL, "workers": 1}
    assert extract_fields(work, **run).n_made == 6
    assert extract_fields(work, **run).n_made == 0
    ids = ids_of(work)
    image = cv2.imread(str(work / f"{ids[1]}_green.png"), cv2.IMREAD_UNCHANGED)
    image[0, 0] += 1
    cv2.imwrite(str(work / f"{ids[1]}_green.png"), image)
    assert extract_fields(work, **run).n_made == 1
    for path in work.glob(f"{ids[0]}_*.png"):
        path.unlink()
    table = pd.read_csv(work / "labels.csv", dtype=str)
    table.loc[table["ID"] == ids[2], "Label"] = "16"
    table.to_csv(work / "labels.csv", index=False)
    report = extract_fields(work, **run)
    assert report.n_made == 0 and report.n_fields == 5 and report.missing == (ids[0],)
    assert set(report.store.index.query("field_id == @ids[2]")["labels"]) == {"cytosol"}
    assert extract_fields(work, tmp_path / "store", labels=run["labels"], settings=ExtractSettings(crop_size=48), workers=1).n_made == 5
    fresh = extract_fields(work, tmp_path / "fresh", labels=run["labels"], settings=ExtractSettings(crop_size=48), workers=1)
    old, new = content(tmp_path / "store"), content(Path(fresh.store.folder))
    assert {name: old[name] for name in old} == {name: new[name] for name in new}


def test_bad_fields_are_quarantined_and_mended(fields, tmp_path):
    work = tmp_path / "fields"
    shutil.copytree(fields, work)
    ids = ids_of(work)
    (work / f"{ids[0]}_red.png").unlink()
    whole = (work / f"{ids[1]}_blue.png").read_bytes()
    (work / f"{ids[1]}_blue.png").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(work / f"{ids[2]}_green.png"), np.zeros((10, 10), np.uint8))
    report = extract_fields(work, tmp_path / "store", settings=SMALL, workers=2)
    assert report.quarantine["field_id"].tolist() == ids[:3]
    assert all(f"{field_id}_" in reason for field_id, reason in zip(ids, report.quarantine["reason"], strict=False))
    assert len(report.store.fields) == 3
    (work / f"{ids[1]}_blue.png").write_bytes(whole)
    report = extract_fields(work, tmp_path / "store", settings=SMALL, workers=1)
    assert report.quarantine["field_id"].tolist() == [ids[0], ids[2]] and report.n_made <= 3


def test_blank_fields_have_no_cells(tmp_path, model):
    for colour in ("red", "green", "blue", "yellow"):
        cv2.imwrite(str(tmp_path / f"blank_{colour}.png"), np.zeros((64, 80), np.uint8))
    report = predict_fields(tmp_path, model, tmp_path / "out", workers=1)
    assert len(report.cells) == 0 and len(report.extracted.quarantine) == 0
    lines = (tmp_path / "out" / "submission.csv").read_text().splitlines()
    assert lines[1].startswith("blank,80,64,")
    assert validate_submission(tmp_path / "out" / "submission.csv") == []


def test_prediction_end_to_end(fields, model, tmp_path):
    out = tmp_path / "out"
    report = predict_fields(fields, model, out, workers=1, overlays=2)
    cells = pd.read_parquet(out / "cells.parquet")
    names = [name for name in cells if name.startswith("p_")]
    assert len(cells) == len(report.cells) > 20 and names
    assert ((cells[names] >= 0) & (cells[names] <= 1)).all().all()
    assert len(list((out / "overlays").glob("*.png"))) == 2
    assert validate_submission(out / "submission.csv", report.extracted.store.fields) == []
    predictions, _ = read_submission(out / "submission.csv")
    assert set(predictions["field_id"]) == set(cells["field_id"])
    # Each mask of the file is a mask of the table, and pycocotools reads it alike.
    known = {(row.field_id, row.rle) for row in cells.itertuples()}
    assert {(row.field_id, row.rle) for row in predictions.itertuples()} <= known
    for row in cells.head(5).itertuples():
        mask = coco.decode({"size": [192, 256], "counts": row.rle.encode()})
        assert mask.sum() == row.cell_area
    before = (out / "cells.parquet").read_bytes()
    again = predict_fields(fields, model, out, workers=1, overlays=0)
    assert again.extracted.n_made == 0 and (out / "cells.parquet").read_bytes() == before


def test_prediction_refuses_other_channels(fields, model, tmp_path):
    (tmp_path / "nuclei").mkdir()
    for path in list(fields.glob("*_blue.png"))[:2]:
        shutil.copy(path, tmp_path / "nuclei" / path.name.replace("_blue", ""))
    with pytest.raises(ValueError, match="expected crops with channels"):
        predict_fields(tmp_path / "nuclei", model, tmp_path / "out", channels=["nucleus"], workers=1)


def test_segment_writes_label_images(fields, tmp_path):
    report = segment_fields(fields, tmp_path / "masks", workers=2)
    assert len(report.fields) == 6 and len(report.quarantine) == 0 and report.n_made == 6
    with open(tmp_path / "masks" / "done.jsonl", "r+") as file:  # as a kill would leave it: the last line cut short
        lines = file.read()
        file.truncate(len(lines) - 20)
    again = segment_fields(fields, tmp_path / "masks", workers=2)
    assert again.n_made == 1 and again.fields.equals(report.fields)
    for row in report.fields.itertuples():
        nuclei, cells = (cv2.imread(str(tmp_path / "masks" / f"{row.field_id}_{kind}.png"), cv2.IMREAD_UNCHANGED) for kind in ("nuclei", "cells"))
        assert nuclei.dtype == cells.dtype == np.uint16 and nuclei.shape == cells.shape == (192, 256)
        assert set(np.unique(nuclei)) == set(np.unique(cells))
        assert (cells[nuclei > 0] == nuclei[nuclei > 0]).all()


def test_segment_nuclei_alone(fields, tmp_path):
    (tmp_path / "grey").mkdir()
    for path in list(fields.glob("*_blue.png"))[:2]:
        shutil.copy(path, tmp_path / "grey" / path.name.replace("_blue", "x"))
    segment_fields(tmp_path / "grey", tmp_path / "masks", channels=["nucleus"], workers=1)
    assert sorted(path.name.rsplit("_", 1)[1] for path in (tmp_path / "masks").glob("*.png")) == ["nuclei.png"] * 2
    store = extract_fields(tmp_path / "grey", tmp_path / "store", settings=SMALL, channels=["nucleus"], workers=1).store
    assert store.shape == (32, 32, 1) and len(store) > 5


def test_command_line(fields, model, tmp_path, capsys):
    work = tmp_path / "fields"
    shutil.copytree(fields, work)
    assert main(["segment", str(work), "--out", str(tmp_path / "masks"), "--workers", "1"]) == 0
    (work / f"{ids_of(work)[0]}_red.png").write_bytes(b"")
    assert main(["extract", str(work), "--labels", str(work / "labels.csv"), "--out", str(tmp_path / "store"), "--size", "32", "--workers", "1"]) == 1
    shown = capsys.readouterr()
    assert "1 field quarantined" in shown.err and "Traceback" not in shown.err
    assert len(pd.read_csv(tmp_path / "store" / "quarantine.csv")) == 1
    assert len(read_store(tmp_path / "store").fields) == 5
    assert main(["predict", str(work), "--model", str(model.parent), "--out", str(tmp_path / "out"), "--overlays", "1", "--workers", "1"]) == 1
    assert main(["simulate", str(tmp_path / "sim"), "--fields", "1", "--size", "128", "--workers", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extract", "NOWHERE", "--out", "OUT"], "NOWHERE"),
        (["extract", "EMPTY", "--out", "OUT"], "EMPTY"),
        (["segment", "FIELDS", "--out", "OUT", "--method", "magic"], "expected a method among auto, classical"),
        (["segment", "FIELDS", "--out", "OUT", "--border", "sideways"], "border"),
        (["extract", "FIELDS", "--out", "OUT", "--size", "2"], "--size: expected a whole number from 8"),
        (["extract", "FIELDS", "--out", "OUT", "--labels", "NOLABELS"], "NOLABELS"),
        (["extract", "FIELDS", "--out", "OUT", "--workers", "-1"], "--workers: expected a whole number at least 0"),
        (["predict", "FIELDS", "--model", "EMPTY", "--out", "OUT"], "expected a classifier"),
        (["train", "EMPTY", "--out", "OUT"], "make one with hpacell extract"),
        (["run", "NOPARAMS"], "expected a params file"),
    ],
)
def test_a_wrong_call_is_one_sentence(fields, tmp_path, capsys, words, message):
    (tmp_path / "EMPTY").mkdir()
    places = {"FIELDS": str(fields)} | {name: str(tmp_path / name) for name in ("NOWHERE", "EMPTY", "OUT", "NOLABELS", "NOPARAMS")}
    assert main([places.get(word, word) for word in words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and len(shown.strip().splitlines()) == 1


def test_unknown_commands_and_options(capsys):
    assert main(["extrct"]) == 2
    assert main(["extract"]) == 2
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("demo", "simulate", "explore", "extract", "segment", "train", "predict", "run", "runs"))


def test_remote_fields(fields, store, tmp_path):
    import fsspec

    fsspec.filesystem("memory").put(str(fields) + "/", "/bucket/fields/", recursive=True)
    report = extract_fields("memory://bucket/fields", tmp_path / "store", labels="memory://bucket/fields/labels.csv", settings=SMALL, workers=1)
    assert len(report.quarantine) == 0
    assert content(Path(report.store.folder) / "shards") == content(Path(store.folder) / "shards")


def test_remote_store(fields, store, tmp_path, monkeypatch):
    monkeypatch.setenv("HPACELL_PATHS_CACHE", str(tmp_path / "cache"))
    arguments = {"labels": fields / "labels.csv", "settings": SMALL, "workers": 1}
    assert extract_fields(fields, "memory://bucket/store", **arguments).n_made == 6
    assert extract_fields(fields, "memory://bucket/store", **arguments).n_made == 0
    fetched = Path(fetch_store("memory://bucket/store", tmp_path / "fetched"))
    assert content(fetched / "shards") == content(Path(store.folder) / "shards")


def test_what_must_be_local_says_so(fields, model):
    for call in (lambda: segment_fields(fields, "s3://bucket/masks"), lambda: predict_fields(fields, model, "s3://bucket/out")):
        with pytest.raises(ValueError, match="expected a local folder"):
            call()


def test_segment_writes_32_bits_where_16_do_not_number_the_cells(fields, tmp_path, monkeypatch):
    import hpacell.pipeline.segment as segment_module
    from hpacell.cells.segmentation import Segmentation
    from hpacell.masks.layouts import find_labelled

    labels = np.zeros((192, 2 * 256), np.int32)
    labels[::2, ::2] = np.arange(1, 96 * 256 + 1).reshape(96, 256)
    labels = np.ascontiguousarray(labels[:, :256])
    labels[labels > 0] += 65_535 - 1_000  # numbers on both sides of the limit, fewer than 65536 of them
    n_made = len(np.unique(labels)) - 1
    out, original = tmp_path / "masks", segment_module.segment
    segment_fields(fields, out, workers=1)
    first = sorted(path.name for path in out.glob("*.png"))[0].rsplit("_", 1)[0]
    monkeypatch.setattr(segment_module, "segment", lambda field, *options: Segmentation(labels, labels))
    monkeypatch.setattr(segment_module, "method_signature", lambda *arguments: "many")
    report = segment_fields(fields, out, workers=1)
    assert report.n_made == 6 and not len(report.quarantine) and set(report.fields["n_cells"]) == {n_made}
    assert not list(out.glob("*.png")) and len(list(out.glob("*.tif"))) == 12, "no image of before is left beside the new one"
    for target in ("cells", "nuclei"):
        found = find_labelled(out, "plain", target=target)
        assert len(found) == 6
        for one in found:
            np.testing.assert_array_equal(one.read_truth().labels, labels)
    assert segment_fields(fields, out, workers=1).n_made == 0
    (out / f"{first}_cells.tif").unlink()
    assert segment_fields(fields, out, workers=1).n_made == 1
    monkeypatch.setattr(segment_module, "segment", original)
    monkeypatch.setattr(segment_module, "method_signature", lambda *arguments: "few")
    segment_fields(fields, out, workers=1)
    assert len(list(out.glob("*.png"))) == 12 and not list(out.glob("*.tif"))


def test_segmented_images_hold_what_is_counted(fields, tmp_path):
    from hpacell.masks.layouts import find_labelled

    report = segment_fields(fields, tmp_path / "masks", workers=1)
    for target in ("cells", "nuclei"):
        counted = {one.image_id: len(np.unique(one.read_truth().labels)) - 1 for one in find_labelled(tmp_path / "masks", "plain", target=target)}
        assert counted == report.fields.set_index("field_id")[f"n_{target}"].to_dict()


# ---- options that change what files mean


def four_channels(folder, n=2):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        image = np.stack([np.roll(disc_picture(), 3 * k) for k in range(4)])
        tifffile.imwrite(folder / f"f{i}.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
    return folder


def disc_picture(side=130):
    rows, cols = np.mgrid[:side, :side]
    image = np.full((side, side), 12, np.float32)
    for row, col in ((32, 32), (32, 96), (96, 32), (96, 96)):
        image[(rows - row) ** 2 + (cols - col) ** 2 <= 14**2] = 180
    return (image + np.random.default_rng(0).normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def test_a_store_follows_the_names_of_channels(tmp_path):
    folder, settings = four_channels(tmp_path / "fields"), ExtractSettings(method="classical", crop_size=32)
    named = extract_fields(folder, tmp_path / "store", settings=settings, workers=1, channels=["er", "protein", "nucleus", "microtubules"])
    assert len(named.store) > 0
    again = extract_fields(folder, tmp_path / "store", settings=settings, workers=1)
    assert again.quarantine.empty and again.store.channels == ("microtubules", "protein", "nucleus", "er") and len(again.store) == len(named.store)
    assert any("made again: channels er, protein, nucleus, microtubules -> microtubules, protein, nucleus, er" in note for note in again.notes)
    assert extract_fields(folder, tmp_path / "store", settings=settings, workers=1).n_made == 0


def test_a_store_follows_the_slice_that_is_chosen(tmp_path):
    (tmp_path / "fields").mkdir()
    stack = np.stack([disc_picture(), disc_picture() // 2])
    tifffile.imwrite(tmp_path / "fields" / "a.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    settings, levels = ExtractSettings(method="classical", crop_size=32), []
    for z in ("0", "1"):
        report = extract_fields(tmp_path / "fields", tmp_path / "store", settings=settings, workers=1, reading=Reading(z=z))
        levels.append(report.store.crops(np.arange(len(report.store))).max())
    assert levels[0] > 1.8 * levels[1] and any("made again: z '0' -> '1'" in note for note in report.notes)


def test_fields_without_cells_are_named(tmp_path):
    (tmp_path / "fields").mkdir()
    for name, image in (("full", disc_picture()), ("empty", np.full((130, 130), 9, np.uint8))):
        tifffile.imwrite(tmp_path / "fields" / f"{name}.tif", image)
    report = extract_fields(tmp_path / "fields", tmp_path / "store", settings=ExtractSettings(method="classical", crop_size=32), workers=1)
    told = [note for note in report.notes if note.startswith("no cells")]
    assert len(told) == 1 and "in 1 field: empty; if there are some" in told[0] and "--diameter" in told[0]


def test_a_channel_that_is_named_twice(tmp_path):
    four_channels(tmp_path / "fields")
    for names in (["protein", "nucleus", "er", "dapi"], ["nucleus", "nucleus", "er", "protein"]):
        with pytest.raises(FieldError, match=r"expected each channel once, got nucleus twice \(nucleus and .*a name that is no stain, such as other"):
            find_fields(tmp_path / "fields", channels=names)
    source = find_fields(tmp_path / "fields", channels=["protein", "nucleus", "er", "other"])[0]
    assert read_field(source).channels == ("protein", "nucleus", "er", "other")
