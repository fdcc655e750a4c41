"""Mask R-CNN: each part against plain NumPy, the whole on small images, other backends, bad input."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from hpacell.maskrcnn import model
from hpacell.maskrcnn.anchors import DELTA_SCALE, decode_boxes, encode_boxes, make_anchors, pair_iou
from hpacell.maskrcnn.config import MaskRCNNConfig
from hpacell.maskrcnn.detections import suppress_boxes
from hpacell.maskrcnn.heads import frame_boxes
from hpacell.maskrcnn.proposals import keep_best, propose
from hpacell.maskrcnn.pyramid import BACKBONES, make_pyramid
from hpacell.maskrcnn.roi_align import roi_align
from hpacell.maskrcnn.targets import IGNORED, choose_random, make_targets, mask_targets, match_anchors, sample_rois
from hpacell.masks.boxes import box_iou
from hpacell.metrics.instances import jaccard
from hpacell.models.blocks import keras

SMALL = MaskRCNNConfig(
    widths=(8, 16, 16), blocks=(1, 1, 1), pyramid_channels=16, anchor_strides=(4, 8), anchor_side=3.0, roi_strides=(2, 4, 8), box_units=64,
    mask_channels=16, max_instances=12, train_candidates=96, train_proposals=48, train_anchors=24, roi_samples=24, roi_positives=10, candidates=128,
    proposals=64, tile=128, overlap=64,
)  # fmt: skip


def numpy_of(x):
    return keras.ops.convert_to_numpy(x)


def random_boxes(rng, *shape, side=100):
    corner = rng.uniform(0, side, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(1, side / 2, (*shape, 2))], axis=-1).astype("float32")


def discs(n, size=128, seed=0, shape=None, gap=2):
    """Label image and picture of round cells that do not touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape or (size, size), np.int32)
    for _ in range(2000):
        row, col, radius = rng.integers(8, labels.shape[0] - 8), rng.integers(8, labels.shape[1] - 8), int(rng.integers(5, 13))
        spot = cv2.circle(np.zeros(labels.shape, np.uint8), (int(col), int(row)), radius + gap, 1, -1) > 0
        if labels.max() < n and not labels[spot].any():
            labels[cv2.circle(np.zeros(labels.shape, np.uint8), (int(col), int(row)), radius, 1, -1) > 0] = labels.max() + 1
    return labels, (cv2.GaussianBlur((labels > 0).astype("float32"), (0, 0), 1) + rng.normal(0, 0.05, labels.shape)).astype("float32")[..., None]


def greedy(boxes, valid, iou):
    kept = []
    for i in np.flatnonzero(valid):
        if all(box_iou(boxes[i : i + 1], boxes[j : j + 1])[0, 0] <= iou for j in kept):
            kept.append(i)
    return np.isin(np.arange(len(boxes)), kept)


@pytest.mark.parametrize("seed", range(6))
def test_suppression_is_the_greedy_one(seed):
    rng = np.random.default_rng(seed)
    boxes, valid = random_boxes(rng, 3, 80, side=[30, 60, 120][seed % 3]), rng.random((3, 80)) < 0.9
    iou = [0.2, 0.5, 0.7][seed % 3]
    kept = numpy_of(keep_best(boxes, valid, iou))
    for i in range(3):
        np.testing.assert_array_equal(kept[i], greedy(boxes[i], valid[i], iou))
        np.testing.assert_array_equal(suppress_boxes(boxes[i], -np.arange(80.0), iou), np.flatnonzero(greedy(boxes[i], np.ones(80, bool), iou)))


def test_suppression_of_a_long_chain():
    """Each box overlaps its neighbours alone: as many rounds as there are boxes."""
    start = np.arange(200, dtype="float32")[:, None] * 4
    boxes = np.concatenate([start, 0 * start, start + 10, 0 * start + 10], axis=1)[None]
    kept = numpy_of(keep_best(boxes, np.ones((1, 200), bool), 0.4))
    np.testing.assert_array_equal(kept[0], np.arange(200) % 2 == 0)


def test_boxes_and_deltas_are_inverse():
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 2, 50), random_boxes(rng, 2, 50)
    deltas = numpy_of(encode_boxes(boxes, anchors))
    sides = anchors[..., 2:] - anchors[..., :2]
    move = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / sides
    np.testing.assert_allclose(deltas[..., :2] * DELTA_SCALE[:2], move, atol=1e-4)
    near = anchors + 0.2 * np.concatenate([sides, sides], axis=-1) * rng.uniform(-1, 1, anchors.shape).astype("float32")
    np.testing.assert_allclose(numpy_of(decode_boxes(encode_boxes(near, anchors), anchors)), near, atol=1e-2)
    np.testing.assert_allclose(numpy_of(pair_iou(boxes, anchors))[1], box_iou(boxes[1], anchors[1]), atol=1e-5)


def test_proposals_are_sorted_inside_and_padded():
    rng = np.random.default_rng(1)
    anchors = random_boxes(rng, 40)
    boxes, scores = (numpy_of(x) for x in propose(rng.normal(size=(2, 40)).astype("float32"), rng.normal(size=(2, 40, 4)).astype("float32") * 99, anchors, (70, 90), 60, 50, 0.5))
    assert boxes.shape == (2, 50, 4) and np.isfinite(boxes).all() and (np.diff(scores, axis=1) <= 0).all()
    real = scores > 0
    assert (boxes[real][:, 2:] - boxes[real][:, :2] >= 1).all() and (boxes[..., 2] <= 70).all() and (boxes[..., 3] <= 90).all() and (boxes >= 0).all()
    assert not boxes[~real].any() and 0 < real.sum() < real.size


def plain_roi(levels, strides, box, size):
    """One box, sample after sample."""
    side = np.sqrt(max(box[2] - box[0], 1e-3) * max(box[3] - box[1], 1e-3))
    level = next((i for i, stride in enumerate(strides) if side / size <= stride * 1.0001), len(strides) - 1)
    image, out = levels[level], np.zeros((size, size, levels[0].shape[-1]))
    for i in range(size):
        for j in range(size):
            row = np.clip((box[0] + (box[2] - box[0]) * (i + 0.5) / size) / strides[level] - 0.5, 0, image.shape[0] - 1)
            col = np.clip((box[1] + (box[3] - box[1]) * (j + 0.5) / size) / strides[level] - 0.5, 0, image.shape[1] - 1)
            r, c = int(row), int(col)
            r1, c1 = min(r + 1, image.shape[0] - 1), min(c + 1, image.shape[1] - 1)
            upper = image[r, c] * (1 - col + c) + image[r, c1] * (col - c)
            out[i, j] = upper * (1 - row + r) + (image[r1, c] * (1 - col + c) + image[r1, c1] * (col - c)) * (row - r)
    return out


def test_roi_align_is_the_plain_one():
    rng = np.random.default_rng(2)
    maps = [rng.normal(size=(2, 64 // s, 96 // s, 3)).astype("float32") for s in (2, 4, 8)]
    boxes = random_boxes(rng, 2, 9, side=60)
    boxes[0, 0], boxes[1, 0], boxes[1, 1] = [-9, -7, 5, 4], [5, 5, 5, 5], [50, 80, 80, 120]
    found = numpy_of(roi_align(maps, (2, 4, 8), boxes, 6))
    for i in range(2):
        for j in range(9):
            np.testing.assert_allclose(found[i, j], plain_roi([level[i] for level in maps], (2, 4, 8), boxes[i, j], 6), atol=1e-4)


def test_anchors_find_their_cells():
    labels, _ = discs(12)
    config = replace(SMALL, max_instances=12)
    targets = make_targets(np.stack([labels, 0 * labels]), config)
    anchors = numpy_of(make_anchors([(32, 32), (16, 16)], config))
    state, index = (numpy_of(x) for x in match_anchors(anchors, targets, config))
    iou = box_iou(anchors, targets["boxes"][0])
    best = np.isclose(iou, iou.max(axis=0), atol=1e-5)
    wanted = np.where(best.any(axis=1) | (iou.max(axis=1) >= 0.5), 1, np.where(iou.max(axis=1) < 0.3, 0, -1))
    np.testing.assert_array_equal(state[0], wanted)
    forced = best.any(axis=1)
    np.testing.assert_array_equal(index[0][forced], (iou + 2 * best).argmax(axis=1)[forced])
    assert set(index[0][state[0] == 1]) == set(range(12))  # none without an anchor
    assert not state[1].any()


def test_crowds_keep_the_largest_and_ignore_the_others():
    labels, _ = discs(12)
    targets = make_targets(labels[None], replace(SMALL, max_instances=5))
    areas = np.bincount(labels.ravel())[1:]
    kept = targets["ids"][0]
    assert len(kept) == 5 and areas[kept - 1].min() >= np.delete(areas, kept - 1).max()
    np.testing.assert_array_equal(targets["labels"][0] == IGNORED, (labels > 0) & ~np.isin(labels, kept))
    state, _ = match_anchors(numpy_of(make_anchors([(32, 32), (16, 16)], SMALL)), targets, SMALL)
    assert not labels.min() and (numpy_of(state) == IGNORED).sum() > 0


def test_masks_are_read_from_the_label_image():
    labels, _ = discs(8)
    targets = make_targets(labels[None], SMALL)
    framed = frame_boxes(targets["boxes"][:, :8], 0.1)
    masks = numpy_of(mask_targets(targets["labels"], framed, targets["ids"][:, :8], 28))[0]
    for i, (row0, col0, row1, col1) in enumerate(framed[0]):
        rows, cols = (np.floor(a + (b - a) * (np.arange(28) + 0.5) / 28).astype(int) for a, b in [(row0, row1), (col0, col1)])
        inside = np.pad(labels == targets["ids"][0, i], 40)[np.ix_(rows + 40, cols + 40)]
        np.testing.assert_array_equal(masks[i], inside)


def test_random_choice_is_fair_and_allowed():
    rng = np.random.default_rng(0)
    mask = np.zeros((1, 30), bool)
    mask[0, ::3] = True
    counts = np.zeros(30)
    for _ in range(60):
        index, real = (numpy_of(x)[0] for x in choose_random(mask, 5, rng.random((1, 30), np.float32)))
        assert real.all() and len(set(index)) == 5
        counts[index] += 1
    assert (counts[~mask[0]] == 0).all() and counts[mask[0]].min() > 10


def test_settings_are_checked():
    for wrong, said in [
        ({"n_channels": 0}, "n_channels to be a whole number from 1"), ({"anchor_iou": (0.6, 0.3)}, "put the smaller first"),
        ({"blocks": (1, 1)}, "as many"), ({"widths": (8, 12, 16)}, "multiples of it"), ({"anchor_strides": (4, 64)}, "ascending among"),
        ({"roi_size": 7}, "even roi_size"), ({"overlap": 128}, "overlap smaller"), ({"roi_positives": 24}, "room for background"),
        ({"anchor_ratios": ()}, "at least one of each"), ({"zoom": 0.1}, "zoom from 0.25 to 4"), ({"small": float("nan")}, "small from 0"), ({"zoom": "2"}, "got '2'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            replace(SMALL, **wrong)
    assert MaskRCNNConfig.from_json(SMALL.to_json()) == SMALL


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "efficientnet_v2_b0"])
def test_backbones_by_name(name):
    config = MaskRCNNConfig(n_channels=4, backbone=name, pyramid_channels=16)
    maps = make_pyramid(config)(np.random.default_rng(0).random((1, 64, 96, 4), np.float32))
    assert [tuple(level.shape) for level in maps] == [(1, 64 // s, 96 // s, 16) for s in config.strides]


def batch_of(images, config):
    return {"image": np.stack([image for _, image in images]), **make_targets(np.stack([labels for labels, _ in images]), config)}


def test_an_empty_image_trains_and_predicts(tmp_path):
    keras.utils.set_random_seed(0)
    network = model.make_network(SMALL)
    learner = model.make_learner(network, SMALL)
    learner.compile(keras.optimizers.Adam(1e-3))
    blank = (np.zeros((64, 64), np.int32), np.zeros((64, 64, 1), np.float32))
    before = [numpy_of(weight) for weight in network.trainable_weights]
    for images in ([blank, blank], [discs(3, 64), blank]):
        logs = learner.train_on_batch(batch_of(images, SMALL), return_dict=True)
        assert set(logs) == {"loss", *(f"{name}_loss" for name in model.LOSSES)} and np.isfinite(list(logs.values())).all()
        if images[0] is blank:
            assert logs["mask_loss"] == logs["box_loss"] == logs["anchor_box_loss"] == 0
    after = [numpy_of(weight) for weight in network.trainable_weights]
    assert all(np.isfinite(x).all() for x in after) and all((x != y).any() for x, y in zip(before, after, strict=True) if x.ndim > 1)
    labels, scores = model.segment_image(network, np.zeros((50, 70, 1), np.float32), SMALL)
    assert labels.shape == (50, 70) and labels.dtype == np.int32 and len(scores) == labels.max()
    network.save_weights(tmp_path / "x.weights.h5")
    again = model.make_network(SMALL)
    again.load_weights(tmp_path / "x.weights.h5")
    image = discs(5, 64)[1][None]
    np.testing.assert_array_equal(numpy_of(network(image)["boxes"]), numpy_of(again(image)["boxes"]))


def test_patches_of_any_size_train_one_after_another():
    keras.utils.set_random_seed(0)
    network = model.make_network(SMALL)
    learner = model.make_learner(network, SMALL)
    learner.compile(keras.optimizers.Adam(1e-3))
    # The smallest holds fewer anchors than are asked for.
    for size in (32, 96, 64):
        logs = learner.train_on_batch(batch_of([discs(2, size, seed) for seed in (0, 1)], SMALL), return_dict=True)
        assert np.isfinite(list(logs.values())).all() and logs["mask_loss"] > 0


def test_the_second_look_learns_of_all_background():
    keras.utils.set_random_seed(0)
    config = replace(SMALL, train_candidates=1, train_proposals=1)
    learner = model.make_learner(model.make_network(config), config)
    labels, image = discs(1, 128)
    targets = {name: keras.ops.convert_to_tensor(value) for name, value in make_targets(labels[None], config).items()}
    maps, logits, deltas, anchors = learner.network.first_look(keras.ops.convert_to_tensor(image[None]))
    boxes = numpy_of(learner._draw_anchors(logits, deltas, anchors, (128, 128)))
    assert boxes.shape == (1, config.train_anchors, 4) and boxes.min() >= 0 and boxes.max() <= 128
    middles = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    assert len({(row // 64, col // 64) for row, col in middles}) == 4, "all quarters of the image are seen"
    noise = np.random.default_rng(0).random((1, config.train_anchors + config.max_instances), np.float32)
    rois = sample_rois(keras.ops.convert_to_tensor(boxes), targets, config, noise, np.zeros((1, config.max_instances, 4), np.float32))
    background = (numpy_of(rois["real"])[0] > 0) & (numpy_of(rois["classes"])[0] == 0)
    assert background.sum() >= 10 and box_iou(numpy_of(rois["boxes"])[0][background], numpy_of(targets["boxes"])[0, :1]).max() < config.roi_iou


class Seer:
    """Stands for a network that has learned everything: it finds the pieces above one half."""

    def predict_on_batch(self, inputs):
        if not isinstance(inputs, dict):
            count, _, stats, _ = cv2.connectedComponentsWithStats((inputs[0, ..., 0] > 0.5).astype(np.uint8), connectivity=4)
            boxes = np.array([[y, x, y + h, x + w] for x, y, w, h, _ in stats[1:]], np.float32).reshape(-1, 4)
            return {"maps": [inputs], "boxes": boxes[None], "scores": np.full((1, count - 1), 0.9, np.float32)}
        if "frames" in inputs:
            crops = numpy_of(roi_align([(inputs["image"] > 0.5).astype("float32")], (1,), inputs["frames"], 28))
            return crops * 0.98 + 0.01
        return {"classes": np.tile(np.array([0.1, 0.9], np.float32), (1, inputs["boxes"].shape[1], 1)), "boxes": inputs["boxes"]}


@pytest.mark.parametrize("shape", [(300, 410), (128, 128), (65, 500), (20, 30)])
def test_tiles_find_each_cell_once(shape):
    labels, _ = discs(40, shape=shape, seed=3, gap=8)
    found, scores = model.segment_image(Seer(), (labels > 0).astype("float32")[..., None], SMALL)
    assert found.shape == shape and found.max() == len(scores) == labels.max() > 0
    assert jaccard(labels, found, 0.8) == 1


@pytest.mark.parametrize("zoom", [0.5, 1.25, 2.0])
@pytest.mark.parametrize("shape", [(300, 410), (65, 500), (20, 30)])
def test_enlarged_images_give_cells_in_their_own_pixels(shape, zoom):
    labels, _ = discs(40, shape=shape, seed=3, gap=8)
    found, scores = model.segment_image(Seer(), (labels > 0).astype("float32")[..., None], replace(SMALL, zoom=zoom))
    assert found.shape == shape and found.max() == len(scores) == labels.max() > 0
    assert jaccard(labels, found, 0.8) == 1


class Counter(Seer):
    """Notes how large the images are that it sees."""

    def __init__(self):
        self.seen = []

    def predict_on_batch(self, inputs):
        if not isinstance(inputs, dict):
            self.seen.append(inputs.shape[1])
        return super().predict_on_batch(inputs)


def test_small_cells_are_looked_at_again_enlarged():
    labels, _ = discs(8, seed=3, gap=8)
    image = (labels > 0).astype("float32")[..., None]
    diameter = np.median(np.sqrt(np.bincount(labels.ravel())[1:] * 4 / np.pi))
    config = replace(SMALL, tile=256, small=diameter * 0.7)
    seer = Counter()
    model.segment_image(seer, image, config)
    assert seer.seen == [128], "these are not small"
    found, _ = model.segment_image(seer, image, replace(config, small=diameter * 1.4))
    assert seer.seen[1:] == [128, 256] and jaccard(labels, found, 0.8) == 1
    empty, scores = model.segment_image(seer, image * 0, replace(config, small=99.0))
    assert seer.seen[3:] == [128] and not empty.any() and not len(scores), "nothing is not small"


def test_the_zoom_is_chosen_by_what_is_found():
    class Nearsighted(Seer):
        """Sees nothing that is not enlarged."""

        def predict_on_batch(self, inputs):
            blind = not isinstance(inputs, dict) and inputs.shape[1] < 256
            return super().predict_on_batch(inputs * 0 if blind else inputs)

    labels, _ = discs(8, seed=3, gap=8)
    config, score = model.tune_config(
        Nearsighted(), [(labels > 0).astype("float32")[..., None]], [labels], replace(SMALL, tile=256),
        {"zoom": (1.0, 2.0, 1.25), "score": (0.2, 0.5)},
    )  # fmt: skip
    assert config.zoom == 2.0 and score > 0.5


def test_what_is_tuned_is_what_is_used():
    """False objects that a score lets in change whether the others are small."""

    class Doubtful(Seer):
        def predict_on_batch(self, inputs):
            answer = super().predict_on_batch(inputs)
            if isinstance(inputs, dict) and "classes" in answer:
                sides = inputs["boxes"][0, :, 2] - inputs["boxes"][0, :, 0]
                sure = np.where(sides > 12, 0.9, 0.35)
                answer["classes"] = np.stack([1 - sure, sure], axis=-1)[None].astype(np.float32)
            return answer

    labels = np.zeros((128, 128), np.int32)
    labels[20:60, 20:60] = 1
    image = labels.astype("float32")[..., None]
    for corner in (80, 95, 110):
        image[corner : corner + 6, corner : corner + 6] = 1
    config = replace(SMALL, tile=256, small=20.0, mask_overlap=0.5)
    tuned, score = model.tune_config(Doubtful(), [image], [labels], config, {"score": (0.2, 0.6)})
    found, _ = model.segment_image(Doubtful(), image, tuned)
    assert tuned.score == 0.6 and score == 1.0 and jaccard(labels, found, 0.75) == 1


@pytest.mark.parametrize("shape", [(2, 200), (1, 1)])
def test_narrow_images_made_smaller_keep_a_pixel(shape):
    labels, scores = model.segment_image(Seer(), np.zeros((*shape, 1), np.float32), replace(SMALL, zoom=0.25))
    assert labels.shape == shape and not len(scores)


def test_images_that_cannot_be_read_are_refused():
    for image, said in [(np.zeros((8, 8, 3)), r"\(H, W, 1\)"), (np.zeros((0, 8, 1)), "with pixels"), (np.full((8, 8, 1), np.nan), "NaN")]:
        with pytest.raises(ValueError, match=said):
            model.segment_image(Seer(), image, SMALL)


@pytest.mark.slow
def test_two_images_are_learned_by_heart():
    keras.utils.set_random_seed(0)
    images = [discs(10, seed=0), discs(7, seed=1)]
    network = model.make_network(SMALL)
    learner = model.make_learner(network, SMALL)
    learner.compile(keras.optimizers.Adam(3e-3, clipnorm=5.0))
    batch = batch_of(images, SMALL)
    for _ in range(250):
        learner.train_on_batch(batch)
    for labels, image in images:
        found, scores = model.segment_image(network, image, SMALL)
        assert jaccard(labels, found, 0.5) == 1 and jaccard(labels, found, 0.75) >= 0.8 and scores.min() > 0.5


STEP = """
import numpy as np
from hpacell.maskrcnn import model
from hpacell.maskrcnn.config import MaskRCNNConfig
from hpacell.models.blocks import keras
config = MaskRCNNConfig.from_json({settings!r})
labels = np.zeros((2, 64, 64), np.int32)
labels[0, 8:30, 8:30] = 1
network = model.make_network(config)
learner = model.make_learner(network, config)
learner.compile(keras.optimizers.Adam(1e-3))
batch = dict(model.make_targets(labels, config), image=(labels > 0).astype("float32")[..., None])
for _ in range(2):
    logs = learner.train_on_batch(batch, return_dict=True)
assert np.isfinite(list(logs.values())).all() and logs["mask_loss"] > 0, logs
found, scores = model.segment_image(network, batch["image"][0], config)
assert found.max() == len(scores)
import sys
assert keras.backend.backend() == "tensorflow" or "tensorflow" not in sys.modules
print("stepped under", keras.backend.backend())
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_train_step_under_other_backends(step_under, backend):
    step_under(backend, STEP.format(settings=SMALL.to_json()))
