"""Intervals of real scores beside the plain ones: how many of 100 hold the jaccard of all images.

The population is the 68 fluorescence validation images whose counts lie beside the shipped weights; sets of 8 to 40 are drawn
from them with repetition. Beside ours: SciPy's percentile and BCa bootstrap, and Student's interval of the mean of images.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, t

from hpacell.metrics.bootstrap import bootstrap_counts, bootstrap_interval
from hpacell.models.places import SHIPPED

REPEATS, DRAWS = 200, 300


def intervals(tp: np.ndarray, union: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """Ends of the intervals of the pooled jaccard of some images, by each method."""
    counts, n, each = bootstrap_counts(len(tp), DRAWS, seed), len(tp), tp / union
    found = {"ours": bootstrap_interval((counts @ tp) / (counts @ union), n)}
    for method in ("percentile", "BCa"):
        pooled = bootstrap((tp, union), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), paired=True, method=method, n_resamples=DRAWS, rng=seed, vectorized=True)
        found[method] = pooled.confidence_interval
    half = t.ppf(0.975, n - 1) * each.std(ddof=1) / np.sqrt(n)
    return found | {"Student, mean of images": (each.mean() - half, each.mean() + half)}


def main() -> None:
    warnings.simplefilter("ignore")  # BCa on draws that are all alike
    rows = []
    for model in ("maskrcnn_nuclei", "unet_nuclei"):
        table = pd.read_csv(SHIPPED / model / "scores.csv")
        table = table[(table["level"] == "image") & (table["kind"] == "fluorescence") & (table["iou"] == 0.5)]
        tp, union = table["tp"].to_numpy(float), table[["tp", "fp", "fn"]].sum(axis=1).to_numpy(float)
        for n in (8, 10, 20, 40):
            rng, inside = np.random.default_rng(n), {}
            for seed in range(REPEATS):
                drawn = rng.integers(0, len(tp), n)
                for method, (low, high) in intervals(tp[drawn], union[drawn], seed).items():
                    true = (tp / union).mean() if method.startswith("Student") else tp.sum() / union.sum()
                    inside[method] = inside.get(method, 0) + bool(low <= true <= high)
            rows.append({"model": model, "n": n} | {method: 100 * hits / REPEATS for method, hits in inside.items()})
            print(rows[-1], flush=True)
    (Path(__file__).parent / "results" / "coverage_real.json").write_text(json.dumps({"repeats": REPEATS, "draws": DRAWS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
