"""Nuclei of every kind of image by every method: agreement with people's outlines, seconds an image, peak memory.

Scored are the validation images of the segmenters that come with the package, which none of them was trained on: those that
`split.csv` beside their weights names. Their best epoch was chosen by some of these images, their thresholds were chosen on images
that they learned from. The scores with the thresholds of the configuration stand beside, as `<method>, default thresholds`; those with
thresholds chosen on images neither learned from nor scored come from `benchmarks/thresholds.py`. Each method
runs in a process of its own, so that its peak memory is its own; everything on two cores.

    python benchmarks/segmenters.py --data DSB2018 --out benchmarks/results/segmenters.json
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

SHOWN = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
PLAIN = ", default thresholds"


def validation_images(data: Path, limit: int):
    import pandas as pd

    from hpacell.masks.layouts import find_labelled
    from hpacell.models.places import SHIPPED, shipped_segmenters
    from hpacell.models.segmenter_recipe import pick_evenly

    sides = [pd.read_csv(SHIPPED / name / "split.csv", dtype=str).set_index("image_id")["side"] for name in shipped_segmenters()]
    images = [image for image in find_labelled(data) if all(one.get(image.image_id) == "valid" for one in sides)]
    return pick_evenly(images, limit)


def channels_of(pixels: np.ndarray) -> tuple[str, ...]:
    """As `hpacell segment` names the channels of a grey or a coloured file."""
    return ("nucleus",) if pixels.ndim == 2 or pixels.shape[2] == 1 else ("microtubules", "protein", "nucleus")


def segmenter(name: str):
    """image, channels -> nuclei."""
    from hpacell.pipeline import learned, segmenters

    method = name.removesuffix(PLAIN)
    find = segmenters.segmenter_of(method)
    if name != method:
        trained = learned._load(method, learned.model_mark(method)[1])
        chosen = ("foreground", "marker", "depth", "score", "detection_iou", "mask_overlap")
        kept = {field.name: field.default for field in dataclasses.fields(trained.config) if field.name in chosen}
        plain = dataclasses.replace(trained, config=dataclasses.replace(trained.config, **kept))
        learned._load = lambda method, mark: plain
    return lambda pixels: find(pixels, channels=channels_of(pixels)).nuclei


def seconds_for(find, pixels: np.ndarray, rounds: int = 5) -> float:
    """Median of some rounds, after two that are not counted."""
    taken = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        find(pixels)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[2:]))


def peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(name: str, data: Path, limit: int) -> dict:
    """Scores, seconds and memory of one method."""
    from hpacell.metrics.instances import score_instances

    find, images = segmenter(name), validation_images(data, limit)
    pixels = [image.read() for image in images]
    found = [find(one) for one, _ in pixels]
    scores = score_instances(
        ((truth, pred) for (_, truth), pred in zip(pixels, found, strict=True)), SHOWN, [image.image_id for image in images],
        kinds=[image.kind for image in images], n_bootstrap=1000, seed=0,
    )  # fmt: skip
    table = {}
    for row in scores[scores["level"] != "image"].to_dict("records"):
        one = table.setdefault(row["image"], {"n_images": int(row["n_images"]), "n_truth": int(row["n_truth"]), "jaccard": {}})
        one["jaccard"][f"{row['iou']:g}"] = [round(row[key], 4) for key in ("jaccard", "jaccard_low", "jaccard_high")]
        one |= {key: round(row[key], 4) for key in ("aji", "seg", "det", "count_error")}
    large = next(one for (one, _), image in zip(pixels, images, strict=True) if image.kind == "fluorescence" and min(one.shape[:2]) >= 256)
    field = np.pad(large, ((0, 2048), (0, 2048), (0, 0)), mode="wrap")[:, :, :1]
    result = {
        "scores": table, "empty": [image.image_id for image, pred in zip(images, found, strict=True) if not pred.any()],
        "seconds_512": round(seconds_for(find, field[:512, :512]), 3), "nuclei_512": int(find(field[:512, :512]).max()), "peak_mib_before_2048": peak_mib(),
    }  # fmt: skip
    start = time.perf_counter()
    n_nuclei = int(find(field[:2048, :2048]).max())
    return result | {"seconds_2048": round(time.perf_counter() - start, 2), "nuclei_2048": n_nuclei, "peak_mib": peak_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of DSB2018, see hpacell.masks.layouts")
    parser.add_argument("--methods", nargs="+", default=["classical", "unet", f"unet{PLAIN}", "maskrcnn"], help="names, or folders of segmenters")
    parser.add_argument("--limit", type=int, default=0, help="so many images (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "segmenters.json", help="JSON to write")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.data, arguments.limit)))
        return
    results = {}
    for method in arguments.methods:
        command = [sys.executable, __file__, "--only", method, "--data", str(arguments.data), "--limit", str(arguments.limit)]
        results[method] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
        for kind, one in results[method]["scores"].items():
            shown = "  ".join(f"{iou} {one['jaccard'][iou][0]:.3f} [{one['jaccard'][iou][1]:.3f}, {one['jaccard'][iou][2]:.3f}]" for iou in ("0.5", "0.75", "0.9"))
            print(f"{method:28} {kind:14} {one['n_images']:>3} images  {shown}  AJI {one['aji']:.3f}", flush=True)
        print(f"{method:28} 512x512 {results[method]['seconds_512']} s, 2048x2048 {results[method]['seconds_2048']} s, peak {results[method]['peak_mib']} MiB", flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(), "cores_used": len(os.sched_getaffinity(0))}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "images": "validation side of the split.csv beside the weights", "methods": results}, indent=1) + "\n")


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    main()
