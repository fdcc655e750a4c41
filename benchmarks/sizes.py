"""How many nuclei are found over their diameter and the side of the field: error of the count, seconds, peak memory.

Fields are simulated: ellipses of a known number on a jittered grid, blurred, with noise; with four channels, each has a cell
around it. Each combination runs in a process of its own on one core, so that its peak memory is its own, libraries included.
Combinations with fewer than 4 nuclei are left out; those that take longer than --limit seconds are listed as such.

    python benchmarks/sizes.py --sides 256 512 1024 2048 --methods classical classical-nuclei auto-nuclei
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np

DIAMETERS = (8, 12, 20, 28, 40, 80, 120, 200)
SIDES = (256, 512, 1024, 2048, 4096, 8192)
METHODS = ("classical", "classical-nuclei", "auto-nuclei")  # auto is the classical method for four channels
STEP = 2.2  # diameters from nucleus to nucleus
LEAST = 4  # nuclei in a field


def per_side(side: int, diameter: int) -> int:
    """Nuclei along a side."""
    return int((side - 0.3 * diameter) // (STEP * diameter))


def finish(plane: np.ndarray, diameter: int, rng: np.random.Generator) -> np.ndarray:
    """Blur and noise."""
    plane = cv2.GaussianBlur(plane, (0, 0), max(0.6, 0.05 * diameter))
    return (plane + 3 * rng.standard_normal(plane.shape, dtype=np.float32)).clip(0, 255).astype(np.uint8)


def make_field(side: int, diameter: int, with_cells: bool, seed: int = 0) -> np.ndarray:
    """(H, W, 4) with cells, in the order of `hpacell.vocabulary.CHANNELS`, or (H, W, 1)."""
    rng, n, step = np.random.default_rng(seed), per_side(side, diameter), STEP * diameter
    nuclei, cells = np.full((side, side), 12, np.float32), np.full((side, side), 12, np.float32)
    for row, col in np.ndindex(n, n):
        shift = rng.uniform(-0.3, 0.3, 2) * (step - 1.25 * diameter)
        y, x = (side - n * step) / 2 + (np.array([row, col]) + 0.5) * step + shift
        flat, angle, bright = rng.uniform(0.85, 1), rng.uniform(0, 180), rng.uniform(110, 220)
        place, axes = (int(16 * x), int(16 * y)), (8 * diameter / np.sqrt(flat), 8 * diameter * np.sqrt(flat))
        cv2.ellipse(nuclei, place, tuple(map(int, axes)), angle, 0, 360, bright, -1, cv2.LINE_8, 4)
        cv2.ellipse(cells, place, tuple(int(1.8 * axis) for axis in axes), angle, 0, 360, 0.45 * bright, -1, cv2.LINE_8, 4)
    nuclei = finish(nuclei, diameter, rng)
    return np.stack([cells := finish(cells, diameter, rng), cells, nuclei, cells], axis=-1) if with_cells else nuclei[..., None]


def measure(method: str, side: int, diameter: int) -> dict:
    """Count, seconds and memory of one combination."""
    from hpacell.pipeline.segmenters import segmenter_of
    from hpacell.vocabulary import CHANNELS

    cv2.setNumThreads(1)
    name, _, alone = method.partition("-")
    channels = ("nucleus",) if alone else CHANNELS
    image = make_field(side, diameter, not alone)
    find = segmenter_of(name)
    if name != "classical":
        find(image[:64, :64], channels)  # loads the network
    start = time.perf_counter()
    found = find(image, channels)
    seconds = time.perf_counter() - start
    n_true, n_found = per_side(side, diameter) ** 2, int(found.nuclei.max())
    return {
        "n_true": n_true, "n_found": n_found, "error": round(n_found / n_true - 1, 4), "smallest_px": found.smallest_px,
        "n_cells": None if found.cells is None else int(found.cells.max()), "seconds": round(seconds, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def run(method: str, side: int, diameter: int, limit: float) -> dict:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--only", method, "--sides", str(side), "--diameters", str(diameter)]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"longer_than_seconds": limit}
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--diameters", type=int, nargs="+", default=DIAMETERS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--limit", type=float, default=600, help="seconds for one combination")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sizes.json", help="JSON to write; what it holds stays")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.sides[0], arguments.diameters[0])))
        return
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(), "cores_used": 1}
    known = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    rows = {(row["method"], row["side"], row["diameter"]): row for row in known}
    for side in arguments.sides:
        for method in arguments.methods:
            for diameter in arguments.diameters:
                if per_side(side, diameter) ** 2 < LEAST:
                    continue
                row = {"method": method, "side": side, "diameter": diameter} | run(method, side, diameter, arguments.limit)
                rows[method, side, diameter] = row
                print(*(f"{name} {value}" for name, value in row.items()), flush=True)
                ordered = sorted(rows.values(), key=lambda row: (METHODS.index(row["method"]), row["side"], row["diameter"]))
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                lines = ",\n".join("  " + json.dumps(row) for row in ordered)
                arguments.out.write_text(f'{{\n "machine": {json.dumps(machine)},\n "rows": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
