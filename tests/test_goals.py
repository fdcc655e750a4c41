"""Accuracy on all the real images at hand: minutes, so run by make test-all."""

import cv2
import numpy as np
import pandas as pd
import pytest

from hpacell.cells.segmentation import segment_field
from hpacell.fields.read import find_fields, read_field
from hpacell.masks.labels import relabel
from hpacell.metrics.instances import score_instances

pytestmark = pytest.mark.slow


def pooled(pairs) -> pd.Series:
    """jaccard over all objects of all images, by IoU."""
    scores = score_instances(pairs, ious=(0.5, 0.75))
    return scores[scores["image"] == "pooled"].set_index("iou")["jaccard"]


def test_cells_of_the_single_cell_competition(shared_data):
    folder = shared_data / "hpa" / "scc"
    pairs = []
    for source in find_fields(folder):
        field = read_field(source)
        truth = cv2.imread(str(folder / f"{field.field_id}_predictedmask.png"), cv2.IMREAD_UNCHANGED).astype(np.int32)
        pairs.append((relabel(truth), segment_field(field.image, field.channels).cells))
    found = pooled(pairs)
    assert len(pairs) == 4 and found[0.5] >= 0.78 and found[0.75] >= 0.60


def test_nuclei_of_the_data_science_bowl(shared_data):
    folder = shared_data / "dsb2018"
    index = pd.read_csv(folder / "index.csv")
    chosen = set(index.loc[index["kind"] == "fluorescence", "image_id"])
    pairs = []
    for source in find_fields(folder / "images", channels=["nucleus"]):
        if source.field_id in chosen:
            field = read_field(source)
            truth = cv2.imread(str(next((folder / "labels").glob(f"{source.field_id}*"))), cv2.IMREAD_UNCHANGED)
            pairs.append((truth.astype(np.int32), segment_field(field.image, field.channels).nuclei))
    found = pooled(pairs)
    assert len(pairs) == 452 and found[0.5] >= 0.78 and found[0.75] >= 0.58
