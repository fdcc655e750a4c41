"""The tests of numbers and of exits on machines that differ: with oneDNN and without, with one thread and with two.

``make test-variants`` runs all of it and prints a table of variations and results, then the comparisons that came nearest
to their limits. Options choose files, variations, seeds and repetitions: ``python tests/variants.py --help``.

A processor with other vector instructions adds in another order, and so does another number of threads. What a network
has learnt in a test differs by that, in the first digit after enough steps; a limit that holds here must hold there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

TESTS = Path(__file__).resolve().parent
FILES = [
    "unet", "segmenter", "segmenters", "semantic", "tissue", "training", "weak", "zoo", "maskrcnn", "objectives", "augment",
    "predict", "calibration", "faults", "exits", "cli", "engine", "sweep", "runs",
]  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def run_variant(files: list[str], onednn: int, threads: int, seed: int, margins: Path, slow: bool = False) -> tuple[str, float]:
    """Run test files in one variation; what pytest says in its last line, and the seconds."""
    environment = os.environ | dict.fromkeys(THREADS, str(threads)) | {"TF_ENABLE_ONEDNN_OPTS": str(onednn)}
    environment |= {"HPACELL_MARGINS": str(margins), "HPACELL_SEED_OFFSET": str(seed)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), str(TESTS.parent), environment.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "margins", "-o", "enable_assertion_pass_hook=true", *files] + ["-m", ""] * slow
    start = time.monotonic()
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing was said"]
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            print(f"  {line}", flush=True)
    return lines[-1], time.monotonic() - start


def nearest(entries: list[dict], least: float) -> list[str]:
    """The comparisons that use most of their limits, one line for each place."""
    worst: dict[str, dict] = {}
    for entry in entries:
        if entry["used"] > worst.get(entry["where"], {"used": least})["used"]:
            worst[entry["where"]] = entry
    ordered = sorted(worst.values(), key=lambda entry: -entry["used"])
    return [f"{entry['used']:7.0%}  {entry['where']:28} {entry['measured']:.4g} {entry['op']} {entry['limit']:.4g}" for entry in ordered]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=FILES, help="names of test files without test_ and .py, or names of tests")
    parser.add_argument("--onednn", type=int, nargs="+", default=[0, 1], help="0 off, 1 on")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="added to every seed that is set for Keras")
    parser.add_argument("--times", type=int, default=1, help="repetitions of all of it")
    parser.add_argument("--least", type=float, default=0.5, help="show comparisons that use more than this share of their limit")
    parser.add_argument("--slow", action="store_true", help="the slow tests too")
    parser.add_argument("--out", help="JSON lines of all comparisons")
    arguments = parser.parse_args()
    files = [name if "/" in name or "::" in name else f"tests/test_{name}.py" for name in arguments.files]
    entries, failed = [], 0
    print("oneDNN threads seed  seconds  result", flush=True)
    for _, onednn, threads, seed in product(range(arguments.times), arguments.onednn, arguments.threads, arguments.seed):
        with tempfile.TemporaryDirectory() as folder:
            margins = Path(folder) / "margins"
            said, seconds = run_variant(files, onednn, threads, seed, margins, arguments.slow)
            lines = margins.read_text().splitlines() if margins.exists() else []
        entries += [json.loads(line) | {"onednn": onednn, "threads": threads, "seed": seed} for line in lines]
        failed += " failed" in said or " error" in said or " passed" not in said
        print(f"{onednn:6} {threads:7} {seed:4} {seconds:8.0f}  {said.strip('= ')}", flush=True)
    if arguments.out:
        Path(arguments.out).write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    print("\n".join(["how much of its limit each used, at the worst:", *nearest(entries, arguments.least)]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
