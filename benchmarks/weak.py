"""From labels of fields to answers for cells: how much better than to let each cell inherit its field's labels?

Fields are simulated with known cells, so that the answers for cells can be scored against the truth, on fields that were
used neither for training nor for stopping. Three sets: `many`, 600 fields of 512 x 512 pixels with 12 locations; `few`, the
first 100 of them; `mixed`, 600 fields whose cells are of 4 to 6 kinds each, so that a label is right for one cell in four.

For each set, way to learn (`weak`) and seed (of split, weights, order) the same network is trained with the same number of
epochs, and scored twice: each cell by its own picture alone, and joined with what its field says. The baseline is
`inherit`, each cell alone. Trainings that are finished, or stopped, in the work folder are taken up.

    python benchmarks/weak.py --work FOLDER                                     # some hours on two cores
    python benchmarks/weak.py --work FOLDER --sets many --weak inherit em --seeds 0
"""

import argparse
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd

from hpacell.feed.store import CropStore, read_store
from hpacell.fields.simulate import MIXTURE, simulate_fields
from hpacell.models.card import find_classifier, load_classifier
from hpacell.models.evaluation import evaluate_classifier
from hpacell.models.training import TrainingSettings, train_classifier
from hpacell.pipeline.extract import ExtractSettings, extract_fields

SETS = {"many": (600, 11, MIXTURE, 15), "few": (100, 11, MIXTURE, 40), "mixed": (600, 12, (0, 0, 0, 1 / 3, 1 / 3, 1 / 3), 15)}
NETWORK = {"filters": [24, 48, 96, 128], "kernels": [7, 5, 3, 3], "strides": 2}
GOALS = {"above_inherit": 0.10, "average_precision": 0.80}


def make_store(name: str, work: Path) -> CropStore:
    """Crops of a set, simulated and extracted if they are not there yet."""
    n_fields, seed, mixture, _ = SETS[name]
    folder = work / name
    if not (folder / "store" / "manifest.json").exists():
        simulate_fields(folder / "fields", n_fields, seed=seed, mixture=mixture, workers=os.cpu_count() or 1, progress=True)
        extract_fields(folder / "fields", folder / "store", labels=folder / "fields" / "labels.csv", settings=ExtractSettings(crop_size=64))
    return read_store(folder / "store")


def score(name: str, weak: str, seed: int, work: Path) -> dict:
    """Scores of one training, which is done if it is not there yet."""
    store, folder, epochs = make_store(name, work), work / name / "models" / f"{weak}_{seed}", SETS[name][3]
    settings = TrainingSettings(model_parameters=NETWORK, weak=weak, seed=seed, epochs=epochs, patience=epochs, learning_rate=0.002)
    try:
        trained = load_classifier(find_classifier(folder))
    except FileNotFoundError:
        trained = train_classifier(store, folder, settings)
    found = evaluate_classifier(trained, store, truth=work / name / "fields" / "truth")
    keys = ("macro_average_precision", "macro_average_precision_low", "macro_average_precision_high", "macro_f1")
    row = {"set": name, "weak": weak, "seed": seed, "epochs": epochs, "n_test_fields": found.n_fields, "n_test_cells": found.n_cells}
    for kind, title in (("cells_alone", "alone"), ("cells_true", "answer"), ("fields", "fields")):
        row |= {f"{title}_{key.removeprefix('macro_')}": round(found.summaries[kind][key], 4) for key in keys}
    row |= {"calibration_error": round(found.calibration_error, 4), "field_weight": trained.card["field_model"]["weight"], "seconds": trained.card["seconds"]}
    tables = {kind: found.tables[kind].set_index("location")["average_precision"].round(4).to_dict() for kind in ("cells_alone", "cells_true")}
    return row | {"locations": tables}


def compare(rows: list[dict]) -> pd.DataFrame:
    """Means over the seeds, and how far each stands above the baseline."""
    table = pd.DataFrame(rows).drop(columns="locations")
    baseline = table[table["weak"] == "inherit"].set_index(["set", "seed"])["alone_average_precision"]
    of_seed = baseline.reindex(pd.MultiIndex.from_frame(table[["set", "seed"]])).to_numpy()
    table["above_inherit"] = table["answer_average_precision"] - of_seed  # the baseline of the same split
    scores = ["alone_average_precision", "answer_average_precision", "above_inherit", "alone_f1", "answer_f1", "calibration_error", "seconds"]
    groups = table.groupby(["set", "weak"], sort=False)
    means = groups[scores].mean()
    means.insert(0, "n_seeds", groups.size())
    return means.round(4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for fields, stores and models; kept")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--weak", nargs="+", default=["inherit", "em", "noisy_or"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "weak.json")
    arguments = parser.parse_args()
    held = json.loads(arguments.out.read_text())["trainings"] if arguments.out.exists() else []
    rows = {(row["set"], row["weak"], row["seed"]): row for row in held}
    for name in arguments.sets:
        for seed in arguments.seeds:
            for weak in arguments.weak:
                rows[name, weak, seed] = score(name, weak, seed, arguments.work)
                table = compare(list(rows.values()))
                print(table.to_string(), flush=True)
                content = {
                    "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version(), "keras": keras.__version__, "numpy": np.__version__},
                    "goals": GOALS, "network": NETWORK, "means": table.reset_index().to_dict("records"), "trainings": list(rows.values()),
                }  # fmt: skip
                arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
