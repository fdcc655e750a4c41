"""Sweeps and comparisons: planned before they start, several runs at once, resumed after a kill; one table and one page."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from hpacell.cli import main
from hpacell.feed.store import read_store
from hpacell.fields.simulate import simulate_fields
from hpacell.files import write_json, write_table
from hpacell.locks import own_folder
from hpacell.metrics.locations import score_locations, summarise_locations
from hpacell.metrics.tissue import score_tissue
from hpacell.pipeline import runs as runs_module
from hpacell.pipeline import sweep as sweep_module
from hpacell.pipeline import templates as templates_module
from hpacell.pipeline.compared import read_runs
from hpacell.pipeline.comparison import compare_runs, location_precisions
from hpacell.pipeline.extract import ExtractSettings, extract_fields
from hpacell.pipeline.jobs import Job, Outcome, expected_need, n_startable, process_tree, run_jobs, thread_environment
from hpacell.pipeline.outcomes import card_outcome, image_difference, organ_scores, read_image_scores, readable_table
from hpacell.pipeline.points import read_sweep
from hpacell.pipeline.records import SWEEP_LOCK, find_sweep
from hpacell.pipeline.runs import RunError, list_runs, run
from hpacell.pipeline.scored import (
    INHERITED,
    TRUE,
    ScoredCells,
    paired_difference,
    read_test_cells,
    surest_cells,
)
from hpacell.pipeline.sweep import describe_sweep, run_sweep, unfinished_sweep

LOCATIONS = ("nucleoplasm", "nucleoli", "cytosol")


def written(folder: Path, text: str, name: str = "zoo.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# What a sweep will do


GRID = """
shared:
  extract: {store: "{run}/store"}
workflows:
  train_classifier: {store: "{sweep}/shared/store", epochs: 3}
  predict: {model: "{run}/model"}
sweep:
  train_classifier.model: [batch_norm, conv_basic]
  seed: [0, 1, 2]
"""


def test_a_grid(tmp_path):
    plan = read_sweep(written(tmp_path, GRID), ["epochs=5", "crop_size=32"])
    assert [point.name for point in plan.points] == [f"{model},seed={seed}" for model in ("batch_norm", "conv_basic") for seed in (0, 1, 2)]
    assert plan.points[4].steps == {
        "train_classifier": {"store": "{sweep}/shared/store", "epochs": 5, "model": "conv_basic", "seed": 1, "model_folder": "{run}/model"},
        "predict": {"model": "{run}/model", "predictions": "{run}/predictions"},
    }  # fmt: skip
    assert plan.shared == {"extract": {"store": "{run}/store", "crop_size": 32}} and plan.name == "zoo"
    again = read_sweep(written(tmp_path, yaml.safe_dump(plan.content, sort_keys=False), "again.yaml"))
    assert (again.points, again.shared) == (plan.points, plan.shared)


def test_runs_that_would_mix(tmp_path):
    with pytest.raises(ValueError, match="expected each parameter once under 'sweep:', got train_classifier.seed under two names"):
        read_sweep(written(tmp_path, "workflows: {train_classifier: {epochs: 3}}\nsweep: {train_classifier.seed: [1, 2], seed: [3]}\n"))
    with pytest.raises(ValueError, match="expected a folder for the model of each run, got 'a' for 2: write model_folder"):
        read_sweep(written(tmp_path, "workflows: {train_classifier: {epochs: 3, model_folder: a}}\nsweep: {seed: [1, 2]}\n"))


def test_several_models_of_a_run_have_folders_of_their_own(tmp_path):
    base = "workflows: {train_segmenter: {epochs: 3}, train_classifier: {epochs: 3, EXTRA}}\nsweep: {train_classifier.seed: [1, 2]}\n"
    for point in read_sweep(written(tmp_path, base.replace(", EXTRA", ""))).points:
        assert {step: values["model_folder"] for step, values in point.steps.items()} == {"train_segmenter": "{run}/train_segmenter", "train_classifier": "{run}/train_classifier"}
    with pytest.raises(ValueError, match="expected a folder for each model of a run, got '{run}/train_segmenter' for train_segmenter and train_classifier: write train_classifier.model_folder"):
        read_sweep(written(tmp_path, base.replace("EXTRA", 'model_folder: "{run}/train_segmenter/"')))


def test_points_alone_and_with_a_grid(tmp_path):
    base = "workflows: {train_classifier: {epochs: 3}}\nsweep:\n"
    alone = read_sweep(written(tmp_path, base + "- {name: small, model_parameters: {filters: [8]}, learning_rate: 0.01}\n- {model: batch_norm}\n- {model_parameters: {filters: [16]}}\n"))
    assert [point.name for point in alone.points] == ["small", "batch_norm", "model_parameters=-filters-16"]
    assert alone.points[0].steps["train_classifier"] == {"epochs": 3, "model_parameters": {"filters": [8]}, "learning_rate": 0.01, "model_folder": "{run}/model"}
    both = read_sweep(written(tmp_path, base + "  points: [{name: a, epochs: 1}, {name: b, epochs: 2}]\n  augment: [[], [flip]]\n"))
    assert [point.steps["train_classifier"]["augment"] for point in both.points] == [[], ["flip"]] * 2
    assert len({point.name for point in both.points}) == 4


def test_a_flat_file(tmp_path):
    plan = read_sweep(written(tmp_path, "store: '{run}/a'\nsweep: {crop_size: [32, 64]}\n", "extract.yaml"))
    assert [point.steps for point in plan.points] == [{"extract": {"store": "{run}/a", "crop_size": size}} for size in (32, 64)]


def test_a_long_name_is_cut_and_stays_its_own(tmp_path):
    values = ["x" * 100 + end for end in "ab"]
    names = [point.name for point in read_sweep(written(tmp_path, yaml.safe_dump({"workflows": {"train_classifier": None}, "sweep": {"model": values}}))).points]
    assert len(set(names)) == 2 and all(len(name) <= 80 for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workflows: {train_classifier: }\n", "expected values to try under 'sweep:', got none"),
        ("workflows: {train_classifier: }\nsweep: {epoch: [1]}\n", "under 'sweep:'.*did you mean 'epochs'"),
        ("workflows: {train_classifier: }\nsweep: {train_classifer.epochs: [1]}\n", "did you mean 'train_classifier'"),
        ("workflows: {train_classifier: }\nsweep: [{epochs: 3}, {epochs: many}]\n", "expected int for train_classifier.epochs, got 'many'"),
        ("workflows: {train_classifier: }\nsweep: {epochs: 3}\n", r"write e.g. epochs: \[3\]"),
        ("workflows: {train_classifier: }\nsweep: {epochs: []}\n", "expected a list of values for epochs"),
        ("workflows: {train_classifier: }\nsweep: epochs\n", "or a list of runs, got 'epochs'"),
        ("workflows: {train_classifier: }\nsweep: [3]\n", "expected a list of runs, each with its parameters"),
        ("workflows: {train_classifier: }\nsweep: {points: [{epochs: 3}], epochs: [4]}\n", "expected epochs either in the list of runs or beside it"),
        ("workflows: {train_classifier: }\nsweep: [{epochs: 3}, {epochs: 3}]\n", "got 'epochs=3' twice"),
        ("workflows: {train_classifier: }\nsweep: [{name: shared, epochs: 3}]\n", "got 'shared' for one"),
        ("workflows: {train_classifier: }\nshared: {extrct: }\nsweep: {epochs: [1]}\n", "did you mean 'extract'"),
        ("workflows: {extract: }\nshared: {extract: }\nsweep: {crop_size: [1]}\n", "expected extract under 'shared:'"),
        ("workflows: {train_classifier: }\nshared: {extract: }\nsweep: {extract.crop_size: [1, 2]}\n", "got extract.crop_size, which is shared"),
        ("workflows: {train_classifier: , predict: }\nsweep: {model: [a, b]}\n", "write train_classifier.model=… or predict.model=…"),
        ("workflow: {train_classifier: }\nsweep: {epochs: [1]}\n", "expected a known workflow"),
    ],
)
def test_errors_come_before_anything_starts(tmp_path, capsys, text, message):
    path = written(tmp_path, text)
    assert main(["sweep", str(path), "--runs", str(tmp_path / "runs")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_overrides_are_for_what_does_not_vary(tmp_path):
    with pytest.raises(ValueError, match="expected -p for what the sweep leaves alone, got seed"):
        read_sweep(written(tmp_path, GRID), ["seed=3"])


def test_a_sweep_is_no_run(tmp_path, capsys):
    assert main(["run", str(written(tmp_path, GRID)), "--runs", str(tmp_path / "runs")]) == 2
    assert "start it with hpacell sweep" in capsys.readouterr().err


def test_the_zoo(root):
    plan = read_sweep(root / "params" / "zoo.yaml")
    assert len(plan.points) == 9 and list(plan.shared) == ["simulate", "extract"]
    assert len({json.dumps({**point.steps["train_classifier"], "model": "", "model_parameters": ""}) for point in plan.points}) == 1, "the same data and seed"


# How many at once


GB = 2**30


@pytest.mark.parametrize(
    ("taken", "free", "need", "most", "expected"),
    [
        ([], 100 * GB, 2 * GB, 4, 4), ([], 5 * GB, 2 * GB, 4, 2), ([], GB, 2 * GB, 4, 1), ([2 * GB], GB, 2 * GB, 4, 0),
        ([0, 0], 5 * GB, 2 * GB, 4, 0), ([0, 0], 6 * GB, 2 * GB, 4, 1), ([3 * GB], 4 * GB, 2 * GB, 4, 2), ([GB] * 4, 100 * GB, GB, 4, 0),
        ([], 0, 2 * GB, 3, 3), ([GB], 0, 2 * GB, 3, 2),
    ],
)  # fmt: skip
def test_the_gate(taken, free, need, most, expected):
    assert n_startable(taken, free, need, most) == expected


def test_the_need_is_learned():
    assert expected_need([], []) == 2 * GB and expected_need([], [3 * GB]) == 3 * GB
    assert expected_need([GB, 0], []) == int(1.1 * GB) and expected_need([GB], [4 * GB]) == 4 * GB
    assert expected_need([0], [], default=7) == 7, "a system that does not tell"


def test_threads_do_not_oversubscribe():
    set_already = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "64", "OPENBLAS_NUM_THREADS": "x"}
    got = thread_environment(4, set_already)
    assert (got["OMP_NUM_THREADS"], got["MKL_NUM_THREADS"], got["OPENBLAS_NUM_THREADS"], got["TF_NUM_INTRAOP_THREADS"]) == ("1", "4", "4", "4")


def sleeper(folder: Path, name: str, seconds: float = 600) -> Job:
    """A job with a child of its own session, as a notebook's kernel is."""
    child = f"import time; time.sleep({seconds})"
    code = (
        "import os, subprocess, sys; from hpacell.pipeline.jobs import end_with_parent; end_with_parent()\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.DEVNULL, start_new_session=True)\n"
        f"print(os.getpid(), child.pid, flush=True); open({str(folder / (name + '.pids'))!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); sys.exit(child.wait())"
    )
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log")


def gone(pids: list[int], within_s: float = 120) -> bool:
    """Whether all of these processes end; a zombie that nobody has collected counts as ended."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def wait_for(path: Path, within_s: float = 300) -> str:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if path.exists() and path.read_text().strip():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell of its processes")
def test_an_interrupt_leaves_no_process_behind(tmp_path):
    seen, ended = [], {}

    def interrupt(name):
        seen.extend(int(pid) for pid in wait_for(tmp_path / f"{name}.pids").split())
        if len(seen) == 4:
            assert set(process_tree(seen[0])) == set(seen[:2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([sleeper(tmp_path, name) for name in "abc"], 2, need=1, started=interrupt, ended=ended.__setitem__, bar=False)
    assert set(ended) == {"a", "b"} and all(outcome.code != 0 for outcome in ended.values()), "the third was never started"
    assert gone(seen)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell of its processes")
def test_a_kill_leaves_no_process_behind(tmp_path):
    code = "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_sweep import *; run_jobs([sleeper(Path(sys.argv[1]), name) for name in 'ab'], 2, need=1, bar=False)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1])
    pids = [int(pid) for name in "ab" for pid in wait_for(tmp_path / f"{name}.pids").split()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert len(pids) == 4 and gone(pids)


def test_jobs_one_after_the_other_where_memory_is_short(tmp_path, monkeypatch):
    import hpacell.pipeline.jobs as jobs_module

    monkeypatch.setattr(jobs_module, "free_memory", lambda: 1)
    at_once, running = [], set()

    def started(name):
        running.add(name)
        at_once.append(len(running))

    jobs = [Job(name, (sys.executable, "-c", "print('x' * 10)"), tmp_path / f"{name}.log") for name in "abc"]
    outcomes = run_jobs(jobs, 3, started=started, ended=lambda name, outcome: running.discard(name), interval_s=0.02, bar=False)
    assert at_once == [1, 1, 1] and [outcome.code for outcome in outcomes.values()] == [0, 0, 0]
    assert (tmp_path / "a.log").read_text() == "x" * 10 + "\n"


# Executing


NOTEBOOK = """
import time
from pathlib import Path
if needs:
    Path(needs).read_text()
time.sleep(wait_s)
Path(out, "metrics_work.json").write_text('{"value": %d}' % value)
"""
PARAMETERS = """
value: int = 1  # a number
needs: str = ""  # a file that must be there
wait_s: float = 0.0  # how long it takes
out: str = "."  # folder for metrics_work.json
"""
WORK = """
shared:
  work: {value: 7}
workflows:
  tail: {}
sweep:
"""
# In a process of its own, the workflows are those of a folder.
OWN_WORKFLOWS = (
    "import sys; from pathlib import Path; from hpacell.exits import end_process; import hpacell.pipeline.runs as r, hpacell.pipeline.sweep as s, hpacell.pipeline.templates as t\n"
    "t.workflow_folder = r.workflow_folder = lambda: Path(sys.argv[1])\n"
    "s._job = lambda folder: s.Job(folder.name, (sys.executable, '-c', Path(sys.argv[1], 'own.py').read_text() + 'end_process(s.run_point(sys.argv[2]))', sys.argv[1], str(folder)), folder / 'run.log')\n"
)


@pytest.fixture
def workflows(tmp_path, monkeypatch) -> Path:
    """A folder with two small workflows that take a moment, and need not even numpy."""
    folder = tmp_path / "workflows"
    folder.mkdir()
    cells = [nbformat.v4.new_markdown_cell("# Work"), nbformat.v4.new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(NOTEBOOK)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    for name in ("work", "tail"):
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")
    (folder / "own.py").write_text(OWN_WORKFLOWS)
    for module in (templates_module, runs_module):
        monkeypatch.setattr(module, "workflow_folder", lambda: folder)
    code = OWN_WORKFLOWS + "end_process(s.run_point(sys.argv[2]))"
    monkeypatch.setattr(sweep_module, "_job", lambda point: Job(point.name, (sys.executable, "-c", code, str(folder), str(point)), point / "run.log"))
    return folder


def test_a_sweep_with_real_notebooks(tmp_path, workflows, capsys):
    """The whole of it: what is shared once, a run that fails, and only that again."""
    path = written(tmp_path, WORK + "- {name: good, value: 3}\n- {name: bad, needs: '{sweep}/shared/later.txt'}\n")
    assert main(["sweep", str(path), "--runs", str(tmp_path / "runs"), "--workers", "2"]) == 1
    shown = capsys.readouterr().out
    folder = next((tmp_path / "runs").iterdir())
    assert "1 run of 2 finished" in shown and f"hpacell sweep --resume {folder}" in shown and "tail: FileNotFoundError" in shown
    record = json.loads((folder / "sweep.json").read_text())
    assert record["status"] == "failed" and [point["status"] for point in record["points"]] == ["finished", "failed"]
    assert record["points"][0]["peak_mb"] > 50 and (folder / "good" / "report.html").exists()
    assert list_runs(tmp_path / "runs")[["status", "steps"]].to_numpy().tolist() == [["failed", "1/2"]]
    stamps = [(folder / name).stat().st_mtime_ns for name in ("shared/work.ipynb", "good/tail.ipynb")]
    (folder / "shared" / "later.txt").write_text("there")
    assert main(["sweep", str(path), "--runs", str(tmp_path / "runs")]) == 0, "the same command goes on"
    assert stamps == [(folder / name).stat().st_mtime_ns for name in ("shared/work.ipynb", "good/tail.ipynb")]
    assert json.loads((folder / "sweep.json").read_text())["status"] == "finished" and len(list((tmp_path / "runs").iterdir())) == 1


def test_a_killed_sweep_goes_on(tmp_path, workflows):
    """kill -9 while the second run is under way: nothing runs on, nothing is half-written, the first is not done again."""
    path = written(tmp_path, WORK.replace("shared:\n  work: {value: 7}\n", "") + "- {name: good, value: 3}\n- {name: second, wait_s: 3.0}\n")
    code = OWN_WORKFLOWS + "s.run_sweep(__import__('hpacell.pipeline.points', fromlist='x').read_sweep(sys.argv[2]), sys.argv[3], workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code, str(workflows), str(path), str(tmp_path / "runs")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while time.monotonic() < end and not list((tmp_path / "runs").glob("*/second/tail.log")):  # its kernel is about to start
        time.sleep(0.05)
    pids = list(process_tree(process.pid))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(pids) >= 2 and gone(pids), "no orphans"
    folder = next((tmp_path / "runs").iterdir())
    record = json.loads((folder / "sweep.json").read_text())
    assert [point["status"] for point in record["points"]] == ["finished", "running"] and list_runs(tmp_path / "runs")["status"].tolist() == ["killed"]
    stamp = (folder / "good" / "tail.ipynb").stat().st_mtime_ns
    assert main(["sweep", "--resume", str(folder)]) == 0
    assert (folder / "good" / "tail.ipynb").stat().st_mtime_ns == stamp and (folder / "second" / "report.html").exists()


class Notebooks:
    """Stands for the notebooks: notes what was executed; `failing` names runs that fail, `stop` one that is interrupted."""

    def __init__(self):
        self.done, self.failing, self.stop = [], set(), None

    def execute(self, step, values, folder):
        if folder.name in self.failing:
            raise ValueError("no")

    def __call__(self, jobs, most, environment=None, need=0, started=lambda name: None, ended=lambda name, outcome: None, **_):
        for job in jobs:
            started(job.name)
            if job.name == self.stop:
                ended(job.name, Outcome(-9, 0.0, 0))
                raise KeyboardInterrupt
            self.done.append(job.name)
            try:
                run(None, resume=Path(job.log).parent)
            except RunError:
                pass
            ended(job.name, Outcome(int(job.name in self.failing), 1.0, GB))


@pytest.fixture
def notebooks(monkeypatch) -> Notebooks:
    stand_in = Notebooks()
    monkeypatch.setattr(sweep_module, "run_jobs", stand_in)
    monkeypatch.setattr(runs_module, "_execute", stand_in.execute)
    return stand_in


def test_resume_executes_only_what_failed(tmp_path, notebooks):
    plan = read_sweep(written(tmp_path, GRID))
    notebooks.failing = {"conv_basic,seed=1"}
    record = run_sweep(plan, tmp_path / "runs")
    assert notebooks.done == ["shared", *(point.name for point in plan.points)] and record["status"] == "failed"
    assert "ValueError: no" in describe_sweep(record)
    notebooks.done, notebooks.failing = [], set()
    again = run_sweep(None, tmp_path / "runs", resume=record["id"])
    assert notebooks.done == ["conv_basic,seed=1"] and again["status"] == "finished" and again["started"] == record["started"]
    assert unfinished_sweep(plan, tmp_path / "runs") is None


def test_an_interrupt_says_how_to_go_on(tmp_path, notebooks, capsys):
    path = written(tmp_path, GRID)
    notebooks.stop = "batch_norm,seed=1"
    assert main(["sweep", str(path), "--runs", str(tmp_path / "runs")]) == 130
    folder = next((tmp_path / "runs").iterdir())
    assert capsys.readouterr().err.strip() == f"hpacell: interrupted; go on with: hpacell sweep --resume {folder}"
    record = json.loads((folder / "sweep.json").read_text())
    assert record["status"] == "interrupted" and [point["status"] for point in record["points"]][:3] == ["finished", "stopped", "planned"]
    notebooks.stop, notebooks.done = None, []
    assert main(["sweep", "--resume", str(folder)]) == 0 and len(notebooks.done) == 5


def test_shared_steps_that_changed_make_all_runs_anew(tmp_path, notebooks):
    record = run_sweep(read_sweep(written(tmp_path, GRID)), tmp_path / "runs")
    notebooks.done = []
    run_sweep(read_sweep(written(tmp_path, GRID), ["crop_size=32"]), tmp_path / "runs", resume=record["folder"])
    assert len(notebooks.done) == 7 and notebooks.done[0] == "shared"


def test_another_value_makes_that_run_anew(tmp_path, notebooks):
    record = run_sweep(read_sweep(written(tmp_path, GRID)), tmp_path / "runs")
    notebooks.done = []
    run_sweep(read_sweep(written(tmp_path, GRID.replace("[0, 1, 2]", "[0, 1, 2, 3]"))), tmp_path / "runs", resume=record["id"])
    assert notebooks.done == ["batch_norm,seed=3", "conv_basic,seed=3"]


def test_a_shared_step_that_fails_stops_the_sweep(tmp_path, notebooks, capsys):
    notebooks.failing = {"shared"}
    with pytest.raises(RunError, match=r"extract, which all runs share, failed: extract: ValueError: no .*; go on with: hpacell sweep --resume"):
        run_sweep(read_sweep(written(tmp_path, GRID)), tmp_path / "runs")
    assert notebooks.done == ["shared"]


def test_a_sweep_is_executed_by_one_process(tmp_path, notebooks):
    record = run_sweep(read_sweep(written(tmp_path, GRID)), tmp_path / "runs")
    path = Path(record["folder"]) / "sweep.json"
    with own_folder(record["folder"], SWEEP_LOCK), pytest.raises(ValueError, match=f"got another process that does .process {os.getpid()} .*: wait until it has ended"):
        run_sweep(None, tmp_path / "runs", resume=record["id"])
    path.write_text(json.dumps(record | {"status": "running", "pid": 2**22 + 1}))
    notebooks.done = []
    assert run_sweep(None, tmp_path / "runs", resume=record["id"])["status"] == "finished" and notebooks.done == []
    with pytest.raises(FileNotFoundError, match=f"got zoo-7, which has no sweep.json there or in {tmp_path / 'runs'}: give the run's folder, or --runs FOLDER"):
        find_sweep("zoo-7", tmp_path / "runs")


# Comparing


def a_table_of_cells(rng: np.random.Generator, gain: float, cells: pd.DataFrame, truth: np.ndarray) -> pd.DataFrame:
    pred = np.clip(truth * gain + rng.random(truth.shape), 0, 2) / 2
    return cells.assign(**{f"p_{name}": pred[:, i].astype(np.float32) for i, name in enumerate(LOCATIONS)})


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    """A sweep of three trainings that ended, one of them badly, with a real store for the pictures."""
    folder = tmp_path_factory.mktemp("made") / "zoo-1"
    shared = folder / "shared"
    simulate_fields(shared / "fields", n_fields=8, seed=5, size=(160, 160))
    extract_fields(shared / "fields", shared / "store", labels=shared / "fields" / "labels.csv", settings=ExtractSettings(crop_size=32), workers=1)
    index = read_store(shared / "store").index
    rng = np.random.default_rng(0)
    truth = rng.random((len(index), 3)) < 0.4
    truth[:, 2] |= ~truth.any(axis=1)
    labels = ["|".join(name for name, shown in zip(LOCATIONS, row, strict=True) if shown) for row in truth]
    cells = index[["field_id", "cell_id"]].assign(labels="nucleoli|cytosol", true_labels=labels)
    for name, gain, rate in (("good", 0.9, 0.001), ("poor", 0.2, 0.01), ("broken", None, 1.0)):
        run, status = folder / name, "finished" if gain else "failed"
        values = {"store": "{sweep}/shared/store", "model_folder": "{run}/model", "learning_rate": rate}
        used = {key: value.replace("{run}", str(run)).replace("{sweep}", str(folder)) if isinstance(value, str) else value for key, value in values.items()}
        step = {"status": status, "values": used, "seconds": 61.0} | ({} if gain else {"reason": "ValueError: expected finite losses, got NaN"})
        write_json(run / "run.json", {"id": name, "status": status, "params": {"train_classifier": {key: value.replace("{sweep}", str(folder)) if isinstance(value, str) else value for key, value in values.items()}}, "steps": {"train_classifier": step}})
        if gain:
            table = a_table_of_cells(np.random.default_rng(1), gain, cells, truth)
            (run / "model").mkdir()
            table.to_parquet(run / "model" / "test_cells.parquet")
            (run / "model" / "model.weights.h5").write_bytes(bytes(2_000_000))
            epochs = np.arange(3)
            pd.DataFrame({"epoch": epochs, "loss": 0.5 - 0.1 * epochs, "val_loss": 0.6 - 0.1 * epochs, "val_pr_auc": gain * (epochs + 1) / 4}).to_csv(run / "model" / "log.csv", index=False)
            pred = table[[f"p_{location}" for location in LOCATIONS]].to_numpy()
            shared_by = {"locations": LOCATIONS, "groups": cells["field_id"].tolist(), "n_bootstrap": 50}
            found = summarise_locations(truth.astype(float), pred, **shared_by)
            rows = score_locations(truth.astype(float), pred, **shared_by)
            write_json(run / "metrics_train_classifier.json", {
                "scored": "Cells against their true locations", "average_precision": found["macro_average_precision"], "f1": found["macro_f1"], "epochs": 3, "weights": 1234,
                "summaries": {"cells_true": found}, "locations": {"cells_true": rows.astype(object).where(rows.notna(), None).to_dict("records")},
            })  # fmt: skip
    points = [{"name": name, "status": "finished"} for name in ("broken", "poor", "good", "later")]
    write_json(folder / "sweep.json", {"id": "zoo-1", "name": "zoo", "status": "failed", "points": points})
    return folder


def test_one_table(made_up):
    compared = compare_runs(read_runs([made_up]))
    table = compared.table
    assert table["run"].tolist() == ["good", "poor", "broken", "later"] and table["status"].tolist() == ["finished", "finished", "failed", "not started"]
    assert table["learning_rate"].tolist()[:3] == [0.001, 0.01, 1.0] and "store" not in table and "model_folder" not in table, "only what differs"
    assert table["score"][0] > table["score"][1] and table["score"][2:].isna().all() and (table["low"] <= table["score"])[:2].all()
    assert table["megabytes"].tolist()[:2] == [2.0, 2.0] and table["reason"][2] == "train_classifier: ValueError: expected finite losses, got NaN"
    assert table["difference"][1] == pytest.approx(table["score"][1] - table["score"][0]), "of the same scores"
    assert table["difference_low"][1] <= table["difference"][1] <= table["difference_high"][1] < 0
    text = str(compared)
    assert "nan" not in text.lower().replace("got nan", "") and re.search(r"0\.\d{3} \[0\.\d{3}, [01]\.\d{3}\]", text)
    assert "Scores: mean average precision, 95 % intervals over fields." in text
    assert "Differences: to good on the same test fields, 95 % intervals of the paired difference." in text


def test_no_intervals_are_claimed_where_none_is_shown(made_up, tmp_path):
    import shutil

    for name in ("good", "poor"):
        shutil.copytree(made_up / name, tmp_path / name)
        record = (tmp_path / name / "run.json").read_text().replace(str(made_up / name), str(tmp_path / name))
        (tmp_path / name / "run.json").write_text(record)
        cells = pd.read_parquet(tmp_path / name / "model" / "test_cells.parquet")
        cells[cells["field_id"].isin(sorted(set(cells["field_id"]))[:7])].to_parquet(tmp_path / name / "model" / "test_cells.parquet")
        path = tmp_path / name / "metrics_train_classifier.json"
        metrics = json.loads(path.read_text())
        for end in ("low", "high"):
            metrics["summaries"]["cells_true"][f"macro_average_precision_{end}"] = None
        path.write_text(json.dumps(metrics | {"n_test_fields": 7}))
    compared = compare_runs(read_runs([tmp_path / "good", tmp_path / "poor"]))
    assert compared.table["difference"][1] < 0 and "%" not in str(compared)
    assert compared.notes[0] == "Scores: mean average precision, no intervals: fewer than 8 test fields. Cells against their true locations."
    assert "Differences: to good on the same test fields, no intervals: fewer than 8 test fields." in compared.notes
    for name in ("good", "poor"):
        path = tmp_path / name / "metrics_train_classifier.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"n_test_fields": 8}))
    assert "no intervals: too few test fields carry what is scored" in compare_runs(read_runs([tmp_path / "good"])).notes[0]


def test_precisions_by_location(made_up):
    runs = read_runs([made_up])
    table = location_precisions(runs)
    assert list(table.index) == list(LOCATIONS) and sorted(table) == ["good", "poor"]
    assert table["good"].mean() == pytest.approx(next(run.scores["average_precision"] for run in runs if run.name == "good"))


def test_runs_by_name_and_of_two_sweeps(made_up, tmp_path):
    import shutil

    shutil.copytree(made_up, tmp_path / "zoo-2", ignore=shutil.ignore_patterns("shared"))
    names = [run.name for run in read_runs([made_up / "good", tmp_path / "zoo-2" / "good", made_up / "good", "zoo-2/poor"], tmp_path)]
    assert names == ["zoo-1/good", "zoo-2/good", "poor"]


def test_runs_without_a_training(tmp_path):
    for name, n in (("a", 3), ("b", 5)):
        write_json(tmp_path / name / "run.json", {"id": name, "status": "finished", "params": {"extract": {"crop_size": n}}, "steps": {"extract": {"status": "finished", "seconds": 1}}})
        write_json(tmp_path / name / "metrics_extract.json", {"n_cells": n, "n_fields": 2})
    table = compare_runs(read_runs(["a", "b"], tmp_path)).table
    assert table[["run", "crop_size", "extract.n_cells"]].to_numpy().tolist() == [["a", 3, 3], ["b", 5, 5]]
    assert not {"score", "extract.n_fields", "reason"} & set(table)


# Models of tissue


TISSUE = """
workflows: {tissue: {simulated: 10, size: 64}}
sweep:
  model: [unet, segformer_b0]
  points: [{name: plain, patch: 32}, {name: mixed, patch: 64, augment: [flip, mosaic]}]
"""


@pytest.fixture(scope="module")
def tissue_runs(tmp_path_factory) -> Path:
    """A sweep of four models of tissue: three that ended, one of them without its last cell, and one that failed."""
    folder = tmp_path_factory.mktemp("tissue")
    plan = read_sweep(written(folder, TISSUE, "tissue.yaml"))
    sweep, rng = folder / "tissue-1", np.random.default_rng(0)
    truths = [rng.random((16, 16)) < 0.4 for _ in range(8)]
    organs = ["lung", "spleen"] * 4
    for point, kept in zip(plan.points, (0.9, None, 0.95, 0.6), strict=True):
        run, model = sweep / point.name, sweep / point.name / "model"
        values = {name: str(value).replace("{run}", str(run)) if name == "model_folder" else value for name, value in point.steps["tissue"].items()}
        step = {"status": "finished" if kept else "failed", "values": values, "seconds": 30.0} | ({} if kept else {"reason": "ValueError: expected a finite loss, got nan"})
        write_json(run / "run.json", {"id": point.name, "status": step["status"], "params": point.steps, "steps": {"tissue": step}})
        if not kept:
            continue
        pairs = [(truth, truth & (np.random.default_rng(number).random(truth.shape) < kept)) for number, truth in enumerate(truths)]
        scores = score_tissue(pairs, organs, [f"image{n}" for n in range(8)], n_bootstrap=50)
        total = scores.iloc[-1]
        write_table(model / "scores.csv", pd.concat([scores.assign(side="valid", dice=1.0), scores.assign(side="test")]))
        pd.DataFrame({"epoch": range(4), "loss": [0.9, 0.6, 0.5, 0.4], "val_dice": [np.nan, 0.5, np.nan, kept]}).to_csv(model / "log.csv", index=False)
        card = {name: [round(float(row[f"dice{end}"]), 4) for end in ("", "_low", "_high")] for name, row in (("all", total),)}
        write_json(model / "card.json", {"kind": "tissue", "n_weights": 99, "scores": {"all": {"dice": card["all"]}}, "scores_of": "test", "training": {"model": point.steps["tissue"]["model"], "patch": point.steps["tissue"]["patch"]}})
        (model / "model.weights.h5").write_bytes(bytes(1000))
        if kept > 0.6:  # the last was killed before its summary
            write_json(run / "metrics_tissue.json", {"dice": round(float(total["dice"]), 4), "dice_low": float(total["dice_low"]), "dice_high": float(total["dice_high"]), "weights": 99, "epochs": 4})
    write_json(sweep / "sweep.json", {"id": "tissue-1", "name": "tissue", "status": "failed", "points": [{"name": point.name, "status": ""} for point in plan.points]})
    return sweep


def test_each_model_of_a_sweep_has_a_folder_of_its_own(tmp_path, root):
    plan = read_sweep(written(tmp_path, TISSUE))
    assert {point.steps["tissue"]["model_folder"] for point in plan.points} == {"{run}/model"}
    with pytest.raises(ValueError, match="expected a folder for the model of each run, got 'a' for 4"):
        read_sweep(written(tmp_path, TISSUE.replace("size: 64", "size: 64, model_folder: a")))
    plan = read_sweep(root / "params" / "tissue_sweep.yaml")
    assert len(plan.points) == 16 and len({point.steps["tissue"]["seed"] for point in plan.points}) == 1


def test_tissue_is_compared_by_dice(tissue_runs, capsys):
    compared = compare_runs(read_runs([tissue_runs]), 100)
    table = compared.table
    assert table["run"].tolist() == ["mixed,unet", "plain,unet", "mixed,segformer_b0", "plain,segformer_b0"]
    assert list(table)[:6] == ["run", "status", "model", "dataset", "patch", "augment"] and "model_folder" not in table
    assert table["model"].tolist() == ["unet", "unet", "segformer_b0", "segformer_b0"] and set(table["dataset"]) == {"10 simulated"}
    assert table["score"][0] > table["score"][1] > table["score"][2] and np.isnan(table["score"][3]), "the third from its card alone"
    assert (table["low"] < table["score"])[:3].all() and (table["score"] < table["high"])[:3].all()
    means = [compared.images[name]["dice"].mean() for name in table["run"][:3]]
    assert table["score"][:3].to_numpy(float) == pytest.approx(means, abs=1e-4), "of the test images, not of those that chose"
    assert table["difference"][1:3].tolist() == pytest.approx([mean - means[0] for mean in means[1:]])
    assert (table["difference_low"][1:3] < table["difference"][1:3]).all() and table["difference_high"][2] < 0
    shown = compared.shown
    assert shown["augment"].tolist()[0] == "…, mosaic" and "rotate90" in shown["augment"][1] and "flip" not in shown["augment"][1]
    odd = pd.DataFrame({"augment": ['["flip", {"scale": {"least": 0.7}}]', '["flip"]', "[]"], "n": [1, 2, 3]})
    assert readable_table(odd)["augment"].tolist() == ["flip, scale: {least: 0.7}", "flip", "none"], "nothing that all have"
    text = str(compared)
    assert "Scores: mean Dice of the foreground, 95 % intervals over images. Images that chose nothing." in text
    assert "Differences: to mixed,unet on the same test images" in text and "Without a difference" not in text
    assert compared.measure == "mean Dice of the foreground"
    assert organ_scores(compared.images).loc["lung", "plain,unet"] == pytest.approx(compared.images["plain,unet"]["dice"][::2].mean())


@pytest.fixture
def own_runs(tissue_runs, tmp_path) -> Path:
    """The same runs, to be changed; those that are compared are named by their folders."""
    import shutil

    sweep = tmp_path / "tissue-2"
    shutil.copytree(tissue_runs, sweep)
    for path in sweep.glob("*/run.json"):
        path.write_text(path.read_text().replace(str(tissue_runs), str(sweep)))
    return sweep


def test_a_card_of_another_training_says_nothing(own_runs):
    killed = own_runs / "mixed,segformer_b0"
    card = json.loads((killed / "model" / "card.json").read_text())
    compared = compare_runs(read_runs([killed]))
    assert compared.table["score"].notna().all() and "Images that chose nothing." in compared.notes[0]
    write_json(killed / "model" / "card.json", card | {"scores_of": "valid, on which epoch and thresholds were chosen"})
    assert "Images of the side valid, on which epoch and thresholds were chosen." in compare_runs(read_runs([killed])).notes[0]
    given = {"model": "segformer_b0", "augment": ["flip"], "model_parameters": {}}
    assert card_outcome(killed / "model", given)["dice"] == card["scores"]["all"]["dice"][0]
    for other in ({"model": "unet"}, {"augment": []}, {"parameters": {"stem": 8}}, {"seed": 1}):
        changed = {"model": "segformer_b0", "augment": ["flip"], "parameters": {}, "seed": 0} | other
        write_json(killed / "model" / "card.json", card | {"training": changed})
        assert card_outcome(killed / "model", given | {"seed": 0}) == {}
    write_json(killed / "model" / "card.json", card | {"training": card["training"] | {"epochs": 7}})
    assert "score" not in compare_runs(read_runs([killed])).table, "the default of the workflow is another"
    write_json(killed / "model" / "card.json", card)
    write_json(killed / "model" / "unfinished.json", {})
    assert card_outcome(killed / "model") == {} and "score" not in compare_runs(read_runs([killed])).table


def test_runs_that_shared_a_folder_have_no_difference(own_runs):
    import shutil

    run = own_runs / "plain,unet"
    shutil.copytree(own_runs / "mixed,unet" / "model", run / "model", dirs_exist_ok=True)
    compared = compare_runs(read_runs([own_runs / "mixed,unet", run]), 20)
    assert compared.table["score"].notna().all() and "difference" not in compared.table and list(compared.images) == ["mixed,unet"]
    assert any(note.startswith("plain,unet: ") and "has another score" in note for note in compared.notes), "an older run, which did not record its weights"


def test_a_relative_folder_starts_at_the_working_folder(own_runs, monkeypatch):
    monkeypatch.chdir(own_runs.parent)
    killed = own_runs / "mixed,segformer_b0"
    text = (killed / "run.json").read_text()
    (killed / "run.json").write_text(text.replace(str(killed / "model"), "elsewhere"))
    assert "score" not in compare_runs(read_runs([killed])).table
    (killed / "model").rename(own_runs.parent / "elsewhere")
    found = read_runs([killed])[0]
    assert found.scores["dice"] > 0.5 and found.beside_model("scores.csv") == Path("elsewhere/scores.csv")


def test_other_images_have_no_difference(tissue_runs):
    first = read_image_scores(tissue_runs / "plain,unet" / "model" / "scores.csv")
    assert image_difference(first, first.assign(n_truth=first["n_truth"] + 1)) is None and image_difference(first[:1], first[:1]) is None
    assert image_difference(first, first[:-1]) is None
    same = image_difference(first, first)
    assert same["difference"] == 0 and np.isnan([same["difference_low"], same["difference_high"]]).all(), "all draws agree"


def test_tissue_beside_locations(tissue_runs, made_up):
    compared = compare_runs(read_runs([tissue_runs, made_up]))
    assert compared.table["score"].notna().sum() == 5
    assert any("not of the same kind" in note and "mean dice" in note for note in compared.notes)


def test_the_page_of_tissue(tissue_runs, tmp_path, capsys):
    assert main(["compare", str(tissue_runs), "--out", str(tmp_path / "page.html"), "--runs", str(tmp_path / "runs")]) == 0
    page = (tmp_path / "page.html").read_text()
    for word in ("Dice of each organ", "mean Dice of the foreground", "Dice on validation images", "No run has left cells", "Scores of 3 runs", "Spleen", "10 simulated", "expected a finite loss"):
        assert word in page, word
    assert "Traceback" not in page and "average precision" not in page.lower().replace("mean average precision or", "")


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"steps": 3, "status": "finished", "params": {"a": 1}}'])
def test_a_damaged_record_is_a_row(tmp_path, made_up, text):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(text)
    assert compare_runs(read_runs([tmp_path / "bad", made_up / "good"])).table["status"].tolist() == ["finished", "unreadable"]


def test_nothing_to_compare(tmp_path, capsys):
    assert main(["compare", "zoo-7", "--runs", str(tmp_path / "runs")]) == 2
    assert f"got zoo-7, which has neither run.json nor sweep.json there or in {tmp_path / 'runs'}: give the run's folder, or --runs FOLDER" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected runs or a sweep to compare, got none"):
        read_runs([])
    assert main(["compare", "nothing", "--runs", str(tmp_path)]) == 2
    assert "got nothing, which has neither run.json nor sweep.json" in capsys.readouterr().err
    assert main(["compare", str(tmp_path), "--out", "page.pdf"]) == 2
    assert "ends in .html" in capsys.readouterr().err


def scored_cells(rng, gain: float, truth: np.ndarray, fields: np.ndarray, locations=LOCATIONS, kind=TRUE) -> ScoredCells:
    cells = pd.DataFrame({"field_id": fields, "cell_id": np.arange(len(fields)), "labels": "", "true_labels": ""})
    return ScoredCells(cells, truth, truth * gain + rng.random(truth.shape), locations, kind)


def test_a_paired_interval_is_narrower():
    rng = np.random.default_rng(3)
    fields = np.repeat([f"f{n}" for n in range(40)], 8)
    hard = np.repeat(rng.random(40), 8)[:, None]
    truth = rng.random((320, 3)) < 0.3
    first, other = (scored_cells(np.random.default_rng(4), gain * (1 - hard), truth, fields) for gain in (1.0, 0.9))
    found = paired_difference(first, other)
    width = found["difference_high"] - found["difference_low"]
    own = summarise_locations(truth.astype(float), first.pred, LOCATIONS, groups=fields.tolist(), n_bootstrap=200)
    assert found["difference_high"] < 0 and width < 0.5 * (own["macro_average_precision_high"] - own["macro_average_precision_low"])
    expected = [summarise_locations(truth.astype(float), cells.pred, LOCATIONS)["macro_average_precision"] for cells in (first, other)]
    assert found["difference"] == pytest.approx(expected[1] - expected[0])


def test_what_cannot_be_paired():
    rng = np.random.default_rng(5)
    truth, fields = rng.random((40, 3)) < 0.4, np.repeat(list("abcd"), 10)
    first = scored_cells(rng, 1, truth, fields)
    for other in (
        scored_cells(rng, 1, truth, np.repeat(list("abce"), 10)), scored_cells(rng, 1, truth, fields, kind=INHERITED),
        scored_cells(rng, 1, truth, fields, locations=("vesicles", "er", "golgi_apparatus")),
    ):  # fmt: skip
        assert paired_difference(first, other) is None
    four = paired_difference(first, scored_cells(rng, 0.5, truth, fields))
    assert np.isfinite(four["difference"]) and np.isnan(four["difference_low"]), "four fields are too few for an interval"
    one = scored_cells(rng, 1, truth, np.repeat("a", 40))
    assert paired_difference(one, one) is None
    part = scored_cells(rng, 1, truth[:, :2], fields, locations=LOCATIONS[:2])
    assert paired_difference(first, part) is not None, "the locations that both have"


def test_test_cells_against_whichever_truth_is_known(tmp_path):
    frame = pd.DataFrame({"field_id": ["a", "a", "b"], "cell_id": [1, 2, 1], "labels": ["nucleoli|cytosol"] * 2 + ["vesicles"], "true_labels": ["cytosol", None, "nucleoli|vesicles"], "p_nucleoli": [0.1, 0.9, 0.8], "p_cytosol": [0.7, 0.2, 0.3]})
    frame.to_parquet(tmp_path / "t.parquet")
    known = read_test_cells(tmp_path / "t.parquet")
    assert known.kind == TRUE and known.truth.tolist() == [[False, True], [True, False]] and known.locations == ("nucleoli", "cytosol")
    frame.assign(true_labels=None).to_parquet(tmp_path / "t.parquet")
    inherited = read_test_cells(tmp_path / "t.parquet")
    assert inherited.kind == INHERITED and inherited.truth.tolist() == [[True, True], [True, True], [False, False]]
    truth, pred, fields = inherited.by_group()
    assert fields.tolist() == ["a", "b"] and truth.tolist() == [[True, True], [False, False]] and pred.tolist() == [[0.9, 0.7], [0.8, 0.3]]
    right = surest_cells(known, "nucleoli", right=True)
    assert right[["field_id", "cell_id", "probability", "truth"]].to_numpy().tolist() == [["b", 1, 0.8, "nucleoli|vesicles"]]
    frame.drop(columns="cell_id").to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="got no cell_id: train again"):
        read_test_cells(tmp_path / "t.parquet")


def test_the_page(made_up, tmp_path, capsys):
    assert main(["compare", str(made_up), "--out", str(tmp_path / "page.html"), "--runs", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "good" in shown and f"page: {tmp_path / 'page.html'}" in shown
    page = (tmp_path / "page.html").read_text()
    for word in ("Learning curves of 2 runs", "Average precision of each location", "Precision and recall", "Scores of 2 runs", "most confident wrong", "Nucleoli", TRUE, "expected finite losses"):
        assert word in page, word
    assert page.count("data:image/jpeg;base64,") > 20 and "Traceback" not in page and "No pictures" not in page
    assert not re.search(r"""<(script|link|img)[^>]*(src|href)=["']https?:""", page) and (tmp_path / "plotly.min.js").exists()
    run = next((tmp_path / "runs").iterdir())
    assert json.loads((run / "metrics.json").read_text())["compare"]["best"] == "good" and len(pd.read_csv(run / "comparison.csv")) == 4
    assert main(["compare", str(made_up), "--table", "--runs", str(tmp_path / "other")]) == 0 and not (tmp_path / "other").exists()
