"""One writer at a time for each folder, and nothing of an earlier call beside what the last one made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from hpacell.cli import main
from hpacell.feed.store import read_store
from hpacell.fields.simulate import simulate_fields
from hpacell.files import write_json
from hpacell.locks import FolderInUse, build_beside, is_empty, own_folder
from hpacell.masks.writers import write_labelled
from hpacell.models.places import CARD_NAME, MARKS, RECORDS, STATE_NAME, UNFINISHED_NAME, WEIGHTS_NAME, mark_training
from hpacell.pipeline import cell_maps
from hpacell.pipeline import predict as predict_module
from hpacell.pipeline.extract import extract_fields
from hpacell.pipeline.segment import segment_fields
from hpacell.results import check_kind, clear_results, record_results


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    simulate_fields(folder / "three", n_fields=3, seed=2, size=(96, 96))
    return folder / "three"


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


# -- locks


def test_a_lock_says_who_and_leaves_nothing(tmp_path):
    link = tmp_path / "link"
    with own_folder(tmp_path / "out") as folder:
        link.symlink_to(folder)
        with pytest.raises(FolderInUse, match=rf"writes {link}, got another process that does \(process {os.getpid()} on"), own_folder(link):
            pass
        assert (folder / ".lock").read_text()
    assert not folder.exists()  # nothing was written
    with own_folder(tmp_path / "a" / "b" / "out"):
        pass
    assert not (tmp_path / "a").exists()
    with own_folder(folder):
        (folder / "result").touch()
    assert (folder / ".lock").read_bytes() == b""
    with pytest.raises(RuntimeError), own_folder(tmp_path):
        raise RuntimeError
    assert not (tmp_path / ".lock").exists()  # of a command that failed in somebody's folder
    with pytest.raises(ValueError, match="where a file lies"), own_folder(folder / "result"):
        pass


def test_a_nested_owner_lets_in_its_own_thread_alone(tmp_path):
    code = f"from hpacell.locks import own_folder\nwith own_folder({str(tmp_path)!r}): pass"
    with own_folder(tmp_path, nested=True):
        with own_folder(tmp_path):
            pass
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # the inner one has ended, the outer one has not
        assert "got another process that does" in done.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_disk_without_locks_is_told(tmp_path, monkeypatch, capsys):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with own_folder(tmp_path / "out") as folder:
        (folder / "result").touch()
    assert "has no locks: let no other command write there" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act for another user")
def test_the_lock_of_another_user(tmp_path):
    with own_folder(tmp_path / "out") as folder:
        (folder / "result").touch()
    os.chmod(folder / ".lock", 0o644)
    for path in (folder, *folder.parents):
        if path.stat().st_uid == 0 and len(path.parts) > 2:
            os.chmod(path, path.stat().st_mode | 0o055)
    code = f"import os\nimport hpacell.files, hpacell.locks\nfrom hpacell.cli import main\nos.setuid(65534)\nraise SystemExit(main(['segment', 'none', '--out', {str(folder)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 2 and "expected to be allowed to use" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("words", [["train", "none", "--out"], ["predict", "none", "--model", "none", "--out"], ["extract", "none", "--out"], ["segment", "none", "--out"], ["import", "none", "--out"]])
def test_commands_are_refused_before_they_read_anything(tmp_path, words, capsys):
    with own_folder(tmp_path / "out"):
        assert main([*words, str(tmp_path / "out")]) == 2
    assert "expected to be the only one who writes" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out")]) == 2
    assert "only one" not in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_build_takes_its_place_only_at_the_end(tmp_path):
    def check(out):
        if out.exists() and not is_empty(out):
            raise ValueError("something lies there")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()  # of a command that was killed
    with build_beside(tmp_path / "out", check) as building:
        (building / "result").touch()
    assert names_in(tmp_path) == {"out/result"}
    with pytest.raises(ValueError, match="something lies there"), build_beside(tmp_path / "new", check):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "thesis.txt").touch()
    assert names_in(tmp_path) == {"out/result", "new/thesis.txt"}


# -- trainings


def test_a_kill_while_a_training_begins_leaves_a_model_or_a_mark(tmp_path, monkeypatch):
    """At each file that goes or comes the folder holds the whole former model, or is marked; the other state is never taken up."""
    events, dies_at = [], 0

    def watch(name, call):
        def watched(*arguments, **options):
            events.append(name)
            if len(events) == dies_at:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return watched

    for step in range(1, 20):
        folder = tmp_path / str(step)
        folder.mkdir()
        for name in (WEIGHTS_NAME, CARD_NAME, "best.weights.h5", "state-3.weights.h5", "scores.csv", "test_cells.parquet"):
            (folder / name).write_text("former")
        write_json(folder / STATE_NAME, {"epoch": 3})
        events.clear()
        dies_at = step
        with monkeypatch.context() as patch:
            for name in ("unlink", "replace"):
                patch.setattr(Path, name, watch(name, getattr(Path, name)))
            patch.setattr(os, "replace", watch("os.replace", os.replace))
            try:
                mark_training(folder, {"seed": 1})
                ended = True
            except KeyboardInterrupt:
                ended = False
        assert (folder / WEIGHTS_NAME).read_text() == (folder / CARD_NAME).read_text() == "former"
        if (folder / UNFINISHED_NAME).exists():
            assert not (folder / STATE_NAME).exists()
        else:
            assert (folder / "scores.csv").exists() and (folder / "test_cells.parquet").exists()
        if ended:
            break
        mark_training(folder, {"seed": 1})
        assert names_in(folder) == {WEIGHTS_NAME, CARD_NAME, UNFINISHED_NAME}
    assert ended and step > 4


def test_records_of_others_are_not_a_models(tmp_path):
    for name in RECORDS:
        (tmp_path / name).touch()
    mark_training(tmp_path, {"seed": 1})
    assert set(RECORDS) <= names_in(tmp_path) and UNFINISHED_NAME in MARKS


@pytest.mark.parametrize("name", ["classifier", "segmenter", "tissue"])
def test_trainings_own_their_folder(tmp_path, name):
    from hpacell.models.segmenter import train_segmenter
    from hpacell.models.tissue import cross_validate_tissue, train_tissue
    from hpacell.models.training import train_classifier

    calls = {"classifier": [train_classifier], "segmenter": [train_segmenter], "tissue": [train_tissue, cross_validate_tissue]}[name]
    with own_folder(tmp_path / "model"):
        for call in calls:
            with pytest.raises(FolderInUse):
                call([], tmp_path / "model")


def test_scores_go_to_no_other_model(tmp_path):
    from hpacell.models.card import TrainedClassifier
    from hpacell.models.evaluation import evaluate_classifier

    write_json(tmp_path / CARD_NAME, {"weights_blake2b": "other"})
    before = (tmp_path / CARD_NAME).read_bytes()
    with pytest.raises(ValueError, match="got another training there"):
        evaluate_classifier(TrainedClassifier(None, {"weights_blake2b": "own"}, str(tmp_path)), None)
    assert (tmp_path / CARD_NAME).read_bytes() == before


def test_folds_of_two_cross_validations(tmp_path):
    from hpacell.models.tissue import _check_folds

    (tmp_path / "fold3").mkdir()
    (tmp_path / "fold3" / CARD_NAME).touch()
    _check_folds(tmp_path, {"fold0", "fold3"})
    with pytest.raises(ValueError, match="with fold3 of another call: remove them"):
        _check_folds(tmp_path, {"fold0", "fold1"})


# -- what was made before


def test_results_of_before_go_and_files_of_others_stay(tmp_path):
    for name in ("overlays/a.png", "overlays/mine.png", "maps/b.png", "cells.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    record_results(tmp_path, ["overlays/a.png", "maps/b.png"])
    record_results(tmp_path, ["cells.parquet", "../outside"])
    (tmp_path.parent / "outside").touch()
    clear_results(tmp_path)
    assert names_in(tmp_path) == {"overlays/mine.png"} and not (tmp_path / "maps").exists() and (tmp_path.parent / "outside").exists()


class Model:
    """Stands in for a classifier: each cell shows the same."""

    locations, card = ("nucleoplasm",), {}

    def predict(self, crops):
        return np.ones((len(crops), 1), np.float32)


@pytest.fixture
def predicts(monkeypatch):
    from hpacell.fields.find import find_fields
    from hpacell.pipeline.extract import ExtractSettings

    monkeypatch.setattr(predict_module, "load_classifier", lambda model: Model())
    monkeypatch.setattr(predict_module, "settings_of", lambda model: ExtractSettings(crop_size=16))
    monkeypatch.setattr(predict_module, "find_channels", lambda model, fields, *rest: (find_fields(fields), None))
    monkeypatch.setattr(predict_module, "check_channels", lambda model, store: None)
    monkeypatch.setattr(cell_maps, "map_cells", lambda model, store, chosen: np.zeros((len(chosen), 16, 16), np.float32))
    return predict_module.predict_fields


def fewer(fields: Path, folder: Path, without: str) -> Path:
    folder.mkdir()
    for path in fields.glob("*.png"):
        if not path.name.startswith(without):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("recorded", [True, False])
def test_pictures_of_an_earlier_prediction_go(fields, tmp_path, predicts, recorded):
    out = tmp_path / "found"
    predicts(fields, "model", out, workers=1, maps=2)
    assert len(list((out / "overlays").iterdir())) == 3 and len(list((out / "maps").iterdir())) == 2
    (out / "overlays" / "mine.png").touch()
    if not recorded:
        (out / ".results.json").unlink()
    predicts(fewer(fields, tmp_path / "two", "sim_2_00000"), "model", out, workers=1, overlays=1)
    assert {path.name for path in (out / "overlays").iterdir()} == {"sim_2_00001.png", "mine.png"} and not (out / "maps").exists()
    predicts(tmp_path / "two", "model", out, workers=1, overlays=0)
    assert {path.name for path in (out / "overlays").iterdir()} == {"mine.png"}


def test_a_prediction_that_fails_leaves_no_results_of_before(fields, tmp_path, predicts, monkeypatch):
    out = tmp_path / "found"
    predicts(fields, "model", out, workers=1)
    monkeypatch.setattr(predict_module, "predict_store", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predicts(fields, "model", out, workers=1)
    assert not {"cells.parquet", "submission.csv", "quarantine.csv"} & names_in(out) and not (out / "overlays").exists()


def test_kinds_of_results_are_not_mixed(fields, tmp_path, predicts):
    extract_fields(fields, tmp_path / "store", workers=1)
    segment_fields(fields, tmp_path / "masks", workers=1, method="classical")
    before = {name: (tmp_path / "store" / name).read_bytes() for name in names_in(tmp_path / "store")}
    for call, out, held in ((predicts, "store", "a crop store"), (predicts, "masks", "label images")):
        with pytest.raises(ValueError, match=f"expected a folder for predictions, got .*, which holds {held}"):
            call(fields, "model", tmp_path / out)
    with pytest.raises(ValueError, match="expected a folder for label images, got .*, which holds a crop store"):
        segment_fields(fields, tmp_path / "store", workers=1, method="classical")
    with pytest.raises(ValueError, match="which holds a crop store"):
        check_kind(tmp_path / "store", "a classifier", ["a crop store"])
    assert {name: (tmp_path / "store" / name).read_bytes() for name in names_in(tmp_path / "store")} == before
    assert read_store(tmp_path / "store").folder


def test_label_images_of_fields_that_are_gone_go(fields, tmp_path):
    out, mine = tmp_path / "masks", tmp_path / "masks" / "sim_9_00000_nuclei.png"
    segment_fields(fields, out, workers=1, method="classical")
    mine.touch()
    some = fewer(fields, tmp_path / "two", "sim_2_00000")
    segment_fields(some, out, workers=1, method="classical")
    images = {path.name for path in out.glob("*.png")}
    assert images == {mine.name} | {f"sim_2_0000{i}_{kind}.png" for i in (1, 2) for kind in ("nuclei", "cells")}
    assert pd.read_csv(out / "segmentation.csv")["field_id"].tolist() == ["sim_2_00001", "sim_2_00002"]
    path = some / "sim_2_00001_blue.png"
    path.unlink()
    path.write_bytes(b"no picture")
    report = segment_fields(some, out, workers=1, method="classical")
    assert report.quarantine["field_id"].tolist() == ["sim_2_00001"] and not list(out.glob("sim_2_00001_*"))
    simulate_fields(tmp_path / "others", n_fields=1, seed=8, size=(96, 96))
    with pytest.raises(ValueError, match="expected fields that were segmented into .*: choose another folder, or remove it first"):
        segment_fields(tmp_path / "others", out, workers=1, method="classical")


def test_a_segmentation_that_stops_leaves_no_table_of_before(fields, tmp_path, monkeypatch):
    from hpacell.pipeline import segment

    segment_fields(fields, tmp_path / "masks", workers=1, method="classical")
    monkeypatch.setattr(segment, "map_items", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segment_fields(fields, tmp_path / "masks", workers=1, method="classical", border="cells")
    assert not {"segmentation.csv", "quarantine.csv"} & names_in(tmp_path / "masks") and not list((tmp_path / "masks").glob("*.png"))


def test_problems_of_an_earlier_conversion_go(tmp_path):
    from hpacell.masks.labelled import LabelFile, LabelledImage

    cv2.imwrite(str(tmp_path / "a.png"), np.eye(8, dtype=np.uint8))
    good = LabelledImage("a", (), "plain", LabelFile(str(tmp_path / "a.png")))
    bad = LabelledImage("b", (), "plain", LabelFile(str(tmp_path / "b.png")))
    out, beside = tmp_path / "out.json", tmp_path / "out.json.problems.csv"
    write_labelled([good, bad], out, "coco")
    assert pd.read_csv(beside)["image_id"].tolist() == ["b"]
    out.unlink()
    write_labelled([good], out, "coco")
    assert json.loads(out.read_text())["images"] and not beside.exists() and not list(tmp_path.glob("*.partial"))
    with own_folder(f"{tmp_path / 'new.json'}.partial"), pytest.raises(FolderInUse):
        write_labelled([good], tmp_path / "new.json", "coco")


def test_empty_folders_go_whatever_their_order(tmp_path):
    """Each of many, since sets have another order in each process."""
    names = [f"{i}/a/b/c/file.txt" for i in range(20)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("result")
    record_results(tmp_path, names)
    clear_results(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "/folder"])
def test_a_link_to_nothing_is_said_to_be_one(fields, tmp_path, capsys, below):
    link = tmp_path / "dang"
    link.symlink_to(tmp_path / "gone")
    assert main(["segment", str(fields), "--out", f"{link}{below}", "--method", "classical"]) == 2
    told = capsys.readouterr().err
    assert f"expected a folder, got {link}, a link to nothing: make the folder {tmp_path / 'gone'}, or choose another folder" in told
    (tmp_path / "gone").mkdir()
    with own_folder(f"{link}{below}"):
        pass


def test_copies_of_a_model_appear_whole(tmp_path, monkeypatch):
    """Another process may read the copy while this one makes it: each file is there as a whole, or not at all."""
    import fsspec

    from hpacell.models import found

    memory = fsspec.filesystem("memory")
    for name in (CARD_NAME, WEIGHTS_NAME):
        memory.pipe_file(f"/whole/{name}", b"first " + name.encode())
    folder = found.locate_classifier("memory://whole", tmp_path)
    before = {name: os.stat(folder / name).st_ino for name in (CARD_NAME, WEIGHTS_NAME)}
    held = {name: (folder / name).open("rb") for name in before}
    assert found.locate_classifier("memory://whole", tmp_path) == folder and names_in(folder) == {CARD_NAME, WEIGHTS_NAME}
    for name, file in held.items():
        with file:
            assert file.read() == b"first " + name.encode() and os.stat(folder / name).st_ino != before[name]
