"""A crop store on its disk: writing beside the disk's own rate, reading cold and from slow disks, opening, checking, taking over.

The crops are 128 x 128 x 4 uint8, made from a seed: blurred blobs in a cleared mask, about 60 % zeros, a third as large
by zstd. Where the data folder holds `hpa/scc`, cells of its fields are compressed too, to compare. The rows of the index
are those of a simulated field, with all that `measure_cells` gives.

Write: a store of all crops, field by field to the end of `finish`, everything synced; right before and right after, the
same bytes into one file, synced. A round compares the store with the mean of the two; the median round counts.

Cold: before each reading the files leave the page cache, which is checked, and the crops are read as the feed reads
them, in batches, by one thread on one core or two on two. Slow disks are made in two ways. The kernel's (blkio of
control groups, version 1; needs root) limits what really comes from the disk, read-ahead included. The emulated one
works everywhere: files are in memory, and a batch waits until the pages of 4 KiB that its crops touch, and nothing
else, would have come at that rate, one batch after the other.

    python benchmarks/store.py                     # all, some minutes
    python benchmarks/store.py --crops 2000 --rounds 1 --fields 1000   # a glance
"""

import argparse
import ctypes
import gc
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa

import hpacell.feed.journal as journal
import hpacell.feed.writer as writer
from hpacell.cells.crops import crop_cells
from hpacell.cells.measurements import measure_cells
from hpacell.feed.gather import CropGatherer
from hpacell.feed.parts import to_rows
from hpacell.feed.shards import COMPRESSIONS, SLOW_DISK, choose_compression, compress
from hpacell.feed.store import read_store
from hpacell.feed.verify import verify_store
from hpacell.feed.writer import StoreWriter
from hpacell.fields.simulate import simulate_field
from hpacell.vocabulary import CHANNELS

SEED = 7
SHAPE, SMALL_SHAPE = (128, 128, 4), (8, 8, 4)
BATCH, PER_FIELD, SMALL_PER_FIELD = 64, 20, 5
KERNEL_RATES = (50, 100, 200, 400, 1000)  # MB/s
EMULATED_RATES = (50, 100, 200, 400, 1000, 2000, 4000)
ORDERS, THREADS = ("random", "sequential"), (1, 2)
PAGE = 4096
GROUPS = Path("/sys/fs/cgroup/blkio")
GOAL = 0.6


def make_crops(n: int) -> np.ndarray:
    """Blurred blobs inside of ellipses, black outside; dim beside bright, as cells are."""
    generator = np.random.default_rng(SEED)
    rows, columns = np.mgrid[-1:1:128j, -1:1:128j]
    crops = np.empty((n, *SHAPE), np.uint8)
    for crop in crops:
        texture = cv2.GaussianBlur(generator.integers(0, 256, SHAPE, np.uint8), (0, 0), 1.2)
        texture = cv2.addWeighted(texture, 4, texture, 0, -400)
        half = generator.uniform(0.5, 0.97, 2)
        crop[...] = texture * ((rows / half[0]) ** 2 + (columns / half[1]) ** 2 < 1)[..., None]
    return crops


def make_rows() -> pd.DataFrame:
    """Index rows of one field."""
    simulated = simulate_field(SEED, (1024, 1024), cell_diameter=200)
    rows = measure_cells(simulated.field.image, simulated.cells, simulated.nuclei, CHANNELS, "field", "nucleoplasm|cytosol")
    return rows.iloc[np.arange(PER_FIELD) % len(rows)].reset_index(drop=True)


def real_crops(folder: Path) -> np.ndarray | None:
    """Cells of real fields, if there are any."""
    names = sorted(path.name.removesuffix("_predictedmask.png") for path in folder.glob("*_predictedmask.png"))
    crops = []
    for name in names:
        image = np.stack([cv2.imread(str(folder / f"{name}_{c}.png"), cv2.IMREAD_UNCHANGED) for c in ("red", "green", "blue", "yellow")], -1)
        cells = cv2.imread(str(folder / f"{name}_predictedmask.png"), cv2.IMREAD_UNCHANGED)
        crops.append(crop_cells(image, cells.astype(np.int32)))
    return np.concatenate(crops) if crops else None


def describe(crops: np.ndarray) -> dict:
    """How well crops compress."""
    frames = [len(compress(crop)) for crop in crops]
    return {"crops": len(crops), "zeros": round(float((crops == 0).mean()), 3), "ratio": round(crops.nbytes / sum(frames), 2)}


def write_store(folder: Path, crops: np.ndarray, rows: list[pd.DataFrame], compression: str = "none") -> None:
    """Crops into a new store, a field after the other."""
    with StoreWriter(folder, SHAPE, CHANNELS, {}, compression) as target:
        for number, cells in enumerate(rows):
            field_id = f"f{number:05}"
            field = {"field_id": field_id, "labels": "nucleoplasm|cytosol", "height": 2048, "width": 2048}
            target.add(field_id, field, cells, crops[number * PER_FIELD : (number + 1) * PER_FIELD])
        target.finish()


def write_file(path: Path, crops: np.ndarray) -> None:
    """The same bytes into one file."""
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(crops), PER_FIELD):
            file.write(crops[start : start + PER_FIELD])
        os.fsync(file.fileno())


def timed(function: Callable, *arguments) -> tuple[float, float]:
    """Wall and processor seconds, after all that was written before is on the disk."""
    os.sync()
    start, start_processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - start, time.process_time() - start_processor


class Profile:
    """Seconds by kind of work; what is called within another is counted once, as its own kind."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.beside: dict[str, float] = {}  # in other threads, while the main one went on
        self._local = threading.local()

    def wrap(self, function: Callable, kind: str | Callable) -> Callable:
        """The function, timed."""

        def call(*arguments, **named):
            inner = self._local.__dict__.setdefault("inner", [0.0])
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent = time.perf_counter() - start
                name = kind(*arguments) if callable(kind) else kind
                where = self.seconds if threading.current_thread() is threading.main_thread() else self.beside
                where[name] = where.get(name, 0.0) + spent - inner.pop()
                inner[-1] += spent

        return call


class Stand:
    """Stands for a module or class, with some of its functions replaced."""

    def __init__(self, base: object, **changed):
        self.__dict__.update(changed, _base=base)

    def __getattr__(self, name: str):
        return getattr(self._base, name)


WATCHED = (  # where a name is looked up, and what it is called here; a name that is not there is left out
    (writer, "to_rows", "rows to Arrow"), (journal, "_pack", "rows to a stream"), (journal, "compress", "zstd"),
    (journal, "base64.b64encode", "journal: base64"), (journal, "json.dumps", "journal: JSON"), (journal, "_with_sum", "journal: JSON"),
    (journal, "_write_all", lambda file, content: f"write: {Path(file.name).stem}"),
    (journal, "join_tables", "rows of a shard, Parquet"), (journal, "write_part", "rows of a shard, Parquet"),
    (StoreWriter, "_new_manifest", "index and fields, Parquet"), (writer, "read_store", "open the store"),
    (writer, "checksum", "checksum of a field"), (journal, "checksum", "checksum of a field"), (writer, "file_checksum", "read back, checksum"),
    (journal, "file_checksum", "read back, checksum"), (os, "fsync", "fsync"), (os, "fdatasync", "fsync"),
)  # fmt: skip


@contextmanager
def watched() -> Iterator[Profile]:
    """Time the parts of a store's writing."""
    profile, former = Profile(), []
    for place, path, kind in WATCHED:
        first, *more = path.split(".")
        if not hasattr(place, first):
            continue
        found = [getattr(place, first)]
        for name in more:
            found.append(getattr(found[-1], name))
        changed = profile.wrap(found[-1], kind)
        for base, name in zip(reversed(found[:-1]), reversed(more), strict=True):
            changed = Stand(base, **{name: changed})
        former.append((place, first, found[0]))
        setattr(place, first, changed)
    try:
        yield profile
    finally:
        for place, name, value in reversed(former):
            setattr(place, name, value)


def bench_write(place: Path, crops: np.ndarray, rounds: int) -> dict:
    """MB/s of a store and of the disk, and where a store's time goes."""
    template = make_rows()
    # As an extraction gives them: its workers make them, beside this process.
    rows = [to_rows(template.assign(field_id=f"f{number:05}")) for number in range(len(crops) // PER_FIELD)]
    size, found, shares = crops.nbytes / 1e6, [], {}
    for compression in COMPRESSIONS:
        for _ in range(rounds):
            before, _ = timed(write_file, place / "file", crops)
            os.unlink(place / "file")
            with watched() as profile:
                store, processor = timed(write_store, place / "store", crops, rows, compression)
            on_disk = sum(path.stat().st_size for path in place.joinpath("store").rglob("*") if path.is_file()) / 1e6
            shutil.rmtree(place / "store")
            after, _ = timed(write_file, place / "file", crops)
            os.unlink(place / "file")
            disk = statistics.mean((size / before, size / after))
            figures = {"store": size / store, "disk_before": size / before, "disk_after": size / after, "of_disk": size / store / disk, "seconds": store, "processor_seconds": processor, "mb_on_disk": on_disk}  # fmt: skip
            found.append({"compression": compression} | {name: round(value, 3) for name, value in figures.items()})
            parts = profile.seconds | {"other": store - sum(profile.seconds.values())}
            parts |= {f"beside: {name}": seconds for name, seconds in profile.beside.items()}
            shares.setdefault(compression, []).append(parts)
    table = pd.DataFrame(found)
    result = {"mb": round(size, 1), "columns": len(template.columns), "rounds": found, "goal": GOAL}
    print(f"store write: {size:,.0f} MB in {len(rows)} fields; {rounds} rounds, median (lowest to highest)")
    for compression in COMPRESSIONS:
        chosen = table[table["compression"] == compression]
        median = chosen.median(numeric_only=True)
        parts = pd.DataFrame(shares[compression]).fillna(0).median().sort_values(ascending=False)
        met = "" if compression != "none" or median["of_disk"] >= GOAL else "  NOT MET"
        disk = pd.concat([chosen["disk_before"], chosen["disk_after"]])
        result[compression] = {"median": median.round(3).to_dict(), "share": (parts / median["seconds"]).round(3).to_dict()}
        print(
            f"  {compression:5} {median['store']:6.0f} MB/s ({chosen['store'].min():.0f} to {chosen['store'].max():.0f}), disk {disk.median():.0f} ({disk.min():.0f} to {disk.max():.0f}): "
            f"{median['of_disk']:.0%} of it, goal {GOAL:.0%}{met}; {median['seconds']:.2f} s, processor {median['processor_seconds']:.2f} s"
        )
        for name, seconds in parts.items():
            if seconds >= 0.005 * median["seconds"]:
                print(f"        {name:28} {seconds:6.3f} s {seconds / median['seconds']:6.1%}")
    return result


def write_both(place: Path, crops: np.ndarray) -> None:
    """The same crops plain and compressed."""
    rows = make_rows()[["field_id", "cell_id", "labels"]]
    for compression in COMPRESSIONS:
        write_store(place / compression, crops, [rows.assign(field_id=f"f{number:05}") for number in range(len(crops) // PER_FIELD)], compression)


def shard_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "shards").iterdir() if path.name.startswith("crops-"))


def forget(folder: Path) -> float:
    """Have the page cache forget the shards of a store; the share that it still holds."""
    gc.collect()
    libc, held, total = ctypes.CDLL(None, use_errno=True), 0, 0
    for path in shard_files(folder):
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(file.fileno(), 0) as mapped:
                pages = -(-len(mapped) // PAGE)
                vector, start = (ctypes.c_ubyte * pages)(), ctypes.c_ubyte.from_buffer(mapped)
                if libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), vector):
                    raise OSError(ctypes.get_errno(), f"{path}: mincore failed")
                del start
                held, total = held + int((np.frombuffer(vector, np.uint8) & 1).sum()), total + pages
    return held / total


class EmulatedDisk:
    """Lets a batch go on once a disk of that rate would have read its pages; one request after the other."""

    def __init__(self, store, rate: float):
        self.rate, self._free, self._lock = rate * 1e6, 0.0, threading.Lock()
        manifest = store.manifest
        counts = [shard["n_crops"] for shard in manifest["shards"]]
        self._shard = np.repeat(np.arange(len(counts)), counts)
        if manifest["compression"] == "none":
            sizes, header = np.full(len(store), int(np.prod(SHAPE))), 128
        else:
            index = Path(store.folder, manifest["index"]["name"])
            sizes, header = pd.read_parquet(index, columns=["crop_bytes"])["crop_bytes"].to_numpy(np.int64), 0
        ends = np.concatenate([header + np.cumsum(some) for some in np.split(sizes, np.cumsum(counts)[:-1])])
        self._first, self._last = (ends - sizes) // PAGE, (ends - 1) // PAGE

    def wait(self, rows: np.ndarray) -> int:
        """Wait for the pages of these crops; the bytes of them."""
        pages = {(self._shard[row], page) for row in rows for page in range(self._first[row], self._last[row] + 1)}
        n_bytes = len(pages) * PAGE
        with self._lock:
            self._free = max(self._free, time.perf_counter()) + n_bytes / self.rate
            until = self._free
        if (pause := until - time.perf_counter()) > 0:
            time.sleep(pause)
        return n_bytes


@contextmanager
def kernel_disk(folder: Path, rate: float) -> Iterator[None]:
    """This process in a control group of its own, whose reads of the folder's disk are limited to a rate."""
    mine = next(line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.split(":")[1] == "blkio")
    parent = GROUPS / mine.strip("/")
    group = parent / f"hpacell-bench-{os.getpid()}"
    device = os.stat(folder).st_dev
    group.mkdir()
    try:
        (group / "blkio.throttle.read_bps_device").write_text(f"{os.major(device)}:{os.minor(device)} {int(rate * 1e6)}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def bytes_read() -> int:
    """What this process has had from disks so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def read_rows(gather: CropGatherer, rows: np.ndarray, threads: int, disk: EmulatedDisk | None = None) -> float:
    """Crops a second, batch by batch as the feed reads them."""

    def read(start: int) -> int:
        chosen = rows[start : start + BATCH]
        if disk is not None:
            disk.wait(chosen)
        return len(gather(chosen))

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        n = sum(pool.map(read, range(0, len(rows), BATCH)))
    return n / (time.perf_counter() - start)


def chosen_rows(n: int, total: int, order: str) -> np.ndarray:
    return np.random.default_rng(SEED).permutation(total)[:n] if order == "random" else np.arange(total)[:n]


def pin(n: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(range(os.cpu_count())[-n:]))


def run_reads(place: Path, way: str, rate: float) -> list[dict]:
    """All readings of one disk: "memory", "disk" (as it is), "kernel" or "emulated"."""
    cv2.setNumThreads(1)
    cold, found = way in ("disk", "kernel"), []
    for threads in THREADS:
        pin(threads)
        for order in ORDERS:
            for compression in COMPRESSIONS:
                held = forget(place / compression) if cold else 1.0
                if cold and held > 0.01:
                    raise SystemExit(f"{place / compression}: expected no page of it in memory, got {held:.1%}: nothing else may read it meanwhile")
                store = read_store(place / compression)
                n = len(store) if way in ("memory", "disk") else min(len(store), max(15 * BATCH, int(rate * 1e6 / np.prod(SHAPE))))
                gather, rows = CropGatherer(store, np.arange(len(store))), chosen_rows(n, len(store), order)
                if not cold:
                    read_rows(gather, np.arange(len(store)), threads)
                disk = EmulatedDisk(store, rate) if way == "emulated" else None
                before = bytes_read() if cold else 0
                if way == "kernel":
                    with kernel_disk(place, rate):
                        per_second = read_rows(gather, rows, threads)
                elif way == "memory":
                    per_second = statistics.median(read_rows(gather, rows, threads) for _ in range(3))
                else:
                    per_second = read_rows(gather, rows, threads, disk)
                row = {"way": way, "mb_per_second": rate, "threads": threads, "order": order, "compression": compression, "crops": n, "per_second": round(per_second)}
                found.append(row | ({"kib_from_disk_per_crop": round((bytes_read() - before) / n / 1024, 1)} if cold else {}))
                del store, gather, disk
    return found


def run_part(part: str, *arguments: str | float | Path) -> list[dict] | dict:
    """Run a part in a process of its own, with threads only where they are asked for."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads | {"HPACELL_PROGRESS": os.devnull})
    if done.returncode:
        raise SystemExit(f"{part} {arguments}: expected exit code 0, got {done.returncode}: see its message above")
    return json.loads(done.stdout.splitlines()[-1])


def equal_rates(rates: pd.DataFrame) -> dict:
    """What is faster from the slowest disk, and the MB/s at which the other becomes so, interpolated on logarithms."""
    gain = np.log(rates["zstd"] / rates["none"]).to_numpy()
    x = np.log(rates.index.to_numpy(float))
    turns = [x[i] + (x[i + 1] - x[i]) * gain[i] / (gain[i] - gain[i + 1]) for i in range(len(gain) - 1) if (gain[i] > 0) != (gain[i + 1] > 0)]
    return {"first": "zstd" if gain[0] > 0 else "none", "turns_at_mb_per_second": [round(float(np.exp(turn))) for turn in turns], "tried": rates.index.tolist()}


def bench_reads(place: Path, crops: np.ndarray) -> dict:
    """Raw against compressed shards, in memory and from disks of several rates."""
    write_both(place, crops)
    measured = round(64 * 2**20 / 1e6 / probe_seconds(place))
    rows = run_part("reads", place, "memory", 0) + run_part("reads", place, "disk", 0)
    kernel = "measured"
    try:
        with kernel_disk(place, 1000):
            pass
        for rate in KERNEL_RATES:
            rows += run_part("reads", place, "kernel", rate)
    except (OSError, StopIteration) as error:
        kernel = f"absent: {error or 'no control groups'}"
    for rate in EMULATED_RATES:
        rows += run_part("reads", place, "emulated", rate)
    table, equal = pd.DataFrame(rows), {}
    print("\nreading, crops/s: raw / zstd, by one thread on one core and two on two; in brackets KiB that came from the disk for a crop")
    for (way, rate), some in table.groupby(["way", "mb_per_second"], sort=False):
        cells = []
        for threads in THREADS:
            for order in ORDERS:
                pair = some[(some["threads"] == threads) & (some["order"] == order)].set_index("compression")
                text = " / ".join(f"{pair['per_second'][name]:,}" for name in COMPRESSIONS)
                if way in ("disk", "kernel"):
                    text += " [{:.0f}/{:.0f}]".format(*(pair["kib_from_disk_per_crop"][name] for name in COMPRESSIONS))
                cells.append(f"{threads} {order} {text}")
        print(f"  {way:8} {f'{rate:g} MB/s' if rate else '':10} " + "; ".join(cells))
    for (way, threads, order), some in table[table["mb_per_second"] > 0].groupby(["way", "threads", "order"], sort=False):
        equal[f"{way}, {threads} threads, {order}"] = equal_rates(some.pivot(index="mb_per_second", columns="compression", values="per_second"))
    for name, found in equal.items():
        turns = "".join(f", the other from {rate} MB/s" for rate in found["turns_at_mb_per_second"]) or " throughout"
        print(f"  faster from {found['tried'][0]:g} to {found['tried'][-1]:g} MB/s: {found['first']}{turns} ({name})")
    print(f"  the disk itself, 64 MiB read cold: {measured} MB/s; SLOW_DISK is {SLOW_DISK / 1e6:.0f} MB/s; choose_compression says {choose_compression(place)}")
    for compression in COMPRESSIONS:
        shutil.rmtree(place / compression)
    return {"kernel": kernel, "rows": rows, "faster": equal, "slow_disk_mb_per_second": round(SLOW_DISK / 1e6), "disk_mb_per_second": measured}


def probe_seconds(place: Path, n_bytes: int = 64 * 2**20) -> float:
    """Seconds to read so much that is not in memory, into memory that is there: what the disk alone takes."""
    path, block = place / "probe", memoryview(bytearray(2**22))
    path.write_bytes(np.random.default_rng(SEED).bytes(n_bytes))
    seconds = []
    for _ in range(3):
        with open(path, "r+b", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while file.readinto(block):
                pass
            seconds.append(time.perf_counter() - start)
    path.unlink()
    return statistics.median(seconds)


def seconds_of(function: Callable, repeats: int = 3) -> float:
    """Median wall seconds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken), 4)


def bench_open(place: Path, crops: np.ndarray) -> dict:
    """Opening and checking a store of full-size crops, with a full index."""
    template, found = make_rows(), {}
    rows = [template.assign(field_id=f"f{number:05}") for number in range(len(crops) // PER_FIELD)]
    print("\nfull-size crops, warm")
    for compression in COMPRESSIONS:
        folder = place / "store"
        write_store(folder, crops, rows, compression)
        opened, verified = seconds_of(lambda: read_store(folder)), seconds_of(lambda: verify_store(folder))  # noqa: B023
        n_bytes = verify_store(folder).n_bytes
        shutil.rmtree(folder)
        found[compression] = {"open_seconds": opened, "verify_seconds": verified, "verify_mb_per_second": round(n_bytes / 1e6 / verified)}
        print(f"  {compression:5} {len(crops):,} crops of {len(rows)} fields: opened in {opened:.3f} s, verified at {n_bytes / 1e6 / verified:,.0f} MB/s")
    return found


def bench_fields(place: Path, n_fields: int) -> dict:
    """A store of many fields with tiny crops, in as many shards as full-size crops would fill."""
    folder, generator = place / "many", np.random.default_rng(SEED)
    crops = generator.integers(0, 256, (SMALL_PER_FIELD, *SMALL_SHAPE), np.uint8)
    columns = ("cell_id", "row0", "col0", "row1", "col1", "cell_area")
    rows = pd.DataFrame({name: np.arange(SMALL_PER_FIELD) for name in columns} | {"labels": "nucleoplasm"})
    ids = [f"f{number:05}" for number in range(n_fields)]
    # Full-size, a field of 20 cells takes 1.3 MB and 200 of them fill a shard.
    former, writer.SHARD_BYTES = writer.SHARD_BYTES, 200 * crops.nbytes

    def make():
        with StoreWriter(folder, SMALL_SHAPE, CHANNELS, {}) as target:
            for field_id in ids:
                target.add(field_id, {"field_id": field_id, "labels": "nucleoplasm"}, rows.assign(field_id=field_id), crops)
            target.finish()

    def take_over(changed: str | None = None, verify: bool = False):
        with StoreWriter(folder, SMALL_SHAPE, CHANNELS, {}, verify=verify) as target:
            for field_id in ids:
                if field_id != changed:
                    target.reuse(field_id, "nucleoplasm")
                    continue
                target.add(f"{field_id}, changed", {"field_id": field_id, "labels": "nucleoplasm"}, rows.assign(field_id=field_id), crops)
            target.finish()

    made = seconds_of(make, 1)
    found = {
        "fields": n_fields, "crops": n_fields * SMALL_PER_FIELD, "made": made, "opened": seconds_of(lambda: read_store(folder)),
        "taken over unchanged": seconds_of(take_over), "taken over, every byte checked": seconds_of(lambda: take_over(verify=True), 1),
        "verified": seconds_of(lambda: verify_store(folder), 1), "taken over, one field changed": seconds_of(lambda: take_over(ids[n_fields // 2]), 1),
    }  # fmt: skip
    found["shards"] = len(read_store(folder).manifest["shards"])
    writer.SHARD_BYTES = former
    shutil.rmtree(folder)
    print(f"\n{n_fields:,} fields of {SMALL_PER_FIELD} tiny crops in {found['shards']} shards, seconds")
    for name in ("made", "opened", "verified", "taken over unchanged", "taken over, one field changed", "taken over, every byte checked"):
        print(f"  {name:32} {found[name]:7.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"), help="folder with hpa/scc; may be missing")
    parser.add_argument("--crops", type=int, default=8000, help=f"full-size crops, a multiple of {PER_FIELD} (default: 8,000)")
    parser.add_argument("--fields", type=int, default=20_000, help="fields of tiny crops (default: 20,000)")
    parser.add_argument("--rounds", type=int, default=5, help="writes of each kind (default: 5)")
    parser.add_argument("--folder", help="where the temporary folder is made; the disk that is measured")
    parser.add_argument("--parts", nargs="+", choices=("write", "reads", "open", "fields"), default=["write", "reads", "open", "fields"], help="which (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "store.json", help="JSON to write")
    arguments = parser.parse_args()
    os.environ["HPACELL_PROGRESS"] = os.devnull
    cv2.setNumThreads(1)
    start = time.perf_counter()
    result = {
        "machine": {
            "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__,
            "pyarrow": pa.__version__, "memory_gb": round(psutil.virtual_memory().total / 2**30, 1), "load_at_start": round(os.getloadavg()[0], 2),
        },
        "seed": SEED, "shape": SHAPE, "crops": {},
    }  # fmt: skip
    crops = make_crops(arguments.crops)
    result["crops"]["made"] = describe(crops[:500])
    if (real := real_crops(arguments.data / "hpa" / "scc")) is not None:
        result["crops"]["scc"] = describe(real)
    for name, facts in result["crops"].items():
        print("crops, {}: {crops} of them, {zeros:.0%} zeros, {ratio} times smaller by zstd".format(name, **facts))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Path(folder)
        parts = {
            "write": lambda: bench_write(place, crops, arguments.rounds), "reads": lambda: bench_reads(place, crops),
            "open": lambda: bench_open(place, crops), "fields": lambda: bench_fields(place, arguments.fields),
        }  # fmt: skip
        for part in arguments.parts:
            result[part] = parts[part]()
            print(f"{part}: done after {time.perf_counter() - start:.0f} s", file=sys.stderr)
    result["seconds"] = round(time.perf_counter() - start)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(run_reads(Path(sys.argv[3]), sys.argv[4], float(sys.argv[5]))))
    else:
        main()
