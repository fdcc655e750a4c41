"""Every score of instances for one large field, against pycocotools and a plain loop over masks.

A field of 2048 x 2048 pixels with 500 cells, drawn from a seed; each number is the best of several runs, in CPU seconds of one
core, so that a busy machine does not tell. The loop pairs masks one by one, as is often written by hand; it is timed on a
part of the cells, and told for all.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from hpacell.metrics.average_precision import score_average_precision
from hpacell.metrics.instances import score_instances
from hpacell.metrics.matching import find_overlaps

IOUS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())


def draw_pair(n_cells: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, prediction and scores of ellipses that touch; some are missed, some moved, some cut."""
    rng, grid = np.random.default_rng(seed), int(np.ceil(np.sqrt(n_cells)))
    step = side / grid
    truth, pred = np.zeros((side, side), np.int32), np.zeros((side, side), np.int32)
    for label in range(1, n_cells + 1):
        row, col = ((label - 1) // grid + 0.5) * step, ((label - 1) % grid + 0.5) * step
        axes, angle = (int(rng.uniform(0.3, 0.55) * step), int(rng.uniform(0.3, 0.55) * step)), float(rng.uniform(0, 180))
        cv2.ellipse(truth, (int(col), int(row)), axes, angle, 0, 360, label, -1)
        if rng.random() < 0.95:
            shift = rng.normal(0, 5, 2)
            cv2.ellipse(pred, (int(col + shift[1]), int(row + shift[0])), axes, angle, 0, 360, label, -1)
    pred[:, side // 2 : side // 2 + 3] = 0
    return truth, pred, rng.random(len(np.setdiff1d(pred, [0])))


def best_of(runs: int, call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def plain_jaccard(truth: np.ndarray, pred: np.ndarray, ids: np.ndarray, others: np.ndarray) -> float:
    """The loop: each true mask against each predicted one."""
    matrix = np.zeros((len(ids), len(others)))
    for i, a in enumerate(ids):
        mask = truth == a
        for j, b in enumerate(others):
            other = pred == b
            matrix[i, j] = np.count_nonzero(mask & other) / np.count_nonzero(mask | other)
    return (matrix.max(axis=1) >= 0.5).sum() / len(ids)


def coco_content(truth: np.ndarray, pred: np.ndarray, scores: np.ndarray) -> tuple[dict, list]:
    from pycocotools import mask as coco

    columns = [np.asfortranarray(labels) for labels in (truth, pred)]  # the order in which codes run
    codes = [[coco.encode((labels == label).astype(np.uint8)) for label in np.setdiff1d(labels, [0])] for labels in columns]
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": code, "area": float(coco.area(code)), "bbox": coco.toBbox(code).tolist()}
        for i, code in enumerate(codes[0])
    ]
    image = {"id": 1, "height": truth.shape[0], "width": truth.shape[1]}
    results = [{"image_id": 1, "category_id": 1, "segmentation": code, "score": float(score)} for code, score in zip(codes[1], scores, strict=True)]
    return {"images": [image], "categories": [{"id": 1, "name": "cell"}], "annotations": annotations}, results


def coco_judge(dataset: dict, results: list) -> float:
    """COCO's average precision, from codes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = dataset
    truth.createIndex()
    judge = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "segm")
    judge.params.maxDets = [1, 10, 2000]
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][..., 0, -1]
    return float(precision[precision > -1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--side", type=int, default=2048, help="pixels")
    parser.add_argument("--runs", type=int, default=7, help="runs of each, of which the best counts")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "instances.json", help="JSON to write")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):  # one core, whatever else starts threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools calls numpy 2 in numpy 1's way
    truth, pred, scores = draw_pair(options.cells, options.side, 0)
    ids, others = (np.setdiff1d(labels, [0]) for labels in (truth, pred))

    def everything() -> None:
        score_instances([(truth, pred)], IOUS)
        score_average_precision([(truth, pred, scores)])

    seconds = {
        "overlaps": best_of(options.runs, lambda: find_overlaps(truth, pred)),
        "score_instances, ten thresholds": best_of(options.runs, lambda: score_instances([(truth, pred)], IOUS)),
        "average precision of masks": best_of(options.runs, lambda: score_average_precision([(truth, pred, scores)])),
        "average precision of boxes": best_of(options.runs, lambda: score_average_precision([(truth, pred, scores)], "box")),
        "all scores and average precision of masks": best_of(options.runs, everything),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        content = coco_content(truth, pred, scores)
        encoded = time.process_time() - start
        judged = best_of(3, lambda: coco_judge(*content))
        theirs = coco_judge(*content)
    start = time.process_time()
    plain_jaccard(truth, pred, ids[:3], others[:3])
    seconds |= {"pycocotools: masks to codes": encoded, "pycocotools: average precision from codes": judged}
    seconds["loop over masks, one threshold (from 3 x 3 of the cells)"] = (time.process_time() - start) * len(ids) * len(others) / 9
    ours = float(score_average_precision([(truth, pred, scores)])["average_precision"][0])
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    pair = {"pixels": truth.size, "true_cells": len(ids), "predicted_cells": len(others)}
    machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine(), "cores_used": 1}
    result = {"pair": pair, "seconds": rounded, "average_precision": {"hpacell": ours, "pycocotools": theirs}, "machine": machine}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in rounded.items():
        print(f"{value:12.4f} s  {name}")
    print(f"average precision {ours:.12f} here, {theirs:.12f} by pycocotools")


if __name__ == "__main__":
    main()
