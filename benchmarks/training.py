"""Crops a second of a training beside its bare train step: how much do feed, augmentation, progress and log cost?

`train_classifier` trains on a store of 64 x 64 x 4 crops, with the default augmentation and batches of 64. Every so many
steps it is held up, and the same compiled model makes as many steps on one batch that lies in memory already: the bare train
step. Both thus share the state of the machine, step by step. The first steps after each change are not counted, since batches
that the feed made ahead would flatter the training, and the filling up of its queue would slow the bare steps. What counts
is the median of the ratios of neighbouring rounds. Steps alone are measured: not the validation, nor the first steps of an
epoch, nor the writing of its state. Everything runs on two cores.

    python benchmarks/training.py                            # some minutes
    python benchmarks/training.py --rounds 4 --fields 60     # a glance
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HPACELL_PROGRESS", os.devnull)

import numpy as np
import pandas as pd

SHAPE = (64, 64, 4)
BATCH = 64
N_LOCATIONS = 12
MODELS = {
    "batch_norm": {"filters": [24, 48, 96, 128], "kernels": [7, 5, 3, 3], "strides": 2},
    "invert_conv_dropout": {},
}
GOAL = 0.95


def make_store(folder: Path, n_fields: int):
    """Noise; as many crops a field as in a batch, so that no batch is smaller."""
    from hpacell.feed.writer import StoreWriter
    from hpacell.vocabulary import LOCATIONS

    generator = np.random.default_rng(0)
    with StoreWriter(folder, SHAPE, ("microtubules", "protein", "nucleus", "er"), {"size": SHAPE[0]}) as writer:
        for i in range(n_fields):
            labels = f"{LOCATIONS[i % N_LOCATIONS]}|{LOCATIONS[(i + 1 + i // N_LOCATIONS) % N_LOCATIONS]}"
            cells = pd.DataFrame({"field_id": [f"f{i}"] * BATCH, "labels": labels})
            writer.add(f"k{i}", {"field_id": f"f{i}", "labels": labels}, cells, generator.integers(0, 256, (BATCH, *SHAPE), np.uint8))
        return writer.finish()


def make_alternation(rounds: int, steps: int, skipped: int):
    """A callback that measures the training and the bare step in turns, and ends the training after so many rounds."""
    import keras
    import tensorflow as tf

    class Alternation(keras.callbacks.Callback):
        """Seconds of each round."""

        def __init__(self):
            super().__init__()
            self.training, self.bare, self.step, self.start = [], [], 0, 0.0
            generator = np.random.default_rng(1)
            crops = generator.uniform(0, 255, (BATCH, *SHAPE)).astype(np.float32)
            targets = generator.integers(0, 2, (BATCH, N_LOCATIONS)).astype(np.float32)
            # As a cached batch it has the type of the feed's batches, so that no other program is compiled for it.
            self.batches = iter(tf.data.Dataset.from_tensor_slices((crops, targets)).batch(BATCH).cache().repeat())

        def run_bare(self, n: int) -> None:
            for _ in range(n):
                logs = self.model.train_function(self.batches)
            float(logs["loss"])

        def on_epoch_begin(self, epoch, logs=None):
            self.step = 0

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = len(self.bare) == rounds  # the training itself decides anew after each epoch

        def on_train_batch_end(self, batch, logs=None):
            if len(self.bare) == rounds:
                self.model.stop_training = True
                return
            self.step += 1
            if self.step == skipped:
                self.start = time.perf_counter()
            if self.step == skipped + steps:
                self.training.append(time.perf_counter() - self.start)
                self.run_bare(skipped)
                start = time.perf_counter()
                self.run_bare(steps)
                self.bare.append(time.perf_counter() - start)
                self.step = 0

    return Alternation()


def measure(store, folder: Path, name: str, arguments) -> dict:
    """Rates of one model in its training and bare, and their ratio."""
    import keras

    from hpacell.models.training import TrainingSettings, train_classifier

    alternation = make_alternation(arguments.rounds + 1, arguments.steps, arguments.skip)
    usual = keras.Model.fit

    def fit(model, *args, callbacks=(), **kwargs):
        return usual(model, *args, callbacks=[*callbacks, alternation], **kwargs)

    settings = TrainingSettings(
        model=name, model_parameters=MODELS[name], batch_size=BATCH, epochs=1000, patience=1000, augment=tuple(arguments.augment)
    )
    with mock.patch.object(keras.Model, "fit", fit):
        train_classifier(store, folder, settings)
    crops = arguments.steps * BATCH
    pairs = list(zip(alternation.training, alternation.bare, strict=True))[1:]  # the first round still compiles
    return {
        "training": summarise([crops / training for training, _ in pairs]),
        "bare_step": summarise([crops / bare for _, bare in pairs]),
        "ratio": summarise([bare / training for training, bare in pairs], 4),
        "milliseconds_a_step": {"training": per_step(pairs, 0, arguments.steps), "bare": per_step(pairs, 1, arguments.steps)},
    }


def per_step(pairs: list, column: int, steps: int) -> float:
    return round(statistics.median(pair[column] for pair in pairs) / steps * 1000, 2)


def summarise(values: list[float], digits: int = 0) -> dict:
    low, middle, high = (round(float(value), digits) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": middle, "quarter": low, "three_quarters": high, "rounds": len(values)}


def measure_feed(store, augment: list[str], n_batches: int) -> int:
    """Crops a second of the feed alone, with nothing that trains on them."""
    from hpacell.feed.batches import make_batches
    from hpacell.vocabulary import LOCATIONS

    batches = iter(make_batches(store, LOCATIONS[:N_LOCATIONS], batch_size=BATCH, augment=augment, epochs=range(1000)))
    for _ in range(10):  # those made ahead
        next(batches)
    start = time.perf_counter()
    n = sum(len(crops) for crops, _ in itertools.islice(batches, n_batches))
    return round(n / (time.perf_counter() - start))


def main() -> None:
    from hpacell.models.training import TrainingSettings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=200, help="of 64 crops each; three in five are trained on (default: 200)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds that count (default: 20)")
    parser.add_argument("--steps", type=int, default=16, help="steps of a round that count (default: 16)")
    parser.add_argument("--skip", type=int, default=8, help="steps before them that do not (default: 8)")
    parser.add_argument("--augment", nargs="*", default=list(TrainingSettings().augment), help="default: that of a training")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json", help="JSON to write")
    arguments = parser.parse_args()
    import keras
    import tensorflow as tf

    start, load = time.perf_counter(), os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", arguments.fields)
        feed = measure_feed(store, arguments.augment, 200)
        print(f"the feed alone: {feed:,} crops/s", file=sys.stderr)
        rates = {}
        for name in arguments.models:
            rates[name] = row = measure(store, Path(folder) / name, name, arguments)
            row["met"] = row["ratio"]["median"] >= GOAL
            print(
                f"{name:20} training {row['training']['median']:>7,.0f} crops/s   bare step {row['bare_step']['median']:>7,.0f} crops/s   "
                f"ratio {row['ratio']['median']:.3f} [{row['ratio']['quarter']:.3f}, {row['ratio']['three_quarters']:.3f}], goal {GOAL}", file=sys.stderr
            )  # fmt: skip
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(), "cores_used": len(os.sched_getaffinity(0))}
    result = {
        "machine": {**machine, "load_before": [round(value, 1) for value in load], "load_after": [round(value, 1) for value in os.getloadavg()]},
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__}, "shape": SHAPE, "batch": BATCH, "augment": arguments.augment,
        "steps_a_round": arguments.steps, "steps_skipped": arguments.skip, "feed_alone_crops_per_second": feed, "goal": GOAL, "models": rates,
        "parameters": {name: MODELS[name] for name in arguments.models}, "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    main()
