"""Kills, damage, full and read-only disks, fields that change, two writers: what a crop store comes out of whole.

`make torture` runs all of it and ends at the first difference (`--go-on`: at the end); `tests/test_faults.py` runs a part. Each extraction is a
real process that a signal ends for good. To save the seconds that imports take, a server that has imported everything
forks it; `--fresh` starts a new Python for each instead.
"""

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SHARD_BYTES = 200_000  # a dozen shards of 24 small fields
PREFIX = "TORTURE_"
COLOURS = ("red", "green", "blue", "yellow")


# -- within the process under test -------------------------------------------------------------------------------------


def watch() -> None:
    """Do to this process what its environment says: small shards, a log of what is cut, a kill, fields that change."""
    orders = {name.removeprefix(PREFIX): value for name, value in os.environ.items() if name.startswith(PREFIX)}
    from hpacell.feed import writer
    from hpacell.pipeline import extract

    writer.SHARD_BYTES = int(orders.get("SHARD_BYTES", SHARD_BYTES))
    cut, n_cut = extract.cut_field, 0

    def logged(field, *arguments, **options):
        nonlocal n_cut
        n_cut += 1
        if str(n_cut) == orders.get("KILL_AT_CUT"):
            os.kill(os.getpid(), signal.SIGKILL)
        with open(orders["LOG"], "a") as log:
            log.write(f"{field.field_id} {field.content}\n")
        while n_cut > 1 and "HOLD" in orders and os.path.exists(orders["HOLD"]):
            time.sleep(0.02)
        return cut(field, *arguments, **options)

    extract.cut_field = logged
    if "REPLACE" in orders:
        replace_while_read(**json.loads(orders["REPLACE"]))


def die_at_step(step: int, store: str, count: Path) -> None:
    """End this process by SIGKILL at one of its steps in the store: a call that opens, names or removes, or a write."""
    from hpacell.feed import journal

    done, kinds = 0, {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
    write = journal._write_all

    def next_step() -> bool:
        nonlocal done
        done += 1
        return done == step

    def audit(event, arguments):
        if event in kinds and isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(store) and next_step():
            os.kill(os.getpid(), signal.SIGKILL)

    def torn(file, content):
        if next_step():
            view = memoryview(content).cast("B") if len(content) else b""
            file.write(view[: random.Random(step).randint(0, len(view))])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, content)

    sys.addaudithook(audit)
    journal._write_all = torn

    atexit.register(lambda: count.write_text(str(done)))


def replace_while_read(files: dict[str, str], after: int, manner: str) -> None:
    """Put other content into files of a field once `after` of them were read."""
    from hpacell.fields import read

    original, seen = read.read_bytes, 0

    def change() -> None:
        for target, source in files.items():
            times = os.stat(target)
            if manner == "rename":
                shutil.copy(source, f"{target}.new")
                os.replace(f"{target}.new", target)
            else:
                with open(target, "r+b") as file:
                    file.write(Path(source).read_bytes())
                    file.truncate()
            if manner == "in place, with the old time":
                os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))

    def reading(path):
        nonlocal seen
        if path not in files:
            return original(path)
        if seen == after == 0:
            change()
        content = original(path)
        seen += 1
        if seen == after:
            change()
        return content

    read.read_bytes = reading


def obey(order: dict) -> int:
    """Run one command as the order says; its exit code."""
    os.setsid()
    os.environ.update(order["env"])
    for number, path, flags in [(0, os.devnull, os.O_RDONLY), (1, order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)]:
        handle = os.open(path, flags)
        os.dup2(handle, number)
        os.close(handle)
    os.dup2(1, 2)
    watch()
    if order["step"]:
        die_at_step(order["step"], order["store"], Path(order["output"] + ".steps"))
    from hpacell.cli import main

    return main(order["words"])


def serve() -> int:
    """Import once, then fork a process for each line of orders; tell its number, and on request how it ended."""
    import hpacell.feed.verify
    import hpacell.pipeline.extract  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        elif not (answer := os.fork()):
            answers.close()
            from hpacell.exits import end_process

            end_process(obey(order))
        answers.write(f"{answer}\n")
        answers.flush()
    return 0


# -- outside of it -----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A process under test."""

    runner: "Runner"
    pid: int
    output: Path
    code: int | None = None
    process: subprocess.Popen | None = None

    def wait(self) -> int:
        """How it ended: its exit code, or minus the signal."""
        if self.code is None:
            self.code = self.process.wait() if self.process else self.runner.ask({"wait": self.pid})
        return self.code

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
        return self.wait()

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def n_steps(self) -> int:
        return int(Path(f"{self.output}.steps").read_text())


class Runner:
    """Starts processes under test, and keeps a log of the fields that they cut."""

    def __init__(self, folder: Path, fresh: bool = False):
        self.folder, self.fresh, self.log, self.n_runs = folder, fresh, folder / "cut.log", 0
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "HPACELL_PROGRESS": os.devnull}
        self.env = {**os.environ, **quiet}
        command = [sys.executable, __file__, "--serve"]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.env, text=True)

    def ask(self, order: dict) -> int:
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, *words: object, step: int = 0, store: object = "", fresh: bool | None = None, **orders: object) -> Run:
        """Start `hpacell WORDS`; `orders` are for `watch`."""
        self.n_runs += 1
        output = self.folder / f"output-{self.n_runs}"
        env = {f"{PREFIX}{name.upper()}": str(value) for name, value in ({"log": self.log} | orders).items()}
        order = {"words": [str(word) for word in words], "env": env, "output": str(output), "step": step, "store": str(store)}
        if not (self.fresh if fresh is None else fresh):
            return Run(self, self.ask(order), output)
        process = subprocess.Popen([sys.executable, __file__, "--obey", json.dumps(order)], env=self.env)
        return Run(self, process.pid, output, process=process)

    def run(self, *words: object, **options: object) -> Run:
        """The same, to its end."""
        run = self.start(*words, **options)
        run.wait()
        return run

    def cut(self) -> list[tuple[str, ...]]:
        """Name and content of the fields that were segmented since this was last asked."""
        found = [tuple(line.split()) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


class DifferenceError(AssertionError):
    """A store did not come out as it should."""


def check(holds: object, message: object) -> None:
    if not holds:
        raise DifferenceError(str(message))


def content(folder: Path) -> dict[str, bytes]:
    """All files but the sums that save time, which know when a file was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "signatures.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_same(folder: Path, expected: dict[str, bytes], when: str) -> None:
    found = content(folder)
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    check(not wrong, f"{when}: other bytes in {', '.join(wrong)} of {folder}")


def check_sentence(run: Run, code: int, *parts: str) -> None:
    """The command ended with this code, without a traceback, and said this."""
    text = run.text
    check(run.wait() == code, f"expected exit code {code}, got {run.wait()}: {text}")
    check("Traceback" not in text and "unexpected " not in text, text)
    for part in parts:
        check(part in text, f"expected {part!r} in {text!r}")


def session_of(pid: int) -> list[int]:
    """Living processes of the session that a run started."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getsid(int(name)) == pid and "\nState:\tZ" not in Path(f"/proc/{name}/status").read_text():
                found.append(int(name))
        except OSError:
            continue
    return found


def finished_fields(store: Path) -> set[tuple[str, str]]:
    """Name and content of the fields that are safe in a store, whatever state it is in."""
    from hpacell.feed.journal import BUILDING_NAME, _read_journal
    from hpacell.feed.parts import read_parts

    records = [record for part in read_parts(store) for record in part.fields]
    journal = store / BUILDING_NAME / "journal.jsonl"
    if journal.exists() and (store / BUILDING_NAME / "crops").exists():
        records += [entry["field"] for entry in _read_journal(journal)[1:]]
    return {(record["field_id"], record["content"]) for record in records}


def stage_of(store: Path) -> str:
    """How far a killed run had come."""
    building = store / ".building"
    if (store / "manifest.json").exists() and not building.exists():
        return "with a finished store"
    if (building / "index").exists() or (building / "fields").exists() or any(store.glob("index-*")):
        return "finishing"
    if (building / "crops").exists():
        return "filling a shard"
    return "between shards" if any(store.glob("shards/cells-*")) else "before the first field"


@dataclass
class Place:
    """Fields, and what an unbroken run makes of them."""

    folder: Path
    runner: Runner
    n_fields: int = 24
    bad: int = 1
    expected: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self):
        from hpacell.fields.simulate import simulate_fields

        self.fields, self.former = self.folder / "fields", self.folder / "former"
        simulate_fields(self.fields, n_fields=self.n_fields, seed=5, size=(128, 128))
        self.ids = sorted(path.name.removesuffix("_blue.png") for path in self.fields.glob("*_blue.png"))
        for field_id in self.ids[2 : 2 + self.bad]:
            path = self.fields / f"{field_id}_green.png"
            path.write_bytes(path.read_bytes()[:200])
        self.code = 1 if self.bad else 0  # of an extraction that does all it can
        some = self.folder / "some"  # two thirds of the fields, one of them with another pixel, all with another label
        some.mkdir()
        for path in sorted(self.fields.glob("*.png")):
            if self.ids.index(path.name.rsplit("_", 1)[0]) % 3:
                shutil.copy(path, some)
        shutil.copy(some / f"{self.ids[1]}_green.png", some / f"{self.ids[4]}_green.png")
        (some / "labels.csv").write_text("ID,Label\n" + "".join(f"{field_id},0\n" for field_id in self.ids))
        run = self.runner.run("extract", some, "--labels", some / "labels.csv", "--out", self.former, "--size", 32, "--workers", 1)
        check(run.wait() == self.code, run.text)
        whole = self.folder / "whole"
        start = time.perf_counter()
        run = self.extract(whole, step=10**9)
        self.seconds, self.n_steps = time.perf_counter() - start, run.n_steps
        check(run.wait() == self.code, run.text)
        self.expected = content(whole)
        check(self.runner.run("verify", whole).wait() == 0, "an unbroken run is not sound")
        self.runner.cut()

    def words(self, store: Path, workers: int = 1) -> list:
        return ["extract", self.fields, "--labels", self.fields / "labels.csv", "--out", store, "--size", 32, "--workers", workers]

    def extract(self, store: Path, workers: int = 1, **options: object) -> Run:
        return self.runner.run(*self.words(store, workers), store=store, **options)

    def copy(self, name: str) -> Path:
        """A copy of the finished store."""
        return Path(shutil.copytree(self.folder / "whole", self.folder / name))


# -- trials ------------------------------------------------------------------------------------------------------------


def kill_trial(
    place: Place, name: str, seed: int, workers: int = 1, former: bool = False, fresh: bool | None = None, times: tuple[int, ...] = (1, 1, 2, 3)
) -> list[str]:
    """Kill an extraction as many times as one of `times` says, then let it end; the stages at which it was killed."""
    draw, store, stages = random.Random(seed), place.folder / name, []
    if former:
        shutil.copytree(place.former, store)
    safe, again, in_flight = set(), [], 0
    for _ in range(draw.choice(times)):
        by_step = draw.random() < 0.5
        step = draw.randint(1, place.n_steps) if by_step else 0
        run = place.runner.start(*place.words(store, workers), step=step, store=store, fresh=fresh)
        if not by_step:
            time.sleep(draw.uniform(0, 1.0) * place.seconds * (1.2 if workers == 1 else 2.5) + (2 if fresh else 0))
            processes = session_of(run.pid)
            code = run.kill()
        else:
            code, processes = run.wait(), session_of(run.pid)
        deadline = time.monotonic() + 120
        while (alive := session_of(run.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        check(not alive, f"{name}: processes {alive} of {processes} outlived a run that was killed")
        cut = place.runner.cut()
        check(not safe & set(cut), f"{name}: fields that were finished were cut again: {sorted(safe & set(cut))}")
        again += cut
        if former:
            check_old_or_new(place, store, name)
        if code == -signal.SIGKILL:
            stages.append(stage_of(store))
            in_flight += 1 + 2 * workers
        safe |= finished_fields(store) if (store / "shards").exists() else set()
    run = place.extract(store, workers)
    check(run.wait() == place.code, f"{name}: {run.text}")
    cut = place.runner.cut()
    check(not safe & set(cut), f"{name}: fields that were finished were cut again: {sorted(safe & set(cut))}")
    check(len(cut + again) <= place.n_fields - place.bad + in_flight, f"{name}: cut {len(cut + again)} fields of {place.n_fields}")
    check_same(store, place.expected, name)
    check((store / ".lock").read_bytes() == b"", f"{name}: the lock holds something")
    shutil.rmtree(store)
    return stages


def check_old_or_new(place: Place, store: Path, name: str) -> None:
    """Whatever happened, a reader finds the former store or the new one."""
    from hpacell.feed.store import read_store

    crops = {folder: read_store(folder).crops for folder in (store, place.former, place.folder / "whole")}
    rows = {folder: len(read_store(folder)) for folder in crops}
    found = crops[store](range(rows[store])).tobytes()
    known = [crops[folder](range(rows[folder])).tobytes() for folder in (place.former, place.folder / "whole")]
    check(found in known, f"{name}: neither the former store nor the new one")


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flip_header(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(min(80, len(data)))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


DAMAGES = {
    "flip": flip,
    "flip at the start": flip_header,
    "cut": lambda path, draw: os.truncate(path, draw.randrange(path.stat().st_size)),
    "empty": lambda path, draw: os.truncate(path, 0),
    "delete": lambda path, draw: path.unlink(),
}
KINDS = {
    "crops": "shards/crops-*", "cells": "shards/cells-*", "index": "index-*", "fields": "fields-*",
    "manifest": "manifest.json", "quarantine": "quarantine.csv", "origin": "origin.json", "signatures": "signatures.json", "lock": ".lock",
}  # fmt: skip
UNFINISHED = KINDS | {"journal": ".building/journal.jsonl", "open crops": ".building/crops"}


def damage(store: Path, pattern: str, how: str, draw: random.Random) -> Path | None:
    """Damage one file of a kind; None where there is nothing to damage."""
    path = draw.choice(sorted(store.glob(pattern)))
    if not path.stat().st_size and how != "delete":
        return None
    DAMAGES[how](path, draw)
    return path


def damage_trial(place: Place, kind: str, how: str, seed: int) -> str:
    """Damage a finished store; verify names the file, repair ends in the same bytes. What was found."""
    draw, store, runner = random.Random(seed), place.copy(f"damaged-{seed}"), place.runner
    of_shard = {}
    for shard in json.loads((store / "manifest.json").read_text())["shards"]:
        of_shard[shard["name"]] = shard["n_fields"]
    path = damage(store, KINDS[kind], how, draw)
    if path is None:
        shutil.rmtree(store)
        return "empty anyway"
    name = path.relative_to(store).as_posix()
    found = runner.run("verify", store)
    if kind in ("signatures", "lock") or (kind == "origin" and how == "delete"):
        check(found.wait() in (0, 1), found.text)
    else:
        check_sentence(found, 1, name)
    mended = runner.run("verify", store, "--repair", "--workers", 1)
    n_cut = len(runner.cut())
    check_sentence(mended, 0)
    result = "mended" if found.wait() else "no harm"
    allowed = 0 if kind != "crops" else 1 if how.startswith("flip") else of_shard[name]
    check(n_cut <= allowed, f"{how} of {name}: {n_cut} fields were cut to mend it, {allowed} would do")
    check_same(store, place.expected, f"{how} of {name}")
    check(runner.run("verify", store).wait() == 0, f"{how} of {name}: not sound in the end")
    shutil.rmtree(store)
    return f"{result}, {n_cut} cut" if n_cut else result


def unfinished_store(place: Place) -> Path:
    """A former store whose update was killed when several shards were sealed and one was open."""
    store, at = place.folder / "unfinished", place.n_fields // 3
    while not (complete := store.exists() and all(any(store.glob(pattern)) for pattern in UNFINISHED.values())) and at > 1:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(place.former, store)
        check(place.extract(store, kill_at_cut=at).wait() == -signal.SIGKILL, f"{store}: not killed at cut {at}")
        at -= 1
    check(complete, f"{store}: expected every kind of file")
    place.runner.cut()
    return store


def unfinished_trial(place: Place, kind: str, how: str, seed: int) -> str:
    """Damage an unfinished store, then resume: the same bytes, or damage that verify names and repair mends."""
    draw, runner = random.Random(seed), place.runner
    store = Path(shutil.copytree(unfinished_store(place), place.folder / f"resumed-{seed}"))
    path = damage(store, UNFINISHED[kind], how, draw)
    if path is None:
        shutil.rmtree(store)
        return "empty anyway"
    run, result = place.extract(store), "same bytes"
    check_sentence(run, run.wait(), "")
    check(run.wait() in (place.code, 2), run.text)
    if "mended:" in run.text:
        result = "seen, mended, same bytes"
    if run.wait() == 2 or content(store) != place.expected:
        result = "one sentence, mended by repair" if run.wait() == 2 else "named by verify, mended by repair"
        check_sentence(runner.run("verify", store), 1, path.name)
        check_sentence(runner.run("verify", store, "--repair", "--workers", 1), 0)
    check_same(store, place.expected, f"{how} of {path.name} in an unfinished store")
    runner.cut()
    shutil.rmtree(store)
    return result


@contextmanager
def small_disk(folder: Path, size: int, options: str = ""):
    """A file system of its own in memory; None where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", folder], capture_output=True, check=False)
    try:
        yield folder if made.returncode == 0 else None
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def can_mount(folder: Path) -> bool:
    if shutil.which("mount") is None:
        return False
    with small_disk(folder / "probe", 2**20) as disk:
        return disk is not None


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def full_disk_trial(place: Place, name: str, size: int, former: bool, workers: int = 1, options: str = "") -> str:
    """Extract onto a disk that is too small, then give it room."""
    from hpacell.feed.store import read_store

    with small_disk(place.folder / name, size + (du(place.former) if former else 0), options) as disk:
        store = disk / "store"
        if former:
            shutil.copytree(place.former, store)
        before = content(store)
        run = place.extract(store, workers)
        cut = place.runner.cut()
        if run.wait() == place.code:
            result = "there was room"
        else:
            check_sentence(run, 2, "expected", "on the disk", "free some and run the same")
            check(len(run.text.strip().splitlines()) == 1, run.text)
            result = "one sentence, then the same bytes"
            if former and stage_of(store) != "with a finished store":
                check(len(read_store(store)) == len(read_store(place.former)), f"{name}: the former store is lost")
                after = content(store)
                lost = [file for file in before if after.get(file) != before[file] and file not in ("origin.json", "quarantine.csv")]
                check(not lost or (store / "manifest.json").read_bytes() != before["manifest.json"], f"{name}: lost {lost}")
        safe = finished_fields(store) if (store / "shards").exists() else set()
        remount(disk, "size=64m,nr_inodes=0" if options else "size=64m")
        again = place.extract(store, workers)
        check(again.wait() == place.code, f"{name}: {again.text}")
        repeated = set(place.runner.cut()) & set(cut) & safe
        check(not repeated, f"{name}: finished fields were cut again: {sorted(repeated)}")
        check_same(store, place.expected, name)
    return result


def du(folder: Path) -> int:
    """Bytes of a folder in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def read_only_trial(place: Place) -> list[str]:
    """A finished store on a disk that cannot be written, and a disk without one."""
    found = []
    with small_disk(place.folder / "read-only", 2**26) as disk:
        shutil.copytree(place.folder / "whole", disk / "store")
        remount(disk, "ro")
        for what, store in {"new store": disk / "new", "unchanged store": disk / "store"}.items():
            check_sentence(place.extract(store), 2, "expected to be allowed to write", "choose another folder")
            found.append(f"extract, {what}: one sentence")
        check_sentence(place.runner.run("verify", disk / "store"), 0, "sound")
        found.append("verify: works")
        check_sentence(place.runner.run("verify", disk / "store", "--repair"), 2, "expected to be allowed to write")
        found.append("verify --repair: one sentence")
        check_sentence(place.runner.run("export", disk / "store", "--to", "png", "--out", place.folder / "png"), 0)
        found.append("export: works")
        check_same(disk / "store", place.expected, "a store on a read-only disk")
    place.runner.cut()
    return found


def changed_field_trial(place: Place, name: str, after: int, manner: str, workers: int = 1) -> str:
    """Replace all files of a field while it is read; what became of it in this run. The next one takes the new content."""
    fields, field_id, runner = place.folder / f"{name}-fields", place.ids[5], place.runner
    shutil.copytree(place.fields, fields)
    files = {str(fields / f"{field_id}_{colour}.png"): str(place.fields / f"{place.ids[6]}_{colour}.png") for colour in COLOURS}
    words = ["extract", fields, "--labels", fields / "labels.csv", "--size", 32, "--workers", workers, "--out"]
    store, whole = place.folder / name, place.folder / f"{name}-whole"
    run = runner.run(*words, store, replace=json.dumps({"files": files, "after": after, "manner": manner}))
    check(run.wait() in (place.code, 1), run.text)
    listed = (store / "quarantine.csv").read_text()
    check(f"{field_id}: expected files that stay as they are, got one that changed while it was read" in listed, f"{name}: {listed}")
    runner.cut()
    check(runner.run(*words, store).wait() == place.code, f"{name}: the next run")
    check([cut[0] for cut in runner.cut()] == [field_id], f"{name}: the next run cuts that field alone")
    runner.run(*words, whole)
    check_same(store, content(whole), name)
    runner.cut()
    for folder in (fields, store, whole):
        shutil.rmtree(folder)
    return "quarantined, then taken"


def two_writers_trial(place: Place, name: str, workers: int = 1) -> list[str]:
    """A second process at the same store refuses; the first goes on."""
    store, runner = Path(shutil.copytree(place.former, place.folder / name)), place.runner
    hold = place.folder / f"{name}-hold"  # while it is there, nothing is cut but a first field
    hold.touch()
    first = runner.start(*place.words(store, workers), store=store, hold=hold)
    try:
        while not (store / ".building" / "journal.jsonl").exists():
            check("\nState:\tZ" not in Path(f"/proc/{first.pid}/status").read_text(), "the first ended before it wrote anything")
            time.sleep(0.01)
        check_sentence(place.extract(store), 2, "got another process that does")
        check_sentence(runner.run("verify", store, "--repair", "--workers", 1), 2, "got another process that does")
        check((store / ".building").exists(), "the first was too fast to be met")
    finally:
        hold.unlink()
    check(first.wait() == place.code, first.text)
    cut = runner.cut()
    check(cut and len(cut) == len(set(cut)), f"fields were cut twice: {cut}")
    check_same(store, place.expected, name)
    shutil.rmtree(store)
    return ["extract: refuses", "verify --repair: refuses", "the first: same bytes"]


def train_trial(place: Place) -> str:
    """Train from a store on a read-only disk."""
    with small_disk(place.folder / "train-disk", 2**26) as disk:
        shutil.copytree(place.folder / "whole", disk / "store")
        remount(disk, "ro")
        command = [sys.executable, "-m", "hpacell", "train", disk / "store", "--out", place.folder / "model", "--epochs", "1"]
        done = subprocess.run(command, env=place.runner.env, capture_output=True, text=True, check=False)
        check(done.returncode == 0, done.stdout + done.stderr)
        check_same(disk / "store", place.expected, "a store that was trained from")
    return "works"


# -- all of it ---------------------------------------------------------------------------------------------------------


class Tally:
    """What was run and what came of it."""

    def __init__(self, go_on: bool = False):
        self.start, self.groups, self.go_on, self.differences = time.perf_counter(), {}, go_on, []

    def attempt(self, trial, *arguments: object, **options: object):
        """The result of a trial; a difference is one too, if we are to go on."""
        try:
            return trial(*arguments, **options)
        except DifferenceError as error:
            self.differences.append(f"{trial.__name__}{arguments[1:]}: {error}")
            if not self.go_on:
                raise
            print(f"DIFFERENCE {self.differences[-1]}", file=sys.stderr, flush=True)
            return "DIFFERENCE"

    @contextmanager
    def group(self, name: str):
        found, start = Counter(), time.perf_counter()
        yield found
        self.groups[name] = {"n": sum(found.values()), "found": dict(found), "seconds": round(time.perf_counter() - start, 1)}
        self.show(name)

    def show(self, name: str) -> None:
        entry = self.groups[name]
        lines = [f"{number:4}  {what}" for what, number in sorted(entry["found"].items(), key=lambda pair: -pair[1])]
        print("\n".join([f"{name}: {entry['n']} in {entry['seconds']} s", *lines]), flush=True)

    def summary(self) -> dict:
        return {"seconds": round(time.perf_counter() - self.start, 1), "groups": self.groups}


def torture_kills(place: Place, tally: Tally, n: int, workers: int, seed: int, n_fresh: int) -> None:
    """At least `n` kills."""
    with tally.group(f"SIGKILL, {workers} worker{'s' * (workers > 1)}") as found:
        trial = 0
        while sum(found.values()) < n:
            name, options = f"killed-{workers}-{trial}", {"former": trial % 3 == 2, "fresh": trial < n_fresh}
            stages = tally.attempt(kill_trial, place, name, seed + trial, workers, **options)
            found.update([stages] if isinstance(stages, str) else stages)
            trial += 1


def torture_damage(place: Place, tally: Tally, seed: int) -> None:
    """Every damage to every kind of file, of a finished store and of an unfinished one."""
    for title, kinds, trial in [("finished", KINDS, damage_trial), ("unfinished", UNFINISHED, unfinished_trial)]:
        with tally.group(f"damage to a store that is {title}") as found:
            for number, (kind, how) in enumerate((kind, how) for kind in kinds for how in DAMAGES):
                result = tally.attempt(trial, place, kind, how, seed + number)
                if result != "empty anyway":
                    found[f"{kind}, {how}: {result}"] += 1


def torture_disks(place: Place, tally: Tally) -> None:
    """Disks that are too small or cannot be written."""
    if not can_mount(place.folder):
        print("full and read-only disks: left out, since mounting a tmpfs is not allowed here")
        return
    size = du(place.folder / "whole")
    with tally.group("full disk") as found:
        for number, share in enumerate([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2]):
            for former in (False, True):
                found[tally.attempt(full_disk_trial, place, f"full-{number}-{former}", max(4096, int(size * share)), former)] += 1
        for inodes in (3, 5, 7, 9, 12, 16):
            found[tally.attempt(full_disk_trial, place, f"inodes-{inodes}", 2**26, False, options=f",nr_inodes={inodes}")] += 1
        for number, share in enumerate((0.1, 0.6)):
            found[tally.attempt(full_disk_trial, place, f"full-2-{number}", int(size * share), True, workers=2)] += 1
    with tally.group("read-only disk") as found:
        found.update(tally.attempt(read_only_trial, place))
        found[f"train: {tally.attempt(train_trial, place)}"] += 1


def torture_company(place: Place, tally: Tally) -> None:
    """Fields that change while they are read, and a second writer."""
    with tally.group("a field replaced while it is read") as found:
        for manner in ("rename", "in place", "in place, with the old time"):
            for after in range(len(COLOURS) + 1):
                found[tally.attempt(changed_field_trial, place, f"changed-{manner[:2]}-{len(manner)}-{after}", after, manner)] += 1
        found[tally.attempt(changed_field_trial, place, "changed-2", 2, "rename", workers=2)] += 1
    with tally.group("two writers") as found:
        for workers in (1, 2):
            found.update(tally.attempt(two_writers_trial, place, f"two-{workers}", workers))


def torture(arguments: argparse.Namespace) -> int:
    folder, tally = Path(tempfile.mkdtemp(prefix="torture-")), Tally(arguments.go_on)
    runner = Runner(folder, fresh=arguments.fresh)
    try:
        place = Place(folder, runner)
        n_shards = len(json.loads(place.expected["manifest.json"])["shards"])
        print(f"{place.n_fields} fields, {n_shards} shards, {place.n_steps} steps, {place.seconds:.1f} s for an unbroken run", flush=True)
        if arguments.only in (None, "kills"):
            torture_kills(place, tally, arguments.kills, 1, arguments.seed, n_fresh=5)
            torture_kills(place, tally, arguments.kills_of_two, 2, arguments.seed + 10_000, n_fresh=2)
        if arguments.only in (None, "damage"):
            torture_damage(place, tally, arguments.seed)
        if arguments.only in (None, "disks"):
            torture_disks(place, tally)
        if arguments.only in (None, "company"):
            torture_company(place, tally)
    except DifferenceError as error:
        tally.differences = tally.differences or [str(error)]
    finally:
        runner.close()
    summary = tally.summary() | {"seed": arguments.seed, "differences": tally.differences}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{sum(group['n'] for group in tally.groups.values())} in {summary['seconds']} s, {len(tally.differences)} differences")
    if tally.differences:
        print("\n".join([*tally.differences, f"what they left is in {folder}"]), file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of runs with one worker")
    parser.add_argument("--kills-of-two", type=int, default=20, help="kills of runs with two workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="a new Python for each run: slower, nothing shared")
    parser.add_argument("--only", help="kills, damage, disks or company")
    parser.add_argument("--go-on", action="store_true", help="past differences, to the end")
    parser.add_argument("--out", help="JSON file for the summary")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--obey", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    return obey(json.loads(arguments.obey)) if arguments.obey else torture(arguments)


if __name__ == "__mp_main__" and f"{PREFIX}LOG" in os.environ:  # a worker of a run imports this file
    watch()
if __name__ == "__main__":
    sys.exit(main())
