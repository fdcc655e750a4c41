"""Runs: parameters are checked first, notebooks are whole, a stopped run goes on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from hpacell.cli import main
from hpacell.pipeline import runs as runs_module
from hpacell.pipeline.plan import FOR_ALL, ONE_MEANING, OWN_MEANING, read_plan
from hpacell.pipeline.runs import RunError, list_runs, run
from hpacell.pipeline.templates import check_parameters, list_workflows, workflow_folder, workflow_parameters

TINY = {
    "workflows": {
        "simulate": {"fields": "{run}/fields", "n_fields": 10, "size": 160, "new_fields": "{run}/new", "n_new": 2, "workers": 1},
        "explore": {"fields": "{run}/fields", "labels": "{run}/fields/labels.csv", "n_examples": 2},
        "extract": {"fields": "{run}/fields", "labels": "{run}/fields/labels.csv", "store": "{run}/store", "crop_size": 32, "workers": 1},
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
    assert not re.search(r"""<(script|link|img)[^>]*(src|href)=["']https?:|cdnjs""", text)
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
    resumed = run(None, ["extract.fields={run}/fields", "extract.crop_size=32", "extract.workers=1"], resume=folder)
    assert resumed["status"] == "finished" and (folder / "simulate.ipynb").stat().st_mtime_ns == stamp


def test_plain_papermill(finished, tmp_path):
    flat = {"store": str(Path(finished["folder"]) / "store"), "fields": str(Path(finished["folder"]) / "new"), "crop_size": 32, "workers": 1, "out": str(tmp_path)}
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
        ("workflows:\n  extract:\n    crop_sise: 3\n", "did you mean 'crop_size'"),
        ("workflows: extract\n", "under 'workflows:', got str"),
        ("workflows:\n", "under 'workflows:', got nothing"),
        ("workflows: [extract]\n", "under 'workflows:', got list"),
        ("workflows:\n  extract: 3\n", "expected names with values under 'extract', got 3"),
        ("workflows:\n  extract: [crop_size]\n", "expected names with values under 'extract'"),
        ("workflows:\n  3: {}\n", "expected a known workflow, got '3'"),
        ("workflows:\n  train_classifier:\n    learning_rate: 1e-3\n", "write it as 0.001"),
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
        file.write("crop_size: 48\n")
    assert read_plan("memory://params/extract.yaml", ["workers=2"]).steps == {"extract": {"crop_size": 48, "workers": 2}}


def test_defaults_fit_their_types():
    for workflow in list_workflows():
        known = workflow_parameters(workflow)
        check_parameters(workflow, {name: yaml.safe_load(parameter.default.replace("True", "true")) if parameter.kind != "str" else "" for name, parameter in known.items()})
        assert all(parameter.help for parameter in known.values()), workflow


def test_an_interrupt_is_kept_in_the_record(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs_module, "_execute", interrupted)
    (tmp_path / "extract.yaml").write_text("crop_size: 32\n")
    assert main(["run", str(tmp_path / "extract.yaml"), "--runs", str(tmp_path / "runs")]) == 130
    record = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())
    assert record["status"] == "interrupted" and record["steps"]["extract"]["status"] == "interrupted"
    folder = next((tmp_path / "runs").iterdir())
    assert capsys.readouterr().err.strip() == f"hpacell: interrupted; go on with: hpacell run --resume {folder}"


@pytest.fixture
def executed(monkeypatch) -> list[str]:
    """Steps that were executed; none of them really is."""
    steps: list[str] = []
    monkeypatch.setattr(runs_module, "_execute", lambda step, values, folder: steps.append(step))
    return steps


def a_run(tmp_path: Path) -> dict:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"workflows": {"train_classifier": {"epochs": 3}, "extract": {}, "predict": {}}}, sort_keys=False))
    return run(tmp_path / "mine.yaml", runs=tmp_path / "runs")


def test_a_resumed_run_keeps_its_name_and_start(tmp_path, executed, monkeypatch):
    monkeypatch.setattr(runs_module, "time_now", lambda: "2026-01-02T03:04:05Z")
    first = a_run(tmp_path)
    monkeypatch.setattr(runs_module, "time_now", lambda: "2026-01-02T04:00:00Z")
    again = run(None, runs=tmp_path / "runs", resume=first["id"])  # by its id
    kept = ("id", "folder", "name", "started", "params", "order")
    assert {key: again[key] for key in kept} == {key: first[key] for key in kept}
    assert again["name"] == "mine" and again["resumed"] == ["2026-01-02T04:00:00Z"]
    assert executed == ["train_classifier", "extract", "predict"], "nothing is executed twice"
    with pytest.raises(FileNotFoundError, match=f"a run, got mine-7, which has no run.json there or in {tmp_path / 'runs'}: give the run's folder, or --runs FOLDER; see hpacell runs"):
        run(None, runs=tmp_path / "runs", resume="mine-7")


def test_what_comes_after_a_changed_step_is_executed_again(tmp_path, executed):
    first = a_run(tmp_path)
    executed.clear()
    run(None, ["extract.crop_size=32"], runs=tmp_path / "runs", resume=first["folder"])
    assert executed == ["extract", "predict"]


def test_run_json_keeps_the_order_of_the_steps(tmp_path, executed):
    record = a_run(tmp_path)
    written = json.loads((Path(record["folder"]) / "run.json").read_text())
    assert list(written["steps"]) == list(written["params"]) == written["order"] == ["train_classifier", "extract", "predict"]


@pytest.mark.parametrize("text", ["{}", "[]", "3", "{", '{"id": "x", "steps": 3}', '{"id": "x", "started": "", "status": "finished", "steps": {"a": {}}, "params": {}}'])
def test_a_damaged_record_is_listed_and_the_others_too(tmp_path, executed, capsys, text):
    record = a_run(tmp_path)
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "run.json").write_text(text)
    listed = list_runs(tmp_path / "runs").set_index("id")["status"]
    assert listed.to_dict() == {record["id"]: "finished", "damaged": "unreadable"}
    assert main(["runs", "--runs", str(tmp_path / "runs")]) == 0
    assert "unreadable" in capsys.readouterr().out


def test_a_run_with_a_damaged_record_can_be_resumed(tmp_path, executed):
    record = a_run(tmp_path)
    (Path(record["folder"]) / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="got a record without it, as older versions wrote: add --working-folder"):
        run(None, resume=record["folder"])
    assert run(None, resume=record["folder"], working_folder=tmp_path)["id"] == record["id"] and len(executed) == 6


def test_the_newest_run_comes_first(tmp_path):
    for name, started in (("b", "2026-01-01T00:00:00Z"), ("a", "2026-01-03T00:00:00Z"), ("c", "2026-01-02T00:00:00Z")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"id": name, "started": started, "status": "finished", "steps": {}, "params": {}}))
    assert list_runs(tmp_path)["id"].tolist() == ["a", "c", "b"]


def test_a_failed_run_names_the_command_that_goes_on(tmp_path, monkeypatch):
    def failing(*_):
        raise ValueError("no cells")

    monkeypatch.setattr(runs_module, "_execute", failing)
    with pytest.raises(RunError, match=r"extract failed: ValueError: no cells \(see .*extract.ipynb; go on with: hpacell run --resume .*\)"):
        (tmp_path / "extract.yaml").write_text("crop_size: 32\n")
        run(tmp_path / "extract.yaml", runs=tmp_path / "runs")


def plan_of(tmp_path: Path, overrides: list[str], **workflows) -> dict:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"workflows": workflows}, sort_keys=False))
    return read_plan(tmp_path / "mine.yaml", overrides).steps


def test_one_key_for_several_workflows(tmp_path):
    same = {"explore": {"fields": "a"}, "extract": {"fields": "a"}}
    assert plan_of(tmp_path, ["fields=b"], **same) == {"explore": {"fields": "b"}, "extract": {"fields": "b"}}
    assert plan_of(tmp_path, ["extract.fields=b"], **same) == {"explore": {"fields": "a"}, "extract": {"fields": "b"}}
    other = {"extract": {"fields": "a"}, "predict": {"fields": "b"}}
    with pytest.raises(ValueError, match=r"extract.fields \(now 'a'\), predict.fields \(now 'b'\): write -p extract.fields=… or -p predict.fields=…"):
        plan_of(tmp_path, ["fields=c"], **other)
    with pytest.raises(ValueError, match=r"write -p extract.fields=…"):  # what the first override says changes nothing
        plan_of(tmp_path, ["extract.fields=b", "fields=c"], **other)
    with pytest.raises(ValueError, match=r"write -p train_classifier.model=… or -p predict.model=…"):
        plan_of(tmp_path, ["model=batch_norm"], train_classifier={}, predict={})
    seeds = plan_of(tmp_path, ["seed=7", "workers=2"], simulate={"seed": 1}, train_classifier={"seed": 2}, extract={})
    assert seeds == {"simulate": {"seed": 7, "workers": 2}, "train_classifier": {"seed": 7}, "extract": {"workers": 2}}
    assert plan_of(tmp_path, ["size=64"], simulate={}, extract={}) == {"simulate": {"size": 64}, "extract": {}}


def test_a_shared_name_means_one_thing_or_is_known_to_be_two():
    names = [name for workflow in list_workflows() for name in workflow_parameters(workflow)]
    shared = {name for name in names if names.count(name) > 1}
    assert shared == {*ONE_MEANING, *FOR_ALL, *OWN_MEANING}
    for name in shared - {*OWN_MEANING}:
        assert len({workflow_parameters(workflow)[name].kind for workflow in list_workflows() if name in workflow_parameters(workflow)}) == 1


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("fields=007", "007"), ("fields=no", "no"), ("fields=a: b", "a: b"), ("fields='a b'", "a b"), ("fields=[x]", "[x]"), ("fields=", ""), ("fields=a=b", "a=b"),
        ("crop_size=064", 64), ("crop_size=1_0", 10), ("clear_outside=no", False), ("channels=[nucleus]", ["nucleus"]),
    ],
)  # fmt: skip
def test_a_text_is_taken_as_it_is_written(tmp_path, override, value):
    assert plan_of(tmp_path, [override], extract={})["extract"] == {override.split("=")[0]: value}


def test_a_rate_may_be_written_as_a_power(tmp_path):
    assert plan_of(tmp_path, ["learning_rate=1e-3"], train_classifier={}) == {"train_classifier": {"learning_rate": 0.001}}


def test_the_demo_names_its_labels():
    steps = read_plan(Path(__file__).resolve().parents[1] / "params" / "demo.yaml").steps
    assert steps["explore"]["labels"] == steps["extract"]["labels"] == "{run}/fields/labels.csv"


def test_papermill_keeps_quiet(tmp_path, monkeypatch, caplog):
    import logging

    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: logging.getLogger("papermill.translators").warning("Black is not installed"))
    (tmp_path / "extract.yaml").write_text("crop_size: 32\n")
    run(tmp_path / "extract.yaml", runs=tmp_path / "runs")
    assert "Black" not in caplog.text
