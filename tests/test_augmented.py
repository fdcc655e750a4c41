"""Images made beforehand: image and mask go together, the same seed gives the same files, and a kill leaves nothing half-written."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from hpacell.feed import augmented
from hpacell.feed.augmented import write_augmented
from hpacell.fields.image import FieldError
from hpacell.fields.picture import write_png
from hpacell.masks.labelled import LabelFile, LabelledImage
from hpacell.masks.layouts import find_labelled
from hpacell.masks.tissue import find_tissue_images

CHANGES = ["flip", "rotate90", {"mosaic": {"probability": 0.7}}, {"copy_paste": {"probability": 0.7, "softness": 0.01}}]


def make_images(folder: Path, n: int = 6, shape: tuple[int, int] = (48, 64), channels: int = 3, dtype: type = np.uint8) -> list[LabelledImage]:
    """Images that are bright just where the mask is 1."""
    folder.mkdir(exist_ok=True)
    rng, found = np.random.default_rng(7), []
    for number in range(n):
        mask = cv2.circle(np.zeros(shape, np.uint8), tuple(map(int, rng.integers(12, 36, 2))), 9, 1, -1)
        image = np.where(mask[..., None] == 1, 200, 40).astype(dtype) * (257 if dtype == np.uint16 else 1)
        organ = ("lung", "spleen")[number % 2]
        write_png(folder / f"{organ}_{number}.png", np.repeat(image, 3, 2) if channels == 3 else image[..., 0])
        write_png(folder / f"{organ}_{number}_mask.png", mask)
        found.append(LabelledImage(f"{organ}_{number}", (str(folder / f"{organ}_{number}.png"),), organ, LabelFile(str(folder / f"{organ}_{number}_mask.png"))))
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_found_again(tmp_path, channels, dtype):
    images = make_images(tmp_path / "in", channels=channels, dtype=dtype)
    made = write_augmented(images, tmp_path / "out", 12, CHANGES, seed=2)
    found = find_tissue_images(tmp_path / "out")
    assert [one.image_id for one in made] == [f"{one.kind}_augmented_2_{number:05d}" for number, one in enumerate(made)]
    assert sorted((one.image_id, one.kind) for one in found) == sorted((one.image_id, one.kind) for one in made)
    assert sorted(one.kind for one in made).count("lung") == 6, "each image as often as the others"
    by_id = {one.image_id: one for one in find_labelled(tmp_path / "out")}
    for one in made:
        pixels, mask = one.read()
        assert pixels.shape == (48, 48, channels) and pixels.dtype == dtype and mask.any()
        bright = pixels[..., 0] > (120 * 257 if dtype == np.uint16 else 120)
        assert np.array_equal(bright, mask == 1), "image and mask go together"
        assert np.array_equal(by_id[one.image_id].read()[1], mask)


def test_the_same_seed_gives_the_same_files(tmp_path):
    images = make_images(tmp_path / "in")
    changes = [*CHANGES, "noise", "rotate", "hue_saturation"]
    for name, n, seed in (("a", 5, 1), ("b", 5, 1), ("longer", 8, 1), ("other", 5, 2)):
        write_augmented(images, tmp_path / name, n, changes, seed)
    held = {name: {key: value for key, value in content(tmp_path / name).items() if key.endswith(".png")} for name in ("a", "b", "longer", "other")}
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert held["a"].items() < held["longer"].items(), "an image depends on the seed and its number alone"
    assert not set(held["a"].values()) & {value for key, value in held["other"].items() if not key.endswith("_mask.png")}


def test_without_a_change_it_stays_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8), np.zeros((40, 40), np.uint8)
    mask[:9, :20], mask[20:, 30:] = 1, 255
    write_png(tmp_path / "lung_1.png", image)
    write_png(tmp_path / "lung_1_mask.png", mask)
    (one,) = write_augmented(find_tissue_images(tmp_path), tmp_path / "out", 1, [])
    assert np.array_equal(one.read()[0], image) and np.array_equal(one.read()[1], mask), "also what nobody knows"
    changed = write_augmented(find_tissue_images(tmp_path), tmp_path / "more", 6, CHANGES)
    assert all(set(np.unique(one.read()[1])) <= {0, 1, 255} for one in changed)


def test_no_image_loses_its_labels(tmp_path):
    image, mask = np.full((200, 200, 3), 90, np.uint8), np.zeros((200, 200), np.uint8)
    mask[80:120, 80:120] = 1
    write_png(tmp_path / "lung_1.png", image)
    write_png(tmp_path / "lung_1_mask.png", mask)
    made = write_augmented(find_tissue_images(tmp_path), tmp_path / "out", 20, ["shift", "rotate"], size=64)
    assert all((one.read()[1] == 1).any() for one in made)
    write_png(tmp_path / "lung_1_mask.png", 0 * mask)
    assert not any(one.read()[1].any() for one in write_augmented(find_tissue_images(tmp_path), tmp_path / "empty", 2, ["flip"])), "nothing is made up"


def test_cells_keep_their_numbers_apart(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    rng = np.random.default_rng(1)
    for number in range(4):
        labels = np.zeros((60, 60), np.uint16)
        for cell in range(1, 8):
            cv2.circle(labels, tuple(map(int, rng.integers(5, 55, 2))), 5, cell, -1)
        write_png(tmp_path / "images" / f"f{number}.png", ((labels > 0) * 150 + 30).astype(np.uint8))
        write_png(tmp_path / "labels" / f"f{number}.png", labels)
    (tmp_path / "index.csv").write_text("image_id,kind\n" + "".join(f"f{number},fluorescence\n" for number in range(4)))
    made = write_augmented(find_labelled(tmp_path), tmp_path / "out", 9, CHANGES, regions=False)
    found = find_labelled(tmp_path / "out")
    assert [(one.image_id, one.kind) for one in found] == [(one.image_id, "fluorescence") for one in made]
    for one in found:
        image, labels = one.read()
        assert np.array_equal(np.unique(labels[labels > 0]), np.arange(1, labels.max() + 1)) and labels.max() > 0
        assert ((image[..., 0] > 100) >= (labels > 0)).mean() > 0.99


def test_killed_half_way_it_goes_on(tmp_path, monkeypatch):
    images, out = make_images(tmp_path / "in"), tmp_path / "out"
    whole = write_augmented(images, tmp_path / "whole", 6, CHANGES)
    written = []

    def until_killed(path, array):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(path)
        write_png(path, array)

    monkeypatch.setattr(augmented, "write_png", until_killed)
    with pytest.raises(KeyboardInterrupt):
        write_augmented(images, out, 6, CHANGES)
    partial = tmp_path / "out.partial" / "result"
    assert not out.exists() and len(list(partial.glob("*.png"))) == 7, "nothing looks finished"
    (partial / ".lung_augmented_0_00003.png.00.tmp").write_bytes(b"half")
    written.clear()
    monkeypatch.setattr(augmented, "write_png", lambda path, array: written.append(path) or write_png(path, array))
    assert [one.image_id for one in write_augmented(images, out, 6, CHANGES)] == [one.image_id for one in whole]
    assert len(written) == 6 and not partial.parent.exists(), "three images were there with their masks"
    assert content(out) == content(tmp_path / "whole")
    written.clear()
    write_augmented(images, out, 6, CHANGES)
    assert not written


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    images, out = make_images(tmp_path / "in"), tmp_path / "out"
    write_augmented(images, out, 3, CHANGES)
    before = content(out)
    for changed, word in ((dict(seed=1), "seed differs"), (dict(n_images=4), "ids differs"), (dict(augment=["flip"]), "augment differs"), (dict(images=images[1:]), "differs")):
        with pytest.raises(ValueError, match=f"expected images made from the same images in the same way, got others.*{word}"):
            write_augmented(**{"images": images, "folder": out, "n_images": 3, "augment": CHANGES, "seed": 0, **changed})
    assert content(out) == before
    with pytest.raises(ValueError, match="got one that holds files: choose another"):
        write_augmented(images, tmp_path / "in", 3, CHANGES)
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="got something else: move it away"):
        write_augmented(images, tmp_path / "new", 3, CHANGES)
    assert (tmp_path / "new.partial" / "thesis.txt").exists()


def test_stopped_with_other_settings_it_begins_anew(tmp_path):
    images, partial = make_images(tmp_path / "in"), tmp_path / "out.partial" / "result"
    partial.mkdir(parents=True)
    (partial.parent / ".building.lock").touch()
    (partial / "augmented.json").write_text(json.dumps({"seed": 9}))
    write_png(partial / "lung_augmented_9_00000.png", np.zeros((9, 9), np.uint8))
    made = write_augmented(images, tmp_path / "out", 2, CHANGES)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2 * len(made) and not partial.parent.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": []}, "expected at least one image to change, got none"),
        ({"n_images": 0}, "expected n_images of at least 1, a whole number, got 0"),
        ({"n_images": 2.5}, "expected n_images of at least 1, a whole number, got 2.5"),
        ({"seed": -1}, "expected seed of at least 0"),
        ({"size": 4}, "expected size of at least 8"),
        ({"augment": ["mosaik"]}, "did you mean 'mosaic'"),
        ({"augment": [{"mosaic": {"margin": 3}}]}, "margin"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, changed, message):
    images = make_images(tmp_path / "in", n=2)
    with pytest.raises(ValueError, match=message):
        write_augmented(**{"images": images, "folder": tmp_path / "out", "n_images": 2, "augment": CHANGES, **changed})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_bad_images_are_named_before_anything_is_written(tmp_path):
    images = make_images(tmp_path / "in", n=2)
    Path(images[1].paths[0]).write_bytes(b"no picture")
    with pytest.raises(FieldError, match=r"spleen_1\.png"):
        write_augmented(images, tmp_path / "out", 2, CHANGES)
    labels = np.full((48, 64), 300, np.uint16)
    write_png(tmp_path / "in" / "lung_0_mask.png", labels)
    with pytest.raises(FieldError, match="lung_0: expected labels from 0 to 255, got 300: give masks of tissue, or regions=False for cells"):
        write_augmented(images[:1], tmp_path / "out", 2, CHANGES)
    cv2.imwrite(images[1].paths[0], np.zeros((30, 30, 3), np.uint8))
    with pytest.raises(FieldError, match="labels of the size of the image"):
        write_augmented(images[1:], tmp_path / "out", 2, CHANGES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
