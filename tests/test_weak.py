"""From labels of fields to answers for cells: what is promised of targets, poolings, losses and bags, by hand and at random."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from hpacell.feed.bags import FLAT_MULTIPLE, make_bags, with_inherited
from hpacell.feed.choice import target_array
from hpacell.feed.writer import StoreWriter
from hpacell.metrics.calibration import Calibration
from hpacell.metrics.locations import summarise_locations
from hpacell.models.card import with_derived_negative
from hpacell.models.evaluation import evaluate_classifier
from hpacell.models.recipe import POOLINGS
from hpacell.models.training import TrainingSettings, train_classifier
from hpacell.models.weak import (
    FIELD_WEIGHTS,
    CellPooling,
    DerivedNegative,
    FieldModel,
    InheritedLoss,
    correct_guesses,
    derive_negative,
    fit_field_model,
    join_fields,
    make_bag_model,
    pool_cells,
    pool_probabilities,
    unmix,
)
from hpacell.models.zoo import make_classifier

CHANNELS = ("microtubules", "protein", "nucleus", "er")
SMALL = {"filters": (4,), "kernels": (3,), "units": 0, "dropout": 0.0}
many = settings(max_examples=40, deadline=None)
some = settings(max_examples=20, deadline=None)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@st.composite
def guesses(draw, fewest=0):
    """Probabilities of cells, labels of their fields (each has one), fields in any order."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, n_locations, n_fields = draw(st.integers(fewest, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    probabilities = sigmoid(generator.normal(0, draw(st.sampled_from([0.1, 3, 40])), (n, n_locations)))
    labels = generator.integers(0, 2, (n_fields, n_locations)).astype(np.float32)
    labels[np.arange(n_fields), generator.integers(0, n_locations, n_fields)] = 1
    codes = generator.integers(0, n_fields, n)
    return probabilities, labels[codes], codes


# Targets


@many
@given(guesses())
def test_corrected_guesses_keep_to_the_labels(drawn):
    probabilities, labels, codes = drawn
    targets = correct_guesses(probabilities, labels, codes)
    assert targets.shape == labels.shape and targets.dtype == np.float32
    assert (targets >= 0).all() and (targets <= 1).all() and (targets[labels == 0] == 0).all()
    assert (targets >= np.clip(probabilities, 1e-6, 1 - 1e-6) * labels - 1e-6).all()
    lone = (labels.sum(axis=1, keepdims=True) == 1) & (labels == 1)
    assert np.allclose(targets[lone], 1)  # each cell shows the only label of its field


@many
@given(guesses(1), st.randoms(use_true_random=False))
def test_corrected_guesses_do_not_hang_on_order_or_names(drawn, random):
    probabilities, labels, codes = drawn
    order = random.sample(range(len(codes)), len(codes))
    expected = correct_guesses(probabilities, labels, codes)
    np.testing.assert_allclose(correct_guesses(probabilities[order], labels[order], codes[order]), expected[order], rtol=1e-5)
    names = pd.Series([f"field {9 - code}" for code in codes], index=range(5, 5 + len(codes)))
    np.testing.assert_allclose(correct_guesses(probabilities, labels, names), expected, rtol=1e-5)


def test_corrected_guesses_by_hand():
    found = correct_guesses([[0.2, 0.1], [0.1, 0.1]], np.ones((2, 2)), ["a", "a"])
    first = np.array([[0.2 / 0.28, 0.1 / 0.28], [0.1 / 0.19, 0.1 / 0.19]])
    np.testing.assert_allclose(found, first / (1 - np.prod(1 - first, axis=0)), rtol=1e-6)
    # One cell that is the whole of its field shows all of its labels.
    np.testing.assert_allclose(correct_guesses([[0.3, 0.9, 0.5]], [[1, 0, 1]], ["a"]), [[1, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(correct_guesses([[0.0]], [[1]], ["a"]), [[1]], rtol=1e-6)  # however little it looks like it
    assert correct_guesses(np.zeros((0, 3)), np.zeros((0, 3)), []).shape == (0, 3)
    assert (correct_guesses(np.full((2, 2), 0.7), np.zeros((2, 2)), ["a", "b"]) == 0).all()  # a field without labels shows nothing
    certain = correct_guesses([[0.0, 1.0], [1.0, 0.0]], np.ones((2, 2)), ["a", "a"])
    np.testing.assert_allclose(certain, [[0, 1], [1, 0]], atol=1e-4)


@many
@given(guesses())
def test_unmixed_probabilities(drawn):
    probabilities, labels, _ = drawn
    found = unmix(probabilities, labels)
    assert found.shape == labels.shape and (found >= 0).all() and (found <= probabilities + 1e-12).all()
    for column in range(labels.shape[1]):
        absent = labels[:, column] == 0
        if not absent.any():
            np.testing.assert_array_equal(found[:, column], probabilities[:, column])
        else:
            assert (found[absent, column] == 0).sum() * 2 >= absent.sum()
            order = np.argsort(probabilities[:, column])
            assert (np.diff(found[order, column]) >= 0).all()


def test_unmix_by_hand():
    np.testing.assert_allclose(unmix([[0.6], [0.2], [0.1]], [[1], [0], [0]])[:, 0], [(0.6 - 0.15) / 0.85, 0.05 / 0.85, 0])
    assert np.isfinite(unmix([[1.0], [1.0]], [[1], [0]])).all()


# Poolings


one_cell = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # keras, where there is one cell in all


def pool_by_hand(logits, members, pooling, sharpness, attention):
    """In float64, field by field; what noisy-or leaves of a field where nothing is likely has a lower end."""
    rows = []
    for row in members:
        z, heed = logits[row > 0].astype(np.float64), attention[row > 0].astype(np.float64)
        if pooling == "noisy_or":
            doubt = np.maximum(np.logaddexp(0, z).sum(axis=0), 1e-6)
            rows.append(doubt + np.log(-np.expm1(-doubt)))
        elif pooling == "max":
            rows.append(z.max(axis=0))
        elif pooling == "lse":
            top = z.max(axis=0)
            rows.append(top + np.log(np.exp(sharpness * (z - top)).mean(axis=0)) / sharpness)
        else:
            weights = np.exp(heed - heed.max(axis=0))
            rows.append((weights * z).sum(axis=0) / weights.sum(axis=0))
    return np.array(rows)


@st.composite
def bags(draw):
    """Logits of cells, members with bags of one cell or more, and cells of no field; attention."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    spare, n_locations = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    owner = np.repeat(np.arange(len(counts)), counts)
    members = np.zeros((len(counts), len(owner) + spare), np.float32)
    members[owner, np.arange(len(owner))] = 1
    logits = generator.normal(0, draw(st.sampled_from([0.5, 4, 20])), (len(owner), n_locations))
    logits = np.concatenate([logits, logits[np.arange(spare) % len(owner)]]).clip(-60, 60).astype(np.float32)  # as flat bags repeat them
    return logits, members, generator.normal(0, 2, logits.shape).astype(np.float32)


@one_cell
@pytest.mark.parametrize("pooling", POOLINGS)
@some
@given(bags(), st.sampled_from([0.25, 1.0, 4.0]))
def test_poolings_are_their_formulas(pooling, drawn, sharpness):
    logits, members, attention = drawn
    found = ops.convert_to_numpy(pool_cells(logits, members, pooling, sharpness, attention))
    np.testing.assert_allclose(found, pool_by_hand(logits, members, pooling, sharpness, attention), rtol=2e-5, atol=2e-4)
    spare = members.sum(axis=0) == 0
    other = np.where(spare[:, None], 17, logits).astype(np.float32)  # whatever a cell of no field shows
    np.testing.assert_allclose(ops.convert_to_numpy(pool_cells(other, members, pooling, sharpness, attention)), found, rtol=1e-6, atol=1e-6)


@one_cell
@some
@given(bags(), st.sampled_from([0.25, 1.0, 4.0]))
def test_poolings_lie_where_they_should(drawn, sharpness):
    logits, members, attention = drawn
    pooled = {name: ops.convert_to_numpy(pool_cells(logits, members, name, sharpness, attention)) for name in POOLINGS}
    mean = members @ logits / members.sum(axis=1, keepdims=True)
    lowest = np.array([logits[row > 0].min(axis=0) for row in members])
    near = 1e-3
    assert (mean - near <= pooled["lse"]).all() and (pooled["lse"] <= pooled["max"] + near).all()
    assert (pooled["max"] <= pooled["noisy_or"] + near).all()  # that any shows it is no less likely than that the likeliest does
    assert (lowest - near <= pooled["attention"]).all() and (pooled["attention"] <= pooled["max"] + near).all()
    alone = members.sum(axis=1) == 1
    own = np.array([logits[np.argmax(row)] for row in members])[alone]
    for name in ("max", "lse", "attention"):
        np.testing.assert_allclose(pooled[name][alone], own, atol=near)
    np.testing.assert_allclose(pooled["noisy_or"][alone], np.maximum(own, np.log(1e-6)), atol=near)


def gradient(function, values):
    """Value and gradient of a sum, under the backend at hand."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        values = tf.Variable(values)
        with tf.GradientTape() as tape:
            total = ops.sum(function(values))
        return float(total), tape.gradient(total, values).numpy()
    if backend == "jax":
        import jax

        total, slope = jax.value_and_grad(lambda x: ops.sum(function(x)))(values)
        return float(total), np.asarray(slope)
    values = ops.convert_to_tensor(values).requires_grad_()
    total = ops.sum(function(values))
    total.backward()
    return float(total), values.grad.numpy()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("level", [-60.0, 0.0, 60.0, None])
def test_poolings_are_finite_at_the_ends(pooling, level):
    mixed = np.array([[60, -60], [-60, -60], [60, 60], [0, 0]])
    logits = (mixed if level is None else np.full((4, 2), level)).astype(np.float32)
    members = np.array([[1, 1, 0, 0], [0, 0, 1, 0]], np.float32)
    value, slope = gradient(lambda x: pool_cells(x, members, pooling, 2.0, x), logits)
    assert np.isfinite(value) and np.isfinite(slope).all() and (slope[3] == 0).all()


def test_wrong_poolings():
    logits, members = np.zeros((2, 1), np.float32), np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match="did you mean 'noisy_or'"):
        pool_cells(logits, members, "noisyor")
    with pytest.raises(ValueError, match="expected attention"):
        pool_cells(logits, members, "attention")
    with pytest.raises(ValueError, match="pooling"):
        make_bag_model(make_classifier("batch_norm", (8, 8, 4), 2, "logits", **SMALL), "mean")


# Negative


@some
@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from([1, 4]), st.data())
def test_the_derived_negative_is_that_of_the_card(seed, n_locations, scale, data):
    column = data.draw(st.integers(0, n_locations - 1))
    logits = np.random.default_rng(seed).normal(0, scale, (6, n_locations)).clip(-10, 10).astype(np.float32)
    found = ops.convert_to_numpy(derive_negative(ops.convert_to_tensor(logits), column))
    np.testing.assert_allclose(sigmoid(found), with_derived_negative(sigmoid(logits), column), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.delete(found, column, axis=1), np.delete(logits, column, axis=1))
    layer = DerivedNegative.from_config(DerivedNegative(column).get_config())
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(logits)), found)


@pytest.mark.parametrize("level", [-60.0, 60.0])
def test_the_derived_negative_is_finite_at_the_ends(level):
    value, slope = gradient(lambda x: derive_negative(x, 1), np.full((2, 3), level, np.float32))
    assert np.isfinite(value) and np.isfinite(slope).all() and (slope[:, 1] == 0).all()


# Losses


@some
@given(st.integers(0, 2**32), st.sampled_from([1, 10, 60]))
def test_the_inherited_loss(seed, scale):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (7, 3)).clip(-60, 60).astype(np.float32)
    truth = generator.integers(0, 2, (7, 3)).astype(np.float32)
    full = float(InheritedLoss(1.0)(truth, logits))
    assert full == pytest.approx(float(keras.losses.BinaryCrossentropy(from_logits=True)(truth, logits)), rel=1e-5, abs=1e-7)
    exact = np.logaddexp(0, logits.astype(np.float64)) - truth * logits
    for hint in (0.0, 0.1, 0.7):
        assert float(InheritedLoss(hint)(truth, logits)) == pytest.approx((exact * np.where(truth > 0, hint, 1)).mean(), rel=1e-5, abs=1e-6)
    other = np.where(truth > 0, logits + 5, logits).astype(np.float32)
    assert float(InheritedLoss(0.0)(truth, other)) == pytest.approx(float(InheritedLoss(0.0)(truth, logits)), rel=1e-6)
    value, slope = gradient(lambda x: InheritedLoss(0.0)(truth, x), logits)
    assert np.isfinite(value) and np.abs(slope[truth > 0]).max(initial=0) < 1e-7
    assert InheritedLoss.from_config(InheritedLoss(0.3).get_config()).hint == 0.3


# The network of bags


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_network_of_bags_shares_its_weights(pooling, tmp_path):
    keras.utils.set_random_seed(0)
    cells = make_classifier("batch_norm", (8, 8, 4), 3, "logits", **SMALL)
    model = make_bag_model(cells, pooling, negative=2)
    generator = np.random.default_rng(0)
    crops = generator.integers(0, 256, (6, 8, 8, 4)).astype(np.float32)
    members = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]], np.float32)
    inputs = {"crops": crops, "members": members}
    before, answers = [weight.copy() for weight in cells.get_weights()], model.predict_on_batch(inputs)
    assert answers["cells"].shape == (6, 3) and answers["fields"].shape == (2, 3)
    expected = ops.convert_to_numpy(derive_negative(ops.convert_to_tensor(cells.predict_on_batch(crops)), 2))
    np.testing.assert_allclose(answers["cells"], expected, rtol=1e-5, atol=1e-5)
    pooled = pool_by_hand(expected, members, pooling, 1.0, np.zeros_like(expected))  # attention begins the same for all
    np.testing.assert_allclose(answers["fields"], pooled, rtol=1e-4, atol=1e-4)
    assert len(model.trainable_variables) == len(cells.trainable_variables) + 2 * (pooling == "attention")
    targets = {"fields": np.array([[1, 0, 0], [0, 1, 0]], np.float32), "cells": members.T @ np.array([[1, 0, 0], [0, 1, 0]], np.float32)}
    weights = {"fields": np.ones(2, np.float32), "cells": members.sum(axis=0)}
    bce = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), {"fields": bce, "cells": InheritedLoss(0.1)})
    assert np.isfinite(model.train_on_batch(inputs, targets, sample_weight=weights, return_dict=True)["loss"])
    assert all(not np.array_equal(one, other) for one, other in zip(before, cells.get_weights(), strict=True) if one.size > 4)
    layer = model.get_layer("pooling")
    assert CellPooling.from_config(layer.get_config()).get_config() == layer.get_config()
    if pooling == "attention":  # what is listened to is learned, too
        assert np.abs(layer.attention.get_weights()[0]).max() > 0
    model.save_weights(str(tmp_path / "bags.weights.h5"))
    again = make_bag_model(make_classifier("batch_norm", (8, 8, 4), 3, "logits", **SMALL), pooling, negative=2)
    again.load_weights(str(tmp_path / "bags.weights.h5"))
    np.testing.assert_allclose(again.predict_on_batch(inputs)["fields"], model.predict_on_batch(inputs)["fields"], rtol=1e-6)


STEP = """
import numpy as np
from hpacell.models.blocks import keras
from hpacell.models.weak import InheritedLoss, make_bag_model
from hpacell.models.zoo import make_classifier

crops = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 4)).astype("float32")
members = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]], "float32")
fields = np.array([[1, 0, 0], [0, 1, 0]], "float32")
weights = {"fields": np.ones(2, "float32"), "cells": members.sum(axis=0)}
for pooling in ("noisy_or", "attention"):
    cells = make_classifier("batch_norm", (8, 8, 4), 3, "logits", filters=(4,), kernels=(3,), units=0)
    model = make_bag_model(cells, pooling, negative=2)
    bce = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), {"fields": bce, "cells": InheritedLoss()})
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in cells.trainable_weights]
    targets = {"fields": fields, "cells": members.T @ fields}
    loss = float(model.train_on_batch({"crops": crops, "members": members}, targets, sample_weight=weights, return_dict=True)["loss"])
    moved = [not np.array_equal(keras.ops.convert_to_numpy(weight), values) for weight, values in zip(cells.trainable_weights, before)]
    assert np.isfinite(loss) and all(moved), (pooling, loss, moved)
print("stepped under", keras.backend.backend())
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_step_with_bags_under_other_backends(step_under, backend):
    step_under(backend, STEP)


# What a field says of its cells


def made_field_model(n_locations, weight):
    return FieldModel(Calibration(tuple(map(str, range(n_locations))), (1.5,) * n_locations, (-0.5,) * n_locations), weight)


@many
@given(guesses(1), st.sampled_from(FIELD_WEIGHTS), st.randoms(use_true_random=False))
def test_answers_joined_with_fields(drawn, weight, random):
    probabilities, _, codes = drawn
    model = made_field_model(probabilities.shape[1], weight)
    names = np.array([f"f{code}" for code in codes])
    found = model.answer(probabilities, names)
    assert found.dtype == np.float32 and (found >= 0).all() and (found <= probabilities.astype(np.float32) + 1e-7).all()
    order = random.sample(range(len(codes)), len(codes))  # then the fields' cells are interleaved in another way
    np.testing.assert_allclose(model.answer(probabilities[order], names[order]), found[order], rtol=1e-5, atol=1e-12)
    first = list(dict.fromkeys(names))
    of_field = model.fields(probabilities, names)
    assert of_field.shape == (len(first), probabilities.shape[1])
    for name, row in zip(first, of_field, strict=True):
        np.testing.assert_allclose(row, model.fields(probabilities[names == name], [name] * (names == name).sum())[0], rtol=1e-9)
        np.testing.assert_allclose(found[names == name], probabilities[names == name] * row**weight, rtol=1e-5, atol=1e-12)
    card = {"field_model": model.to_json()}
    np.testing.assert_array_equal(join_fields(card, probabilities, names), found)
    assert join_fields({}, probabilities, names) is probabilities and FieldModel.from_json(model.to_json()) == model
    np.testing.assert_array_equal(replace(model, weight=0.0).answer(probabilities, names), probabilities.astype(np.float32))


def test_no_cells_at_all():
    model, none = made_field_model(3, 1.0), np.zeros((0, 3))
    assert model.answer(none, []).shape == (0, 3) and model.fields(none, []).shape == (0, 3)
    assert model.answer(none, pd.Series([], dtype=str)).dtype == np.float32


@many
@given(guesses(1))
def test_pooled_probabilities_are_those_of_pooled_logits(drawn):
    probabilities, _, codes = drawn
    codes = np.unique(codes, return_inverse=True)[1]
    probabilities = probabilities.clip(1e-6, 1 - 1e-6)
    members = (codes == np.arange(codes.max() + 1)[:, None]).astype(np.float32)
    logits = np.log(probabilities) - np.log1p(-probabilities)
    by_hand = pool_by_hand(logits, members, "lse", 1.0, logits)
    np.testing.assert_allclose(pool_probabilities(probabilities, codes), sigmoid(by_hand), rtol=1e-6)
    pooled = pool_cells(logits.astype(np.float32), members, "lse", 1.0)
    np.testing.assert_allclose(pool_probabilities(probabilities, codes), sigmoid(ops.convert_to_numpy(pooled)), rtol=1e-3)
    assert np.isfinite(pool_probabilities((probabilities > 0.5).astype(float), codes)).all()


def test_the_weight_is_chosen_by_what_fields_tell():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (60, 3))
    labels[:, 2] = 0  # no field shows the third
    codes = np.tile(np.arange(60), 20)  # interleaved, by first cell in order
    shown = labels[codes] * (generator.random((1200, 3)) < 0.5)
    doubtful = sigmoid(generator.normal(np.where(shown, 1.5, -1.5), 1.5))  # single cells are often wrong, twenty seldom
    model = fit_field_model(doubtful, codes, labels, "abc")
    assert model.weight in FIELD_WEIGHTS and model.weight > 0
    assert any(note.startswith("c: none of 60") for note in model.calibration.notes)
    answers = model.answer(doubtful, codes)
    assert np.isfinite(answers).all() and np.isfinite(model.fields(doubtful, codes)).all()
    alone, joined = (summarise_locations(shown, found, "abc")["macro_average_precision"] for found in (doubtful, answers))
    assert joined > alone + 0.05
    one = fit_field_model(np.array([[0.4, 0.0, 1.0]]), ["x"], np.array([[1, 0, 0]]), "abc")  # a single field of one cell
    assert np.isfinite(one.answer(np.array([[0.4, 0.0, 1.0]]), ["x"])).all()


# Bags


LOCATIONS = ("nucleoli", "cytosol", "vesicles")
COUNTS = (1, 5, 40, 2, 7)
FIELD_LABELS = ("cytosol", "nucleoli|cytosol", "vesicles", "", "nucleoli")


@pytest.fixture(scope="module")
def bag_store(tmp_path_factory):
    """55 crops of five fields; a crop's pixels hold its number, from 1, on a slope."""
    number = np.arange(1, 56, dtype=np.uint8)[:, None, None, None]
    crops, done = number + (np.arange(16) * 4).astype(np.uint8).reshape(4, 4, 1) + np.zeros((1, 1, 1, 2), np.uint8), 0
    with StoreWriter(tmp_path_factory.mktemp("weak") / "bags", (4, 4, 2), ("a", "b"), {}) as writer:
        for i, (count, labels) in enumerate(zip(COUNTS, FIELD_LABELS, strict=True)):
            cells = pd.DataFrame({"field_id": [f"f{i}"] * count, "labels": labels})
            writer.add(f"k{i}", {"field_id": f"f{i}", "labels": labels}, cells, crops[done : done + count])
            done += count
        return writer.finish()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.sampled_from([None, 3, 8]), st.integers(0, 2), st.booleans())
def test_flat_bags_hold_what_padded_ones_do(bag_store, batch_size, max_cells, seed, shuffle):
    arguments = {"batch_size": batch_size, "max_cells": max_cells, "seed": seed, "shuffle": shuffle, "epochs": range(1, 3)}
    flat, padded = (list(make_bags(bag_store, LOCATIONS, layout=layout, **arguments)) for layout in ("flat", "padded"))
    assert len(flat) == len(padded) == 2 * -(-5 // batch_size)
    for (cells, targets), (apart, same) in zip(flat, padded, strict=True):
        crops, members, mask = cells["crops"].numpy(), cells["members"].numpy(), apart["mask"].numpy()
        np.testing.assert_array_equal(targets, same)
        np.testing.assert_array_equal(members.sum(axis=1), mask.sum(axis=1))
        n = int(mask.sum())
        assert len(crops) % FLAT_MULTIPLE == 0 and n <= len(crops) < n + FLAT_MULTIPLE and members.shape == (len(targets), len(crops))
        assert (members.sum(axis=0) == (np.arange(len(crops)) < n)).all() and set(members.ravel()) <= {0, 1}
        for i, row in enumerate(members):
            np.testing.assert_array_equal(crops[row > 0], apart["crops"].numpy()[i, mask[i]])
        for k in range(n, len(crops)):  # what fills up is a cell again, not a black crop
            np.testing.assert_array_equal(crops[k], crops[k % n])


def test_inherited_targets_and_weights(bag_store):
    plain = make_bags(bag_store, LOCATIONS, batch_size=3, shuffle=False, layout="flat")
    for (cells, labels), (same, targets, weights) in zip(plain, with_inherited(plain), strict=True):
        members = cells["members"].numpy()
        np.testing.assert_array_equal(cells["crops"], same["crops"])
        np.testing.assert_array_equal(targets["fields"], labels)
        owner = members.argmax(axis=0)
        np.testing.assert_array_equal(targets["cells"], labels.numpy()[owner] * members.sum(axis=0)[:, None])
        real = members.sum(axis=0)
        np.testing.assert_allclose(weights["cells"], real / real.mean(), rtol=1e-6)  # a mean of losses is that over the real cells
        np.testing.assert_array_equal(weights["fields"], np.ones(len(labels)))
    assert set(next(iter(plain))[0]) == {"crops", "members"}


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_changes_of_bags_depend_on_seed_epoch_and_step_alone(bag_store, layout):
    augment = ("flip", "rotate90", "intensity", "noise")

    def crops_of(**changed):
        arguments = {"batch_size": 2, "augment": augment, "epochs": range(3), "layout": layout} | changed
        return [cells["crops"].numpy() for cells, _ in make_bags(bag_store, LOCATIONS, **arguments)]

    def same(one, other):
        return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    whole = crops_of()
    assert same(crops_of(), whole) and same(crops_of(epochs=range(1, 3), first_step=2), whole[5:])
    assert same(crops_of(cache="none"), whole)
    assert not same(crops_of(seed=1), whole) and not same(crops_of(augment=()), whole)
    still = crops_of(shuffle=False, augment=("noise",))
    assert not np.array_equal(still[0], still[3])  # the same cells, another epoch


@pytest.mark.parametrize("name", ["cutmix", "mixup", "mosaic"])
def test_bags_keep_cells_apart(bag_store, name):
    for augment in ((name,), ("flip", {name: {}})):
        with pytest.raises(ValueError, match=f"keep each cell by itself, got '{name}'"):
            make_bags(bag_store, LOCATIONS, augment=augment)
    with pytest.raises(ValueError, match="got 'uint8'"):
        make_bags(bag_store, LOCATIONS, augment=("flip",), dtype="uint8")
    with pytest.raises(ValueError, match="expected layout"):
        make_bags(bag_store, LOCATIONS, layout="round")


# From a store to answers


KINDS = ("cytosol", "nucleoli", "vesicles")


def draw_cell(generator, kind):
    """Bright where the kind says: at the rim, in the middle, or in spots."""
    crop = generator.integers(0, 40, (16, 16, 4))
    if kind == "cytosol":
        crop[:, :, 1] += 100
        crop[4:12, 4:12, 1] -= 100
    elif kind == "nucleoli":
        crop[5:11, 5:11, 1] += 150
    else:
        crop[2::5, 2::5, 1] += 200
    return crop.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """60 fields of 6 cells, three each of two kinds: a label of the field is right for every other cell. And the truth."""
    generator, truth = np.random.default_rng(0), []
    with StoreWriter(tmp_path_factory.mktemp("weak") / "mixed", (16, 16, 4), CHANNELS, {"size": 16}) as writer:
        for i in range(60):
            pair = [kind for k, kind in enumerate(KINDS) if k != i % 3]
            kinds = generator.permutation(pair * 3)
            cells = pd.DataFrame({"field_id": [f"f{i}"] * 6, "cell_id": range(1, 7), "labels": "|".join(pair)})
            writer.add(f"k{i}", {"field_id": f"f{i}", "labels": "|".join(pair)}, cells, np.stack([draw_cell(generator, kind) for kind in kinds]))
            truth += kinds.tolist()
        return writer.finish(), pd.Series(truth)


@pytest.mark.parametrize("weak", ["em", "noisy_or"])
def test_cells_are_told_apart_by_labels_of_fields(mixed, weak, tmp_path):
    store, truth = mixed
    plan = TrainingSettings(
        model_parameters={"filters": (8, 8), "kernels": (3, 3), "units": 0, "dropout": 0.1}, weak=weak, epochs=14, patience=14, batch_size=16,
        fields_per_batch=3, learning_rate=0.02,
    )  # fmt: skip
    trained = train_classifier(store, tmp_path, plan)
    found = evaluate_classifier(trained, store, n_bootstrap=20)
    sides = {side: set(ids) for side, ids in trained.card["data"]["fields"].items()}
    assert not sides["test"] & (sides["train"] | sides["valid"]) and len(sides["test"]) == found.n_fields == 12
    cells = pd.read_parquet(tmp_path / "test_cells.parquet")
    assert set(cells["field_id"]) == sides["test"]
    rows = np.flatnonzero(store.index["field_id"].isin(sides["test"]))
    real = target_array(pd.DataFrame({"labels": truth[rows]}), trained.locations)
    answers = cells[[f"p_{location}" for location in trained.locations]].to_numpy()
    score = summarise_locations(real, answers, trained.locations)
    assert score["macro_chance"] == pytest.approx(1 / 3, abs=0.1)
    assert score["macro_average_precision"] > 0.9 and score["macro_f1"] > 0.7
    alone = trained.predict(store.crops(rows))
    np.testing.assert_allclose(join_fields(trained.card, alone, cells["field_id"]), answers, rtol=1e-4, atol=1e-6)
    assert trained.card["field_model"]["weight"] in FIELD_WEIGHTS and found.headline == "fields"
