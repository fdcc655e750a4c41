"""The U-Net: maps of labels, cells of maps, its losses, any size of image, and the whole on real nuclei."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from hpacell.fields.intensity import normalise_intensity, to_channels
from hpacell.fields.simulate import simulate_field
from hpacell.masks.layouts import find_labelled
from hpacell.metrics.instances import jaccard, score_instances
from hpacell.models import unet
from hpacell.models.unet import UNetConfig, keras, make_learner, make_network, make_targets, predict_maps, segment_image
from hpacell.models.watershed import choose_thresholds, make_maps, watershed_cells

TINY = UNetConfig(stem=4, filters=(8, 16), tile=64, overlap=32, min_size=4)


def discs(shape, places, radius=9):
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    for i, (row, col) in enumerate(places, 1):
        labels[(rows - row) ** 2 + (cols - col) ** 2 <= radius**2] = i
    return labels


def picture(labels, seed=0):
    noise = np.random.default_rng(seed).normal(0.1, 0.05, labels.shape)
    return ((labels > 0) * 0.8 + noise).astype(np.float32)[..., None]


def plain_maps(labels, reach):
    """As the definitions say, pixel by pixel."""
    maps = np.zeros((*labels.shape, 3))
    places = np.argwhere(np.ones(labels.shape, bool))
    for row, col in places:
        window = labels[max(row - reach, 0) : row + reach + 1, max(col - reach, 0) : col + reach + 1]
        maps[row, col, 1] = len(set(window.ravel().tolist()) - {0}) > 1
        if labels[row, col]:
            maps[row, col, 0] = 1
            others = places[labels.ravel() != labels[row, col]]
            maps[row, col, 2] = np.sqrt(((others - [row, col]) ** 2).sum(1)).min() if len(others) else 1
    for label in set(labels.ravel().tolist()) - {0}:
        maps[labels == label, 2] /= maps[labels == label, 2].max()
    return maps


@given(arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0, 1, 2, 5])), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_maps_are_what_they_are_defined_to_be(labels, reach):
    np.testing.assert_allclose(make_maps(labels, reach), plain_maps(labels, reach), atol=2e-6)


def test_maps_by_hand():
    labels = np.zeros((7, 9), np.int32)
    labels[1:6, 0:3], labels[1:6, 3:6], labels[0, 8] = 1, 2, 9
    foreground, boundary, distance = np.moveaxis(make_maps(labels, 1), -1, 0)
    np.testing.assert_array_equal(foreground, labels > 0)
    # Where 1 and 2 meet, one column on each side and one pixel beyond their ends; 9 is far from all.
    expected = np.zeros((7, 9))
    expected[:, 2:4] = 1
    np.testing.assert_array_equal(boundary, expected)
    # The middle of cell 1 is at the border of the picture, which is no outline; that of cell 2 is between outlines.
    np.testing.assert_allclose(distance[3], [1, 2 / 3, 1 / 3, 0.5, 1, 0.5, 0, 0, 0], atol=1e-6)
    assert distance[0, 8] == 1 and distance[0, 7] == 0


def test_empty_and_full_pictures():
    assert not make_maps(np.zeros((5, 4), np.int32)).any()
    np.testing.assert_array_equal(make_maps(np.full((5, 4), 7))[2, 2], [1, 0, 1])
    targets = make_targets(np.zeros((2, 8, 8), np.int32), TINY)
    assert list(targets) == ["maps"] and targets["maps"].shape == (2, 8, 8, 3) and targets["maps"].dtype == np.float32


def test_true_maps_give_true_cells():
    truth = simulate_field(3, size=(192, 256)).nuclei
    for labels in (truth, discs((60, 90), [(20, 20), (20, 38), (36, 29), (0, 60), (59, 89)], 9)):
        found, scores = watershed_cells(make_maps(labels))
        table = score_instances([(labels, found)], [0.5, 0.9])
        assert table["jaccard"].min() == 1, table
        np.testing.assert_array_equal(found > 0, labels > 0)
        assert found.dtype == np.int32 and scores.dtype == np.float32 and len(scores) == found.max() and (scores > 0.5).all()


@given(arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)), elements=st.floats(0, 1, width=32)), st.floats(0, 0.5))
@settings(max_examples=80, deadline=None)
def test_cells_of_any_maps(maps, depth):
    labels, scores = watershed_cells(maps, 0.5, 0.1, depth, min_size=3)
    assert labels.shape == maps.shape[:2] and set(np.unique(labels)) - {0} == set(range(1, len(scores) + 1))
    assert ((scores >= 0) & (scores <= 1)).all()
    for label in range(1, len(scores) + 1):
        mask = labels == label
        assert mask.sum() >= 3 and ndimage.label(mask)[1] == 1
        holes = ndimage.binary_fill_holes(mask) & (labels == 0)
        assert not holes.any() and (maps[mask & ~(maps[..., 0] >= 0.5)].size == 0 or (ndimage.binary_fill_holes(maps[..., 0] >= 0.5))[mask].all())


def test_depth_joins_and_marker_drops():
    labels = discs((40, 60), [(20, 18), (20, 36)], 10)
    maps = make_maps(labels)
    saddle = maps.copy()
    saddle[..., 1], saddle[..., 2] = 0, ndimage.gaussian_filter(maps[..., 2], 4)
    assert watershed_cells(saddle, marker=0.1, depth=0.01)[0].max() == 2
    assert watershed_cells(saddle, marker=0.1, depth=0.9)[0].max() == 1
    low = maps * np.where(labels == 2, 0.6, 1)[..., None].astype(np.float32)
    found, scores = watershed_cells(low, foreground=0.4, marker=0.1)
    assert found.max() == 2 and scores[found[20, 36] - 1] < 0.5 * scores[found[20, 18] - 1]
    kept, one = watershed_cells(low, foreground=0.4, marker=0.8)
    assert len(one) == 1 and jaccard(np.where(labels == 1, 1, 0), kept, 0.9) == 1
    assert watershed_cells(maps, min_size=400)[0].max() == 0


def test_a_hole_is_filled_but_not_a_ring_of_cells():
    labels = discs((40, 40), [(20, 20)], 12)
    maps = make_maps(labels)
    maps[19:22, 19:22, 0] = 0
    np.testing.assert_array_equal(watershed_cells(maps)[0], labels)
    angles = np.arange(8) * np.pi / 4
    ring = discs((80, 80), [(40 + 24 * np.sin(a), 40 + 24 * np.cos(a)) for a in angles], 10)
    found = watershed_cells(make_maps(ring))[0]
    assert found.max() == 8 and found[40, 40] == 0


def test_thresholds_are_chosen_by_the_score():
    labels = discs((60, 60), [(15, 15), (40, 40)], 9)
    dim = make_maps(labels) * np.float32([0.45, 1, 1])
    best, score = choose_thresholds([dim], [labels], {"foreground": (0.6, 0.3)})
    assert best == {"foreground": 0.3} and score == 1
    assert choose_thresholds([dim], [labels], {"foreground": (0.3,)}, min_size=10_000)[1] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filters": ()}, "some level"), ({"n_channels": 0}, "at least 1"), ({"weights": (1, 2)}, "3 weights"), ({"weights": (1, -2, 1)}, "from 0"),
        ({"tile": 500}, "multiple of 64"), ({"tile": 128, "overlap": 96}, "twice the overlap"),
    ],
)  # fmt: skip
def test_configurations_that_make_no_network(values, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**values)


def test_a_configuration_outlives_json():
    config = UNetConfig(n_channels=4, filters=(8, 16), weights=(1, 2, 3), flips=True, marker=0.3)
    assert UNetConfig.from_json(config.to_json()) == config and isinstance(UNetConfig.from_json(config.to_json()).filters, tuple)
    with pytest.raises(ValueError, match="did you mean 'marker'"):
        UNetConfig.from_json('{"markers": 1}')


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_any_channels_and_sides(channels):
    config = replace(TINY, n_channels=channels)
    network = make_network(config)
    for height, width in [(4, 4), (32, 20)]:
        out = network.predict_on_batch(np.zeros((2, height, width, channels), np.float32))
        assert out.shape == (2, height, width, 3) and out.dtype == np.float32
    assert config.stride == 4


def test_the_default_is_small():
    assert make_network(UNetConfig()).count_params() < 2_000_000


def test_losses_are_what_they_are_defined_to_be():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 6, 5, 3)).astype(np.float32)
    truth = np.stack([make_maps(labels) for labels in rng.integers(0, 3, (3, 6, 5))])
    truth[2] = 0
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = []
    for q, t in zip(p, truth, strict=True):
        entropy = -(t * np.log(q) + (1 - t) * np.log(1 - q)) * (1 + 4 * t[..., 1:2])
        dice = 1 - (2 * (q[..., 0] * t[..., 0]).sum() + 1) / (q[..., 0].sum() + t[..., 0].sum() + 1)
        weight = np.where(t[..., 0] > 0, 1, 0.25)
        expected.append([entropy[..., 0].mean() + dice, entropy[..., 1].mean(), (weight * np.abs(q[..., 2] - t[..., 2])).sum() / weight.sum()])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(unet.map_losses(logits, truth)), expected, rtol=1e-4)
    extreme = keras.ops.convert_to_numpy(unet.map_losses(np.float32([-1e4, 1e4, 1e4]) * np.ones_like(logits), truth))
    assert np.isfinite(extreme).all()


def test_a_step_moves_every_weight_and_names_its_losses():
    keras.utils.set_random_seed(0)
    network = make_network(TINY)
    learner = make_learner(network, replace(TINY, weights=(1, 2, 3)))
    learner.compile(keras.optimizers.Adam(1e-3))
    labels = np.stack([discs((32, 32), [(8, 8), (8, 26)], 7), np.zeros((32, 32), np.int32)])
    batch = {"image": np.stack([picture(one) for one in labels]), **make_targets(labels, TINY)}
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in network.trainable_weights]
    logs = learner.train_on_batch(batch, return_dict=True)
    assert set(logs) == {"loss", "foreground", "boundary", "distance"}
    assert logs["loss"] == pytest.approx(logs["foreground"] + 2 * logs["boundary"] + 3 * logs["distance"], rel=1e-4)
    for weight, values in zip(network.trainable_weights, before, strict=True):
        assert not np.array_equal(keras.ops.convert_to_numpy(weight), values), weight.path


def test_pictures_without_cells_train_and_predict():
    network = make_network(TINY)
    learner = make_learner(network, TINY)
    learner.compile(keras.optimizers.Adam(1e-2))
    empty = np.zeros((2, 32, 32), np.int32)
    batch = {"image": np.stack([picture(one, i) for i, one in enumerate(empty)]), **make_targets(empty, TINY)}
    losses = learner.fit(batch, epochs=30, batch_size=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    labels, scores = segment_image(network, np.zeros((20, 30, 1), np.float32), TINY)
    assert labels.shape == (20, 30) and len(scores) == labels.max()


@pytest.fixture(scope="module")
def taught():
    """A tiny network that knows bright discs."""
    keras.utils.set_random_seed(1)
    network = make_network(TINY)
    learner = make_learner(network, TINY)
    learner.compile(keras.optimizers.Adam(5e-3))
    rng = np.random.default_rng(0)
    labels = np.stack([discs((64, 64), rng.uniform(5, 59, (5, 2)), 8) for _ in range(16)])
    data = {"image": np.stack([picture(one, i) for i, one in enumerate(labels)]), **make_targets(labels, TINY)}
    learner.fit(data, batch_size=8, epochs=100, verbose=0)
    return network


@pytest.fixture(scope="module")
def wide():
    """Discs all over a picture that is wider than high."""
    return discs((150, 210), [(r, c) for r in range(10, 150, 21) for c in range(8, 210, 20)], 8)


def test_tiles_leave_no_seam(taught, wide):
    image = picture(wide, 7)
    whole = replace(TINY, tile=256)
    assert unet._side(210, whole) == 256 and unet._side(210, TINY) == 64
    cut, uncut, apart = (predict_maps(taught, image, config) for config in (TINY, whole, replace(TINY, overlap=0)))
    assert cut.shape == (150, 210, 3)
    # The difference itself is 0.006 to 0.018, as the training went; beside tiles without an overlap it is 0.44 to 0.63.
    assert np.abs(cut - uncut).mean() < 0.8 * np.abs(apart - uncut).mean()
    (labels, scores), (expected, whole_scores) = (segment_image(taught, image, config) for config in (TINY, whole))
    assert abs(labels.max() - wide.max()) <= 1 and abs(expected.max() - wide.max()) <= 1  # 77 of 77; without an overlap 84
    assert jaccard(expected, labels, 0.9) > 0.95  # 1; without an overlap 0.77
    assert abs(scores.mean() - whole_scores.mean()) < 0.1  # the mean over sorted scores differs by 0.018 at the most
    assert jaccard(wide, labels, 0.75) > 0.9  # 1, with another learning rate 0.96


def test_flips_do_what_turned_pictures_do(taught, wide):
    flips, image = replace(TINY, flips=True, tile=256), picture(wide, 3)[:128, :192]
    maps = predict_maps(taught, image, flips)
    turned = predict_maps(taught, image[::-1], flips)[::-1]
    np.testing.assert_allclose(maps, turned, atol=1e-4)
    assert np.abs(maps - predict_maps(taught, image, replace(flips, flips=False))).max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 64), (65, 63), (130, 40)])
def test_any_size(taught, shape):
    labels, scores = segment_image(taught, picture(np.zeros(shape, np.int32)), TINY)
    assert labels.shape == shape and labels.dtype == np.int32 and len(scores) == labels.max()


def test_few_sizes_reach_the_network(taught, monkeypatch):
    seen = set()
    original = taught.predict_on_batch
    monkeypatch.setattr(taught, "predict_on_batch", lambda images: (seen.add(images.shape), original(images))[1])
    for height, width in [(40, 50), (64, 64), (90, 120), (200, 170), (199, 180)]:
        predict_maps(taught, np.zeros((height, width, 1), np.float32), TINY)
    assert len(seen) <= 3 and all(side % 64 == 0 for shape in seen for side in shape[1:3]), seen


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8)), r"\(H, W, 1\)"), (np.zeros((8, 8, 3)), r"\(H, W, 1\)"), (np.zeros((8, 8, 1), np.uint8), "of floats, got uint8"),
        (np.zeros((0, 8, 1)), "normalised image"), (np.full((8, 8, 1), np.nan), "finite"),
    ],
)  # fmt: skip
def test_images_that_are_refused(taught, image, message):
    with pytest.raises(ValueError, match=message):
        segment_image(taught, image, TINY)


def test_labels_that_are_refused():
    with pytest.raises(ValueError, match=r"labels \(B, h, w\)"):
        make_targets(np.zeros((4, 4), np.int32), TINY)
    with pytest.raises(ValueError, match="from 0, got -1"):
        make_targets(np.full((1, 4, 4), -1), TINY)
    with pytest.raises(ValueError, match="expected maps"):
        watershed_cells(np.zeros((4, 4, 2)))
    with pytest.raises(ValueError, match="in pairs"):
        choose_thresholds([np.zeros((4, 4, 3))], [])


def test_thresholds_of_a_network(taught, wide):
    config = replace(TINY, marker=0.99)
    better, score = unet.tune_config(taught, [picture(wide)], [wide], config, {"marker": (0.99, 0.3)})
    assert better == replace(config, marker=0.3) and score > 0.5


@pytest.mark.slow
def test_two_real_images_are_learnt(shared_data):
    """The whole, from files to cells."""
    folder = shared_data / "dsb2018"
    images = [image for image in find_labelled(folder) if image.kind == "fluorescence"][1:3]
    pairs = [image.read() for image in images]
    patches = [(normalise_intensity(to_channels(image, 1))[:128, :128], labels[:128, :128]) for image, labels in pairs]
    keras.utils.set_random_seed(0)
    config = UNetConfig(stem=8, filters=(16, 24, 32), min_size=4)
    network = make_network(config)
    learner = make_learner(network, config)
    # The last steps change nothing but the averages of the normalisation.
    learner.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 200)))
    data = {"image": np.stack([image for image, _ in patches]), **make_targets(np.stack([labels for _, labels in patches]), config)}
    learner.fit(data, batch_size=2, epochs=260, verbose=0)
    table = score_instances([(labels, segment_image(network, image, config)[0]) for image, labels in patches], [0.5, 0.75])
    assert (table.loc[table["image"] == "pooled", "jaccard"] > [0.85, 0.8]).all(), table


STEP = """
import numpy as np
from hpacell.models.unet import UNetConfig, keras, make_learner, make_network, make_targets, segment_image

config = UNetConfig(n_channels=2, stem=4, filters=(8, 8))
network = make_network(config)
learner = make_learner(network, config)
learner.compile(keras.optimizers.AdamW(1e-3))
labels = np.zeros((4, 32, 32), np.int32)
labels[:3, 4:14, 4:14], labels[:2, 4:14, 14:24] = 1, 2
batch = {"image": np.repeat(labels[..., None] > 0, 2, -1).astype(np.float32), **make_targets(labels, config)}
before = [keras.ops.convert_to_numpy(weight).copy() for weight in network.trainable_weights]
history = learner.fit(batch, batch_size=2, epochs=2, verbose=0).history
moved = [not np.array_equal(keras.ops.convert_to_numpy(weight), values) for weight, values in zip(network.trainable_weights, before)]
assert all(moved) and all(0 < history[name][-1] < 100 for name in ("loss", "foreground", "boundary", "distance")), (moved, history)
found, scores = segment_image(network, batch["image"][0], config)
assert found.shape == (32, 32) and len(scores) == found.max()
print("stepped under", keras.backend.backend())
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_train_step_under_other_backends(step_under, backend):
    step_under(backend, STEP)
