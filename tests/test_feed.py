"""Batches: order, filters, balance, augmentation, agreement with the store."""

import numpy as np
import pandas as pd
import pytest

from hpacell.feed.augment import AUGMENTATIONS, make_augmenter, tf
from hpacell.feed.batches import balance_weights, epoch_order, make_batches, target_array
from hpacell.feed.writer import StoreWriter

LOCATIONS = ("nucleoli", "cytosol", "vesicles")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """21 crops that hold their own number, in several fields."""
    labels = ["cytosol", "nucleoli|cytosol", "vesicles"] * 7
    crops = np.broadcast_to(np.arange(21, dtype=np.uint8)[:, None, None, None], (21, 6, 6, 4))
    with StoreWriter(tmp_path_factory.mktemp("feed") / "store", (6, 6, 4), ("a", "b", "c", "d"), {}, ["k"]) as writer:
        cells = pd.DataFrame({"field_id": [f"f{i // 3}" for i in range(21)], "labels": labels, "area": np.arange(21)})
        writer.add("k", {"field_id": "all", "labels": ""}, cells, crops)
        return writer.finish()


def numbers(batches) -> list[int]:
    return [int(crop[0, 0, 0]) for batch in batches for crop in batch[0].numpy()]


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_each_crop_once_with_its_own_targets(store, cache, dtype):
    expected = target_array(store.index, LOCATIONS)
    seen = []
    for crops, targets in make_batches(store, LOCATIONS, batch_size=4, cache=cache, dtype=dtype):
        assert crops.dtype == dtype and crops.shape[1:] == (6, 6, 4)
        for crop, target in zip(crops.numpy(), targets.numpy(), strict=True):
            assert len(np.unique(crop)) == 1
            np.testing.assert_array_equal(target, expected[int(crop[0, 0, 0])])
            seen.append(int(crop[0, 0, 0]))
    assert sorted(seen) == list(range(21)) and seen != list(range(21))


def test_order_depends_on_seed_and_epoch_alone(store):
    first = numbers(make_batches(store, LOCATIONS, batch_size=4, seed=5, epochs=range(3)))
    assert first == numbers(make_batches(store, LOCATIONS, batch_size=4, seed=5, epochs=range(3)))
    assert first[21:] == numbers(make_batches(store, LOCATIONS, batch_size=4, seed=5, epochs=range(1, 3)))
    assert first[:21] != first[21:42] and first != numbers(make_batches(store, LOCATIONS, batch_size=4, seed=6, epochs=range(3)))
    assert numbers(make_batches(store, LOCATIONS, shuffle=False)) == list(range(21))


def test_queries_choose(store):
    assert sorted(numbers(make_batches(store, LOCATIONS, query="area >= 18 and field_id == 'f6'"))) == [18, 19, 20]
    with pytest.raises(ValueError, match="got none of 21"):
        make_batches(store, LOCATIONS, query="area > 100")


def test_balance():
    targets = np.array([[1, 0, 0]] * 8 + [[0, 1, 0]] * 2 + [[0, 0, 0]])
    weights = balance_weights(targets)
    assert weights.mean() == pytest.approx(1) and weights[9] == pytest.approx(4 * weights[0]) and weights[10] == weights[0]
    drawn = np.concatenate([epoch_order(11, 0, epoch, probabilities=weights) for epoch in range(400)])
    assert np.isin(drawn, (8, 9)).mean() == pytest.approx(np.isin(drawn, range(8)).mean(), rel=0.15)


def test_weights_come_third(store):
    batch = next(iter(make_batches(store, LOCATIONS, balance="weights")))
    assert len(batch) == 3 and batch[2].shape == (21,)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_keep_shape_range_and_channels(name):
    crops = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 5)), tf.float32)
    targets = tf.one_hot([0, 1, 2, 2], 3)
    changed, changed_targets = make_augmenter([name], seed=1)(crops, targets, tf.constant([1, 2]))
    assert changed.shape == crops.shape and changed_targets.shape == targets.shape
    assert float(tf.reduce_min(changed)) >= 0 and float(tf.reduce_max(changed)) <= 255
    assert np.isfinite(changed.numpy()).all()
    if name not in ("cutmix", "mixup", "mosaic"):
        np.testing.assert_array_equal(changed_targets, targets)


@pytest.mark.parametrize("name", ["flip", "rotate90"])
def test_turns_keep_every_pixel_of_every_channel(name):
    crops = tf.constant(np.random.default_rng(0).integers(0, 256, (8, 6, 6, 4)), tf.float32)
    changed, _ = make_augmenter([name])(crops, tf.zeros((8, 1)), tf.constant([3, 4]))
    np.testing.assert_array_equal(np.sort(changed.numpy().reshape(8, 36, 4), 1), np.sort(crops.numpy().reshape(8, 36, 4), 1))
    assert (changed.numpy() != crops.numpy()).any()


def test_batches_with_augmentation_repeat(store):
    def all_crops():
        return np.concatenate([crops.numpy() for crops, _ in make_batches(store, LOCATIONS, augment=("flip", "rotate90", "intensity", "noise"), batch_size=8)])

    np.testing.assert_array_equal(all_crops(), all_crops())


def test_wrong_arguments(store):
    for arguments, message in [({"balance": "much"}, "balance"), ({"dtype": "uint8", "augment": ["flip"]}, "dtype"), ({"cache": "disk"}, "cache")]:
        with pytest.raises(ValueError, match=f"expected {message}"):
            make_batches(store, LOCATIONS, **arguments)
