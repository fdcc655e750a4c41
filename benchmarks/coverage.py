"""How often 95 % intervals hold the true value: every score with an interval, by number of fields, on simulated scores.

Each row draws many test sets from a population of fields whose score is known (from 20,000 fields), and counts how many of
the intervals hold it. Cells of one field share an effect, so they are not independent. The goal is 92 of 100 wherever an
interval is shown. The share of test sets that have no interval (all draws agree) is kept beside it. Also kept: how often
predictions that know nothing are called better than chance (goal: at most 1 of 20).
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd

from hpacell.metrics.bootstrap import (
    MIN_CARRIERS,
    MIN_GROUPS,
    bootstrap_average_precision,
    bootstrap_counts,
    bootstrap_interval,
    precision_areas,
)
from hpacell.metrics.calibration import expected_calibration_error
from hpacell.metrics.locations import score_locations, summarise_locations
from hpacell.metrics.tissue import summarise_tissue
from hpacell.pipeline.outcomes import image_difference
from hpacell.pipeline.scored import TRUE, ScoredCells, paired_difference

MANY, SIZES, DRAWS = 20_000, (8, 10, 20, 50, 100), 300



def cells_of(n: int, rng: np.random.Generator, n_locations: int, share: float, strength: float, between: float, kind: str) -> tuple:
    """Truth and confidences (N, L) and the field (N,) of about ten cells a field; `kind` "inherited" or "true" labels."""
    field = np.repeat(np.arange(n), np.maximum(1, rng.poisson(10, n)))
    shown = (rng.random((n, n_locations)) < share)[field]
    if kind == "true":  # a label of a field is shown by 65 % of its cells
        shown &= rng.random(shown.shape) < 0.65
    odds = strength * (shown - 0.5) + between * rng.normal(size=(n, n_locations))[field] + rng.normal(size=shown.shape)
    return shown, 1 / (1 + np.exp(-odds)), field


def macro(name: str, n_locations: int, share: float, strength: float, kind: str):
    """Macro average precision of locations that are alike: its true value is that of one of them in many fields."""
    truth, pred, _ = cells_of(MANY, np.random.default_rng(1), 1, share, strength, 0.6, kind)
    true = bootstrap_average_precision(truth[:, 0], pred[:, 0], np.zeros(len(truth), int), np.ones((1, 1)))[0]
    names = [f"l{place}" for place in range(n_locations)]

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        truth, pred, field = cells_of(n, rng, n_locations, share, strength, 0.6, kind)
        found = summarise_locations(truth, pred, names, groups=field, n_bootstrap=DRAWS, seed=seed)
        ends = [found[f"macro_average_precision_{end}"] for end in ("low", "high")]
        return tuple(np.nan if end is None else end for end in ends), ends[0] is not None and ends[0] > found["macro_chance"]

    return name, true, interval


def location(name: str, carriers: int, strength: float):
    """Average precision and F1 of one location that so many fields of the set carry."""

    def draw(n: int, rng: np.random.Generator, n_with: int) -> tuple:
        field = np.repeat(np.arange(n), 10)
        shown = field < n_with
        odds = strength * (shown - 0.5) + 0.8 * rng.normal(size=n)[field] + rng.normal(size=len(field))
        return shown[:, None], 1 / (1 + np.exp(-odds))[:, None], field

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        truth, pred, field = draw(n, rng, carriers)
        row = score_locations(truth, pred, ["a"], groups=field, n_bootstrap=DRAWS, seed=seed).iloc[0]
        return row.average_precision_low, row.average_precision_high

    def true(n: int) -> float:
        truth, pred, _ = draw(MANY, np.random.default_rng(1), carriers * MANY // n)
        return score_locations(truth, pred, ["a"]).average_precision[0]

    return name, true, interval


def f1(name: str, mean: str, share: float, strength: float):
    """F1 at 0.5, macro or micro, of four locations."""
    truth, pred, _ = cells_of(MANY, np.random.default_rng(1), 1, share, strength, 0.6, "true")
    taken = pred >= 0.5
    true = 2 * (truth & taken).sum() / (truth.sum() + taken.sum())

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        truth, pred, field = cells_of(n, rng, 4, share, strength, 0.6, "true")
        found = summarise_locations(truth, pred, list("abcd"), groups=field, n_bootstrap=DRAWS, seed=seed)
        return tuple(np.nan if found[key] is None else found[key] for key in (f"{mean}_f1_low", f"{mean}_f1_high"))

    return name, true, interval


def jaccard(name: str, quality: float, spread: float):
    """Pooled jaccard of images that differ in number of cells and in how well these are found."""

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        cells = 1 + rng.negative_binomial(2, 0.04, n)  # 49 on average, very unequal
        good = rng.beta(quality * spread, (1 - quality) * spread, n)
        tp = rng.binomial(cells, good)
        return np.stack([tp, 2 * cells - tp + rng.poisson(0.1 * (1 - good) * cells) - tp], axis=1)  # hits; misses and false alarms

    many = draw(MANY, np.random.default_rng(1)).sum(axis=0)

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        sums = bootstrap_counts(n, DRAWS, seed) @ draw(n, rng)
        return tuple(map(float, bootstrap_interval(sums[:, 0] / sums.sum(axis=1), n)))

    return name, many[0] / many.sum(), interval


def dice_of(n: int, rng: np.random.Generator, quality: float, failures: float) -> np.ndarray:
    """Dice of images: skewed towards 1, a share of them failures."""
    good = rng.beta(quality * 12, (1 - quality) * 12, n)
    return np.where(rng.random(n) < failures, rng.beta(1, 3, n), good)


def mean_dice(name: str, quality: float, failures: float):
    """Mean Dice over images."""

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        values = dice_of(n, rng, quality, failures)
        table = pd.DataFrame({"level": "image", "organ": "lung", "image": range(n), "n_truth": 1, "n_pred": 1, "n_ignored": 0, "dice": values})
        table = table.assign(dice_with_background=values, precision=values, recall=values)
        row = summarise_tissue(table, DRAWS, seed).iloc[-1]
        return row.dice_low, row.dice_high

    return name, dice_of(1_000_000, np.random.default_rng(1), quality, failures).mean(), interval


def detections(name: str, strength: float):
    """Average precision of found and named cells, one location, best precision from each recall on."""

    def draw(n: int, rng: np.random.Generator) -> tuple:
        cells = rng.poisson(np.where(rng.random(n) < 0.4, 8, 0))  # true cells of each field
        field = np.repeat(np.arange(n), rng.binomial(cells, 0.85))
        alarms = np.repeat(np.arange(n), rng.poisson(4, n))
        image, hit = np.r_[field, alarms], np.arange(len(field) + len(alarms)) < len(field)
        sure = strength * hit + 0.6 * rng.normal(size=n)[image] + rng.normal(size=len(image))
        order = np.argsort(-sure)
        return hit[order], image[order], cells

    hit, image, cells = draw(MANY, np.random.default_rng(1))
    true = precision_areas(hit, image, cells, np.ones((1, MANY)))[0]

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        hit, image, cells = draw(n, rng)
        if (cells > 0).sum() < MIN_CARRIERS:
            return np.nan, np.nan
        values = precision_areas(hit, image, cells, bootstrap_counts(n, DRAWS, seed))
        return tuple(map(float, bootstrap_interval(values, n, n_evidence=(cells > 0).sum())))

    return name, true, interval


def calibration(name: str, factor: float):
    """Calibration error of a model whose log odds are too large by a factor (1: calibrated)."""

    def draw(n: int, rng: np.random.Generator) -> tuple:
        field = np.repeat(np.arange(n), rng.poisson(10, n) + 1)
        odds = rng.normal(0, 0.7, n)[field] + rng.normal(0, 1, len(field))
        return (rng.random(len(field)) < 1 / (1 + np.exp(-odds)))[:, None], 1 / (1 + np.exp(-factor * odds))[:, None], field

    truth, pred, _ = draw(MANY, np.random.default_rng(1))
    true = expected_calibration_error(truth, pred).error[0]

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        truth, pred, field = draw(n, rng)
        row = expected_calibration_error(truth, pred, groups=field, n_bootstrap=DRAWS, seed=seed).iloc[0]
        return row.error_low, row.error_high

    return name, true, interval


def difference(name: str, first: float, other: float):
    """Difference of the macro average precision of two models on the same fields."""

    def pair(n: int, rng: np.random.Generator, n_locations: int) -> tuple:
        truth, _, field = cells_of(n, rng, n_locations, 0.3, 0, 0, "true")
        shared = 0.5 * rng.normal(size=(n, n_locations))[field] + 0.7 * rng.normal(size=truth.shape)
        return truth, *(strength * (truth - 0.5) + shared + 0.7 * rng.normal(size=truth.shape) for strength in (first, other)), field

    truth, *answers, field = pair(MANY, np.random.default_rng(1), 1)
    before, after = (score_locations(truth, answer, ["a"]).average_precision[0] for answer in answers)

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        truth, *answers, field = pair(n, rng, 4)
        cells = pd.DataFrame({"field_id": field.astype(str)})
        found = paired_difference(*(ScoredCells(cells, truth, answer, tuple("abcd"), TRUE) for answer in answers), DRAWS, seed)
        return found["difference_low"], found["difference_high"]

    return name, after - before, interval


def dice_difference(name: str, gain: float):
    """Difference of the mean Dice of two models on the same images."""

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        first = dice_of(n, rng, 0.8, 0.05)
        return first, np.clip(first + gain + 0.05 * rng.normal(size=n), 0, 1)

    first, other = draw(1_000_000, np.random.default_rng(1))

    def interval(n: int, rng: np.random.Generator, seed: int) -> tuple:
        tables = [pd.DataFrame({"image": range(n), "n_truth": 1, "n_ignored": 0, "dice": values}) for values in draw(n, rng)]
        found = image_difference(*tables, DRAWS, seed)
        return found["difference_low"], found["difference_high"]

    return name, (other - first).mean(), interval


ROWS = {
    "average precision, mean over locations": lambda: [
        macro("4 common locations, by chance", 4, 0.3, 0, "inherited"), macro("4 common locations, weak", 4, 0.3, 1, "inherited"),
        macro("4 common locations, good", 4, 0.3, 2.5, "true"), macro("12 rare locations, by chance", 12, 0.15, 0, "inherited"),
        macro("12 rare locations, weak", 12, 0.15, 1, "inherited"), macro("12 rare locations, good", 12, 0.15, 2.5, "true"),
        macro("12 rare locations, nearly perfect", 12, 0.15, 4.5, "true"),
    ],
    "average precision, one location": lambda: [location("three fields carry it", 3, 2), location("five fields carry it", 5, 2), location("five fields carry it, by chance", 5, 0)],
    "F1": lambda: [f1("macro, good", "macro", 0.3, 2.5), f1("micro, good", "micro", 0.3, 2.5), f1("macro, weak", "macro", 0.3, 1)],
    "jaccard": lambda: [jaccard("good", 0.9, 15), jaccard("fair, images differ much", 0.7, 4)],
    "average precision, found and named cells": lambda: [detections("good", 3), detections("weak", 1)],
    "Dice, mean over images": lambda: [mean_dice("good, no failures", 0.9, 0), mean_dice("good, one in 20 fails", 0.9, 0.05), mean_dice("fair", 0.6, 0.1)],
    "calibration error": lambda: [calibration("calibrated", 1), calibration("too sure", 2), calibration("much too sure", 4)],
    "difference of average precision": lambda: [difference("none", 2, 2), difference("large", 1.5, 2.5)],
    "difference of Dice": lambda: [dice_difference("none", 0), dice_difference("0.03", 0.03)],
}  # fmt: skip


def cover(score: str, name: str, true, interval, n: int, repeats: int) -> dict:
    """How many of the intervals of so many test sets hold the true value."""
    rng, inside, widths, above, none = np.random.default_rng(n), [], [], [], 0
    goal = true(n) if callable(true) else true
    for seed in range(repeats):
        found = interval(n, rng, seed)
        if isinstance(found[0], tuple):
            found, better = found
            above.append(bool(better))
        if not np.isfinite(found).all():
            none += 1
            continue
        inside.append(found[0] <= goal <= found[1])
        widths.append(found[1] - found[0])
    mean = lambda values: float(np.mean(values)) if values else None  # noqa: E731
    return {"score": score, "case": name, "n": n, "true": float(goal), "repeats": repeats, "covered": mean(inside), "width": mean(widths), "without": none / repeats, "above_chance": mean(above)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400, help="test sets of each row; half as many from 50 fields on")
    parser.add_argument("--only", default="", help="scores whose name holds this text")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json", help="JSON to write")
    arguments = parser.parse_args()
    rows, start = [], time.time()
    for score, make in ROWS.items():
        if arguments.only not in score:
            continue
        for name, true, interval in make():
            for n in SIZES:
                if "carry it" in name and n < 10:
                    continue
                rows.append(cover(score, name, true, interval, n, arguments.repeats if n <= 20 else arguments.repeats // 2))
                print({key: value if not isinstance(value, float) else round(value, 3) for key, value in rows[-1].items()}, flush=True)
    content = {"about": __doc__.splitlines()[0], "repeats": arguments.repeats, "draws": DRAWS, "min_groups": MIN_GROUPS, "seconds": round(time.time() - start), "python": platform.python_version(), "rows": rows}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
