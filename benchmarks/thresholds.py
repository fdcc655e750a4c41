"""The segmenters that come with the package, with thresholds chosen on images that are neither learned from nor scored.

Their thresholds were chosen on images that they learned from (their cards say so). Here their validation images are halved,
thresholds are chosen on each half and the other half is scored with them, so that all images are scored by thresholds that
other images have chosen: what the honest procedure gives, beside the scores of the thresholds as they come with the package.
Only the network's own images and thresholds: nothing is rescaled, as `hpacell segment` may do.

    python benchmarks/thresholds.py --data DSB2018 --out benchmarks/results/thresholds.json
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pandas as pd

from hpacell.fields.catalog import split_folds
from hpacell.fields.duplicates import group_duplicates
from hpacell.fields.intensity import normalise_intensity, to_channels
from hpacell.masks.layouts import find_labelled
from hpacell.metrics.instances import score_instances
from hpacell.models.places import shipped_segmenters
from hpacell.models.segmenter_card import load_method, load_segmenter
from hpacell.models.segmenter_recipe import find_twins, pick_evenly

SHOWN = (0.5, 0.75, 0.9)


def validation_images(data: Path, folder: Path, limit: int) -> list:
    """The images that a segmenter did not learn from, as its own table of sides says."""
    sides = pd.read_csv(folder / "split.csv", dtype=str).set_index("image_id")["side"]
    return pick_evenly([image for image in find_labelled(data) if sides.get(image.image_id) == "valid"], limit)


def scores_of(images: list, truths: list, found: list) -> dict:
    """Jaccard with its 95 % interval of each kind of image, and pooled."""
    names, kinds = [image.image_id for image in images], [image.kind for image in images]
    scores = score_instances(zip(truths, found, strict=True), SHOWN, names, kinds=kinds, n_bootstrap=1000, seed=0)
    table = {}
    for row in scores[scores["level"] != "image"].to_dict("records"):
        one = table.setdefault(row["image"], {"n_images": int(row["n_images"]), "jaccard": {}})
        one["jaccard"][f"{row['iou']:g}"] = [None if pd.isna(row[key]) else round(row[key], 4) for key in ("jaccard", "jaccard_low", "jaccard_high")]
    return table


def measure(name: str, data: Path, limit: int, seed: int) -> dict:
    """Scores of one segmenter with its own thresholds, and with those of the other half."""
    trained = load_segmenter(name)
    method, images = load_method(trained.method), validation_images(data, Path(trained.folder), limit)
    pairs = [image.read() for image in images]
    pixels, truths = [normalise_intensity(to_channels(one, trained.n_channels)) for one, _ in pairs], [truth for _, truth in pairs]
    frame = pd.DataFrame({"field_id": [image.image_id for image in images], "labels": [image.kind for image in images]})
    halves = split_folds(frame.assign(group=group_duplicates(frame["field_id"], find_twins(images))), 2, seed).to_numpy()
    found, chosen = [None] * len(images), []
    for half in (0, 1):
        others = [i for i in range(len(images)) if halves[i] != half]
        config = method.tune_config(trained.network, [pixels[i] for i in others], [truths[i] for i in others], trained.config)[0]
        changed = {key: value for key, value in vars(config).items() if key in ("foreground", "marker", "depth", "score", "mask_overlap")}
        chosen.append({"n_chosen_on": len(others), **changed})
        for i in (i for i in range(len(images)) if halves[i] == half):
            found[i] = method.segment_image(trained.network, pixels[i], config)[0]
    shipped = [method.segment_image(trained.network, one, trained.config)[0] for one in pixels]
    return {"as it comes": scores_of(images, truths, shipped), "thresholds of the other half": scores_of(images, truths, found), "chosen": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of DSB2018, see hpacell.masks.layouts")
    parser.add_argument("--names", nargs="+", default=shipped_segmenters(), help="names, or folders of segmenters")
    parser.add_argument("--limit", type=int, default=0, help="so many images (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the halves")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "thresholds.json", help="JSON to write")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.names:
        results[name] = measure(name, arguments.data, arguments.limit, arguments.seed)
        print(name, results[name]["chosen"], flush=True)
        for what in ("as it comes", "thresholds of the other half"):
            for kind, one in results[name][what].items():
                shown = "  ".join(f"{iou} {ends}" for iou, ends in one["jaccard"].items())
                print(f"{name:18} {what:30} {kind:14} {one['n_images']:>3} images  {shown}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"images": "validation side of each segmenter's split.csv, halved", "seed": arguments.seed, "segmenters": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
