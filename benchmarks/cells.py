"""Cell A against cell B: red cells, white cells and platelets of blood smears, from boxes that people drew.

The data are the 268 images of the BCCD data set. Their boxes become crops (`import_boxes`), a small network learns their
classes (`train_classifier`), and is scored on images that it never saw (`evaluate_classifier`): F1 of each class at a
probability of 0.5, and the mean of the three with its 95 % interval over images.

The images are cut into five parts. Which view of a cell is best is decided on the validation images of two trainings,
parts 1 and 2 (`choose`). The scores are those of three other parts, 0, 3 and 4, each by a model that had it neither for
training nor for stopping (`score`). Cells that the model takes for another kind are listed; the label is not always right.
How it is trained stands in params/bccd.yaml.

    nice -n 10 python benchmarks/cells.py              # all: a minute or two for each of nine trainings
    python benchmarks/cells.py --steps score           # the scores alone
    python benchmarks/cells.py --wrong FOLDER          # and pictures of the cells that are taken for another kind
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ["HPACELL_PROGRESS"] = os.devnull

import keras
import numpy as np
import pandas as pd
import yaml
from PIL import Image

from hpacell.feed.choice import target_array
from hpacell.feed.foreign import import_boxes
from hpacell.feed.store import CropStore
from hpacell.metrics.locations import score_locations, summarise_locations
from hpacell.models.evaluation import evaluate_classifier
from hpacell.models.training import TrainedClassifier, TrainingSettings, split_store, train_classifier

PARAMETERS = yaml.safe_load((Path(__file__).parents[1] / "params" / "bccd.yaml").read_text())["workflows"]["train_classifier"]
CLASSES = tuple(PARAMETERS["locations"])
SIZE = 32
VIEWS = {
    "fixed, cleared": {"scale": "fixed", "clear_outside": True},  # as import_boxes does it by default
    "fixed": {"scale": "fixed", "clear_outside": False},
    "box": {"scale": "box", "clear_outside": False},
}
CHOOSE_FOLDS, SCORE_FOLDS = (0, 1), (0, 3, 4)
GOAL, DRAWS = 0.97, 1000


def settings_of(fold: int, epochs: int) -> TrainingSettings:
    """How each classifier is trained; the best epoch on the validation images is kept."""
    known = {name: value for name, value in PARAMETERS.items() if name not in ("store", "model_folder", "locations")}
    return TrainingSettings(**known | {"epochs": epochs, "patience": epochs, "test_fold": fold})


def make_store(data: Path, folder: Path, view: dict) -> CropStore:
    """Crops of all boxes."""
    return import_boxes(data / "images", data / "boxes.csv", folder, size=SIZE, classes=CLASSES, **view)


def train(store: CropStore, folder: Path, fold: int, epochs: int) -> tuple[TrainedClassifier, float]:
    """A classifier, and the seconds it took."""
    start = time.perf_counter()
    classifier = train_classifier(store, folder, settings_of(fold, epochs), CLASSES)
    return classifier, round(time.perf_counter() - start, 1)


def rows_of(store: CropStore, side: str, fold: int, epochs: int) -> np.ndarray:
    """Crops of the images of one side."""
    return np.flatnonzero(split_store(store, settings_of(fold, epochs)) == side)


def choose(data: Path, place: Path, epochs: int) -> list[dict]:
    """Macro F1 of each view on validation images."""
    found = []
    for number, (name, view) in enumerate(VIEWS.items()):
        store = make_store(data, place / f"view{number}", view)
        for fold in CHOOSE_FOLDS:
            classifier, seconds = train(store, place / f"chosen{number}-{fold}", fold, epochs)
            rows = rows_of(store, "valid", fold, epochs)
            truth = target_array(store.index.iloc[rows], CLASSES)
            score = summarise_locations(truth, classifier.predict(store.crops(rows)), CLASSES)["macro_f1"]
            found.append({"view": name, "test_fold": fold, "valid_cells": len(rows), "macro_f1": round(score, 4), "seconds": seconds})
            print("choose   {view:16} test fold {test_fold}: macro F1 {macro_f1:.4f} on {valid_cells} validation cells, {seconds:.0f} s".format(**found[-1]), flush=True)
    return found


def wrong_cells(store: CropStore, classifier: TrainedClassifier, rows: np.ndarray) -> pd.DataFrame:
    """Cells whose likeliest class is not their label."""
    probabilities = classifier.predict(store.crops(rows))
    table = store.index.iloc[rows][["field_id", "cell_id", "labels"]].assign(row=rows)
    table["taken_for"] = np.array(CLASSES)[probabilities.argmax(axis=1)]
    table["probability"] = probabilities.max(axis=1).round(3)
    return table[table["taken_for"] != table["labels"]]


def score(data: Path, place: Path, view: str, epochs: int, pictures: Path | None) -> dict:
    """Macro F1 with its interval, F1 of each class and the wrong cells, of each test fold and of all three."""
    store, folds, pooled = make_store(data, place / "scored", VIEWS[view]), [], []
    for fold in SCORE_FOLDS:
        classifier, seconds = train(store, place / f"scored-{fold}", fold, epochs)
        evaluation = evaluate_classifier(classifier, store, n_bootstrap=DRAWS)
        summary, table = evaluation.summaries["cells_labelled"], evaluation.tables["cells_labelled"]
        rows = rows_of(store, "test", fold, epochs)
        wrong = wrong_cells(store, classifier, rows)
        pooled.append((rows, classifier.predict(store.crops(rows))))
        folds.append({
            "test_fold": fold, "images": evaluation.n_fields, "cells": evaluation.n_cells, "seconds": seconds,
            "macro_f1": round(summary["macro_f1"], 4), "interval": [round(summary[f"macro_f1_{end}"], 4) for end in ("low", "high")],
            "f1": dict(zip(table["location"], table["f1"].round(4), strict=True)), "cells_of_class": dict(zip(table["location"], table["n_pos"].tolist(), strict=True)),
            "macro_average_precision": round(summary["macro_average_precision"], 4), "wrong": wrong.drop(columns="row").to_dict("records"),
        })  # fmt: skip
        print(describe(f"test fold {fold}", folds[-1]), flush=True)
        print(wrong.drop(columns="row").to_string(index=False) if len(wrong) else "no cell is taken for another kind", flush=True)
        if pictures and len(wrong):
            pictures.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(list(store.crops(wrong["row"].to_numpy())), axis=1)).save(pictures / f"wrong-{fold}.png")
    rows = np.concatenate([some for some, _ in pooled])
    truth, pred = target_array(store.index.iloc[rows], CLASSES), np.concatenate([some for _, some in pooled])
    shared = {"locations": CLASSES, "groups": store.index["field_id"].iloc[rows], "n_bootstrap": DRAWS}
    summary, table = summarise_locations(truth, pred, **shared), score_locations(truth, pred, **shared)
    both = {
        "images": summary["n_groups"], "cells": len(rows), "macro_f1": round(summary["macro_f1"], 4),
        "interval": [round(summary[f"macro_f1_{end}"], 4) for end in ("low", "high")], "f1": dict(zip(CLASSES, table["f1"].round(4), strict=True)), "seconds": 0,
    }  # fmt: skip
    print(describe("all three", both))
    return {"view": view, "window": store.manifest["parameters"].get("window"), "quarantine": store.quarantine["reason"].str.split(": ", n=1).str[1].tolist(), "folds": folds, "pooled": both}


def describe(name: str, found: dict) -> str:
    """One line of scores."""
    low, high = found["interval"]
    met = "" if found["macro_f1"] >= GOAL else "  NOT MET"
    each = ", ".join(f"{kind} {value:.3f}" for kind, value in found["f1"].items())
    return f"score    {name}: macro F1 {found['macro_f1']:.4f} [{low:.4f}, {high:.4f}], goal {GOAL}{met}; {each}; {found['images']} images, {found['cells']} cells"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/bccd"), help="folder with images and boxes.csv")
    parser.add_argument("--steps", nargs="+", choices=("choose", "score"), default=["choose", "score"], help="which (default: both)")
    parser.add_argument("--view", choices=tuple(VIEWS), default="fixed, cleared", help="what is scored (default: the best that choose found)")
    parser.add_argument("--epochs", type=int, default=PARAMETERS["epochs"], help="of each training (default: as in params/bccd.yaml)")
    parser.add_argument("--wrong", type=Path, help="folder for pictures of the wrong cells")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cells.json", help="JSON to write")
    arguments = parser.parse_args()
    start = time.perf_counter()
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    result["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(), "keras": keras.__version__, "load_at_start": round(os.getloadavg()[0], 2)}
    result |= {"size": SIZE, "epochs": arguments.epochs, "parameters": PARAMETERS, "goal": GOAL}
    with tempfile.TemporaryDirectory() as folder:
        if "choose" in arguments.steps:
            result["choose"] = choose(arguments.data, Path(folder), arguments.epochs)
        if "score" in arguments.steps:
            result["score"] = score(arguments.data, Path(folder), arguments.view, arguments.epochs, arguments.wrong)
    result["seconds"] = round(time.perf_counter() - start)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
