"""Trainings on labels that know nothing of the pixels: how often is such a model called better than chance?

Twenty trainings, from 8 to 100 fields of five cells, each field with one or two of four locations drawn by lot. The goal
is that at most 1 of 20 is said to be better than chance. Scores beside chance are kept: their ratio should be 1.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from hpacell.feed.writer import StoreWriter
from hpacell.models.evaluation import evaluate_classifier
from hpacell.models.recipe import TrainingSettings
from hpacell.models.training import train_classifier

LOCATIONS = ("nucleoplasm", "nucleoli", "cytosol", "mitochondria")
CHANNELS = ("microtubules", "protein", "nucleus", "er")


def make_store(folder: str, n_fields: int, rng: np.random.Generator):
    """A store whose crops differ from field to field, and labels by lot."""
    with StoreWriter(folder, (16, 16, 4), CHANNELS, {"size": 16}) as writer:
        for number in range(n_fields):
            shown = rng.choice(LOCATIONS, rng.integers(1, 3), replace=False)
            label = "|".join(name for name in LOCATIONS if name in shown)
            bright = rng.integers(60, 250)
            crops = rng.integers(0, bright, (5, 16, 16, 4)).astype(np.uint8)
            rows = pd.DataFrame({"field_id": [str(number)] * 5, "cell_id": np.arange(1, 6), "labels": label})
            writer.add(str(number), {"field_id": str(number), "labels": label}, rows, crops)
        return writer.finish()


def train_once(n_fields: int, seed: int) -> dict:
    """Scores of one training on the fields that it was not trained on."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(f"{folder}/store", n_fields, rng)
        small = {"filters": (8,), "kernels": (3,), "units": 0, "dropout": 0.0}
        settings = TrainingSettings(model_parameters=small, epochs=6, batch_size=16, learning_rate=0.02, augment=("flip",), seed=seed, n_folds=3)
        found = evaluate_classifier(train_classifier(store, f"{folder}/model", settings), store).metrics()
    row = {"n_fields": n_fields, "seed": seed, "n_test_fields": found["n_test_fields"]}
    kinds = {kind: {name: one[name] for name in ("macro_average_precision", "macro_average_precision_low", "macro_average_precision_high", "macro_chance")} for kind, one in found["summaries"].items()}
    return row | {"better": "times chance" in found["against_chance"], "scores": kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each number of fields")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "shuffled.json", help="JSON to write")
    arguments = parser.parse_args()
    rows, start = [], time.time()
    for n_fields in (8, 24, 50, 100):
        for seed in range(arguments.seeds):
            rows.append(train_once(n_fields, seed))
            print(rows[-1], flush=True)
    ratios = [one["macro_average_precision"] / one["macro_chance"] for row in rows for one in row["scores"].values()]
    summary = {"trainings": len(rows), "better_than_chance": sum(row["better"] for row in rows), "mean_ratio_to_chance": float(np.mean(ratios))}
    print(summary)
    arguments.out.write_text(json.dumps({"about": __doc__.splitlines()[0], "summary": summary, "seconds": round(time.time() - start), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
