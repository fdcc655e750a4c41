"""Patches: image and cells change together, batches depend on seed, epoch and step alone, kinds are balanced."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpacell.feed.instance_augment import (
    INSTANCE_AUGMENTATIONS,
    InstanceAugmenter,
    check_instance_augmentations,
    cut_patch,
    keep_visible,
)
from hpacell.feed.patches import LEAST_PIXELS, PatchFeed, work_ahead
from hpacell.fields.intensity import normalise_intensity


@dataclass(frozen=True)
class Discs:
    """An image of discs whose brightness is that of their number: image and labels must always agree."""

    image_id: str
    kind: str
    shape: tuple[int, int] = (120, 160)
    n: int = 20
    radius: int = 9
    channels: int = 1

    def read(self):
        rng = np.random.default_rng(int.from_bytes(self.image_id.encode(), "little") % 2**32)
        rows, cols = np.mgrid[: self.shape[0], : self.shape[1]]
        labels = np.zeros(self.shape, np.int32)
        for i in range(1, self.n + 1):
            row, col = rng.uniform(0, self.shape[0]), rng.uniform(0, self.shape[1])
            labels[(rows - row) ** 2 + (cols - col) ** 2 < self.radius**2] = i
        labels = np.unique(labels, return_inverse=True)[1].reshape(self.shape).astype(np.int32)
        image = np.where(labels > 0, 100 + 5 * labels, 0).astype(np.uint8)
        return np.repeat(image[..., None], self.channels, axis=2), labels


FIELDS = [Discs(f"f{i}", "fluorescence") for i in range(9)] + [Discs("s0", "stained", (90, 70))]


def test_importing_loads_no_tensorflow():
    code = "import sys, hpacell.feed.patches; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"tensorflow", "keras", "torch", "jax"}


def test_a_plain_patch_is_a_piece_of_the_image():
    image, labels = FIELDS[0].read()
    drawn, cells, owners = cut_patch(image, labels, np.eye(2), (39.5, 51.5), 64)
    np.testing.assert_array_equal(drawn, image[8:72, 20:84])
    np.testing.assert_array_equal(owners[cells], labels[8:72, 20:84])
    feed = PatchFeed(FIELDS, 64, 3)
    for drawn, cells in [feed.patch(0, step, 0) for step in range(4)]:
        whole = [normalise_intensity(field.read()[0]) for field in FIELDS]
        assert any(np.isin(drawn, one).all() for one in whole), "no pixel was drawn anew"
        assert set(np.unique(cells)) == set(range(cells.max() + 1))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 5]), st.sampled_from([48, 128, 200]))
def test_image_and_cells_are_turned_and_scaled_together(seed, channels, size):
    """Each disc has a brightness of its own, so the middle of each drawn cell says which one it is."""
    field = Discs("x", "", channels=channels)
    image, labels = field.read()
    rng = np.random.default_rng(seed)
    matrix = InstanceAugmenter(["flip", "rotate90", "rotate", "scale"]).matrix(rng)
    drawn, cells, owners = cut_patch(image, labels, matrix, rng.uniform(0, 120, 2), size)
    assert drawn.shape == (size, size, channels) and set(np.unique(cells)) == set(range(len(owners)))
    for number in range(1, len(owners)):
        here = np.median(drawn[cells == number], axis=0)
        if (cells == number).sum() > 60:
            np.testing.assert_allclose(here, 100 + 5 * owners[number], atol=0.01)


def test_scale_is_log_uniform_and_areas_follow():
    augmenter = InstanceAugmenter([{"scale": {"least": 0.5, "most": 2.0}}, "rotate"])
    factors = [1 / np.sqrt(abs(np.linalg.det(augmenter.matrix(np.random.default_rng(i))))) for i in range(400)]
    assert 0.5 <= min(factors) < 0.55 and 1.85 < max(factors) <= 2
    assert 0.9 < np.exp(np.mean(np.log(factors))) < 1.1
    rows, cols = np.mgrid[:601, :601]
    labels = ((rows - 290) ** 2 + (cols - 310) ** 2 < 40**2).astype(np.int32)
    image = labels[..., None].astype(np.uint8)
    area = (labels > 0).sum()
    where = np.argwhere(labels > 0).mean(axis=0)
    for factor in (0.5, 1.3, 2.0):
        _, cells, _ = cut_patch(image, labels, np.eye(2) / factor, where, 256)
        assert abs((cells > 0).sum() / (area * factor**2) - 1) < 0.03


def test_beyond_the_border_lies_the_mirror_image():
    image, labels = Discs("m", "", (50, 40), 5, 6).read()
    drawn, cells, owners = cut_patch(image, labels, np.eye(2), (24.5, 19.5), 100)
    rows, cols = (np.pad(np.arange(n), ((100 - n) // 2,) * 2, "reflect") for n in (50, 40))
    np.testing.assert_array_equal(drawn, image[np.ix_(rows, cols)])
    np.testing.assert_array_equal(owners[cells], labels[np.ix_(rows, cols)])
    from skimage.measure import label

    assert all(label(cells == number, connectivity=2).max() == 1 for number in range(1, cells.max() + 1)), "a cell and its reflection are two"


def test_slivers_are_no_cells():
    labels = np.zeros((60, 60), np.int32)
    labels[10:30, -2:], labels[35:55, 30:50], labels[2:4, 2:5] = 1, 2, 3
    kept = keep_visible(labels, np.array([0, 400, 400, 6]), share=0.2, least=8)
    assert kept.max() == 1 and (kept > 0).sum() == 400
    wide_labels = np.zeros((60, 100), np.int32)
    wide_labels[20:40, 50:90] = 1
    wide = Fixed(np.where(wide_labels > 0, 200, 10).astype(np.uint8)[..., None], wide_labels)
    feed = PatchFeed([wide], 48, 1, seed=0)
    left = {int((feed.patch(0, step, 0)[1] > 0).sum()) for step in range(60)}
    assert len(left) > 3 and all(n == 0 or n >= 0.1 * 800 for n in left), "what the border leaves is nothing or at least a tenth"


@dataclass(frozen=True, eq=False)
class Fixed:
    image: np.ndarray
    labels: np.ndarray
    image_id: str = "fixed"
    kind: str = ""

    def read(self):
        return self.image, self.labels


def test_batches_depend_on_seed_epoch_and_step_alone():
    augment = list(INSTANCE_AUGMENTATIONS)
    one, other = (PatchFeed(FIELDS, 64, 3, augment=augment, steps=4, max_bytes=size) for size in (None, 0))
    for _ in range(3):
        one.batch(7, 1)  # what was asked for before does not matter
    for place in ((0, 0), (0, 1), (3, 2)):
        for mine, its in zip(one.batch(*place), other.batch(*place), strict=True):
            np.testing.assert_array_equal(mine, its)
    assert not np.array_equal(one.batch(0, 0)[0], one.batch(0, 1)[0]) and not np.array_equal(one.batch(0, 0)[0], one.batch(1, 0)[0])
    assert not np.array_equal(one.batch(0, 0)[0], PatchFeed(FIELDS, 64, 3, augment=augment, seed=1).batch(0, 0)[0])
    ahead = list(one.batches(range(1, 3), lambda images, labels: (images, labels)))
    assert len(ahead) == 8
    np.testing.assert_array_equal(ahead[5][0], one.batch(2, 1)[0])


@pytest.mark.parametrize("name", INSTANCE_AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 4])
def test_each_augmentation_gives_a_sound_batch(name, channels):
    fields = [Discs(f"c{i}", "k", channels=channels) for i in range(3)]
    images, labels = PatchFeed(fields, 96, 4, channels, augment=[{name: {"probability": 1}}]).batch(0, 0)
    assert images.dtype == np.float32 and images.shape == (4, 96, 96, channels) and np.isfinite(images).all()
    assert labels.dtype == np.int32 and 0 <= images.min() and images.max() <= 1.5
    for one in labels:
        assert set(np.unique(one)) == set(range(one.max() + 1)) and np.bincount(one.ravel()).min() >= LEAST_PIXELS
    plain = PatchFeed(fields, 96, 4, channels).batch(0, 0)[0]
    assert np.allclose(images, plain, atol=1e-5) == (name == "hue_saturation"), "grey has no colour to turn; all else changes"


def test_invert_turns_dark_into_bright():
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
    changed, _ = InstanceAugmenter([{"invert": {"probability": 1}}]).change(image, np.zeros((8, 8), np.int32), np.random.default_rng(0))
    np.testing.assert_allclose(changed, 1 - image, atol=1e-6)


def test_pasted_cells_are_in_picture_and_labels():
    labels = np.zeros((64, 64), np.int32)
    labels[4:20, 4:20] = 1
    other = np.zeros((64, 64), np.int32)
    other[40:60, 40:60], other[5:19, 5:19] = 1, 2  # the second would cover the cell that is there
    image, new = (np.where(one > 0, value, 0).astype(np.float32)[..., None] for one, value in ((labels, 0.5), (other, 1.0)))
    pasted, cells = InstanceAugmenter([{"copy_paste": {"probability": 1, "share": 1}}]).change(image, labels, np.random.default_rng(0), lambda: (new, other))
    assert cells.max() == 2 and (cells == 1).sum() == 256 and (cells == 2).sum() == 400
    assert pasted[50, 50, 0] == pytest.approx(1, abs=1e-3) and pasted[10, 10, 0] == 0.5
    assert 0.2 < pasted[40, 50, 0] < 0.8, "the edge is soft"


def test_colours_are_turned_about_grey():
    rng = np.random.default_rng(0)
    image = rng.uniform(0.3, 0.7, (8, 8, 3)).astype(np.float32)
    changed, _ = InstanceAugmenter([{"hue_saturation": {"degrees": 40, "saturation": 0}}]).change(image, np.zeros((8, 8), np.int32), rng)
    spread = [one - one.mean(axis=2, keepdims=True) for one in (image, changed)]
    np.testing.assert_allclose(image.mean(axis=2), changed.mean(axis=2), atol=1e-5)
    np.testing.assert_allclose(*(np.linalg.norm(one, axis=2) for one in spread), atol=1e-5)
    assert np.abs(image - changed).max() > 0.01
    paler, _ = InstanceAugmenter([{"hue_saturation": {"degrees": 0, "saturation": 1}}]).change(image, np.zeros((8, 8), np.int32), rng)
    share = np.linalg.norm(paler - paler.mean(axis=2, keepdims=True), axis=2) / np.linalg.norm(spread[0], axis=2)
    np.testing.assert_allclose(share, share[0, 0], atol=1e-3)


def test_brightness_and_contrast_move_all_channels_together():
    rng, none = np.random.default_rng(0), np.zeros((8, 8), np.int32)
    image = rng.uniform(0.4, 0.6, (8, 8, 4)).astype(np.float32)
    brighter, _ = InstanceAugmenter(["brightness"]).change(image, none, rng)
    np.testing.assert_allclose(brighter - image, (brighter - image)[0, 0, 0], atol=1e-6)
    stretched, _ = InstanceAugmenter(["contrast"]).change(image, none, rng)
    np.testing.assert_allclose(stretched.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=1e-5)
    factor = (stretched - stretched.mean(axis=(0, 1))) / (image - image.mean(axis=(0, 1)))
    np.testing.assert_allclose(factor, factor[0, 0, 0], atol=1e-2)


def test_a_mosaic_holds_corners_of_four_patches():
    patches = [(np.full((64, 64, 1), value, np.float32), np.zeros((64, 64), np.int32)) for value in (0.1, 0.2, 0.3, 0.4)]
    for _, labels in patches:
        labels[2:62:10, 2:62] = np.arange(1, 7)[:, None]
        labels[30:33, 30:33] = 7
    queue = iter(patches[1:])
    image, cells = InstanceAugmenter([{"mosaic": {"probability": 1}}]).change(*patches[0], np.random.default_rng(1), lambda: next(queue))
    corners = [image[0, 0, 0], image[0, -1, 0], image[-1, 0, 0], image[-1, -1, 0]]
    np.testing.assert_allclose(corners, [0.1, 0.2, 0.3, 0.4])
    row, col = (image[:, 0, 0] < 0.25).sum(), (image[0, :, 0] < 0.15).sum()
    assert 16 <= row <= 48 and 16 <= col <= 48
    for number in range(1, cells.max() + 1):
        assert len(np.unique(image[cells == number])) == 1, "no cell is of two patches"
    assert set(np.unique(cells)) == set(range(cells.max() + 1))


def test_a_shift_moves_the_patch_and_nothing_else():
    field = Discs("x", "", (96, 96))
    plain, moved = (PatchFeed([field], 96, 1, augment=augment).batch(0, 0)[0][0] for augment in ([], [{"shift": {"fraction": 0.2}}]))
    found = [(np.roll(plain, (row, col), (0, 1))[24:72, 24:72] == moved[24:72, 24:72]).all() for row in range(-20, 21) for col in range(-20, 21)]
    assert sum(found) == 1 and not np.array_equal(plain, moved)


def test_pasted_cells_are_of_the_same_kind():
    """Stained discs are in the second channel: with pastes of another kind both channels would have some."""

    @dataclass(frozen=True)
    class One(Discs):
        channel: int = 0

        def read(self):
            image, labels = super().read()
            both = np.zeros((*labels.shape, 2), np.uint8)
            both[..., self.channel] = image[..., 0]
            return both, labels

    fields = [One(f"{channel}{i}", f"kind {channel}", channel=channel) for channel in (0, 1) for i in range(3)]
    images, _ = PatchFeed(fields, 64, 24, 2, augment=[{"copy_paste": {"probability": 1}}]).batch(0, 0)
    lit = (images.max(axis=(1, 2)) > 0).sum(axis=1)
    assert (lit <= 1).all() and lit.sum() > 15


def test_rare_kinds_are_drawn_by_the_root_of_their_number():
    for balance, expected in ((0.5, 1 / 4), (1.0, 1 / 10), (0.0, 1 / 2)):
        feed = PatchFeed(FIELDS, 256, 1, balance=balance)
        assert feed.chances[-1] == pytest.approx(expected) and feed.chances.sum() == pytest.approx(1)
    large = PatchFeed([Discs("a", ""), Discs("b", "", (240, 320))], 64, 1)
    assert large.chances[1] / large.chances[0] == pytest.approx(2)


def test_an_image_without_cells_is_fine():
    empty = Fixed(np.full((70, 80, 1), 7, np.uint8), np.zeros((70, 80), np.uint8), "empty")
    images, labels = PatchFeed([empty], 64, 2, augment=INSTANCE_AUGMENTATIONS).batch(0, 0)
    assert not labels.any() and np.isfinite(images).all()


def test_more_cells_than_16_bits_count():
    labels = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    drawn, cells, owners = cut_patch(np.zeros((300, 300, 1), np.uint8), labels, np.eye(2), (249.5, 249.5), 100)
    np.testing.assert_array_equal(owners[cells], labels[200:, 200:])


def test_what_does_not_fit_is_refused():
    for arguments, message in (
        ({"n_channels": 4}, "f0: expected an image of 4 channels"), ({"size": 4}, "expected size of at least 8"), ({"balance": 2}, "expected balance from 0 to 1"),
        ({"augment": ["rotat"]}, "did you mean 'rotate'"), ({"steps": 0}, "expected steps of at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            PatchFeed(FIELDS, **arguments)
    with pytest.raises(ValueError, match="odd: expected labels of the image's size"):
        PatchFeed([Fixed(np.zeros((9, 9, 1), np.uint8), np.zeros((9, 8), np.uint8), "odd")])
    for wrong, message in (
        ([{"blur": {"sigma": True}}], "sigma of blur to be a number"), ([{"blur": 3}], "expected parameters of blur"), ([["flip"]], "expected a name or one"),
        ([{"scale": {"least": 2, "most": 1}}], "not above most"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            InstanceAugmenter(wrong)
    assert check_instance_augmentations({"flip": {}, "blur": {"sigma": 2}}) == ("flip", {"blur": {"sigma": 2}})


def test_work_ahead_is_bounded_and_ends():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    before = threading.active_count()
    ahead = work_ahead(items(), 3)
    assert next(ahead) == 0
    for _ in range(100):
        if len(made) >= 5:
            break
        time.sleep(0.01)
    assert len(made) <= 6  # one was taken, three lie ready, one waits for a place
    ahead.close()
    assert threading.active_count() == before


def test_real_images(shared_data):
    from hpacell.masks.layouts import find_labelled

    found = find_labelled(shared_data / "dsb2018")
    images, labels = PatchFeed(found[:40], 256, 8, augment=INSTANCE_AUGMENTATIONS).batch(0, 0)
    assert images.shape == (8, 256, 256, 1) and labels.max() > 10
    seen = np.array([image[cells > 0].mean() - image[cells == 0].mean() for image, cells in zip(images[..., 0], labels, strict=True) if cells.any()])
    assert (np.abs(seen) > 0.1).mean() > 0.7, "cells stand out where the labels are"
