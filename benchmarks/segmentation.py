"""Cells and nuclei of the classical segmentation against reference outlines: agreement, seconds, peak memory.

Needs a folder with `hpa/scc` (four-channel fields and `<id>_predictedmask.png`) and `dsb2018` (`images`, `labels`,
`index.csv`). Everything runs in one process on one core. Peak memory is that of the process, images and libraries included.
"""

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from hpacell.cells.segmentation import segment_field
from hpacell.metrics.instances import score_instances

COLOURS = ("red", "green", "blue", "yellow")  # microtubules, protein, nucleus, er
IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def peak_mb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bench_scc(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cells against those of HPA-Cell-Segmentation."""
    names = sorted(path.name.removesuffix("_predictedmask.png") for path in folder.glob("*_predictedmask.png"))
    pairs, seconds, memory = [], [], []
    for name in names:
        image = np.stack([read(folder / f"{name}_{colour}.png") for colour in COLOURS], axis=-1)
        start = time.perf_counter()
        found = segment_field(image)
        seconds.append(time.perf_counter() - start)
        memory.append(peak_mb())
        pairs.append((read(folder / f"{name}_predictedmask.png").astype(np.int32), found.cells))
    table = score_instances(pairs, IOUS, names=names)
    return table, pd.DataFrame({"image": names, "seconds": seconds, "peak_mb": memory})


def bench_dsb(folder: Path, step: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Nuclei against those outlined by people."""
    index = pd.read_csv(folder / "index.csv")
    names = list(index.loc[index["kind"] == "fluorescence", "image_id"])[::step]
    pairs, seconds = [], []
    for name in names:
        image = read(folder / "images" / f"{name}.png")
        start = time.perf_counter()
        found = segment_field(image, channels=("nucleus",))
        seconds.append(time.perf_counter() - start)
        pairs.append((read(folder / "labels" / f"{name}.png").astype(np.int32), found.nuclei))
    return score_instances(pairs, IOUS, names=names), pd.DataFrame({"image": names, "seconds": seconds})


def show(title: str, table: pd.DataFrame, rows: list[str]) -> None:
    wide = table.pivot(index="image", columns="iou", values="jaccard").loc[rows].round(3)
    print(f"\n{title}\n{wide.to_string()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"), help="folder with hpa/scc and dsb2018")
    parser.add_argument("--step", type=int, default=1, help="take every n-th image of dsb2018 (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "segmentation.json", help="JSON to write")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):  # one core, whatever else starts threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    scc, scc_cost = bench_scc(arguments.data / "hpa" / "scc")
    show("cells of HPA single-cell fields, jaccard at IoU", scc, [*scc_cost["image"], "pooled"])
    print(scc_cost.round(2).to_string(index=False))
    dsb, dsb_cost = bench_dsb(arguments.data / "dsb2018", arguments.step)
    show(f"nuclei of {len(dsb_cost)} DSB2018 fluorescence images, jaccard at IoU", dsb, ["pooled"])
    print(f"seconds an image: mean {dsb_cost['seconds'].mean():.3f}, longest {dsb_cost['seconds'].max():.2f}")
    result = {
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(), "cores_used": 1},
        "peak_mb": peak_mb(),
        "scc": {"fields": scc_cost.to_dict("records"), "scores": scc.to_dict("records")},
        "dsb2018": {
            "images": len(dsb_cost),
            "seconds_mean": float(dsb_cost["seconds"].mean()),
            "seconds_longest": float(dsb_cost["seconds"].max()),
            "scores": dsb[dsb["image"] == "pooled"].to_dict("records"),
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
