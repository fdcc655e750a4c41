"""From PNG files to a crop store: seconds a field by stage, fields a second by worker, crops a second, peak memory.

Fields are simulated (seeds below), four channels of 2048 x 2048 with 20 to 60 cells, and written as PNG into a temporary
folder; real ones of `hpa/scc` are taken too where the data folder holds them. Each part runs in processes of its own, one
thread a process; what runs on one core is pinned to it. Files are warm: each was read before. Times of a stage are the
best of three, and the median field is shown. Beside wall seconds stand those of the processor, which other programs on
the machine disturb less. Writes benchmarks/results/extract.json.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pandas as pd
import psutil

from hpacell.cells.crops import crop_cells, protein_background
from hpacell.cells.measurements import measure_cells
from hpacell.cells.segmentation import segment_field
from hpacell.fields.read import find_fields, read_field
from hpacell.fields.simulate import simulate_field
from hpacell.pipeline.extract import extract_fields
from hpacell.vocabulary import HPA_COLOURS

SEED = 7
DIAMETERS = (400, 330, 280, 250)  # of cells, pixels: 20 to 60 of them in a field
SIDE, SMALL_SIDE = 2048, 256
STAGES = ("decode", "segment", "measure", "crop")
COLOUR_OF = {stain: colour for colour, stain in HPA_COLOURS.items()}


def write_field(folder: Path, number: int, side: int, diameter: int | None) -> None:
    """One simulated field as four PNG files."""
    field = simulate_field((SEED, number), (side, side), cell_diameter=diameter).field
    for k, stain in enumerate(field.channels):
        cv2.imwrite(str(folder / f"sim{number:04}_{COLOUR_OF[stain]}.png"), field.image[..., k])


def write_copies(folder: Path, source: Path, n_fields: int) -> Path:
    """A folder of so many fields, those of another folder by turns under new names."""
    folder.mkdir()
    sources = find_fields(source)
    for number in range(n_fields):
        for path in sources[number % len(sources)].paths:
            os.link(path, folder / f"f{number:04}_{path.rsplit('_', 1)[1]}")
    return folder


def pin() -> None:
    """Keep to one core, with one thread."""
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def best_of(function, repeats: int = 3) -> tuple[float, float, object]:
    """Shortest wall seconds, shortest processor seconds, and the result."""
    wall, processor = [], []
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), time.process_time()
        result = function()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return min(wall), min(processor), result


def run_stages(folder: Path) -> list[dict]:
    """Seconds of each stage and each field, on one core."""
    pin()
    rows = []
    for source in find_fields(folder):
        contents = [Path(path).read_bytes() for path in source.paths]
        floor = best_of(lambda contents=contents: [imagecodecs.png_decode(content) for content in contents])
        decode = best_of(lambda source=source: read_field(source))
        field = decode[2]
        segment = best_of(lambda field=field: segment_field(field.image, field.channels, field.pixel_um))
        nuclei, cells = segment[2]
        measure = best_of(lambda: measure_cells(field.image, cells, nuclei, field.channels))  # noqa: B023
        crop = best_of(lambda: crop_cells(field.image, cells, channels=field.channels))  # noqa: B023
        times = dict(zip(("floor", *STAGES), (floor, decode, segment, measure, crop), strict=True))
        row = {"field": source.field_id, "shape": list(field.image.shape), "cells": len(crop[2])}
        row |= {name: round(seconds[0], 4) for name, seconds in times.items()}
        rows.append(row | {f"{name}_cpu": round(seconds[1], 4) for name, seconds in times.items()})
    return rows


def run_extract(folder: Path, store: Path, workers: int) -> dict:
    """Wall seconds of a whole extraction into a new store."""
    if workers == 1:
        pin()
    start = time.perf_counter()
    report = extract_fields(folder, store, workers=workers)
    seconds = round(time.perf_counter() - start, 3)
    return {"fields": report.n_made, "cells": len(report.store), "workers": workers, "seconds": seconds}


def crop_naively(image: np.ndarray, labels: np.ndarray, size: int, protein: int) -> np.ndarray:
    """What `crop_cells` gives, by a copy of the whole frame for each cell."""
    level = protein_background(np.ascontiguousarray(image[..., protein]), labels)
    crops = []
    for cell_id in np.unique(labels)[1:]:
        frame = image.copy()
        frame[..., protein] = np.maximum(frame[..., protein], level) - level
        frame[labels != cell_id] = 0
        rows, cols = np.nonzero(labels == cell_id)
        crop = frame[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        scale = size / max(crop.shape[:2])
        target = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
        crop = cv2.resize(crop, target, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        square = np.zeros((size, size, image.shape[2]), np.uint8)
        row, col = (size - crop.shape[0]) // 2, (size - crop.shape[1]) // 2
        square[row : row + crop.shape[0], col : col + crop.shape[1]] = crop
        crops.append(square)
    return np.stack(crops)


def run_crops(folder: Path, n_fields: int = 4) -> dict:
    """Cells a second of the crop stage and of the loop that copies the frame, on one core; their pixels are compared."""
    pin()
    n_cells, fast, naive, processor = 0, 0.0, 0.0, 0.0
    for source in find_fields(folder)[:n_fields]:
        field = read_field(source)
        cells = segment_field(field.image, field.channels).cells
        seconds, spent, crops = best_of(lambda: crop_cells(field.image, cells, channels=field.channels))  # noqa: B023
        protein = field.channels.index("protein")
        slow, _, expected = best_of(lambda: crop_naively(field.image, cells, 128, protein), repeats=1)  # noqa: B023
        if not np.array_equal(crops, expected):
            raise SystemExit(f"{source.field_id}: expected equal crops of both ways, got others")
        n_cells, fast, naive, processor = n_cells + len(crops), fast + seconds, naive + slow, processor + spent
    rates = {"per_second": n_cells / fast, "per_cpu_second": n_cells / processor, "naive_per_second": n_cells / naive, "ratio": naive / fast}
    return {"cells": n_cells} | {name: round(rate, 1) for name, rate in rates.items()}


def run_part(part: str, *arguments: str | int | Path) -> tuple[object, dict]:
    """Run a part in a process of its own; its result, and peak memory and processor seconds of it and its children."""
    command = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = os.environ | threads | {"HPACELL_PROGRESS": os.devnull}
    process = psutil.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    seen, ended = {"peak_mb": 0.0, "cpu": 0.0}, threading.Event()
    watcher = threading.Thread(target=watch, args=(process, seen, ended))
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{part}: expected exit code 0, got {process.returncode}: see its message above")
    return json.loads(output.splitlines()[-1]), {name: round(value, 1) for name, value in seen.items()}


def watch(process: psutil.Process, seen: dict[str, float], ended: threading.Event) -> None:
    """Keep what a process and its children take together, looked at 50 times a second: resident memory, processor time."""
    spent: dict[int, float] = {}
    while not ended.wait(0.02):
        total = 0
        try:
            for member in [process, *process.children(recursive=True)]:
                total += member.memory_info().rss
                times = member.cpu_times()
                spent[member.pid] = times.user + times.system
        except psutil.Error:  # one of them has ended meanwhile
            pass
        seen["peak_mb"] = max(seen["peak_mb"], total / 2**20)
        seen["cpu"] = sum(spent.values())


def show_stages(title: str, rows: list[dict], rest: float | None) -> dict:
    """Print and give the median field."""
    table = pd.DataFrame(rows)
    medians = {name: float(table[name].median()) for name in ("floor", *STAGES)} | {"write and the rest": rest}
    processor = {name: float(table[f"{name}_cpu"].median()) for name in ("floor", *STAGES)} | {"write and the rest": None}
    parts = [*STAGES, "write and the rest"]
    medians["total"] = sum(medians[name] or 0 for name in parts)
    print(f"\n{title}: {len(rows)} fields of {min(table['cells'])} to {max(table['cells'])} cells; seconds of the median field, one core")
    for name in ("floor", *parts, "total"):
        label = "PNG decode alone" if name == "floor" else name
        wall, cpu = medians[name], processor.get(name)
        print(f"  {label:20}" + ("" if wall is None else f" {wall:7.3f}") + ("" if cpu is None else f"   cpu {cpu:6.3f}"))
    return {"fields": rows, "median": medians}


def bench_workers(place: Path, source: Path, n_fields: int) -> dict:
    """Whole extractions with 1 and 2 workers, of some fields and of eight times as many."""
    runs = []
    for count in (n_fields, 8 * n_fields):
        folder = write_copies(place / f"copies{count}", source, count)
        for workers in (1, 2):
            store = place / f"store{count}_{workers}"
            run, seen = run_part("extract", folder, store, workers)
            runs.append(run | seen | {"per_second": round(run["fields"] / run["seconds"], 2)})
            shutil.rmtree(store)
    few, many = runs[:2], runs[2:]
    # What the further fields took: the start of the workers is left out.
    steady = [(m["fields"] - f["fields"]) / (m["seconds"] - f["seconds"]) for f, m in zip(few, many, strict=True)]
    print("\nextract_fields, whole runs")
    for run in runs:
        print(f"  {run['fields']:3} fields, {run['workers']} workers: {run['seconds']:7.2f} s, {run['per_second']:5.2f} fields/s, cpu {run['cpu']:6.1f} s, peak {run['peak_mb']:5.0f} MB")
    ratios = {"whole": [round(b["per_second"] / a["per_second"], 2) for a, b in (few, many)], "steady": round(steady[1] / steady[0], 2)}
    print(f"  2 workers over 1: {ratios['whole'][0]} and {ratios['whole'][1]}, without the start {ratios['steady']}")
    return {"runs": runs, "ratio": ratios}


def bench_memory(place: Path) -> dict:
    """Peak memory at 50 and at 500 small fields, 2 workers."""
    source = place / "small"
    source.mkdir()
    for number in range(10):
        write_field(source, number, SMALL_SIDE, None)
    peaks = {}
    for count in (50, 500):
        run, seen = run_part("extract", write_copies(place / f"small{count}", source, count), place / f"smallstore{count}", 2)
        peaks[str(count)] = seen | {"seconds": run["seconds"], "cells": run["cells"]}
        print(f"  {count} fields of {SMALL_SIDE} x {SMALL_SIDE}, 2 workers: peak {seen['peak_mb']:.0f} MB, {run['seconds']:.1f} s")
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"), help="folder with hpa/scc; may be missing")
    parser.add_argument("--fields", type=int, default=12, help="simulated fields")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "extract.json", help="JSON to write")
    arguments = parser.parse_args()
    facts = {
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
        "numpy": np.__version__, "opencv": cv2.__version__, "memory_gb": round(psutil.virtual_memory().total / 2**30, 1), "load_at_start": round(os.getloadavg()[0], 2),
    }  # fmt: skip
    result = {"machine": facts, "seed": SEED, "side": SIDE, "small_side": SMALL_SIDE}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        simulated = place / "simulated"
        simulated.mkdir()
        for number in range(arguments.fields):
            write_field(simulated, number, SIDE, DIAMETERS[number % len(DIAMETERS)])
        result["workers"] = bench_workers(place, simulated, arguments.fields)
        rows, _ = run_part("stages", simulated)
        alone = result["workers"]["runs"][0]
        spent = sum(row[stage] for row in rows for stage in STAGES)
        rest = max(0.0, alone["seconds"] - spent) / len(rows)
        result["stages"] = {"simulated": show_stages("simulated", rows, rest)}
        if (arguments.data / "hpa" / "scc").is_dir():
            rows, _ = run_part("stages", arguments.data / "hpa" / "scc")
            result["stages"]["scc"] = show_stages("HPA single-cell fields", rows, None)
        result["crops"], _ = run_part("crops", simulated)
        print("\ncrops: {cells} cells, {per_second} a second ({per_cpu_second} of the processor); frame copied for each cell {naive_per_second}; ratio {ratio}, pixels equal".format(**result["crops"]))
        print("\npeak memory of extract_fields, with its workers")
        result["memory"] = bench_memory(place)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


PARTS = {
    "stages": lambda folder: run_stages(Path(folder)),
    "extract": lambda folder, store, workers: run_extract(Path(folder), Path(store), int(workers)),
    "crops": lambda folder: run_crops(Path(folder)),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(PARTS[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
