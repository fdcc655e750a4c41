"""Runs: parameters are checked first, notebooks are whole, a stopped run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from hpacell.cli import main
from hpacell.pipeline import runs as runs_module
from hpacell.pipeline.plan import check_parameters, list_workflows, read_plan, workflow_folder, workflow_parameters
from hpacell.pipeline.runs import RunError, list_runs, run

TINY = {
    "workflows": {
        "simulate": {"fields": "{run}/fields", "n_fields": 10, "size": 160, "new_fields": "{run}/new", "n_new": 2, "workers": 1},
        "explore": {"fields": "{run}/fields", "labels": "{run}/fields/labels.csv", "n_examples": 2},
        "extract": {"fields": "{run}/fields", "labels": "{run}/fields/labels.csv", "store": "{run}/store", "size": 32, "workers": 1},
        "train_classifier": {
            "store": "{run}/store", "model_folder": "{run}/model", "model_parameters": {"filters": [4, 8], "kernels": [5, 3]},
            "epochs": 1, "n_folds": 3, "truth": "{run}/fields/truth",
        },
        "predict": {"fields": "{run}/new", "model": "{run}/model", "predictions": "{run}/predictions", "workers": 1},
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict:
    """A whole run in small."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    return run(folder / "tiny.yaml", ["train_classifier.epochs=2"], runs=folder / "runs")


def test_a_whole_run(finished):
    folder = Path(finished["folder"])
    assert finished["status"] == "finished" and list(finished["steps"]) == list(TINY["workflows"])
    for step in TINY["workflows"]:
        notebook = nbformat.read(folder / f"{step}.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert not any(output.output_type == "error" for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
        tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
        assert tags == ["parameters", "injected-parameters"]
    assert not list(folder.glob(".*.partial.ipynb"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == set(TINY["workflows"]) and metrics["train_classifier"]["epochs"] == 2
    assert metrics["predict"]["submission_problems"] == []
    for name in ("params.yaml", "run.json", "report.html", "plotly.min.js", "summary.txt", "store/manifest.json", "model/card.json", "predictions/cells.parquet"):
        assert (folder / name).exists(), name
    assert {"python", "keras", "numpy", "hpacell"} <= set(finished["versions"])


def test_the_report_needs_no_network(finished):
    text = (Path(finished["folder"]) / "report.html").read_text()
    assert 'src="plotly.min.js"' in text and "Train a classifier" in text
    assert "figure-" in text and "Traceback" not in text


def test_a_run_is_listed_and_resumed_without_work(finished, capsys):
    folder = Path(finished["folder"])
    listed = list_runs(folder.parent)
    assert listed["id"].tolist() == [folder.name] and listed["status"].tolist() == ["finished"] and listed["steps"].tolist() == ["5/5"]
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.ipynb")}
    again = run(None, resume=folder)
    assert again["status"] == "finished" and stamps == {path.name: path.stat().st_mtime_ns for path in folder.glob("*.ipynb")}
    assert main(["runs", "--runs", str(folder.parent)]) == 0
    assert folder.name in capsys.readouterr().out


def test_a_failed_step_is_named_and_done_again(tmp_path):
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"workflows": {"simulate": TINY["workflows"]["simulate"] | {"new_fields": ""}, "extract": {"fields": "{run}/elsewhere", "store": "{run}/store"}}}, sort_keys=False))
    with pytest.raises(RunError, match=r"extract failed: FieldError: expected a folder.*extract.ipynb"):
        run(tmp_path / "two.yaml", runs=tmp_path / "runs")
    folder = next((tmp_path / "runs").iterdir())
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed" and record["steps"]["simulate"]["status"] == "finished" and record["steps"]["extract"]["status"] == "failed"
    assert nbformat.read(folder / "extract.ipynb", as_version=4).cells
    stamp = (folder / "simulate.ipynb").stat().st_mtime_ns
    resumed = run(None, ["extract.fields={run}/fields", "extract.size=32", "extract.workers=1"], resume=folder)
    assert resumed["status"] == "finished" and (folder / "simulate.ipynb").stat().st_mtime_ns == stamp


def test_plain_papermill(finished, tmp_path):
    flat = {"store": str(Path(finished["folder"]) / "store"), "fields": str(Path(finished["folder"]) / "new"), "size": 32, "workers": 1, "out": str(tmp_path)}
    flat["store"] = str(tmp_path / "store")
    (tmp_path / "extract.yaml").write_text(yaml.safe_dump(flat))
    command = [sys.executable, "-m", "papermill", str(workflow_folder() / "extract.ipynb"), str(tmp_path / "out.ipynb"), "-f", str(tmp_path / "extract.yaml"), "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "metrics_extract.json").read_text())["n_fields"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epoch=3"], "did you mean 'epochs'"),
        (["train_classifer.epochs=3"], "did you mean 'train_classifier'"),
        (["epochs=many"], "expected int for train_classifier.epochs, got 'many'"),
        (["epochs=true"], "expected int for train_classifier.epochs, got True"),
        (["augment=flip"], "expected list for train_classifier.augment"),
        (["epochs"], "expected key=value"),
    ],
)
def test_wrong_parameters_stop_before_anything_runs(tmp_path, capsys, overrides, message):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    words = [word for override in overrides for word in ("-p", override)]
    assert main(["run", str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path / "runs"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workflows:\n  extrct: {}\n", "did you mean 'extract'"),
        ("workflows:\n  extract:\n    sise: 3\n", "did you mean 'size'"),
        ("workflow:\n  extract: {}\n", "expected a known workflow, got 'bad'"),
        ("workflows: {}\nextra: 1\n", "expected a known key"),
        ("- a\n", "expected names with values, got list"),
        ("a: [\n", "expected YAML"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_plan(tmp_path / "bad.yaml")


def test_params_from_an_address():
    import fsspec

    with fsspec.open("memory://params/extract.yaml", "w") as file:
        file.write("size: 48\n")
    assert read_plan("memory://params/extract.yaml", ["workers=2"]).steps == {"extract": {"size": 48, "workers": 2}}


def test_defaults_fit_their_types():
    for workflow in list_workflows():
        known = workflow_parameters(workflow)
        check_parameters(workflow, {name: yaml.safe_load(parameter.default.replace("True", "true")) if parameter.kind != "str" else "" for name, parameter in known.items()})
        assert all(parameter.help for parameter in known.values()), workflow


def test_an_interrupt_is_kept_in_the_record(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs_module, "_execute", interrupted)
    (tmp_path / "extract.yaml").write_text("size: 32\n")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "extract.yaml", runs=tmp_path / "runs")
    record = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())
    assert record["status"] == "interrupted" and record["steps"]["extract"]["status"] == "interrupted"
