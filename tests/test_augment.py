"""Augmentation: agreement with keras-cv and Keras, what must stay, repeatability, entries from YAML."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hpacell.feed import augment
from hpacell.feed.augment import AUGMENTATIONS, check_augmentations, make_augmenter, tf
from hpacell.feed.batches import batches_of
from hpacell.feed.gather import BatchPlan
from hpacell.feed.pixels import multiply_crops, smooth_crops, turn_crops, warp_crops
from hpacell.feed.writer import StoreWriter

PLACES, MIXES = ("rotate", "translate", "zoom"), ("cutmix", "mixup", "mosaic")
SEED = tf.constant([3, 4])


def make_crops(n=6, side=24, channels=4, seed=0, least=1):
    return np.random.default_rng(seed).integers(least, 256, (n, side, side, channels)).astype(np.float32)


def make_cells(n=6, side=24, channels=4):
    """Crops that are 0 outside of a disc."""
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return make_crops(n, side, channels) * (rows**2 + columns**2 < 0.7)[None, :, :, None].astype(np.float32)


def change(entry, crops, targets=None, seed=SEED, weights=None):
    targets = np.eye(len(crops), dtype=np.float32) if targets is None else targets
    extra = () if weights is None else (tf.constant(weights),)
    return [np.array(part) for part in make_augmenter([entry])(tf.constant(crops), tf.constant(targets), seed, *extra)]


# What must stay


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(1, 16, 16, 4), (5, 16, 20, 1), (3, 33, 17, 7)])
def test_shape_type_and_range_are_kept(name, shape):
    crops = np.random.default_rng(1).choice([0, 1, 254, 255], shape).astype(np.float32)
    targets = np.ones((shape[0], 3), np.float32)
    changed, changed_targets, weights = change(name, crops, targets, weights=np.ones(shape[0], np.float32))
    assert changed.shape == shape and changed.dtype == np.float32
    assert np.isfinite(changed).all() and changed.min() >= 0 and changed.max() <= 255
    np.testing.assert_array_equal(changed_targets, targets)
    np.testing.assert_array_equal(weights, np.ones(shape[0]))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_something_happens_unless_the_probability_is_0(name):
    crops = make_cells(32)
    assert (change(name, crops)[0] != crops).any()
    unchanged, targets = change({name: {"probability": 0}}, crops)
    np.testing.assert_array_equal(unchanged, crops)
    np.testing.assert_array_equal(targets, np.eye(32))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_probability_leaves_the_other_crops_as_they_were(name):
    crops = make_crops(200, side=12)
    changed = change({name: {"probability": 0.5}}, crops)[0]
    same = (changed == crops).all(axis=(1, 2, 3)).mean()
    # A flip leaves a quarter of those that it is to change, a box of up to three pixels more than half of them.
    assert 0.35 < same < {"flip": 0.75, "cutout": 0.9}.get(name, 0.65)


@pytest.mark.parametrize("name", ["noise", "brightness", "contrast", "intensity", "blur"])
def test_what_lies_outside_of_the_cell_stays_0(name):
    crops = make_cells()
    assert change(name, crops)[0][(crops == 0).all(axis=3)].max() == 0


@pytest.mark.parametrize("name", ["noise", "brightness", "contrast", "intensity", "blur"])
def test_each_channel_is_changed_by_itself(name):
    crops = np.repeat(make_crops(channels=1) / 2 + 60, 3, axis=3)
    changed = change(name, crops)[0]
    assert all((changed[..., i] != changed[..., j]).any(axis=(1, 2)).all() for i, j in ((0, 1), (1, 2), (0, 2)))


@pytest.mark.parametrize("name", ["flip", "rotate90"])
def test_turns_keep_every_pixel_with_all_its_channels(name):
    crops = make_crops(16)
    pixels, changed = (sorted(map(tuple, one.reshape(-1, 4))) for one in (crops, change(name, crops)[0]))
    assert pixels == changed


def test_flips_and_turns_give_all_eight_positions_alike():
    crops = np.tile(make_crops(1, side=3), (800, 1, 1, 1))
    changed = make_augmenter(["flip", "rotate90"])(tf.constant(crops), tf.zeros((800, 1)), SEED)[0].numpy()
    _, counts = np.unique(changed.reshape(800, -1), axis=0, return_counts=True)
    assert len(counts) == 8 and counts.min() > 60


# Repeatability


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_seed_of_the_batch_decides_alone(name):
    crops, augmenter = make_cells(), make_augmenter([name])
    targets = tf.eye(6)
    first = augmenter(tf.constant(crops), targets, SEED)
    tf.random.set_seed(77)
    augmenter(tf.constant(crops), targets, tf.constant([8, 8]))
    again = make_augmenter([name])(tf.constant(crops), targets, SEED)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_graph_gives_what_a_direct_call_gives_and_order_does_not_matter():
    crops, targets = tf.constant(make_cells()), tf.eye(6)
    augmenter = make_augmenter(AUGMENTATIONS)
    seeds = [tf.constant([5, i]) for i in range(4)]
    direct = [augmenter(crops, targets, seed)[0].numpy() for seed in seeds]

    def run(order):
        data = tf.data.Dataset.from_tensor_slices(tf.stack([seeds[i] for i in order]))
        return [part.numpy() for part in data.map(lambda seed: augmenter(crops, targets, seed)[0], num_parallel_calls=2)]

    forward, backward = run(range(4)), run(range(3, -1, -1))
    for i in range(4):
        np.testing.assert_allclose(forward[i], direct[i], atol=1e-3)
        np.testing.assert_array_equal(forward[i], backward[3 - i])


def test_shapes_stay_known_in_a_graph():
    data = tf.data.Dataset.from_tensors((tf.zeros((4, 16, 16, 5)), tf.zeros((4, 2)))).unbatch().batch(3)
    changed = data.map(lambda crops, targets: make_augmenter(AUGMENTATIONS)(crops, targets, SEED))
    assert changed.element_spec[0].shape.as_list() == [None, 16, 16, 5]
    assert [len(crops) for crops, _ in changed] == [3, 1]


def test_two_entries_of_one_name_draw_apart():
    crops = np.full((1, 4, 4, 2), 100, np.float32)
    once, twice = (make_augmenter([{"brightness": {"strength": 0.1}}] * n)(tf.constant(crops), tf.zeros((1, 1)), SEED)[0].numpy() for n in (1, 2))
    assert not np.allclose(twice - once, once - crops)


# Against keras-cv and Keras, with the same drawn parameters


@pytest.fixture(scope="module")
def keras_cv():
    return pytest.importorskip("keras_cv")


def known_matrices(monkeypatch, drawn):
    """Let every uniform draw of numbers give the same."""
    values = iter(drawn)
    monkeypatch.setattr(augment, "_draw", lambda *arguments: tf.constant(next(values), tf.float32))


SMOOTH = np.repeat(np.random.default_rng(0).uniform(0, 255, (3, 6, 6, 5)).astype(np.float32), 4, 1).repeat(4, 2)


def test_rotations_are_those_of_keras_cv(keras_cv, monkeypatch):
    angles = [0.3, -2.0, 3.1]
    known_matrices(monkeypatch, [angles])
    found = warp_crops(SMOOTH, augment._rotate(tf.shape(SMOOTH), SEED, 180).numpy())
    layer = keras_cv.layers.RandomRotation(0.5, fill_mode="constant")
    expected = layer.augment_images(SMOOTH, {"angles": tf.constant(angles)})
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_shifts_are_those_of_keras_cv(keras_cv, monkeypatch):
    across, down = [0.1, -0.2, 0.03], [0.05, 0.1, -0.07]
    known_matrices(monkeypatch, [across, down])
    found = warp_crops(SMOOTH, augment._translate(tf.shape(SMOOTH), SEED, 1).numpy())
    layer = keras_cv.layers.RandomTranslation(0.5, 0.5, fill_mode="constant")
    # keras-cv moves the picture, here the matrix says from where a pixel comes: the sign is the other one.
    moves = {"height_translations": -tf.constant(down)[:, None], "width_translations": -tf.constant(across)[:, None]}
    np.testing.assert_allclose(found, layer.augment_images(SMOOTH, moves), atol=0.05)


def test_zooms_are_those_of_keras_cv(keras_cv, monkeypatch):
    scales = [0.8, 1.0, 1.3]
    known_matrices(monkeypatch, [scales])
    found = warp_crops(SMOOTH, augment._zoom(tf.shape(SMOOTH), SEED, 0.5).numpy())
    layer = keras_cv.layers.RandomZoom(0.5, fill_mode="constant")
    zooms = {"height_zooms": tf.constant(scales)[:, None], "width_zooms": tf.constant(scales)[:, None]}
    np.testing.assert_allclose(found, layer.augment_images(SMOOTH, zooms), atol=0.05)


def test_turns_by_quarters_are_exact_and_turns_in_a_row_are_drawn_once():
    crops = make_crops()
    quarter = np.tile(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32), (6, 1, 1))
    np.testing.assert_allclose(warp_crops(crops, quarter), np.rot90(crops, axes=(1, 2)), atol=1e-3)
    np.testing.assert_allclose(warp_crops(crops, np.linalg.matrix_power(quarter, 4)), crops, atol=1e-3)
    steps = augment._steps(["rotate", "zoom", "flip", "translate", "rotate"])
    assert [len(changes) for _, changes in steps] == [2, 1, 2]


def test_the_order_of_turns_and_shifts_counts(monkeypatch):
    """Shift, then turn by a quarter: drawn once, it is what both give one behind the other."""
    crops = make_crops(1, side=9)
    both = [("translate", 3), ("rotate", 5)]
    matrices = [augment._CHANGES[name].function(tf.constant([1, 9, 9, 4]), tf.constant([1, i]), 1.0).numpy() for name, i in both]
    matrices[0][0, :2, 2] = np.round(matrices[0][0, :2, 2])
    matrices[1][0, :2, :2] = [[0, -1], [1, 0]]
    apart = warp_crops(warp_crops(crops, matrices[0]), matrices[1])
    made = iter(matrices)
    changes = [(i, lambda *_, **__: tf.constant(next(made)), 1.0, {}) for i in range(2)]
    together = augment._place((tf.constant(crops),), SEED, changes)[0].numpy()
    np.testing.assert_allclose(together, apart, atol=1e-3)


@pytest.mark.parametrize("radius", [1, 3])
def test_blur_is_that_of_keras_cv(keras_cv, radius):
    crops = make_crops(2, channels=3)
    sigma = np.array([[0.5, 1.0, 1.4], [0.02, 0.8, 1.2]], np.float32)
    found = smooth_crops(crops, sigma, radius)
    layer = keras_cv.layers.RandomGaussianBlur(2 * radius + 1, (0, 1))
    for i, c in np.ndindex(2, 3):
        side = 2 * radius + 1
        kernel = layer.get_kernel(sigma[i, c], side)
        kernels = tf.reshape(kernel, [side, 1, 1, 1]), tf.reshape(kernel, [1, side, 1, 1])
        np.testing.assert_allclose(found[i, ..., c], layer.augment_image(crops[i, ..., c : c + 1], kernels)[..., 0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["contrast", "brightness"])
def test_contrast_and_brightness_are_those_of_keras_cv(keras_cv, name, monkeypatch):
    crops, drawn = make_crops(), np.random.default_rng(2).uniform(0.7, 1.3, (6, 1, 1, 4)).astype(np.float32)
    if name == "brightness":
        drawn, layer = (drawn - 1) * 255, keras_cv.layers.RandomBrightness(0.3)
    else:
        layer = keras_cv.layers.RandomContrast((0, 255), 0.3)
    known_matrices(monkeypatch, [drawn])
    found = getattr(augment, f"_{name}")(tf.constant(crops), SEED, 0.3)
    np.testing.assert_allclose(found, layer.augment_images(tf.constant(crops), drawn), atol=1e-3)


def test_cutout_is_that_of_keras_cv(keras_cv):
    from keras_cv.src.utils import fill_utils

    crops = make_crops()
    generator = np.random.default_rng(4)
    centre, size = generator.integers(0, 24, (6, 2)), generator.integers(0, 12, (6, 2))
    expected = fill_utils.fill_rectangle(crops, centre[:, 1], centre[:, 0], size[:, 1], size[:, 0], np.zeros_like(crops))
    found = augment._hide(crops, augment._box(tf.constant(crops), tf.constant(centre), tf.constant(size)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(40, 40, 1), (64, 48, 1)])
def test_the_grid_is_that_of_keras_cv(keras_cv, shape, monkeypatch):
    layer = keras_cv.layers.GridMask(ratio_factor=(0.4, 0.4), rotation_factor=0.0)
    unit, across, down, ratio = 17.25, 5.5, 11.125, 0.4
    drawn = iter([unit, across, down])

    class Known:
        def uniform(self, **_):
            return tf.constant(next(drawn))

    monkeypatch.setattr(layer, "_random_generator", Known())
    big = layer._compute_grid_mask(tf.constant(shape), ratio=tf.constant(ratio)).numpy()
    first = [(big.shape[0] - side) // 2 for side in shape[:2]]
    expected = big[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]]
    offset = [(side - 1) / 2 + start + delta + ratio * unit for side, start, delta in zip(shape[:2], first, (down, across), strict=True)]
    found = augment._grid(tf.constant([1, *shape]), *(tf.constant([v]) for v in (unit, ratio, 0.0)), tf.constant([offset], tf.float32))
    np.testing.assert_array_equal(found[0, ..., 0], expected)
    assert 0.05 < expected.mean() < 0.35


def test_the_grid_turns_and_hides_the_square_of_its_ratio():
    n = 60
    unit, ratio, angle = np.full(n, 20, np.float32), np.linspace(0.2, 0.6, n, dtype=np.float32), np.linspace(-0.6, 0.6, n, dtype=np.float32)
    grid = augment._grid(tf.constant([n, 200, 200, 1]), unit, ratio, angle, np.zeros((n, 2), np.float32)).numpy()
    np.testing.assert_allclose(grid.mean(axis=(1, 2, 3)), ratio**2, atol=0.02)
    turned = augment._grid(tf.constant([1, 21, 21, 1]), unit[:1], ratio[:1], np.array([math.pi / 2], np.float32), np.array([[0.5, 0.5]], np.float32))
    straight = augment._grid(tf.constant([1, 21, 21, 1]), unit[:1], ratio[:1], np.zeros(1, np.float32), np.array([[0.5, 0.5]], np.float32))
    np.testing.assert_array_equal(turned[0, ..., 0], np.rot90(straight[0, ..., 0]))


# Several cells in one crop


def test_the_labels_of_cutmix_are_the_areas_that_are_seen():
    crops = np.broadcast_to(np.arange(1, 41, dtype=np.float32)[:, None, None, None], (40, 20, 20, 3)).copy()
    changed, targets = change("cutmix", crops)
    areas = np.stack([(changed[..., 0] == number).mean(axis=(1, 2)) for number in range(1, 41)], axis=1)
    np.testing.assert_allclose(targets, areas, atol=1e-5)
    assert ((targets > 0.05) & (targets < 0.95)).any(axis=1).mean() > 0.5


def test_cutmix_is_that_of_keras_cv_where_the_box_lies_inside(keras_cv):
    """keras-cv counts the part of the box that lies outside of the crop, too; inside both agree."""
    crops, partners = make_crops(3), np.array([1, 2, 0])
    centre, size = np.array([[12, 10], [8, 12], [14, 14]]), np.array([[10, 6], [4, 4], [16, 12]])
    from keras_cv.src.utils import fill_utils

    expected = fill_utils.fill_rectangle(crops, centre[:, 1], centre[:, 0], size[:, 1], size[:, 0], crops[partners])
    box = augment._box(tf.constant(crops), tf.constant(centre), tf.constant(size))
    np.testing.assert_array_equal(tf.where(box, crops[partners], crops), expected)
    shares = tf.reduce_mean(tf.cast(box, tf.float32), axis=[1, 2])
    labels = keras_cv.layers.CutMix()._update_labels(np.eye(3, dtype=np.float32), 1 - size.prod(axis=1).astype(np.float32) / 24**2, partners)
    np.testing.assert_allclose(np.eye(3) + shares * (np.eye(3)[partners] - np.eye(3)), labels, atol=1e-6)


def test_mixup_is_that_of_keras():
    import keras

    crops, seed = make_crops(), SEED
    changed, targets = change("mixup", crops)
    inner = augment._fold(augment._fold(seed, 0), 1)
    _, partners, shares = augment._mixup(tf.constant(crops), inner, 0.2)
    layer, drawn = keras.layers.MixUp(), {"mix_weight": 1 - shares[:, 0], "permutation_order": partners[:, 0]}
    np.testing.assert_allclose(changed, layer.transform_images(crops, drawn), atol=1e-3)
    np.testing.assert_allclose(targets, layer.transform_labels(np.eye(6, dtype=np.float32), drawn), atol=1e-6)


def test_the_labels_of_a_mosaic_are_those_of_keras_cv_and_the_areas(keras_cv):
    crops = np.broadcast_to(np.arange(1, 9, dtype=np.float32)[:, None, None, None], (8, 20, 30, 2)).copy()
    changed, targets = change("mosaic", crops)
    areas = np.stack([(changed[..., 0] == number).mean(axis=(1, 2)) for number in range(1, 9)], axis=1)
    np.testing.assert_allclose(targets, areas, atol=1e-5)
    sources, centre = np.random.default_rng(0).integers(0, 8, (8, 4)), np.random.default_rng(1).integers(5, 15, (8, 2))
    layer = keras_cv.layers.Mosaic()
    drawn = {"permutation_order": sources, "mosaic_centers": (centre[:, ::-1] / (30, 20)).astype(np.float32)}
    labels = layer.augment_labels(np.eye(8, dtype=np.float32), drawn, images=crops)
    joined = augment._assemble(tf.constant(crops), tf.constant(sources, tf.int32), tf.constant(centre, tf.int32)).numpy()
    areas = np.stack([(joined[..., 0] == number).mean(axis=(1, 2)) for number in range(1, 9)], axis=1)
    np.testing.assert_allclose(areas, labels, atol=1e-5)


def test_a_mosaic_shows_the_corners_that_keras_cv_shows(keras_cv):
    """keras-cv stretches its cut by one pixel in the width, so the crops are compared where they change slowly."""
    rows, columns = np.mgrid[0:40, 0:40].astype(np.float32)
    crops = np.stack([100 + 2 * rows, 100 + 2 * columns, 200 - rows, 200 - columns])[..., None]
    sources, centre = np.tile([0, 1, 2, 3], (4, 1)), np.array([[10, 30], [20, 20], [15, 25], [30, 12]])
    drawn = {"permutation_order": sources, "mosaic_centers": (centre[:, ::-1] / 40).astype(np.float32)}
    expected = keras_cv.layers.Mosaic().augment_images(crops, drawn).numpy()
    found = augment._assemble(tf.constant(crops), tf.constant(sources, tf.int32), tf.constant(centre, tf.int32)).numpy()
    off = np.abs(found - expected)
    assert (off < 3).mean() > 0.93
    top, left = centre[0]
    np.testing.assert_array_equal(found[0, :top, :left], crops[0, 40 - top :, 40 - left :])
    np.testing.assert_array_equal(found[0, top:, left:], crops[3, : 40 - top, : 40 - left])


@pytest.mark.parametrize("name", MIXES)
def test_weights_are_mixed_like_targets(name):
    crops, numbers = make_crops(9), np.arange(9, dtype=np.float32)
    _, targets, weights = change(name, crops, numbers[:, None], weights=numbers)
    np.testing.assert_allclose(weights, targets[:, 0], rtol=1e-6)
    assert (weights != numbers).any() and weights.min() >= 0 and weights.max() <= 8


@pytest.mark.parametrize("name", MIXES)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 9), first=st.integers(-(2**31), 2**31 - 1), second=st.integers(-(2**31), 2**31 - 1))
def test_targets_stay_shares(name, n, first, second):
    _, targets = change(name, make_crops(n, side=8), seed=tf.constant([first, second]))
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-5)
    assert targets.min() >= -1e-6


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_beta_draws_have_the_mean_and_variance_of_beta(alpha):
    drawn = augment._draw_beta(SEED, 0, 50_000, alpha).numpy()
    assert np.isfinite(drawn).all() and drawn.min() >= 0 and drawn.max() <= 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


# Entries


def test_entries_from_yaml_come_back_as_they_are_and_fit_into_json():
    entries = yaml.safe_load("[flip, {blur: {sigma: 1.5}}, {noise: }, {cutmix: {alpha: 1, probability: 0.5}}]")
    checked = check_augmentations(entries)
    assert checked == ("flip", {"blur": {"sigma": 1.5}}, "noise", {"cutmix": {"alpha": 1, "probability": 0.5}})
    assert check_augmentations(json.loads(json.dumps(checked))) == checked
    assert check_augmentations([]) == ()


def test_parameters_count():
    crops = make_crops()
    weak, strong = (np.abs(change({"brightness": {"strength": strength}}, crops)[0] - crops).max() for strength in (0.01, 0.5))
    assert weak <= 2.56 < 50 < strong
    assert (change({"cutout": {"size": 0}}, crops)[0] == crops).all()
    np.testing.assert_allclose(change({"blur": {"sigma": 0}}, crops)[0], crops)
    np.testing.assert_allclose(change({"rotate": {"degrees": 0}}, crops)[0], crops)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["flipp"], "expected a known augmentation, got 'flipp': did you mean 'flip'"),
        ([{"blurr": {}}], "did you mean 'blur'"),
        ([{"blur": {"sigmas": 1}}], "expected a known parameter of blur, got 'sigmas': did you mean 'sigma'"),
        ([{"blur": {"sigma": "much"}}], "expected sigma of blur to be a number from 0 to 16, got 'much'"),
        ([{"blur": {"sigma": True}}], "got True"),
        ([{"blur": {"sigma": float("nan")}}], "got nan"),
        ([{"flip": {"probability": 1.1}}], "expected probability of flip to be a number from 0 to 1, got 1.1"),
        ([{"blur": 1.5}], "expected parameters of blur as {parameter: value}, got 1.5: it has sigma, probability"),
        ([{"blur": {}, "flip": {}}], "write each augmentation as an entry of its own"),
        ([{}], "write each augmentation as an entry of its own"),
        ([3], "expected a name or one {name: {parameter: value}}, got 3"),
        ("flip", "expected a list of augmentations, got 'flip'"),
        ({"flip": {}}, "expected a list of augmentations"),
        (None, "expected a list of augmentations, got None"),
    ],
)
def test_wrong_entries_are_said(entries, message):
    with pytest.raises(ValueError) as caught:
        make_augmenter(entries)
    assert message in str(caught.value)


# Bytes and numbers


@pytest.mark.parametrize("names", [[name] for name in AUGMENTATIONS] + [["flip", "rotate90", "intensity"], ["flip", "blur", "rotate90"]])
def test_bytes_become_what_numbers_become(names):
    crops = make_cells().astype(np.uint8)
    found = [make_augmenter(names)(tf.constant(crops, kind), tf.eye(6), SEED)[0] for kind in (tf.uint8, tf.float32)]
    assert found[0].dtype == found[1].dtype == tf.float32
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32])
@given(channels=st.integers(1, 9), height=st.integers(1, 5), width=st.integers(1, 5), data=st.data())
@settings(max_examples=20, deadline=None)
def test_crops_are_turned_as_numpy_turns_them(kind, channels, height, width, data):
    crops = np.random.default_rng(0).integers(0, 256, (3, height, width, channels)).astype(kind)
    ways = [np.fliplr, np.flipud, np.transpose if height == width else np.flip]
    turns = np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=3, max_size=3)))
    for crop, found, chosen in zip(crops, turn_crops(crops, turns, ways), turns, strict=True):
        for way, is_gone in zip(ways, chosen, strict=True):
            planes = [way(plane) for plane in crop.transpose(2, 0, 1)] if is_gone else crop.transpose(2, 0, 1)
            crop = np.stack(planes, axis=2)
        np.testing.assert_array_equal(found, crop)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_crops_are_multiplied_channel_by_channel(kind):
    crops, factors = make_crops().astype(kind), np.random.default_rng(1).uniform(0, 2, (6, 4)).astype(np.float32)
    found = multiply_crops(crops, factors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.minimum(crops.astype(np.float32) * factors[:, None, None], 255), rtol=1e-6)


def test_a_feed_with_augmentation_reads_bytes_and_gives_numbers(tmp_path):
    crops = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 4), np.uint8)
    with StoreWriter(tmp_path / "store", (8, 8, 4), ("microtubules", "protein", "nucleus", "er"), {}) as writer:
        writer.add("key", {"field_id": "f", "labels": "cytosol"}, pd.DataFrame({"field_id": ["f"] * 6, "labels": "cytosol"}), crops)
        store = writer.finish()
    found = []
    for kind in ("uint8", "float32"):
        batches = batches_of(BatchPlan(store, ["cytosol"], batch_size=4, dtype=kind), ["flip", "intensity"])
        found.append([batch[0].numpy() for batch in batches])
    assert [(len(crops), crops.dtype) for crops in found[0]] == [(4, np.float32), (2, np.float32)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
