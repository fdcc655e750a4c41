"""Crops a second of each augmentation beside the same layer of keras-cv, from the same crops in the same run.

Each runs as it would in a feed: inside of a compiled TensorFlow function, batch after batch of 64 crops of 128x128x4,
float32, already in memory. One round is not counted (it compiles); then rounds of ours and of keras-cv's take turns and
the median of each counts. Everything runs on two cores. Ours are measured with their defaults, each crop changed; the layers
of keras-cv with the same strengths where both have them. Where keras-cv has no such layer, ours stands alone.

    python benchmarks/augment.py                  # some minutes
    python benchmarks/augment.py --repeats 1      # a glance
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

SHAPE = (128, 128, 4)
BATCH = 64
LAYERS = {  # our name: layer of keras-cv, its arguments
    "flip": ("RandomFlip", {"mode": "horizontal_and_vertical"}),
    "rotate": ("RandomRotation", {"factor": 0.5, "fill_mode": "constant"}),
    "translate": ("RandomTranslation", {"height_factor": 0.1, "width_factor": 0.1, "fill_mode": "constant"}),
    "zoom": ("RandomZoom", {"height_factor": (-0.15, 0.15), "fill_mode": "constant"}),
    "brightness": ("RandomBrightness", {"factor": 0.1}),
    "contrast": ("RandomContrast", {"value_range": (0, 255), "factor": 0.3}),
    "blur": ("RandomGaussianBlur", {"kernel_size": 5, "factor": (0.0, 1.0)}),
    "grid_mask": ("GridMask", {"ratio_factor": (0.2, 0.4), "rotation_factor": 0.1}),
    "cutout": ("RandomCutout", {"height_factor": 0.25, "width_factor": 0.25}),
    "cutmix": ("CutMix", {"alpha": 1.0}),
    "mixup": ("MixUp", {"alpha": 0.2}),
    "mosaic": ("Mosaic", {"offset": (0.25, 0.75)}),
}
CHAINS = {"flip + rotate + translate + zoom": ("flip", "rotate", "translate", "zoom"), "flip + rotate + contrast + grid_mask": ("flip", "rotate", "contrast", "grid_mask")}


def make_ours(names):
    """A compiled function: crops, targets, number of the batch -> the changed batch."""
    import tensorflow as tf

    from hpacell.feed.augment import make_augmenter

    augment = make_augmenter([{name: {"probability": 1.0}} for name in names])
    return tf.function(lambda crops, targets, i: augment(crops, targets, tf.stack([7, i])))


def make_theirs(names):
    """The same by layers of keras-cv."""
    import keras_cv
    import tensorflow as tf

    layers = [getattr(keras_cv.layers, LAYERS[name][0])(**LAYERS[name][1], seed=1) for name in names]

    def change(crops, targets, i):
        batch = {"images": crops, "labels": targets}
        for layer in layers:
            batch = layer(batch, training=True)
        return batch["images"], batch["labels"]

    return tf.function(change)


def count(function, batches) -> float:
    """Crops a second of one round."""
    import tensorflow as tf

    start = time.perf_counter()
    for i, (crops, targets) in enumerate(batches):
        changed = function(crops, targets, tf.constant(i))[0]
    changed.numpy()
    return sum(len(crops) for crops, _ in batches) / (time.perf_counter() - start)


def summarise(rates: list[float]) -> dict:
    return {"crops_per_second": round(statistics.median(rates)), "lowest": round(min(rates)), "highest": round(max(rates)), "rounds": len(rates)}


def compare(names, batches, repeats: int) -> dict:
    """Ours and theirs in turns."""
    functions = {"hpacell": make_ours(names)}
    if all(name in LAYERS for name in names):
        functions["keras_cv"] = make_theirs(names)
    rates = {who: [] for who in functions}
    for _ in range(repeats + 1):
        for who, function in functions.items():
            rates[who].append(count(function, batches))
    row = {who: summarise(values[1:]) for who, values in rates.items()}
    if "keras_cv" in row:
        row["times_keras_cv"] = round(row["hpacell"]["crops_per_second"] / row["keras_cv"]["crops_per_second"], 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=8, help="batches of 64 crops in a round (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count (default: 3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "augment.json", help="JSON file to write")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    import keras_cv
    import tensorflow as tf

    from hpacell.feed.augment import AUGMENTATIONS

    start = time.perf_counter()
    crops = tf.floor(tf.random.stateless_uniform((arguments.batches, BATCH, *SHAPE), [1, 2], 0, 256))
    batches = [(part, tf.one_hot(tf.range(BATCH) % 19, 19)) for part in tf.unstack(crops)]
    rates = {}
    for what, names in {**{name: (name,) for name in AUGMENTATIONS}, **CHAINS}.items():
        rates[what] = compare(names, batches, arguments.repeats)
        row = rates[what]
        theirs = f"{row['keras_cv']['crops_per_second']:>8,}   {row['times_keras_cv']:>6} times" if "keras_cv" in row else "       -"
        print(f"{what:40} {row['hpacell']['crops_per_second']:>8,} crops/s   keras-cv {theirs}", file=sys.stderr)
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(), "cores_used": 2}
    versions = {"tensorflow": tf.__version__, "keras_cv": keras_cv.__version__}
    result = {
        "machine": machine, "versions": versions, "shape": SHAPE, "batch": BATCH, "batches": arguments.batches,
        "rates": rates, "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
