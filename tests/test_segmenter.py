"""Training a segmenter: learns, goes on after a kill with the very same weights, refuses what does not belong together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import h5py
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

import hpacell.models.segmenter as segmenter
from hpacell.fields.simulate import simulate_field
from hpacell.files import fingerprint
from hpacell.masks.layouts import find_labelled
from hpacell.models.places import UNFINISHED_NAME, WEIGHTS_NAME
from hpacell.models.segmenter import (
    SegmenterSettings,
    _job,
    load_segmenter,
    mean_jaccard,
    split_labelled,
    train_segmenter,
)
from hpacell.models.segmenter_card import find_segmenter, load_method, make_config, shipped_segmenters
from hpacell.models.segmenter_recipe import METHODS, find_twins, hold_out, look_through, pick_evenly
from hpacell.models.unet import predict_maps
from hpacell.pipeline.runs import run

SETTINGS = SegmenterSettings(
    config={"stem": 8, "filters": [8, 16]}, epochs=3, steps_per_epoch=120, patch=64, learning_rate=0.01, valid_fraction=0.3, ema=0.9,
    augment=("flip", "rotate90", "copy_paste"), validate_every=1,
)  # fmt: skip


@dataclass(frozen=True)
class Simulated:
    """A labelled image made in memory."""

    image_id: str
    seed: int
    kind: str = "fluorescence"
    n_cells: int = 4

    def read(self):
        made = simulate_field(self.seed, size=(96, 96), n_cells=self.n_cells)
        grey = made.field.image[..., 2]
        return (np.repeat(255 - grey[..., None], 3, axis=2) if self.kind == "stained" else grey), made.nuclei

    def read_image(self):
        return self.read()[0]


@dataclass(frozen=True)
class Empty:
    """An image without any cell."""

    image_id: str
    kind: str = "fluorescence"

    def read(self):
        return self.read_image(), np.zeros((70, 90), np.int32)

    def read_image(self):
        return np.random.default_rng(0).integers(5, 9, (70, 90)).astype(np.uint8)


IMAGES = [*(Simulated(f"f{i}", i) for i in range(7)), *(Simulated(f"s{i}", 20 + i, "stained") for i in range(3)), Empty("empty")]
SIDES = {image.image_id: "valid" if image.image_id in ("f0", "f1", "s0") else "train" for image in IMAGES}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A segmenter of mixed kinds, one image of them empty."""
    return train_segmenter(IMAGES, tmp_path_factory.mktemp("segmenter") / "model", SETTINGS, SIDES)


def test_it_learns_and_says_how_well(trained):
    folder, card = Path(trained.folder), trained.card
    log = pd.read_csv(folder / "log.csv")
    assert list(log["epoch"]) == [0, 1, 2] and log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert log["val_jaccard_50"].max() > 0.5 and card["scores"]["pooled"]["jaccard_50"][0] > 0.5
    assert set(card["scores"]) == {"fluorescence", "stained", "pooled"}
    low, high = card["scores"]["pooled"]["jaccard_50"][1:]
    assert low is None and high is None and card["scores"]["pooled"]["n_images"] == 3  # too few for an interval
    assert card["data"]["n_images"] == {"train": {"fluorescence": 6, "stained": 2}, "valid": {"fluorescence": 2, "stained": 1}}
    assert dict(pd.read_csv(folder / "split.csv").to_numpy().tolist()) == SIDES
    assert card["chosen_on"] == {"epoch": ["f0", "f1", "s0"], "thresholds": []} and card["scores_of"] == "valid, on which epoch was chosen"
    assert card["thresholds"].startswith("as the configuration has them, since fewer than 3 images") and trained.config == make_config("unet", SETTINGS.config)
    assert not (folder / UNFINISHED_NAME).exists() and not list(folder.glob("state*")) and not list(folder.glob("partial*"))


def test_what_is_loaded_segments_as_what_was_trained(trained):
    loaded = load_segmenter(trained.folder)
    assert loaded.config == trained.config and loaded.channels == () and loaded.n_channels == 1 and loaded.method == "unet"
    for image in IMAGES[:2] + IMAGES[7:8]:
        pixels, truth = image.read()
        for labels, scores in (trained.segment(pixels), loaded.segment(pixels.astype(np.uint16) * 200)):
            assert labels.shape == truth.shape and labels.dtype == np.int32 and len(scores) == labels.max()
            assert set(np.unique(labels)) == set(range(labels.max() + 1)) and ((scores >= 0) & (scores <= 1)).all()
        np.testing.assert_array_equal(loaded.segment(pixels)[0], trained.segment(pixels)[0])
    labels, scores = loaded.segment(IMAGES[0].read()[0])
    assert labels.max() >= 2
    with pytest.raises(ValueError, match="expected an image of 1 channels"):
        loaded.segment(np.zeros((30, 30, 4), np.uint8))


def test_the_same_training_is_not_done_twice(trained, capsys, monkeypatch):
    monkeypatch.setattr(segmenter._Training, "learn", lambda *_: pytest.fail("it was trained again"))
    again = train_segmenter(IMAGES, trained.folder, SETTINGS, SIDES)
    assert "was trained before" in capsys.readouterr().err and again.card == trained.card


def test_weights_are_kept_in_half_and_full(trained, tmp_path):
    with h5py.File(Path(trained.folder) / WEIGHTS_NAME) as file:
        kinds: dict = {}
        file.visititems(lambda name, item: kinds.setdefault(item.dtype.name, []).append(item.ndim) if isinstance(item, h5py.Dataset) else None)
    assert set(kinds["float16"]) == {4} and set(kinds["float32"]) == {1}
    assert all(np.asarray(weight).dtype == np.float32 for weight in trained.network.get_weights())


def test_weights_and_card_belong_together(trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "copy")
    card = json.loads((folder / "card.json").read_text())

    def with_card(**changes):
        (folder / "card.json").write_text(json.dumps(card | changes))

    content = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match="expected weights with hash .*copy weights and card again"):
        load_segmenter(folder)
    (folder / WEIGHTS_NAME).write_bytes(b"nothing")
    with_card(weights_blake2b=fingerprint(b"nothing"))
    with pytest.raises(ValueError, match="expected weights of a unet as the card says"):
        load_segmenter(folder)
    (folder / WEIGHTS_NAME).write_bytes(content)
    for changes, message in (
        ({"config": card["config"] | {"stem": 12}}, "expected weights of a unet"), ({"method": "nunet"}, "did you mean 'unet'"),
        ({"kind": "classifier"}, "got a card of kind 'classifier'"),
    ):  # fmt: skip
        with_card(**changes)
        with pytest.raises(ValueError, match=message):
            load_segmenter(folder)
    (folder / "card.json").write_text("{}")
    with pytest.raises(ValueError, match="expected the card of a segmenter, got none of kind"):
        load_segmenter(folder)
    with_card()
    assert load_segmenter(folder / WEIGHTS_NAME).card == card, "the weights' own path will do"
    (folder / UNFINISHED_NAME).write_text("{}")
    with pytest.raises(FileNotFoundError, match="stopped before its end"):
        find_segmenter(folder)
    (folder / UNFINISHED_NAME).unlink()
    (folder / "card.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"got {WEIGHTS_NAME} alone"):
        find_segmenter(folder)
    with pytest.raises(FileNotFoundError, match="check the path, or choose one that comes with the package"):
        find_segmenter(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected a local folder"):
        load_segmenter("s3://bucket/model")


# Waits in the middle of the second epoch.
SCRIPT = """
import itertools, sys, time
sys.path.insert(0, sys.argv[2])
from test_segmenter import IMAGES, SETTINGS, SIDES
from hpacell.models.segmenter import _Training, train_segmenter
learn = _Training.learn
def wait():
    time.sleep(3600)
    yield
def learn_until(self, epoch, batches, bar):
    learn(self, epoch, batches if epoch == 0 else itertools.chain(itertools.islice(batches, 5), wait()), bar)
_Training.learn = learn_until
train_segmenter(IMAGES, sys.argv[1], SETTINGS, SIDES)
"""


def test_a_kill_costs_one_epoch_and_no_digit(trained, tmp_path, root, capsys):
    """Killed in the second epoch and started again, it ends with the very same weights and scores."""
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(root / "tests")], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = folder / "state.json"
    while not (state.is_file() and json.loads(state.read_text())["epoch"] >= 1):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "card.json").exists()
    with pytest.raises(FileNotFoundError):
        find_segmenter(folder)
    again = train_segmenter(IMAGES, folder, SETTINGS, SIDES)
    assert "goes on after epoch" in capsys.readouterr().err
    for mine, its in zip(again.network.get_weights(), trained.network.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert again.card["scores"] == trained.card["scores"]
    columns = ["epoch", "loss", "val_jaccard"]
    pd.testing.assert_frame_equal(*(pd.read_csv(Path(one.folder) / "log.csv")[columns] for one in (again, trained)))


def test_when_time_is_over_it_stops_after_the_epoch(tmp_path, capsys):
    settings = replace(SETTINGS, epochs=50, steps_per_epoch=2, minutes=0.001, validate_every=40, half=False, valid_images=1)
    found = train_segmenter(IMAGES, tmp_path / "short", settings, SIDES)
    assert found.card["stopped"] == "after epoch 1 of 50, since 0.001 minutes are over" and "stops after epoch 1 of 50" in capsys.readouterr().err
    log = pd.read_csv(tmp_path / "short" / "log.csv")
    assert len(log) == 1 and log["val_jaccard"].notna().all() and found.card["scores"]["pooled"]["n_images"] == 3
    with h5py.File(tmp_path / "short" / WEIGHTS_NAME) as file:
        file.visititems(lambda name, item: pytest.fail(name) if isinstance(item, h5py.Dataset) and item.dtype == np.float16 else None)


STILL = replace(SETTINGS, config=None, epochs=1, steps_per_epoch=1, learning_rate=1e-9, ema=0.0)  # learns as good as nothing


def test_a_training_starts_from_weights_of_another(trained, tmp_path, capsys):
    """What hardly learns gives the maps that it started from; configuration and thresholds come along."""
    settings = replace(STILL, initial=trained.folder)
    found = train_segmenter(IMAGES, tmp_path / "warm", settings, SIDES)
    image = np.random.default_rng(0).random((64, 96, 1)).astype(np.float32)
    maps = predict_maps(trained.network, image, trained.config)
    np.testing.assert_allclose(predict_maps(found.network, image, found.config), maps, atol=0.03)
    fresh = train_segmenter(IMAGES, tmp_path / "fresh", replace(STILL, config=SETTINGS.config), SIDES)
    assert np.abs(predict_maps(fresh.network, image, fresh.config) - maps).max() > 0.2
    assert found.config.network == trained.config.network and found.config.stem == 8
    card = json.loads((tmp_path / "warm" / "card.json").read_text())
    assert card["training"]["initial"] == trained.folder and card["training"]["initial_blake2b"] == trained.card["weights_blake2b"]
    assert "initial_blake2b" not in fresh.card["training"]
    capsys.readouterr()
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    train_segmenter(IMAGES, tmp_path / "warm", replace(settings, initial=str(copy)), SIDES)
    assert "was trained before" in capsys.readouterr().err, "the same weights, wherever they lie"
    with h5py.File(copy / WEIGHTS_NAME, "a") as file:
        file.attrs["other"] = 1
    (copy / "card.json").write_text(json.dumps(trained.card | {"weights_blake2b": fingerprint((copy / WEIGHTS_NAME).read_bytes())}))
    train_segmenter(IMAGES, tmp_path / "warm", replace(settings, initial=str(copy)), SIDES)
    assert "was trained before" not in capsys.readouterr().err, "other weights, another training"


def test_thresholds_of_the_weights_to_start_from_are_the_defaults(trained):
    start = replace(trained, card=trained.card | {"config": trained.card["config"] | {"marker": 0.77}})
    assert segmenter._make_config(replace(STILL, initial="any"), start).marker == 0.77
    assert segmenter._make_config(replace(STILL, initial="any", config={"marker": 0.6}), start).marker == 0.6


def test_weights_of_another_kind_are_no_start(trained, tmp_path):
    for changes, error, message in (
        ({"method": "maskrcnn"}, ValueError, "expected weights of maskrcnn to start from, got those of unet: set method to 'unet'"),
        ({"n_channels": 2}, ValueError, "expected n_channels of 2, as the settings say, in the weights to start from, got 1"),
        ({"config": {"filters": [8, 24]}}, ValueError, r"expected filters of \(8, 24\), as the settings say, .* got \(8, 16\)"),
        ({"initial": str(tmp_path / "nothing")}, FileNotFoundError, "check the path, or choose one that comes with the package"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            train_segmenter(IMAGES, tmp_path / "model", replace(STILL, **{"initial": trained.folder, **changes}), SIDES)
        assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="expected another folder than that of the weights to start from"):
        train_segmenter(IMAGES, trained.folder, replace(STILL, initial=trained.folder), SIDES)
    assert load_segmenter(trained.folder).card == trained.card


@pytest.mark.parametrize("name", shipped_segmenters())
def test_a_training_may_start_from_what_comes_with_the_package(name, tmp_path):
    start = segmenter._load_initial(SegmenterSettings(method=name.removesuffix("_nuclei"), initial=name), tmp_path)
    assert start.card["weights_blake2b"] == fingerprint((Path(start.folder) / WEIGHTS_NAME).read_bytes())


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path):
    for changes, sides, message in (
        ({"patch": 66}, SIDES, "expected a patch of a multiple of 4"), ({"config": {"filter": [3]}}, SIDES, "did you mean 'filters'"),
        ({}, {"f0": "train"}, "expected 'train', 'valid' or 'test' as the side of f1"), ({}, dict.fromkeys(SIDES, "train"), "got none for 'valid'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            train_segmenter(IMAGES, tmp_path / "model", replace(SETTINGS, **changes), sides)
        assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="f2: expected an image of 4 channels"):
        train_segmenter(IMAGES, tmp_path / "model", replace(SETTINGS, n_channels=4), SIDES)
    with pytest.raises(FileNotFoundError, match="stopped before its end"):
        find_segmenter(tmp_path / "model")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_thresholds_are_chosen_on_images_neither_learned_from_nor_scored(tmp_path, monkeypatch, capsys, method):
    seen, module = [], load_method(method)
    monkeypatch.setattr(module, "tune_config", lambda network, images, labels, config: (seen.append(labels), (config, 1.0))[1])
    small = SETTINGS.config if method == "unet" else {"widths": [8, 8, 8, 8, 8], "blocks": [1] * 5, "pyramid_channels": 8, "mask_channels": 8, "box_units": 8, "backbone": "resnet"}
    settings = replace(SETTINGS, method=method, config=small, epochs=1, steps_per_epoch=1, batch_size=1, augment=("flip",))
    sides = {image.image_id: "valid" if image.image_id in ("f0", "f1", "f2", "s0", "s1", "empty") else "train" for image in IMAGES}
    card = train_segmenter(IMAGES, tmp_path / "m", settings, sides).card
    found = dict(pd.read_csv(tmp_path / "m" / "split.csv").to_numpy().tolist())
    valid, test = (sorted(name for name, side in found.items() if side == wanted) for wanted in ("valid", "test"))
    assert len(valid) == len(test) == 3 and sorted(valid + test) == sorted(name for name, side in sides.items() if side == "valid")
    truths = {image.image_id: image.read()[1] for image in IMAGES}
    assert len(seen) == 1 and len(seen[0]) == 3
    for labels, name in zip(seen[0], [image.image_id for image in pick_evenly([image for image in IMAGES if image.image_id in valid], 0)], strict=True):
        np.testing.assert_array_equal(labels, truths[name])
    scores = pd.read_csv(tmp_path / "m" / "scores.csv", dtype=str)
    assert sorted(set(scores["image"][scores["level"] == "image"])) == test and card["scores"]["pooled"]["n_images"] == 3
    assert card["chosen_on"] == {"epoch": valid, "thresholds": valid} and card["scores_of"] == "test" and sum(card["data"]["n_images"]["test"].values()) == 3
    assert "thresholds: chosen on 3 images not learned from; scores: 3 images that chose nothing" in capsys.readouterr().err


def test_halves_of_what_is_not_learned_from():
    @dataclass(frozen=True)
    class Picture:
        image_id: str
        kind: str
        seed: int

        def read_image(self):
            return np.random.default_rng(self.seed).random((20, 20))

    images = [Picture(f"p{i:02}", "ab"[i % 2], i) for i in range(24)] + [Picture(f"twin{i:02}", "ab"[i % 2], i) for i in range(0, 24, 3)]
    sides = {image.image_id: "train" if image.seed >= 20 else "valid" for image in images}
    halved = hold_out(images, sides)
    assert halved == hold_out(images[::-1], sides) and halved != hold_out(images, sides, 1)
    assert all(halved[f"p{i:02}"] == halved[f"twin{i:02}"] for i in range(0, 24, 3))
    assert {name for name, side in halved.items() if side == "train"} == {name for name, side in sides.items() if side == "train"}
    for kind in "ab":
        here = [halved[image.image_id] for image in images if image.kind == kind and image.seed < 20]
        assert abs(here.count("test") - here.count("valid")) <= 1
    assert hold_out(images, halved) == halved, "images for the scores are there already"
    few = {name: "train" if name not in ("p00", "twin00", "p01", "p02", "p04", "p05") else "valid" for name in sides}
    assert hold_out(images, few) == few, "five different images are too few"


def test_only_empty_images(tmp_path):
    images = [Empty("a"), Empty("b")]
    found = train_segmenter(images, tmp_path / "model", replace(SETTINGS, epochs=1, steps_per_epoch=2), {"a": "train", "b": "valid"})
    assert found.card["scores"]["pooled"]["jaccard_50"] == [None] * 3 or found.card["scores"]["pooled"]["jaccard_50"][0] == 0
    assert found.segment(images[0].read()[0])[0].shape == (70, 90)


def test_twins_stay_on_one_side():
    @dataclass(frozen=True)
    class Picture:
        image_id: str
        kind: str
        seed: int
        gain: float = 1.0

        def read_image(self):
            return np.random.default_rng(self.seed).random((50, 60)) * self.gain + 3

    images = [Picture(f"p{i}", "ab"[i % 5 == 0], i) for i in range(60)] + [Picture(f"twin{i}", "ab"[i % 5 == 0], i, 40.0) for i in range(0, 60, 3)]
    assert sorted(map(tuple, find_twins(images).to_numpy())) == sorted((f"p{i}", f"twin{i}") for i in range(0, 60, 3))
    for seed in range(3):
        sides = split_labelled(images, 0.2, seed)
        assert all(sides[f"p{i}"] == sides[f"twin{i}"] for i in range(0, 60, 3))
        for kind in "ab":
            here = [sides[image.image_id] for image in images if image.kind == kind]
            assert 0.1 <= here.count("valid") / len(here) <= 0.3
        assert sides == split_labelled(images[::-1], 0.2, seed), "the order does not matter"
    assert split_labelled(images, 0.2, 0) != split_labelled(images, 0.2, 1)


def test_some_images_of_all_kinds():
    chosen = pick_evenly(IMAGES, 4)
    assert len(chosen) == 4 and {image.kind for image in chosen} == {"fluorescence", "stained"} and pick_evenly(IMAGES[::-1], 4) == chosen
    assert len(pick_evenly(IMAGES, 0)) == len(pick_evenly(IMAGES, 99)) == len(IMAGES)


def test_the_mean_is_over_kinds_by_their_images():
    scores = pd.DataFrame({"level": ["image", "kind", "kind", "kind", "pooled"], "jaccard": [0, 0.8, 0.2, np.nan, 0.1], "n_images": [1, 30, 10, 5, 45]})
    assert mean_jaccard(scores) == pytest.approx((0.8 * 30 + 0.2 * 10) / 40) and mean_jaccard(scores[:1]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_each_method_keeps_to_the_interface(method):
    module, config = load_method(method), make_config(method, {"n_channels": 2})
    assert config.n_channels == 2 and 64 % config.stride == 0
    assert make_config(method, json.loads(config.to_json())) == config
    assert all(callable(getattr(module, name)) for name in ("make_network", "make_learner", "make_targets", "segment_image"))


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The workflow, started from YAML, on simulated fields with all four channels."""
    folder = tmp_path_factory.mktemp("workflow")
    params = {
        "workflows": {
            "simulate": {"fields": "{run}/fields", "n_fields": 8, "size": 128, "new_fields": "{run}/new", "n_new": 1, "workers": 1},
            "train_segmenter": {
                "data": "{run}/fields", "layout": "simulated", "target": "cells", "model_folder": "{run}/model", "n_channels": 4,
                "stains": ["microtubules", "protein", "nucleus", "er"], "method_config": {"stem": 8, "filters": [8, 16, 24]}, "epochs": 2,
                "steps_per_epoch": 120, "patch": 96, "learning_rate": 0.01, "ema": 0.9, "valid_fraction": 0.3, "n_shown": 2, "augment": ["flip", "rotate90"],
            },
        }
    }  # fmt: skip
    (folder / "cells.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return run(folder / "cells.yaml", runs=folder / "runs")


def test_the_workflow_runs_from_yaml(executed):
    folder = Path(executed["folder"])
    assert executed["status"] == "finished"
    metrics = json.loads((folder / "metrics_train_segmenter.json").read_text())
    assert metrics["n_valid"] == 2 and metrics["epochs"] == 2 and 0.3 < metrics["jaccard_50"] <= 1 and metrics["method"] == "unet"
    assert "jaccard of" in (folder / "summary.txt").read_text() and (folder / "report.html").exists()
    notebook = nbformat.read(folder / "train_segmenter.ipynb", as_version=4)
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) == 2, "two validation images with truth and prediction"
    found = load_segmenter(folder)
    assert found.channels == ("microtubules", "protein", "nucleus", "er") and found.n_channels == 4
    field = find_labelled(folder / "fields", "simulated")[0]
    assert field.read()[0].shape == (128, 128, 4) and found.segment(field.read()[0])[0].max() > 0


def test_importing_needs_no_other_method():
    """Whoever segments with one method does not load the other."""
    code = "import sys, hpacell.models.segmenter_card as card; card.load_method('unet'); print('hpacell.maskrcnn.model' in sys.modules)"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout.strip() == "False"


def write_coco_set(folder, segmentation):
    """A COCO file with three images: one whose only cell is `segmentation`, one good, one without a file."""
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "a.png"), np.arange(900, dtype=np.uint8).reshape(30, 30))
    cv2.imwrite(str(folder / "b.png"), np.full((30, 30), 9, np.uint8))
    box = [[2, 2, 12, 2, 12, 12, 2, 12]]
    entries = [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": segmentation}, {"id": 8, "image_id": 2, "category_id": 1, "segmentation": box}, {"id": 9, "image_id": 3, "category_id": 1, "segmentation": box}]
    images = [{"id": i, "file_name": f"{name}.png", "width": 30, "height": 30} for i, name in enumerate("abc", 1)]
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cell"}]}))
    return find_labelled(folder / "a.json")


def test_what_cannot_be_learned_from_is_left_out_and_named(tmp_path):
    usable, problems, contents = look_through(write_coco_set(tmp_path / "set", [[2, 2, 2, 2]]))
    assert [image.image_id for image in usable] == list(contents) and len(usable) == 1
    told = problems.astype(str).agg(" ".join, axis=1)
    assert told.str.contains("7").any() and told.str.contains("none of its cells can be used").any()
    assert problems["image_id"].nunique() == 2  # and the one without a file


def test_other_cells_make_another_training(tmp_path):
    keys = []
    for width in (10, 10, 14):
        box = [[1, 1, width, 1, width, 10, 1, 10]]
        images, _, contents = look_through(write_coco_set(tmp_path / "set", box))
        keys.append(_job(images, SETTINGS, {image.image_id: "train" for image in images}, contents))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("method", "entries"), [("maskrcnn", {"score": "0.5"}), ("maskrcnn", {"widths": 32}), ("unet", {"filters": 8}), ("unet", {"stem": "8"})])
def test_a_value_of_another_type_is_refused_with_its_name(method, entries):
    with pytest.raises(ValueError, match=next(iter(entries))):
        make_config(method, entries)
