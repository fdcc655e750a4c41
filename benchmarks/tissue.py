"""Masks of real images: nuclei against ground on DSB2018, and tissue units of an organ that was never shown.

`nuclei`: the foreground of the Data Science Bowl 2018 images as one mask. Images that look alike stay on one side; a fifth
is scored, another fifth says which epoch was best and where to cut each kind of image, the rest is learned from.
`organs`: the five HuBMAP tiles in ../shared/data/hubmap/tiles (re-rendered, masks approximate, 255 = unknown). Each organ
is scored by a model that learned from two or three of the other four. Five images are no basis for a claim: this shows that it
runs, and how little one image of each organ teaches.

    python benchmarks/tissue.py --data ../shared/data --work FOLDER                  # half an hour on two cores
    python benchmarks/tissue.py --data ../shared/data --work FOLDER --sets organs --minutes 3
"""

import argparse
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd

from hpacell.masks.labelled import LabelledImage
from hpacell.masks.layouts import find_labelled
from hpacell.masks.tissue import find_tissue_images
from hpacell.models.tissue import cross_validate_tissue, train_tissue
from hpacell.models.tissue_recipe import TissueSettings, split_tissue

GOALS = {"fluorescence": 0.92, "stained": 0.80}
AUGMENT = ("flip", "rotate90", {"scale": {"least": 0.6, "most": 1.6}}, {"hue_saturation": {"degrees": 30}}, "brightness", "contrast", "noise", "blur")


@dataclass(frozen=True)
class Foreground:
    """A labelled image whose cells are all one mask."""

    image: LabelledImage

    @property
    def image_id(self) -> str:
        return self.image.image_id

    @property
    def kind(self) -> str:
        return self.image.kind

    def read_image(self) -> np.ndarray:
        return self.image.read_image()

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = self.image.read()
        return pixels, (labels > 0).astype(np.int32)


def score_nuclei(data: Path, work: Path, settings: TissueSettings) -> dict:
    """Dice of each kind of image, on images that chose nothing."""
    images = [Foreground(image) for image in find_labelled(data / "dsb2018")]
    return train_tissue(images, work / "nuclei", settings, split_tissue(images, 5, 0)).card


def score_organs(data: Path, work: Path, settings: TissueSettings) -> dict:
    """Dice of each of the five tiles, its organ left out."""
    table = cross_validate_tissue(find_tissue_images(data / "hubmap" / "tiles"), work / "organs", settings, n_folds=4, by="organ")
    rows = table[["level", "organ", "image", "n_ignored", "dice", "dice_low", "dice_high", "dice_with_background", "fold"]]
    return {"scores": json.loads(rows.round(4).to_json(orient="records"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with dsb2018/ and hubmap/")
    parser.add_argument("--work", type=Path, required=True, help="folder for models; trainings that were stopped go on there")
    parser.add_argument("--sets", nargs="+", default=["nuclei", "organs"], choices=["nuclei", "organs"])
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, at most; each of the five organs gets a tenth")
    parser.add_argument("--epochs", type=int, default=75, help="of 60 batches of 8 patches; the organs get a fifteenth of these")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tissue.json")
    arguments = parser.parse_args()
    shared = {"steps_per_epoch": 60, "batch_size": 8, "patch": 128, "learning_rate": 4e-3, "validate_every": 4, "augment": AUGMENT}
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    content |= {"goals": GOALS, "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version(), "keras": keras.__version__}}
    for name in arguments.sets:
        if name == "nuclei":
            settings = TissueSettings(epochs=arguments.epochs, minutes=arguments.minutes, **shared)
            card = score_nuclei(arguments.data, arguments.work, settings)
            found = {key: card[key] for key in ("scores", "scores_of", "seconds", "stopped", "best_epoch", "n_weights")} | {"n_images": card["data"]["n_images"]}
        else:
            # The units of the five organs are 20 to 300 pixels wide on these tiles: half the size shows more around them.
            settings = TissueSettings(reduce=2, epochs=max(1, arguments.epochs // 15), minutes=arguments.minutes / 10, **shared)
            found = score_organs(arguments.data, arguments.work, settings)
        content[name] = found | {"settings": json.loads(json.dumps(asdict(settings)))}
        print(pd.DataFrame(found["scores"]).to_string(), flush=True)
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
