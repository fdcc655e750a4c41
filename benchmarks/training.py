"""Crops a second of a training beside its bare train step: how much do feed, augmentation, progress and log cost?

`train_classifier` trains on a store of 64 x 64 x 4 crops, with the default augmentation and batches of 64. Every so many
steps it is held up, and the same compiled model makes as many steps on one batch that lies in memory already: the bare train
step. Both thus share the state of the machine, step by step. The first steps after each change are not counted, since batches
that the feed made ahead would flatter the training, and the filling up of its queue would slow the bare steps. What counts
is the median of the ratios of neighbouring rounds. Steps alone are measured: not the validation, nor the first steps of an
epoch, nor the writing of its state. Everything runs on two cores. Where other programs need them too, the ratio of the
processor's time, which is noted beside, says more than that of the clock; it knows nothing of waiting. Whether the goal is met
is told only where others took less than a twentieth of the processor.

    python benchmarks/training.py                            # some minutes
    python benchmarks/training.py --rounds 4 --fields 60     # a glance
"""

import argparse
import itertools
import json
import os
import platform
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
QUIET = 0.05  # of the processor, for others


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


def now() -> np.ndarray:
    """Seconds of the clock and of the processor, all threads together."""
    return np.array([time.perf_counter(), time.process_time()])


def make_alternation(rounds: int, steps: int, skipped: int):
    """A callback that measures the training and the bare step in turns, and ends the training after so many rounds."""
    import keras
    import tensorflow as tf

    class Alternation(keras.callbacks.Callback):
        """Seconds of each round, of the clock and of the processor."""

        def __init__(self):
            super().__init__()
            self.training, self.bare, self.step, self.start = [], [], 0, None
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
                self.start = now()
            if self.step == skipped + steps:
                self.training.append(now() - self.start)
                self.run_bare(skipped)
                start = now()
                self.run_bare(steps)
                self.bare.append(now() - start)
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
    # The first round still compiles. (rounds, 2), by the clock and of the processor:
    training, bare = (np.array(seconds[1:]) for seconds in (alternation.training, alternation.bare))
    crops, ratios = arguments.steps * BATCH, bare / training
    return {
        "training": summarise(crops / training[:, 0]), "bare_step": summarise(crops / bare[:, 0]), "ratio": summarise(ratios[:, 0], 4),
        "ratio_of_processor_time": summarise(ratios[:, 1], 4),
        "processor_milliseconds_a_step": {who: summarise(1000 * seconds[:, 1] / arguments.steps, 2) for who, seconds in (("training", training), ("bare", bare))},
    }  # fmt: skip


def summarise(values: np.ndarray, digits: int = 0) -> dict:
    low, middle, high = (round(float(value), digits) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": middle, "quarter": low, "three_quarters": high, "rounds": len(values)}


def measure_feed(store, augment: list[str], n_batches: int) -> dict:
    """The feed alone, with nothing that trains on its batches."""
    from hpacell.feed.batches import make_batches
    from hpacell.vocabulary import LOCATIONS

    batches = iter(make_batches(store, LOCATIONS[:N_LOCATIONS], batch_size=BATCH, augment=augment, epochs=range(1000)))
    for _ in range(10):  # those made ahead
        next(batches)
    start = now()
    n = sum(len(crops) for crops, _ in itertools.islice(batches, n_batches))
    seconds, processor = now() - start
    return {"crops_per_second": round(n / seconds), "processor_milliseconds_a_batch": round(1000 * processor / n_batches, 2)}


def busy_seconds() -> np.ndarray:
    """Of all processors since the machine started: those of others than this process, and all."""
    import psutil

    times = psutil.cpu_times()
    all_ = sum(getattr(times, name) for name in ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal") if hasattr(times, name))
    return np.array([all_ - times.idle - getattr(times, "iowait", 0) - time.process_time(), all_])


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

    start, before = time.perf_counter(), busy_seconds()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", arguments.fields)
        feed = measure_feed(store, arguments.augment, 200)
        print(f"the feed alone: {feed['crops_per_second']:,} crops/s", file=sys.stderr)
        rates = {}
        for name in arguments.models:
            rates[name] = row = measure(store, Path(folder) / name, name, arguments)
            print(
                f"{name:20} training {row['training']['median']:>7,.0f} crops/s   bare step {row['bare_step']['median']:>7,.0f} crops/s   "
                f"ratio {row['ratio']['median']:.3f} [{row['ratio']['quarter']:.3f}, {row['ratio']['three_quarters']:.3f}], "
                f"of processor time {row['ratio_of_processor_time']['median']:.3f}, goal {GOAL}", file=sys.stderr,
            )  # fmt: skip
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(), "cores_used": len(os.sched_getaffinity(0))}
    of_others, all_ = busy_seconds() - before
    if of_others / all_ > QUIET:
        print(f"others took {of_others / all_:.0%} of the processor: repeat it on a quiet machine", file=sys.stderr)
    for row in rates.values():
        row["met"] = None if of_others / all_ > QUIET else row["ratio"]["median"] >= GOAL
    result = {
        "machine": {**machine, "share_of_others": round(of_others / all_, 3)},
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__}, "shape": SHAPE, "batch": BATCH, "augment": arguments.augment,
        "steps_a_round": arguments.steps, "steps_skipped": arguments.skip, "feed_alone": feed, "goal": GOAL, "models": rates,
        "parameters": {name: MODELS[name] for name in arguments.models}, "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    main()
