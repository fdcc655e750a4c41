"""Crops a second of hpacell's feed beside other ways to feed 128x128x4 uint8 crops, from the same crops in the same run.

20,000 crops (blurred blobs in a cleared mask, so that PNG and lzf are not unrealistic) are written once in each format
into a temporary folder; every format is read in batches of 64 for one epoch that is not counted (it warms the page
cache) and then some that are; the median counts. Everything runs on two cores. Feeds that cannot shuffle all crops are
measured in the order in which they were stored, which flatters them.

The PyTorch peers need torch (`pip install hpacell[bench]`, the CPU build will do). Where it is not installed, name an
interpreter that has torch, numpy and pillow in HPACELL_BENCH_TORCH_PYTHON; without either they are recorded as absent.

Peak memory is that of a fresh process which reads one epoch, libraries included; the same without a feed is noted beside.

    python benchmarks/feed.py                      # all, some minutes
    python benchmarks/feed.py --crops 4000 --peers hpacell --no-memory   # a glance
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

SHAPE = (128, 128, 4)
BATCH = 64
LOCATIONS = ("nucleoplasm", "cytosol")
AUGMENTED = (("flip",), ("flip", "rotate90"), ("flip", "rotate90", "intensity", "noise"))


def make_crops(n: int) -> np.ndarray:
    """Blurred noise inside of ellipses, black outside."""
    import cv2

    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:128j, -1:1:128j]
    crops = np.empty((n, *SHAPE), np.uint8)
    for crop in crops:
        texture = cv2.GaussianBlur(generator.integers(0, 256, SHAPE, np.uint8), (0, 0), 2)
        texture = cv2.addWeighted(texture, 4, texture, 0, -400)
        half = generator.uniform(0.5, 1, 2)
        crop[...] = texture * ((rows / half[0]) ** 2 + (columns / half[1]) ** 2 < 1)[..., None]
    return crops


def make_store(folder: Path, crops: np.ndarray, times: int = 1):
    """A crop store with the crops, as often as told; 100 crops a field."""
    import pandas as pd

    from hpacell.feed.writer import StoreWriter

    keys = [str(i) for i in range(times * len(crops) // 100)]
    cells = pd.DataFrame({"labels": ["nucleoplasm", "cytosol"] * 50, "place": np.arange(100)})
    with StoreWriter(folder, SHAPE, ("microtubules", "protein", "nucleus", "er"), {}) as writer:
        for key in keys:
            start = int(key) * 100 % len(crops)
            writer.add(key, {"field_id": key}, cells.assign(field_id=key), crops[start : start + 100])
        return writer.finish()


def count_epoch(batches: Iterable) -> float:
    """Crops a second of one epoch."""
    start, n = time.perf_counter(), 0
    for batch in batches:
        n += len(batch[0] if isinstance(batch, (tuple, list)) else batch)
    return n / (time.perf_counter() - start)


def measure(epoch: Callable[[], Iterable], repeats: int) -> dict:
    """Median, lowest and highest rate of some epochs after one that is not counted."""
    rates = [count_epoch(epoch()) for _ in range(repeats + 1)][1:]
    return {"crops_per_second": round(statistics.median(rates)), "lowest": round(min(rates)), "highest": round(max(rates)), "epochs": repeats}


def bench_copies(crops: np.ndarray, repeats: int) -> dict:
    """The bytes alone: batch after batch into one array, and crops from anywhere."""
    batch = np.empty((BATCH, *SHAPE), np.uint8)
    order = np.random.default_rng(0).permutation(len(crops))

    def straight():
        for start in range(0, len(crops) - BATCH + 1, BATCH):
            np.copyto(batch, crops[start : start + BATCH])
            yield batch

    def shuffled():
        for start in range(0, len(crops) - BATCH + 1, BATCH):
            yield np.take(crops, order[start : start + BATCH], axis=0, out=batch, mode="clip")

    return {"memcpy": measure(straight, repeats), "memcpy, crops from anywhere": measure(shuffled, repeats)}


def bench_hpacell(folder: Path, crops: np.ndarray, repeats: int) -> dict:
    """Our feed in its kinds; a new order in each epoch."""
    from hpacell.feed.batches import make_batches
    from hpacell.feed.sequence import CropSequence

    store, found = make_store(folder / "store", crops), {}
    for cache in ("memory", "none"):
        for dtype in ("uint8", "float32", "float16"):
            batches = make_batches(store, LOCATIONS, batch_size=BATCH, dtype=dtype, cache=cache)
            found[f"hpacell, {dtype}, cache={cache}"] = measure(lambda batches=batches: batches, repeats)
        sequence = CropSequence(store, LOCATIONS, batch_size=BATCH, dtype="uint8", cache=cache)
        found[f"hpacell CropSequence, uint8, cache={cache}"] = measure(lambda sequence=sequence: iter(sequence), repeats)
    for names in AUGMENTED:
        batches = make_batches(store, LOCATIONS, query="place < 20", batch_size=BATCH, augment=names)
        found[f"hpacell, float32, {' + '.join(names)}"] = measure(lambda batches=batches: batches, repeats)
    shutil.rmtree(folder / "store")
    return found


def bench_tf_cache(folder: Path, crops: np.ndarray, repeats: int) -> dict:
    """tf.data.cache, into a file and in memory."""
    import tensorflow as tf

    def batches(*where):
        signature = tf.TensorSpec(SHAPE, tf.uint8)
        return tf.data.Dataset.from_generator(lambda: iter(crops), output_signature=signature).cache(*where).batch(BATCH).prefetch(2)

    found = {}
    for name, where in (("tf.data.cache(file), no shuffle", [str(folder / "cache")]), ("tf.data.cache() in memory, no shuffle", [])):
        data = batches(*where)
        found[name] = measure(lambda data=data: data, repeats)
    for path in folder.glob("cache*"):
        path.unlink()
    return found


def bench_tfrecord(folder: Path, crops: np.ndarray, repeats: int) -> dict:
    """One TFRecord file of serialized examples."""
    import tensorflow as tf

    path = str(folder / "crops.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for crop in crops:
            feature = {"crop": tf.train.Feature(bytes_list=tf.train.BytesList(value=[crop.tobytes()]))}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())

    def parse(records):
        parsed = tf.io.parse_example(records, {"crop": tf.io.FixedLenFeature([], tf.string)})
        return tf.reshape(tf.io.decode_raw(parsed["crop"], tf.uint8), [-1, *SHAPE])

    data = tf.data.TFRecordDataset(path).batch(BATCH).map(parse, num_parallel_calls=2).prefetch(2)
    found = {"TFRecord, no shuffle": measure(lambda: data, repeats)}
    os.unlink(path)
    return found


def bench_hdf5(folder: Path, crops: np.ndarray, repeats: int) -> dict:
    """HDF5 with lzf, a chunk for each crop."""
    import h5py
    import tensorflow as tf

    with h5py.File(folder / "crops.h5", "w") as file:
        file.create_dataset("crops", data=crops, chunks=(1, *SHAPE), compression="lzf")
    with h5py.File(folder / "crops.h5", "r") as file:
        stored, order = file["crops"], np.random.default_rng(0).permutation(len(crops))

        def read(number):
            return np.stack([stored[i] for i in order[number * BATCH : (number + 1) * BATCH]])

        steps = -(-len(crops) // BATCH)
        data = tf.data.Dataset.range(steps).map(lambda i: tf.numpy_function(read, [i], tf.uint8), num_parallel_calls=2).prefetch(2)
        found = {"HDF5, lzf, a chunk a crop": measure(lambda: data, min(repeats, 2))}
    os.unlink(folder / "crops.h5")
    return found


def write_pngs(folder: Path, crops: np.ndarray) -> None:
    import cv2

    folder.mkdir()
    for i, crop in enumerate(crops):
        cv2.imwrite(str(folder / f"{i:06d}.png"), crop, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def bench_png(folder: Path, crops: np.ndarray, repeats: int) -> dict:
    """One PNG a crop, decoded by tf.data."""
    import tensorflow as tf

    if not (folder / "png").exists():
        write_pngs(folder / "png", crops)
    names = sorted(map(str, (folder / "png").iterdir()))
    data = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names), seed=0)
    data = data.map(lambda name: tf.io.decode_png(tf.io.read_file(name), channels=4), num_parallel_calls=2).batch(BATCH).prefetch(2)
    return {"a PNG a crop, tf.data": measure(lambda: data, min(repeats, 2))}


def bench_torch(folder: Path, crops: np.ndarray, repeats: int) -> dict:
    """PyTorch's DataLoader, two workers, in a process of its own."""
    if not (folder / "png").exists():
        write_pngs(folder / "png", crops)
    np.save(folder / "crops.npy", crops)
    python = os.environ.get("HPACELL_BENCH_TORCH_PYTHON") or sys.executable
    command = [python, __file__, "--torch", str(folder), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True)
    os.unlink(folder / "crops.npy")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {f"PyTorch DataLoader, {kind}": {"absent": reason} for kind in ("PNG", "memmap")}
    return json.loads(done.stdout.splitlines()[-1])


def run_torch(folder: Path, repeats: int) -> dict:
    """In the interpreter that has torch: the DataLoader over PNG and over a memory map."""
    import torch
    from PIL import Image

    names = sorted((folder / "png").iterdir())

    class Pngs(torch.utils.data.Dataset):
        def __len__(self):
            return len(names)

        def __getitem__(self, i):
            return torch.from_numpy(np.array(Image.open(names[i])))

    class Mapped(Pngs):
        def __getitem__(self, i):
            return torch.from_numpy(np.array(mapped[i]))

    mapped, found = np.load(folder / "crops.npy", mmap_mode="r"), {}
    for kind, data in (("PNG", Pngs()), ("memmap", Mapped())):
        loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
        found[f"PyTorch DataLoader, {kind}"] = {**measure(lambda loader=loader: loader, min(repeats, 2)), "torch": torch.__version__}
    return found


def run_epoch(folder: str, cache: str) -> dict:
    """In a fresh process: peak memory before and after one epoch."""
    from hpacell.feed.batches import make_batches
    from hpacell.feed.store import read_store

    store = read_store(folder)
    count_epoch(make_batches(store, LOCATIONS, query="index < 640", batch_size=BATCH, dtype="uint8", cache="none"))
    before = peak_mib()
    rate = count_epoch(make_batches(store, LOCATIONS, batch_size=BATCH, dtype="uint8", cache=cache))
    return {"crops": len(store), "cache": cache, "libraries_mib": before, "peak_mib": peak_mib(), "first_epoch_crops_per_second": round(rate)}


def peak_mib() -> int:
    """Peak resident memory of this process. VmHWM, since ru_maxrss of a child starts with that of its parent."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024


def bench_memory(folder: Path, crops: np.ndarray) -> list[dict]:
    """Peak memory of one epoch, at the number of crops and at five times as many."""
    found = []
    for times in (1, 5):
        make_store(folder / "store", crops, times)
        for cache in ("none", "memory"):
            command = [sys.executable, __file__, "--epoch-of", str(folder / "store"), cache]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(folder / "store")
    return found


PEERS = {
    "copies": lambda folder, crops, repeats: bench_copies(crops, repeats), "hpacell": bench_hpacell, "tf_cache": bench_tf_cache,
    "tfrecord": bench_tfrecord, "hdf5": bench_hdf5, "png": bench_png, "torch": bench_torch,
}  # fmt: skip
GOALS = (  # what, measured, against, at least
    ("uint8, crops/s", "hpacell, uint8, cache=memory", None, 30_000),
    ("float32, crops/s", "hpacell, float32, cache=memory", None, 20_000),
    ("uint8 from files, crops/s", "hpacell, uint8, cache=none", None, 30_000),
    ("float32 from files, crops/s", "hpacell, float32, cache=none", None, 20_000),
    ("times tf.data.cache(file)", "hpacell, uint8, cache=memory", "tf.data.cache(file), no shuffle", 1.9),
    ("times tf.data.cache(file), from files", "hpacell, uint8, cache=none", "tf.data.cache(file), no shuffle", 1.9),
    ("times a PNG a crop, from files", "hpacell, uint8, cache=none", "a PNG a crop, tf.data", 7),
    ("times HDF5", "hpacell, uint8, cache=memory", "HDF5, lzf, a chunk a crop", 10),
    ("times HDF5, from files", "hpacell, uint8, cache=none", "HDF5, lzf, a chunk a crop", 10),
    ("times PyTorch over PNG, from files", "hpacell, uint8, cache=none", "PyTorch DataLoader, PNG", 1),
    ("times PyTorch over memmap, from files", "hpacell, uint8, cache=none", "PyTorch DataLoader, memmap", 1),
    ("of a bare memcpy", "hpacell, uint8, cache=memory", "memcpy", None),
    ("of a memcpy of crops from anywhere", "hpacell, uint8, cache=memory", "memcpy, crops from anywhere", None),
)


def compare(rates: dict) -> list[dict]:
    """The goals, and how far each was met."""
    found = []
    for what, ours, theirs, goal in GOALS:
        ours, theirs = (rates.get(name, {}).get("crops_per_second") if name else 1 for name in (ours, theirs))
        value = None if not ours or not theirs else round(ours / theirs, 2)
        found.append({"what": what, "value": value, "goal": goal, "met": None if value is None or goal is None else value >= goal})
    return found


def show(result: dict) -> None:
    for name, rate in sorted(result["rates"].items(), key=lambda item: -item[1].get("crops_per_second", 0)):
        print(f"{name:50} {rate['crops_per_second']:>9,} crops/s" if "crops_per_second" in rate else f"{name:50}    absent: {rate['absent']}")
    for row in result["goals"]:
        print(f"{row['what']:50} {row['value'] if row['value'] is not None else '-':>9}  goal {row['goal'] or '-'}  {'' if row['met'] in (True, None) else 'NOT MET'}")
    for row in result["memory"]:
        print(f"one epoch of {row['crops']:,} crops, cache={row['cache']}: peak {row['peak_mib']:,} MiB, libraries alone {row['libraries_mib']:,} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=20_000, help="a multiple of 100 (default: 20,000)")
    parser.add_argument("--repeats", type=int, default=3, help="epochs that count (default: 3)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="which (default: all)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the measurement of memory")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "feed.json", help="JSON to write")
    parser.add_argument("--torch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--epoch-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    if arguments.torch:
        return print(json.dumps(run_torch(arguments.torch, arguments.repeats)))
    if arguments.epoch_of:
        return print(json.dumps(run_epoch(*arguments.epoch_of)))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        crops, rates = make_crops(arguments.crops), {}
        for peer in arguments.peers:
            rates.update(PEERS[peer](Path(folder), crops, arguments.repeats))
            print(f"{peer}: done after {time.perf_counter() - start:.0f} s", file=sys.stderr)
        memory = [] if arguments.no_memory else bench_memory(Path(folder), crops)
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(), "cores_used": 2}
    result = {
        "machine": machine, "crops": arguments.crops, "shape": SHAPE, "batch": BATCH, "rates": rates,
        "goals": compare(rates), "memory": memory, "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    show(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
