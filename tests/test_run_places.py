"""Runs and sweeps know where they stand: one working folder, one process, and output folders that no other run has filled."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from hpacell.cli import main
from hpacell.files import fingerprint, write_json
from hpacell.locks import own_folder
from hpacell.pipeline import compared as compared_module
from hpacell.pipeline import records as records_module
from hpacell.pipeline import runs as runs_module
from hpacell.pipeline import sweep as sweep_module
from hpacell.pipeline.compared import read_runs
from hpacell.pipeline.comparison import compare_runs
from hpacell.pipeline.jobs import Outcome
from hpacell.pipeline.outputs import TRAININGS
from hpacell.pipeline.plan import read_plan, tell_fields
from hpacell.pipeline.points import read_sweep
from hpacell.pipeline.records import RUN_LOCK, new_folder
from hpacell.pipeline.runs import RunError, list_runs, run
from hpacell.pipeline.sweep import run_sweep, unfinished_sweep


class Steps:
    """Stands for the notebooks: notes where each step was executed, leaves what a training leaves; `failing` names steps that fail."""

    def __init__(self):
        self.done, self.failing = [], set()

    def __call__(self, step, values, folder):
        if step in self.failing:
            raise ValueError("no")
        self.done.append((step, Path.cwd()))
        if step in TRAININGS:
            model = Path(values["model_folder"])
            weights = fingerprint({name: value for name, value in values.items() if name not in ("out", "model_folder")})
            write_json(model / "card.json", {"weights_blake2b": weights, "scores": {"average_precision": values["epochs"] / 100}, "data": {"store_checksum": "1"}})
            (model / "model.weights.h5").write_text(weights)
            (model / "log.csv").write_text("epoch,loss\n0,1\n")
            cells = pd.DataFrame({"field_id": list("aabbcc"), "cell_id": range(6), "labels": "cytosol", "true_labels": ["cytosol", "nucleoli"] * 3})
            cells.assign(p_cytosol=[0.9, 0.1, 0.8, 0.2, 0.7, values["epochs"] / 100], p_nucleoli=0.5).to_parquet(model / "test_cells.parquet")
            write_json(folder / f"metrics_{step}.json", {"average_precision": values["epochs"] / 100, "scored": "Cells"})


@pytest.fixture
def steps(monkeypatch) -> Steps:
    stand_in = Steps()
    monkeypatch.setattr(runs_module, "_execute", stand_in)
    return stand_in


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A working folder, which is the current one, with a params file."""
    folder = tmp_path / "one"
    (folder / "runs").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(folder)
    write(folder, extract={"fields": "fields", "store": "store"}, explore={"fields": "fields"})
    return folder


def write(folder: Path, name: str = "mine.yaml", **workflows) -> Path:
    (folder / name).write_text(yaml.safe_dump({"workflows": workflows}, sort_keys=False))
    return folder / name


def stopped_run(steps: Steps) -> Path:
    """A run whose second step failed."""
    steps.failing = {"explore"}
    with pytest.raises(RunError):
        run("mine.yaml")
    steps.failing = set()
    return next(Path("runs").resolve().glob("mine-*"))


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def training(**values) -> dict:
    return {"store": "data/store", "epochs": 40, "model_folder": "data/model"} | values


# The working folder


@pytest.mark.parametrize("named", ["absolute", "relative", "link", "id"])
def test_a_run_goes_on_where_it_was_started(project, steps, monkeypatch, capsys, named):
    folder = stopped_run(steps)
    two = project.parent / "two"
    (two / "link").symlink_to(project / "runs")
    monkeypatch.chdir(two)
    given = {"absolute": str(folder), "relative": f"../two/../one/runs/{folder.name}", "link": f"link/{folder.name}", "id": folder.name}[named]
    assert main(["run", "--resume", given, "--runs", str(project / "runs")]) == 0
    assert steps.done == [("extract", project), ("explore", project)], "one step each time, both in the working folder"
    assert f"relative paths start at {project}" in capsys.readouterr().err
    record = record_of(folder)
    assert record["working_folder"] == str(project) and record["folder"] == str(folder) and record["params"]["extract"]["store"] == "store"


def test_a_kernel_works_in_the_working_folder(tmp_path, monkeypatch):
    workflows = tmp_path / "workflows"
    workflows.mkdir()
    (tmp_path / "one").mkdir()
    cells = [nbformat.v4.new_code_cell(text, metadata={"tags": tags}) for text, tags in (("out: str = '.'  # folder", ["parameters"]), ("open('here.txt', 'w').write(out)", []))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), workflows / "work.ipynb")
    for module in ("templates", "runs"):
        monkeypatch.setattr(f"hpacell.pipeline.{module}.workflow_folder", lambda: workflows)
    record = run(write(tmp_path, work={}), runs=tmp_path / "runs", working_folder=tmp_path / "one")
    assert (tmp_path / "one" / "here.txt").read_text() == record["folder"] and not Path("here.txt").exists()


@pytest.mark.parametrize("named", ["../one/runs/{id}", "{runs}/../runs/{id}", "link/{id}", "{id}"])
def test_another_spelling_is_the_same_run(project, steps, named):
    write(project, extract={"fields": "{run}/fields", "store": "{run}/store"}, train_classifier={"store": "{run}/store", "epochs": 3})
    record = run("mine.yaml")
    Path("link").symlink_to("runs")
    again = run(None, resume=named.format(id=record["id"], runs=project / "runs"))
    assert len(steps.done) == 2 and again["steps"] == record["steps"], "nothing is executed again"


def test_a_run_through_a_link_of_its_first_hour(project, steps):
    """Begun through a link to the folder of runs, resumed without it."""
    (project.parent / "disk").mkdir()
    Path("link").symlink_to(project.parent / "disk")
    write(project, extract={"fields": "f", "store": "{run}/store"})
    record = run("mine.yaml", runs="link")
    assert run(None, resume=project.parent / "disk" / record["id"])["folder"] == record["folder"] == str(project.parent / "disk" / record["id"])
    assert len(steps.done) == 1


def test_a_moved_folder_of_runs_is_not_made_anew(project, steps):
    write(project, extract={"fields": "f", "store": "{run}/store"}, train_classifier={"store": "{run}/store", "epochs": 3})
    folder = Path(run("mine.yaml")["folder"])
    shutil.move("runs", "former")
    record = run(None, resume=project / "former" / folder.name)
    assert len(steps.done) == 2 and record["steps"]["train_classifier"]["values"]["store"] == str(project / "former" / folder.name / "store")
    assert read_runs([project / "former" / folder.name])[0].beside_model("log.csv") == project / "former" / folder.name / "model" / "log.csv"


def test_a_moved_project_says_what_to_add(project, steps, monkeypatch, capsys):
    folder = stopped_run(steps)
    monkeypatch.chdir(project.parent)
    project.rename(project.with_name("three"))
    moved = project.with_name("three")
    before = (moved / "runs" / folder.name / "run.json").read_text()
    assert main(["run", "--resume", f"three/runs/{folder.name}"]) == 2
    assert f"expected {project}, at which the relative paths" in (said := capsys.readouterr().err) and f"add --working-folder {moved}\n" in said
    assert (moved / "runs" / folder.name / "run.json").read_text() == before and len(steps.done) == 1
    assert main(["run", "--resume", f"three/runs/{folder.name}", "--working-folder", str(moved)]) == 0
    assert steps.done[1:] == [("explore", moved)], "and what had finished is not executed again"
    assert main(["run", "--resume", f"three/runs/{folder.name}", "--working-folder", "nowhere"]) == 2
    assert "got nowhere, which is not there" in capsys.readouterr().err


def test_a_run_of_an_older_version_asks_for_its_folder(project, steps):
    folder = stopped_run(steps)
    record = {name: value for name, value in record_of(folder).items() if name != "working_folder"}
    write_json(folder / "run.json", record)
    assert list_runs("runs")["status"].tolist() == ["failed"]
    with pytest.raises(ValueError, match="got a record without it, as older versions wrote: add --working-folder"):
        run(None, resume=folder)
    run(None, resume=folder, working_folder=project)
    assert steps.done == [("extract", project), ("explore", project)]


def test_an_older_training_is_not_made_anew(project, steps):
    """Older versions left models where the notebook says, and wrote no model_folder of their own into the record."""
    folder = stopped_run(steps)
    values = {"out": str(folder), "store": "s", "epochs": 3}
    old = {"id": folder.name, "folder": str(folder), "name": "mine", "status": "failed", "params": {"train_classifier": {"store": "s", "epochs": 3}}}
    write_json(folder / "run.json", old | {"steps": {"train_classifier": {"status": "finished", "values": values, "seconds": 1}}})
    write(folder, "params.yaml", train_classifier={"store": "s", "epochs": 3})
    steps.done = []
    assert run(None, resume=folder, working_folder=".")["steps"]["train_classifier"]["values"] == values and steps.done == []


def test_a_params_file_that_changed_since_is_not_read(project, steps):
    folder = stopped_run(steps)
    write(project, extract={"fields": "others", "store": "elsewhere"})
    run(None, resume=folder)
    assert [step for step, _ in steps.done] == ["extract", "explore"] and record_of(folder)["params"]["extract"]["store"] == "store"


def test_fields_are_looked_for_in_the_working_folder(project, monkeypatch, capsys):
    from hpacell.fields.simulate import simulate_fields

    simulate_fields(project / "fields", n_fields=1, seed=1, size=(64, 64))
    (project / "fields" / "notes_mask.png").write_bytes(next((project / "fields").glob("*.png")).read_bytes())
    tell_fields([{"fields": "fields"}])
    here = capsys.readouterr()
    monkeypatch.chdir(project.parent / "two")
    tell_fields([{"fields": "fields"}])
    assert capsys.readouterr() != here, "there are none"
    tell_fields([{"fields": "fields"}], project)
    there = capsys.readouterr()
    assert (there.err + there.out).count("notes_mask") == (here.err + here.out).count("notes_mask") >= 1


def test_two_runs_of_one_second(tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    monkeypatch.setattr(records_module, "datetime", Clock)
    assert [new_folder(tmp_path, "a").name for _ in range(3)] == ["a-20260102-030405", "a-20260102-030405-1", "a-20260102-030405-2"]


# One process at a time


def test_a_run_is_executed_by_one_process(project, steps, capsys):
    folder = stopped_run(steps)
    before = (folder / "run.json").read_text()
    with own_folder(folder, RUN_LOCK):
        assert main(["run", "--resume", folder.name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hpacell: expected to be the only one who writes") and f"process {os.getpid()} on" in said and "wait until it has ended" in said
    assert (folder / "run.json").read_text() == before and len(steps.done) == 1
    assert main(["run", "--resume", folder.name]) == 0 and len(steps.done) == 2


def test_the_lock_of_a_killed_process_is_free(project, steps):
    folder = stopped_run(steps)
    code = "import sys, time; from hpacell.locks import own_folder\nwith own_folder(sys.argv[1], sys.argv[2]):\n    print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), RUN_LOCK], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    write_json(folder / "run.json", record_of(folder) | {"status": "running", "pid": process.pid, "host": socket.gethostname()})
    assert list_runs("runs")["status"].tolist() == ["running"]
    with pytest.raises(ValueError, match=f"process {process.pid} on"):
        run(None, resume=folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list_runs("runs")["status"].tolist() == ["killed"]
    assert run(None, resume=folder)["status"] == "finished"


def test_a_number_that_another_process_has_got_is_no_sign_of_life(project, steps, capsys):
    folder = stopped_run(steps)
    write_json(folder / "run.json", record_of(folder) | {"status": "running", "pid": os.getpid()})
    assert list_runs("runs")["status"].tolist() == ["killed"] and read_runs([folder])[0].status == "killed"
    write_json(folder / "run.json", record_of(folder) | {"host": "gpu-box"})
    assert list_runs("runs")["status"].tolist() == ["running on gpu-box"]
    assert run(None, resume=folder)["status"] == "finished"
    assert "was being executed on gpu-box; its lock is free" in capsys.readouterr().err


# Output folders


def test_a_second_training_does_not_replace_the_first(project, steps, capsys):
    write(project, train_classifier=training(), predict={"fields": "new"})
    first = run("mine.yaml")
    kept = Path("data/model/card.json").read_text()
    assert main(["run", "mine.yaml", "-p", "epochs=50"]) == 2
    said = capsys.readouterr().err
    assert f"got data/model, which holds what run {first['id']} has made with other parameters" in said and "-p 'train_classifier.model_folder={run}/model' -p 'predict.model={run}/model', or add --replace" in said
    assert len(list(Path("runs").iterdir())) == 1 and Path("data/model/card.json").read_text() == kept, "before anything is computed"
    assert main(["run", "mine.yaml", "-p", "epochs=50", "-p", "train_classifier.model_folder={run}/model"]) == 0, "the first remedy"
    assert main(["run", "mine.yaml"]) == 0, "the same work again is no other"
    assert Path("data/model/card.json").read_text() == kept
    assert main(["run", "mine.yaml", "-p", "epochs=50", "--replace"]) == 0, "the second remedy"
    assert Path("data/model/card.json").read_text() != kept


@pytest.mark.parametrize("spelled", ["./data//model", "link/model", "{project}/data/model"])
def test_a_folder_is_the_same_in_any_spelling(project, steps, spelled):
    run(write(project, train_classifier=training()))
    Path("link").symlink_to("data")
    with pytest.raises(ValueError, match="with other parameters"):
        run(write(project, train_classifier=training(epochs=50, model_folder=spelled.format(project=project))))


def test_defaults_count_as_what_they_are(project, steps):
    run(write(project, train_classifier=training()))
    run(write(project, train_classifier=training(patience=8, seed=0, cache="elsewhere")))
    assert len(steps.done) == 2


def test_a_store_of_another_run_is_kept(project, steps):
    Path("store").mkdir()
    Path("store/manifest.json").touch()
    first = run("mine.yaml")
    run("mine.yaml")
    with pytest.raises(ValueError, match=f"a folder of its own for extract.store, got store, which holds what run {first['id']} has made with other parameters.*extract.store={{run}}/store"):
        run("mine.yaml", ["crop_size=32"])


def test_the_remedy_changes_what_reads_from_the_folder_too(project, steps):
    Path("data/simulated").mkdir(parents=True)
    Path("data/simulated/a.png").touch()
    run(write(project, simulate={"seed": 1}))
    with pytest.raises(ValueError, match="simulate.fields, got data/simulated, which holds") as refused:
        run(write(project, simulate={"seed": 2}, extract={"labels": "data/simulated/labels.csv", "store": "{run}/store"}))
    overrides = str(refused.value).split("such as ")[1].split(", or add")[0].replace("'", "").removeprefix("-p ").split(" -p ")
    assert overrides == ["simulate.fields={run}/fields", "extract.fields={run}/fields", "extract.labels={run}/fields/labels.csv"]
    assert run("mine.yaml", overrides)["status"] == "finished"


def test_a_model_of_nobody_is_kept(project, steps):
    write_json(Path("data/model/card.json"), {})
    with pytest.raises(ValueError, match="which holds a model that none of these runs has made"):
        run(write(project, train_classifier=training()))
    assert run("mine.yaml", replace=True)["status"] == "finished"


def test_a_folder_that_another_run_writes_to_is_in_use(project, steps):
    write(project, train_classifier=training())
    first = Path(run("mine.yaml")["folder"])
    with own_folder(first, RUN_LOCK):
        write_json(first / "run.json", record_of(first) | {"status": "running"})
        for given in ({}, {"replace": True}):
            with pytest.raises(ValueError, match=f"which run {first.name} uses at this moment"):
                run("mine.yaml", **given)
    assert run("mine.yaml")["status"] == "finished", "it has ended, and was the same"


def test_the_weights_tell_whose_model_it_is_where_the_clock_does_not(project, steps, monkeypatch):
    write(project, train_classifier=training())
    run("mine.yaml")
    monkeypatch.setattr(runs_module, "time_now", lambda: "2020-01-01T00:00:00Z")  # the clock went back
    last = run("mine.yaml", ["epochs=50"], replace=True)
    assert last["steps"]["train_classifier"]["weights_blake2b"] == json.loads(Path("data/model/card.json").read_text())["weights_blake2b"]
    assert run("mine.yaml", ["epochs=50"])["status"] == "finished", "the same as the last"
    with pytest.raises(ValueError, match=f"which holds what run {last['id']}"):
        run("mine.yaml")


def test_models_lie_with_their_runs(project, steps, root):
    for name in ("train_classifier", "train_segmenter"):
        assert read_plan(root / "params" / f"{name}.yaml").steps[name]["model_folder"] == "{run}/model"
    record = run(write(project, train_classifier={"epochs": 3}, predict={"fields": "new"}))
    own = record["folder"]
    assert record["steps"]["train_classifier"]["values"]["model_folder"] == record["steps"]["predict"]["values"]["model"] == f"{own}/model"
    assert record["steps"]["predict"]["values"]["predictions"] == f"{own}/predictions"
    with pytest.raises(ValueError, match="got 'm' for train_classifier and tissue: write tissue.model_folder: \"{run}/tissue\""):
        run(write(project, train_classifier=training(model_folder="m"), tissue={"model_folder": "m"}))


# Sweeps


@pytest.fixture
def jobs(steps, monkeypatch) -> Steps:
    """Runs of a sweep are executed in this process, from a folder that is not the working folder."""

    def run_jobs(jobs, most, environment=None, need=0, started=lambda name: None, ended=lambda name, outcome: None, **_):
        for job in jobs:
            started(job.name)
            try:
                run(None, resume=Path(job.log).parent)
            except RunError:
                pass
            ended(job.name, Outcome(0, 1.0, 0))

    monkeypatch.setattr(sweep_module, "run_jobs", run_jobs)
    return steps


SWEEP = {
    "shared": {"extract": {"fields": "fields", "store": "{run}/store"}}, "workflows": {"train_classifier": {"store": "{sweep}/shared/store"}}, "sweep": {"epochs": [40, 50]},
}  # fmt: skip


def a_sweep(name: str = "zoo.yaml", content: dict = SWEEP):
    Path(name).write_text(yaml.safe_dump(content))
    return read_sweep(name)


def test_a_sweep_goes_on_where_it_was_begun(project, jobs, monkeypatch, capsys):
    plan = a_sweep()
    jobs.failing = {"train_classifier"}
    record = run_sweep(plan, "runs")
    assert record["status"] == "failed" and record["working_folder"] == str(project)
    jobs.failing = set()
    monkeypatch.chdir(project.parent / "two")
    assert unfinished_sweep(plan, project / "runs") is None, "here its paths would lead elsewhere"
    assert unfinished_sweep(plan, project / "runs", project) == Path(record["folder"])
    assert run_sweep(None, resume=f"../one/runs/{record['id']}")["status"] == "finished"
    assert jobs.done == [("extract", project), *[("train_classifier", project)] * 2]
    assert f"relative paths start at {project}" in capsys.readouterr().err


def test_a_moved_sweep_is_not_made_anew(project, jobs):
    record = run_sweep(a_sweep(), "runs")
    shutil.move("runs", "former")
    again = run_sweep(None, resume=project / "former" / record["id"])
    assert again["status"] == "finished" and len(jobs.done) == 3
    compared = compare_runs(read_runs([project / "former" / record["id"]]), 20)
    assert sorted(compared.cells) == ["epochs=40", "epochs=50"] and "store" not in compared.table
    assert {run.path_of("store") for run in compared.runs} == {str(project / "former" / record["id"] / "shared" / "store")}


def test_two_sweeps_of_one_name(project, jobs):
    """Another plan under the same name is another sweep; brackets in a name are no pattern."""
    jobs.failing = {"train_classifier"}
    plans = [a_sweep("zoo[1].yaml"), a_sweep("zoo[1].yaml", SWEEP | {"sweep": {"epochs": [40, 60]}})]
    records = [run_sweep(plan, "runs") for plan in plans]
    assert [unfinished_sweep(plan, "runs") for plan in plans] == [Path(record["folder"]) for record in records]


def test_a_sweep_of_an_older_version_says_how_to_go_on(project, jobs, capsys):
    plan = a_sweep()
    jobs.failing = {"train_classifier"}
    folder = Path(run_sweep(plan, "runs")["folder"])
    record = json.loads((folder / "sweep.json").read_text())
    write_json(folder / "sweep.json", {name: value for name, value in record.items() if name != "working_folder"})
    assert list_runs("runs")["status"].tolist() == ["failed"]
    assert unfinished_sweep(plan, "runs") is None
    assert f"hpacell sweep --resume runs/{folder.name} --working-folder {project}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="add --working-folder"):
        run_sweep(None, resume=folder)
    jobs.failing = set()
    assert main(["sweep", "--resume", f"runs/{folder.name}", "--working-folder", "."]) == 0


@pytest.mark.parametrize(("step", "values"), [("extract", {"store": "data/store"}), ("extract", {}), ("extract", {"store": "{run}/../store"}), ("predict", {"model": "m", "predictions": "found"})])
def test_runs_of_a_sweep_do_not_share_a_folder(project, step, values):
    with pytest.raises(ValueError, match=f"expected a folder for {step}.* of each run, got .* for 2: write .*{{run}}/"):
        a_sweep(content={"workflows": {step: values}, "sweep": {"workers": [1, 2]}})
    assert a_sweep(content={"workflows": {"extract": {"store": "{run}/store"}}, "sweep": {"crop_size": [32, 64]}}).points


def test_a_sweep_keeps_what_a_run_has_made(project, jobs):
    Path("store").mkdir()
    Path("store/manifest.json").touch()
    first = run("mine.yaml")
    plan = a_sweep(content=SWEEP | {"shared": {"extract": {"fields": "others", "store": "store"}}})
    with pytest.raises(ValueError, match=f"extract.store, got store, which holds what run {first['id']} has made with other parameters.*store'$"):
        run_sweep(plan, "runs")
    assert len(list(Path("runs").iterdir())) == 1


# Comparing


def two_trainings(project: Path) -> list[str]:
    write(project, train_classifier=training(model_folder="data/model"))
    return [run("mine.yaml")["id"], run("mine.yaml", ["epochs=50"], replace=True)["id"]]


def test_cells_of_another_model_are_not_compared(project, steps, monkeypatch):
    first, second = two_trainings(project)
    for place in (project, project.parent / "two"):
        monkeypatch.chdir(place)
        compared = compare_runs(read_runs([first, second], project / "runs"), 20)
        assert compared.table["score"].tolist() == [0.5, 0.4] and "difference" not in compared.table and list(compared.cells) == [second]
        assert any(note.startswith(f"{first}: ") and f"the model in data/model was replaced by run {second}" in note for note in compared.notes)
        by_name = {one.name: one for one in compared.runs}
        assert by_name[first].beside_model("log.csv") is None and by_name[second].beside_model("log.csv") == project / "data" / "model" / "log.csv"


def test_cells_of_their_own_models_are_compared(project, steps):
    write(project, train_classifier=training(model_folder="{run}/model"))
    ids = [run("mine.yaml", [f"epochs={epochs}"])["id"] for epochs in (40, 50)]
    compared = compare_runs(read_runs(ids, "runs"), 20)
    assert len(compared.cells) == 2 and compared.table["difference"].notna().sum() == 1 and not any("replaced" in note for note in compared.notes)
    shutil.rmtree(Path("runs", ids[0], "model"))
    assert "is no longer there" in compare_runs(read_runs(ids, "runs"), 20).notes[0]


def test_what_older_runs_do_not_say_is_said(project, steps):
    """Without weights in the record, the score on the card decides; without both, nothing beside the model is shown."""
    ids = two_trainings(project)
    for name in ids:
        record = record_of(project / "runs" / name)
        record["steps"]["train_classifier"].pop("weights_blake2b")
        write_json(project / "runs" / name / "run.json", {key: value for key, value in record.items() if key != "working_folder"})
    compared = compare_runs(read_runs(ids, "runs"), 20)
    assert list(compared.cells) == [ids[1]] and "difference" not in compared.table
    assert any("has another score, 0.5000, than the 0.4000 that the run recorded" in note for note in compared.notes)
    Path("runs", ids[1], "metrics_train_classifier.json").unlink()
    compared = compare_runs(read_runs(ids, "runs"), 20)
    assert not compared.cells and any("the record does not say which weights it made" in note for note in compared.notes)


def test_a_training_under_way_hides_what_lies_there(project, steps):
    ids = two_trainings(project)
    write_json(Path("data/model/unfinished.json"), {})
    found = read_runs([ids[1]], "runs")[0]
    assert "is being replaced by another training" in found.replaced and found.beside_model("log.csv") is None


def test_pictures_come_from_the_store_that_was_scored(project, steps):
    found = read_runs(two_trainings(project)[1:], "runs")[0]
    found.check_store("1")
    assert found.path_of("store") == str(project / "data" / "store")
    with pytest.raises(ValueError, match="got one that has changed since: its cells are others now"):
        found.check_store("2")


def test_runs_of_two_working_folders_differ_in_it(project, steps):
    write(project, train_classifier={"store": "data/store", "epochs": 40})
    for place in (project, project.parent / "two"):
        run("mine.yaml", working_folder=place)
    table = compare_runs(read_runs([path.parent for path in Path("runs").glob("*/run.json")]), 0).table
    assert set(table["working_folder"]) == {str(project), str(project.parent / "two")}


def test_folders_of_a_moved_run_are_told_by_their_parts(tmp_path):
    """The names of other runs may begin with that of this one."""
    run, record = tmp_path / "now" / "a-1", {"folder": "/old/runs/a-1"}
    values = {"store": "/old/runs/a-1-1/store", "model": "/old/runs/a-1/model", "all": ["/old/runs/a-1", "/my/old/runs/a-1/x"], "to": "file:///old/runs/a-1/x"}
    assert compared_module._as_it_lies(values, record, run) == {
        "store": "/old/runs/a-1-1/store", "model": f"{run}/model", "all": [str(run), "/my/old/runs/a-1/x"], "to": f"file://{run}/x",
    }  # fmt: skip
    run.mkdir(parents=True)
    write_json(run.parent / "sweep.json", {})
    values = {"store": "/old/runs/shared/store", "other": "/old/runs-2/store", "model": "/old/runs/a-1/model"}
    assert compared_module._as_it_lies(values, record, run) == {"store": f"{run.parent}/shared/store", "other": "/old/runs-2/store", "model": f"{run}/model"}


def test_own_folders_in_a_comparison_are_told_by_their_parts(tmp_path):
    run = tmp_path / "runs" / "a-1"
    values = {"model": f"{run}/model", "first": f"{run}-1/model", "beside": f"{run.parent}-2/model", "store": f"{run.parent}/shared/store"}
    assert compared_module._all_parameters({"mine": values}, run) == {
        "mine.model": "{run}/model", "mine.first": "{sweep}/a-1-1/model", "mine.beside": f"{run.parent}-2/model", "mine.store": "{sweep}/shared/store",
    }  # fmt: skip
