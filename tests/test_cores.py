"""Cores and threads: what affinity and control groups leave, and that commands keep to it."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

import hpacell.cores as cores_module
import hpacell.memory as memory_module
from hpacell.cores import THREAD_VARIABLES, usable_cores
from hpacell.feed.gather import choose_cache
from hpacell.options import workers_of as asked_for
from hpacell.pipeline.engine import map_items, workers_of
from hpacell.pipeline.jobs import _kill, process_tree
from hpacell.settings import Settings, read_settings


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "1000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("4:cpu,cpuacct:/job\n0::/", {"cpu/job/cpu.cfs_quota_us": "400000", "cpu/job/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 64),
        ("4:memory:/job", {"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "100000"}, 64),
        ("nonsense", {"cpu.max": "100000"}, 64),
    ],
)
def test_a_quota_counts(tmp_path, monkeypatch, membership, files, expected):
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    (tmp_path / "cgroup").write_text(membership + "\n")
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    assert usable_cores(tmp_path / "cgroup", tmp_path / "groups") == expected


def test_a_system_without_affinity_or_groups_has_cores_too(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cores(tmp_path / "nothing", tmp_path) == 8


def test_the_settings_leave_the_number_to_the_engine(tmp_path):
    assert Settings().workers == 0 and read_settings(tmp_path, environ={}).workers == 0
    assert read_settings(tmp_path, environ={"HPACELL_ENGINE_WORKERS": "3"}).workers == 3
    assert asked_for(SimpleNamespace(workers=5)) == 5


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system knows no affinity")
def test_on_one_core_commands_start_one_process(tmp_path):
    """A command that is kept to one core, as by taskset: nothing but itself, and one thread of OpenCV."""
    code = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import cv2
import hpacell.pipeline.engine as engine
from hpacell.cli import main
started = []
original = engine._pool
engine._pool = lambda workers, function: started.append(workers) or original(workers, function)
made = [main(["simulate", sys.argv[1] + "/fields", "--fields", "3", "--size", "96"]),
        main(["extract", sys.argv[1] + "/fields", "--out", sys.argv[1] + "/store", "--size", "16"]),
        main(["segment", sys.argv[1] + "/fields", "--out", sys.argv[1] + "/masks"])]
print(made, started, cv2.getNumThreads(), file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("HPACELL_ENGINE_WORKERS", None)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[0, 0, 0] [] 1", done.stderr


def threads_asked_for(item):
    return [os.environ.get(name) for name in THREAD_VARIABLES]


def test_workers_have_one_thread_each_and_the_caller_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    assert [outcome.value for outcome in map_items(threads_asked_for, range(2), workers=2)] == [["1"] * 5] * 2
    assert os.environ["OMP_NUM_THREADS"] == "7" and "TF_NUM_INTRAOP_THREADS" not in os.environ


def test_the_engine_asks_for_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr("hpacell.pipeline.engine.usable_cores", lambda: 3)
    assert workers_of(0, range(10)) == 3 and workers_of(8, range(10)) == 8
    assert cores_module.limit_threads(2, {"OMP_NUM_THREADS": "1"})["OMP_NUM_THREADS"] == "1"


# Systems without /proc


def test_memory_is_known_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * 2**30))
    assert memory_module.free_memory(tmp_path / "nothing", tmp_path / "nothing") == 5 * 2**30
    monkeypatch.setattr("hpacell.feed.gather.free_memory", lambda: memory_module.free_memory(tmp_path / "nothing"))
    assert choose_cache(2**30).choice == "memory"


def test_processes_are_found_and_ended_without_proc(monkeypatch):
    """By psutil alone; and a number that has another owner by now is left alone."""
    import hpacell.pipeline.jobs as jobs

    monkeypatch.setattr(jobs.Path, "glob", lambda *arguments: iter(()))  # as where there is no /proc
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while len(tree := process_tree(child.pid)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    try:
        assert len(tree) == 2 and all(size > 2**20 for _, size in tree.values())
        _kill({pid: (started - 100, size) for pid, (started, size) in tree.items()})
        time.sleep(0.2)
        assert child.poll() is None and all(psutil.pid_exists(pid) for pid in tree), "they have other owners, so to speak"
    finally:
        _kill(tree)
        assert child.wait(timeout=60) == -9
    gone = [pid for pid in tree if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    end = time.monotonic() + 30
    while gone and time.monotonic() < end:
        gone = [pid for pid in gone if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert not gone
    assert process_tree(child.pid) == {}
