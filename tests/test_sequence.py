"""CropSequence gives what make_batches gives, through threads, processes and pickles."""

import multiprocessing
import pickle

import keras
import numpy as np
import pandas as pd
import pytest

from hpacell.feed.batches import make_batches
from hpacell.feed.sequence import CropSequence
from hpacell.feed.writer import StoreWriter

LOCATIONS = ("nucleoli", "cytosol")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """23 crops of random pixels, in two fields."""
    crops = np.random.default_rng(0).integers(0, 256, (23, 6, 6, 4), np.uint8)
    cells = pd.DataFrame({"field_id": ["a"] * 11 + ["b"] * 12, "labels": ["cytosol", "nucleoli"] * 11 + [""], "area": range(23)})
    with StoreWriter(tmp_path_factory.mktemp("sequence") / "store", (6, 6, 4), ("a", "b", "c", "d"), {}) as writer:
        writer.add("k", {"field_id": "all"}, cells, crops)
        return writer.finish()


def all_batches(sequence: CropSequence, n_epochs: int) -> list:
    found = []
    for _ in range(n_epochs):
        found += [sequence[i] for i in range(len(sequence))]
        sequence.on_epoch_end()
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shuffle": False, "dtype": "uint8", "cache": "memory"},
        {"balance": "weights", "query": "area > 3", "cache": "none"},
        {"balance": "sampling", "dtype": "float16", "seed": 9},
        {"first_step": 3, "seed": 1},
    ],
)
def test_equal_to_make_batches(store, arguments):
    arguments = {"batch_size": 5, "epochs": range(2, 5), **arguments}
    found = all_batches(CropSequence(store, LOCATIONS, **arguments), 3)
    for batch, expected in zip(found, make_batches(store, LOCATIONS, **arguments), strict=True):
        for array, tensor in zip(batch, expected, strict=True):
            assert array.dtype == tensor.numpy().dtype
            np.testing.assert_array_equal(array, tensor)


def _first_crops(sequence: CropSequence) -> np.ndarray:
    return np.concatenate([sequence[i][0] for i in range(len(sequence))])


def test_in_another_process(store):
    sequence = CropSequence(store, LOCATIONS, batch_size=5, cache="memory")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_first_crops, [sequence])
    np.testing.assert_array_equal(found, _first_crops(sequence))


@pytest.mark.parametrize("workers, use_multiprocessing", [(1, False), (2, False), (2, True)])
def test_keras_takes_it(store, workers, use_multiprocessing):
    sequence = CropSequence(store, LOCATIONS, batch_size=5, shuffle=False, workers=workers, use_multiprocessing=use_multiprocessing)
    model = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.GlobalAveragePooling2D()])
    np.testing.assert_allclose(model.predict(sequence, verbose=0), store.crops(range(23)).mean((1, 2)), rtol=1e-5)


class Recorder(keras.layers.Layer):
    """Keeps the first pixel of each crop that it is trained on."""

    seen: list = []

    def call(self, crops, training=False):
        if training and not isinstance(crops, keras.KerasTensor):
            Recorder.seen.append(keras.ops.convert_to_numpy(crops)[:, 0, 0, :3].tobytes())
        return crops


def test_fit_sees_the_epochs_that_it_counts(store):
    model = keras.Sequential([keras.Input((6, 6, 4)), Recorder(), keras.layers.Flatten(), keras.layers.Dense(2, "sigmoid")])
    model.compile("sgd", "binary_crossentropy", run_eagerly=True)
    sequence = CropSequence(store, LOCATIONS, batch_size=5, epochs=range(3, 5))
    model.fit(sequence, initial_epoch=3, epochs=5, shuffle=False, verbose=0, callbacks=[sequence.epoch_callback()])
    expected = [crops.numpy()[:, 0, 0, :3].tobytes() for crops, _ in make_batches(store, LOCATIONS, batch_size=5, epochs=range(3, 5))]
    assert Recorder.seen[-len(expected) :] == expected


def test_clear_refusals(store):
    with pytest.raises(ValueError, match="expected no augmentation, got .'flip'."):
        CropSequence(store, LOCATIONS, augment=("flip",))
    sequence = CropSequence(store, LOCATIONS, batch_size=5)
    with pytest.raises(IndexError, match="from 0 to 4, got 5"):
        sequence[5]
    assert len(pickle.dumps(sequence)) < 20_000 and "MiB are free" in str(sequence.cache_choice)
