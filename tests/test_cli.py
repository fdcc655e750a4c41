"""The command line: help that helps, and one sentence for whatever goes wrong."""

import argparse
import errno
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpacell import cli
from hpacell.arguments import BORDERS, COMPRESSIONS, EXPORTS, METHODS, make_parser
from hpacell.cells.nuclei import BORDERS as KNOWN_BORDERS
from hpacell.cli import COMMANDS, main
from hpacell.feed import shards
from hpacell.feed.export import EXPORT_FORMATS
from hpacell.feed.store import read_store
from hpacell.fields.simulate import simulate_fields
from hpacell.pipeline import segmenters
from hpacell.pipeline.extract import ExtractSettings, extract_fields


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    """Five simulated fields."""
    folder = tmp_path_factory.mktemp("fields")
    simulate_fields(folder, n_fields=5, seed=5, size=(128, 128))
    return folder


@pytest.fixture(scope="module")
def store(fields, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "store"
    extract_fields(fields, folder, labels=fields / "labels.csv", settings=ExtractSettings(crop_size=16), workers=1)
    return folder


def parsers() -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0].choices


def said(capsys) -> str:
    """The one sentence on stderr."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("hpacell: "), lines
    return lines[0]


def test_every_command_is_in_the_table_of_contents():
    assert list(parsers()) == ["demo", "simulate", "inspect", "explore", "segment", "extract", "verify", "export", "import", "convert", "train", "predict", "score", "run", "sweep", "runs", "compare"]
    assert set(COMMANDS) == set(parsers())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_examples_that_parse(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    examples = [line.strip() for line in shown.splitlines() if line.startswith("  hpacell ")]
    assert 1 <= len(examples) <= 3
    for example in examples:
        words = shlex.split(example)[1:]
        assert make_parser().parse_args(words).command == words[0] == name


def test_help_loads_nothing_heavy():
    asked = [[], *([name] for name in sorted(COMMANDS))]
    code = f"import sys\nfrom hpacell.cli import main\nfor words in {asked}: main([*words, '--help'])\nprint(*{{n.split('.')[0] for n in sys.modules}}, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert not set(loaded) & {"numpy", "pandas", "yaml", "fsspec", "cv2", "scipy", "skimage", "tensorflow", "keras", "plotly", "papermill"}


def test_help_is_for_beginners(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert "start here" in next(line for line in shown.splitlines() if line.strip().startswith("demo"))
    assert "No fields of your own? Start with: hpacell demo" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if line.startswith("    ")), "one line for each command"
    main(["extract", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("nucleus takes that stain alone", "in the order of the file", "w1=nucleus", "{keep,nuclei,cells}", "auto, classical, unet, maskrcnn", "8 to 32"):
        assert word in shown, word


def test_choices_are_those_of_the_library():
    assert METHODS == segmenters.METHODS
    assert BORDERS == KNOWN_BORDERS
    assert COMPRESSIONS == (*shards.COMPRESSIONS, "auto")
    assert EXPORTS == tuple(EXPORT_FORMATS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segment", "a", "--out", "b", "--method", "magic"], "or module:function of your own, got 'magic'"),
        (["extract", "a", "--out", "b", "--border", "no"], "expected a border rule among keep, nuclei, cells, got 'no'"),
        (["extract", "a", "--out", "b", "--bits", "7"], "expected a whole number from 8 to 32, got 7"),
        (["export", "a", "--out", "b", "--to", "zip"], "expected a form among tfrecord, webdataset, png, hdf5, zarr, got 'zip'"),
        (["extract", "a"], "the following arguments are required: --out; see hpacell extract --help"),
        (["score", "a", "b", "--iou", "1.5"], "expected a number above 0 and at most 1, got '1.5'"),
        (["train", "a", "--out", "b", "--weak", "strong"], "among inherit, em, noisy_or, max, lse, attention, got 'strong'"),
        (["train", "a", "--out", "b", "--model-parameters", "[3]"], "expected names with values as JSON"),
        (["sweep", "a", "--workers", "-1"], "expected a whole number at least 0, got -1"),
        (["sweep"], "expected a params file with a sweep, got none"),
        (["import", "a", "--out", "b", "--boxes", "c", "--labels", "d"], "expected --boxes with the classes of the cells or --labels, got both"),
        (["extrct"], "'extrct'"),
        ([], "required: COMMAND; see hpacell --help"),
    ],
)
def test_a_wrong_word_is_one_sentence(capsys, words, message):
    assert main(words) == 2
    assert message in said(capsys)


def failing(error: BaseException):
    def command(arguments):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("weights_blake2b"), "unexpected KeyError: 'weights_blake2b'; set HPACELL_DEBUG=1 to see where"),
        (AttributeError("no x"), "unexpected AttributeError: no x; set HPACELL_DEBUG=1"),
        (MemoryError(), "unexpected MemoryError"),
        (ValueError("expected a, got b: do c"), "hpacell: expected a, got b: do c"),
        (FileNotFoundError("expected a, got b: do c"), "hpacell: expected a, got b: do c"),
        (FileNotFoundError(errno.ENOENT, "No such file", "no.csv"), "expected no.csv, got no such file or folder: check the path"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "expected to be allowed to use /x, got a refusal: change its permissions"),
        (OSError(errno.ENOSPC, "No space left on device"), "expected space on the disk for a file, got none: free some"),
        (OSError(errno.EIO, "Input/output error", "/x"), "expected to read or write /x, got Input/output error: check"),
    ],
)
def test_whatever_goes_wrong_is_one_sentence(monkeypatch, capsys, error, message):
    monkeypatch.setitem(COMMANDS, "runs", failing(error))
    assert main(["runs"]) == 2
    assert message in said(capsys)
    monkeypatch.setenv("HPACELL_DEBUG", "1")
    assert main(["runs"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and message in shown


@pytest.mark.parametrize(("name", "words", "again"), [("extract", ["a", "--out", "b"], "run the same command again to go on"), ("runs", [], "")])
def test_an_interrupt_is_one_sentence(monkeypatch, capsys, name, words, again):
    monkeypatch.setitem(COMMANDS, name, failing(KeyboardInterrupt()))
    assert main([name, *words]) == 130
    assert said(capsys) == "hpacell: interrupted" + (f"; {again}" if again else "")


def test_an_empty_card_is_one_sentence(fields, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "card.json").write_text("{}")
    (tmp_path / "model" / "model.weights.h5").write_bytes(b"")
    assert main(["predict", str(fields), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "Traceback" not in said(capsys)


def test_missing_labels_are_one_sentence(fields, tmp_path, capsys):
    missing = tmp_path / "no.csv"
    for words in (["extract", str(fields), "--out", str(tmp_path / "store"), "--workers", "1"], ["explore", str(fields), "--runs", str(tmp_path / "runs")]):
        assert main([*words, "--labels", str(missing)]) == 2
        shown = said(capsys)
        assert "expected" in shown and str(missing) in shown and "check the path" in shown and "Errno" not in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["NOWHERE"], "expected a folder"),
        (["EMPTY"], "expected images"),
        (["FIELDS", "--labels", "OTHERS"], "expected ids of the fields"),
        (["FIELDS", "--labels", "UNKNOWN"], "did you mean 'cytosol'"),
        (["FIELDS", "--pattern", "{field_id}.tif"], "correct the pattern"),
        (["FIELDS", "--cells", "NOWHERE"], "NOWHERE"),
        (["FIELDS", "--cells", "NOWHERE.csv"], "NOWHERE.csv"),
        (["FIELDS", "--duplicates", "NOWHERE.csv"], "NOWHERE.csv"),
    ],
)
def test_explore_looks_before_it_starts(fields, tmp_path, capsys, words, message):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "OTHERS").write_text("ID,Label\nsomething,0\n")
    (tmp_path / "UNKNOWN").write_text(f"ID,Label\n{next(fields.glob('*_blue.png')).name.removesuffix('_blue.png')},cytosl\n")
    places = {"FIELDS": str(fields)} | {name: str(tmp_path / name) for name in ("NOWHERE", "EMPTY", "OTHERS", "UNKNOWN")}
    assert main(["explore", *(places.get(word, word) for word in words), "--runs", str(tmp_path / "runs")]) == 2
    assert message in said(capsys)
    assert not (tmp_path / "runs").exists()


def test_explore_uses_labels_only_when_told(fields, tmp_path, capsys, monkeypatch):
    from hpacell.pipeline import runs

    seen = []
    monkeypatch.setattr(runs, "run_plan", lambda plan, runs: seen.append(plan.steps) or {"steps": {}, "folder": "runs/x", "n_quarantined": 0})
    assert main(["explore", str(fields)]) == 0
    assert f"to use those beside the fields: --labels {fields / 'labels.csv'}" in capsys.readouterr().out
    assert main(["explore", str(fields), "--labels", str(fields / "labels.csv")]) == 0
    assert "5 of 5 ids in" in capsys.readouterr().out
    assert seen == [{"explore": {"fields": str(fields)}}, {"explore": {"fields": str(fields), "labels": str(fields / "labels.csv")}}]


def test_explore_hands_on_tables_of_cells_and_pairs(fields, tmp_path, monkeypatch):
    from hpacell.pipeline import runs

    seen = []
    monkeypatch.setattr(runs, "run_plan", lambda plan, runs: seen.append(plan.steps) or {"steps": {}, "folder": "runs/x", "n_quarantined": 0})
    (tmp_path / "cells.csv").write_text("field_id,cell_id,height,width\na,1,30,40\n")
    (tmp_path / "pairs.csv").write_text("first,second\na,b\n")
    tables = {"cells": str(tmp_path / "cells.csv"), "pairs": str(tmp_path / "pairs.csv")}
    assert main(["explore", str(fields), "--cells", tables["cells"], "--duplicates", tables["pairs"]]) == 0
    assert seen == [{"explore": {"fields": str(fields), **tables}}]


def test_the_explore_workflow_takes_no_labels_silently(fields, tmp_path, capsys):
    import nbformat

    printed = []
    for words in ([], ["--labels", str(fields / "labels.csv")]):
        assert main(["explore", str(fields), *words, "--runs", str(tmp_path / f"runs{len(words)}")]) == 0
        notebook = nbformat.read(next((tmp_path / f"runs{len(words)}").glob("*/explore.ipynb")), as_version=4)
        printed.append("".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs))
    assert "labels.csv lies beside the fields and was not used" in printed[0] and "No labels, so no locations to count." in printed[0]
    assert "5 of 5 ids in" in printed[1] and "lies beside" not in printed[1]
    assert "Black" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "expected cells.csv in"),
        (lambda folder: pd.DataFrame({"a": [1]}).to_csv(folder / "cells.csv"), "expected the columns field_id, cell_id and labels"),
        (lambda folder: (folder / "cells.csv").write_text("field_id,cell_id,labels\nother,1,cytosol\n"), "expected cells of the fields that are scored"),
    ],
)
def test_truth_is_looked_at_before_training(store, tmp_path, monkeypatch, capsys, make, message):
    make(tmp_path)
    monkeypatch.setattr("hpacell.progress.load_tensorflow", lambda: None)
    assert main(["train", str(store), "--out", str(tmp_path / "model"), "--truth", str(tmp_path)]) == 2
    assert message in said(capsys)
    assert not (tmp_path / "model").exists()


def test_truth_without_label_images(store, fields, tmp_path, capsys):
    (tmp_path / "cells.csv").write_bytes((fields / "truth" / "cells.csv").read_bytes())
    assert main(["train", str(store), "--out", str(tmp_path / "model"), "--truth", str(tmp_path)]) == 2
    assert "expected label images such as" in said(capsys)


def test_the_quarantine_is_told_once(fields, tmp_path, capsys):
    for path in fields.glob("*_*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = sorted(tmp_path.glob("*_red.png"))
    for n, shown in ((1, "1 field quarantined"), (2, "2 fields quarantined")):
        bad[n - 1].write_bytes(b"")
        assert main(["extract", str(tmp_path), "--out", str(tmp_path / "store"), "--size", "16", "--workers", "1"]) == 1
        told = capsys.readouterr()
        assert shown in told.err and (told.out + told.err).count(" quarantined: see") == 1
        assert (told.out + told.err).count("quarantine.csv") == 1 and told.err.count("quarantined: ") == n + 1
        assert "cells of" in told.out and "quarantined" not in told.out.replace(str(tmp_path), "")


class Fake(types.SimpleNamespace):
    """Stands for a library module; notes how its functions were called."""

    def __init__(self, **results):
        self.calls = []
        super().__init__(**{name: self._noting(name, result) for name, result in results.items()})

    def _noting(self, name, result):
        def called(*arguments, **options):
            self.calls.append((name, arguments, options))
            return result

        return called


class Report(types.SimpleNamespace):
    def __str__(self):
        return "report"


def test_a_store_there_and_back(store, tmp_path, capsys):
    """The commands with the real functions behind them."""
    work = tmp_path / "store"
    shutil.copytree(store, work)
    assert main(["verify", str(work)]) == 0
    shard = max((path for path in work.rglob("*.npy")), key=lambda path: path.stat().st_size)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    assert main(["verify", str(work)]) == 1
    assert shard.name in capsys.readouterr().out
    assert main(["verify", str(work), "--repair", "--workers", "1"]) == 0
    assert shard.read_bytes() == content
    assert main(["export", str(work), "--to", "png", "--out", str(tmp_path / "crops")]) == 0
    assert main(["import", str(tmp_path / "crops"), "--out", str(tmp_path / "imported")]) == 0
    shown = capsys.readouterr().out
    n = len(read_store(work))
    assert f"{n} crops in {tmp_path / 'crops'}" in shown and f"{n} crops in {tmp_path / 'imported'}" in shown


def test_verify(monkeypatch, capsys):
    for problems, code in ((pd.DataFrame(columns=["file", "problem"]), 0), (pd.DataFrame({"file": ["a"], "problem": ["b"]}), 1)):
        monkeypatch.setitem(sys.modules, "hpacell.feed.verify", Fake(verify_store=Report(problems=problems)))
        assert main(["verify", "store"]) == code
        assert capsys.readouterr().out == "report\n"
    repair = Fake(repair_store="mended")
    monkeypatch.setitem(sys.modules, "hpacell.pipeline.repair", repair)
    assert main(["verify", "store", "--repair", "--workers", "3"]) == 1
    assert repair.calls == [("repair_store", ("store",), {"workers": 3})]
    assert capsys.readouterr().out == "mended\nreport\n"


def test_export(monkeypatch, store, tmp_path, capsys):
    export = Fake(export_store=str(tmp_path / "crops"))
    monkeypatch.setitem(sys.modules, "hpacell.feed.export", export)
    for form in EXPORTS:
        assert main(["export", str(store), "--to", form, "--out", str(tmp_path)]) == 0
    assert [(str(call[1][0].folder), *call[1][1:]) for call in export.calls] == [(str(store), str(tmp_path), form) for form in EXPORTS]
    assert f"crops in {tmp_path / 'crops'}" in capsys.readouterr().out


def test_import(monkeypatch, capsys):
    class Store(list):
        folder = "made"
        quarantine = pd.DataFrame({"field_id": ["a"], "reason": ["b"]})

    foreign = Fake(import_crops=Store([1]))
    monkeypatch.setitem(sys.modules, "hpacell.feed.foreign", foreign)
    assert main(["import", "crops", "--out", "made", "--channels", "protein, nucleus", "--size", "64"]) == 1
    assert foreign.calls == [("import_crops", ("crops", "made"), {"labels": None, "pattern": None, "channels": ["protein", "nucleus"], "size": 64})]
    shown = capsys.readouterr()
    assert shown.out == "1 crop in made\n" and "1 crop quarantined: see made/quarantine.csv" in shown.err


def test_import_boxes(monkeypatch, capsys):
    class Store(list):
        folder = "made"
        quarantine = pd.DataFrame({"field_id": [], "reason": []})

    foreign = Fake(import_boxes=Store([1, 2]), import_crops=None)
    monkeypatch.setitem(sys.modules, "hpacell.feed.foreign", foreign)
    assert main(["import", "images", "--boxes", "boxes.csv", "--out", "made"]) == main(["import", "images", "--boxes", "boxes.csv", "--out", "made", "--size", "48"]) == 0
    shared = {"pattern": None, "channels": None}
    assert foreign.calls == [("import_boxes", ("images", "boxes.csv", "made"), shared), ("import_boxes", ("images", "boxes.csv", "made"), {"size": 48, **shared})]
    assert "2 crops in made" in capsys.readouterr().out


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["line 2: no mask"], 1)])
def test_score(monkeypatch, capsys, problems, code):
    submission = Fake(score_submission=Report(problems=problems))
    monkeypatch.setitem(sys.modules, "hpacell.metrics.submission", submission)
    assert main(["score", "mine.csv", "truth.csv", "--iou", "0.5"]) == code
    assert submission.calls == [("score_submission", ("mine.csv", "truth.csv"), {"iou": 0.5})] and capsys.readouterr().out == "report\n"


def test_training_options_are_passed_on_only_when_given(store, tmp_path, monkeypatch):
    given, pairs = [], tmp_path / "pairs.csv"
    ids = sorted(read_store(store).fields["field_id"])
    pairs.write_text(f"a,b\n{ids[0]},{ids[0]}\n")

    def settings(**values):
        given.append(values)
        raise ValueError("far enough")

    monkeypatch.setattr("hpacell.progress.load_tensorflow", lambda: None)
    monkeypatch.setitem(sys.modules, "hpacell.models.evaluation", types.SimpleNamespace(evaluate_classifier=None))
    monkeypatch.setitem(sys.modules, "hpacell.models.training", types.SimpleNamespace(TrainingSettings=settings, split_store=None, train_classifier=None))
    words = ["train", str(store), "--out", "model"]
    assert main(words) == main([*words, "--weak", "noisy_or", "--duplicates", str(pairs), "--model-parameters", '{"strides": 2}']) == 2
    assert set(given[0]) == {"model", "epochs", "batch_size", "seed"}
    assert {name: given[1][name] for name in ("weak", "duplicates", "model_parameters")} == {"weak": "noisy_or", "duplicates": str(pairs), "model_parameters": {"strides": 2}}


def test_bits_are_passed_on_only_when_given(monkeypatch):
    given = []
    monkeypatch.setitem(sys.modules, "hpacell.pipeline.extract", types.SimpleNamespace(ExtractSettings=lambda **settings: given.append(settings), extract_fields=failing(ValueError("far enough"))))
    assert main(["extract", "a", "--out", "b"]) == main(["extract", "a", "--out", "b", "--bits", "12"]) == 2
    assert "bits" not in given[0] and given[1]["bits"] == 12


def test_the_words_for_weak_are_those_of_the_recipes():
    from hpacell.arguments import WEAK
    from hpacell.models import recipe

    assert WEAK == recipe.WEAK


def test_addresses_of_local_files_are_paths(tmp_path, capsys):
    (tmp_path / "fields").mkdir()
    Image.fromarray(np.full((40, 40), 9, np.uint8)).save(tmp_path / "fields" / "a.png")
    address = tmp_path.as_uri()
    assert main(["extract", f"{address}/fields", "--out", f"{address}/store", "--method", "classical", "--workers", "1"]) == 0
    assert f"in {tmp_path}/store" in capsys.readouterr().out
    assert main(["verify", f"{address}/store", "--repair"]) == 0
    assert main(["segment", f"{address}/fields", "--out", f"{address}/masks", "--method", "classical", "--workers", "1"]) == 0


def test_fields_that_a_report_could_not_read_are_told(tmp_path, capsys):
    record = {"folder": str(tmp_path), "steps": {}, "n_quarantined": 0}
    (tmp_path / "metrics_explore.json").write_text('{"n_unreadable_examples": 0}')
    assert cli._show_run(record) == 0 and not capsys.readouterr().err
    (tmp_path / "metrics_explore.json").write_text('{"n_unreadable_examples": 2}')
    assert cli._show_run(record) == 1 and "2 fields of those that were looked at cannot be read" in capsys.readouterr().err
