"""The engine: order, errors, workers that die, bounded look-ahead."""

import os
import signal
import subprocess
import sys

import pytest

from hpacell.cores import usable_cores
from hpacell.pipeline.engine import map_items, workers_of


def work(item):
    if item == "bad":
        raise ValueError("expected good, got bad: mend it")
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return item * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_errors(workers):
    outcomes = list(map_items(work, [3, "bad", 1, 2], workers))
    assert [outcome.item for outcome in outcomes] == [3, "bad", 1, 2]
    assert [outcome.value for outcome in outcomes] == [6, None, 2, 4]
    assert "mend it" in outcomes[1].error


def test_a_worker_that_dies_takes_one_item_with_it():
    outcomes = list(map_items(work, [1, 2, "die", 3, 4, 5, 6, 7], workers=2))
    assert [outcome.value for outcome in outcomes] == [2, 4, None, 6, 8, 10, 12, 14]
    assert "the worker process died" in outcomes[2].error


def test_items_are_drawn_as_needed():
    drawn = []

    def items():
        for number in range(100):
            drawn.append(number)
            yield number

    outcomes = map_items(work, items(), workers=2)
    for _ in range(3):
        next(outcomes)
    outcomes.close()
    assert len(drawn) < 12


def test_number_of_workers():
    assert workers_of(8, [1, 2]) == 2
    assert workers_of(0, range(1000)) == usable_cores()
    assert workers_of(4, []) == 1
    with pytest.raises(ValueError, match="at least 0"):
        workers_of(-1, [1])


def test_workers_end_with_a_killed_run(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(tmp_path)!r})
from told import tell
from hpacell.pipeline.engine import map_items
outcomes = map_items(tell, range(100), workers=2)
print(*{{next(outcomes).value for _ in range(4)}}, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "told.py").write_text("import os\n\ndef tell(item):\n    return os.getpid()\n")
    # Workers share the pipe of the output: it ends when the last of them has ended.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL and done.stdout.split()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_what_workers_import_beforehand_starts_no_threads():
    # They are forked from the process that imports it: a thread in there could hold a lock for ever. Arrow's allocator
    # has one of its own, and minds forks.
    modules = ["hpacell.figures.overlays", "hpacell.pipeline.extract", "hpacell.pipeline.segment"]
    code = f"import {', '.join(modules)}, sys, pathlib\n" + """
threads = {path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")}
print("tensorflow" in sys.modules, *threads - {pathlib.Path("/proc/self/comm").read_text().strip(), "jemalloc_bg_thd"})
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=environment)
    assert done.stdout.split() == ["False"], done.stderr


def test_workers_share_what_was_imported_beforehand():
    code = """
from hpacell.pipeline.engine import map_items, prepare_workers
prepare_workers("hpacell.fields.picture")
print([outcome.value for outcome in map_items(eval, ["'hpacell.fields.picture' in __import__('sys').modules"] * 2, workers=2)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["[True,", "True]"], done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_that_ends_the_process_costs_its_item_alone(workers):
    outcomes = list(map_items(sys.exit, [3, 4], workers))
    assert [(outcome.item, outcome.error) for outcome in outcomes] == [(3, "SystemExit: 3"), (4, "SystemExit: 4")]
