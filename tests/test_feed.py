"""Batches: order, filters, balance, augmentation, agreement with the store, going on in the middle of an epoch."""

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpacell.feed.augment import AUGMENTATIONS
from hpacell.feed.batches import make_batches
from hpacell.feed.choice import balance_weights, choose_rows, epoch_order, target_array
from hpacell.feed.writer import StoreWriter

LOCATIONS = ("nucleoli", "cytosol", "vesicles")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """21 crops that hold their own number, in several fields."""
    labels = ["cytosol", "nucleoli|cytosol", "vesicles"] * 7
    crops = np.broadcast_to(np.arange(21, dtype=np.uint8)[:, None, None, None], (21, 6, 6, 4))
    with StoreWriter(tmp_path_factory.mktemp("feed") / "store", (6, 6, 4), ("a", "b", "c", "d"), {}) as writer:
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
    for query, message in [("area > 100", "got none of 21"), ("volume > 1", "columns field_id, labels, area"), ("area +", "correct the query")]:
        with pytest.raises(ValueError, match=message):
            make_batches(store, LOCATIONS, query=query)


def test_rows_without_a_value_are_not_chosen():
    index = pd.DataFrame({"organ": pd.array(["lung", None, "liver"], "string"), "area": pd.array([1, 2, None], "Int64")})
    assert choose_rows(index, "area >= 1").tolist() == [0, 1]
    assert choose_rows(index, "organ == 'liver'").tolist() == [2]
    assert choose_rows(index).tolist() == [0, 1, 2]


@pytest.mark.parametrize("augment", [(), ("flip", "rotate90", "intensity", "noise"), AUGMENTATIONS])
@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_a_feed_goes_on_in_the_middle_of_an_epoch(store, augment, balance):
    arguments = {"batch_size": 4, "seed": 2, "augment": augment, "balance": balance}
    whole = [[part.numpy() for part in batch] for batch in make_batches(store, LOCATIONS, epochs=range(3), **arguments)]
    for epoch, step in [(0, 1), (1, 0), (1, 5), (2, 3)]:
        rest = make_batches(store, LOCATIONS, epochs=range(epoch, 3), first_step=step, **arguments)
        assert rest.cardinality() == len(whole) - 6 * epoch - step
        for batch, expected in zip(rest, whole[6 * epoch + step :], strict=True):
            for part, array in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(part, array)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 25), st.integers(0, 3), st.integers(1, 2), st.data())
def test_any_start_gives_the_rest(store, batch_size, start, n_epochs, data):
    steps = -(-21 // batch_size)
    first_step = data.draw(st.integers(0, steps - 1))
    arguments = {"batch_size": batch_size, "dtype": "uint8", "cache": "none"}
    whole = numbers(make_batches(store, LOCATIONS, epochs=range(start, start + n_epochs), **arguments))
    rest = numbers(make_batches(store, LOCATIONS, epochs=range(start, start + n_epochs), first_step=first_step, **arguments))
    assert rest == whole[first_step * batch_size :]


def test_it_says_where_the_crops_are_held(store, caplog):
    with caplog.at_level(logging.INFO, "hpacell.feed"):
        held, read = (make_batches(store, LOCATIONS, cache=cache).cache_choice for cache in ("auto", "none"))
    assert held.choice == "memory" and "MiB are free" in held.reason
    assert read.choice == "none" and "cache='none' was asked for" in read.reason
    assert [record.getMessage() for record in caplog.records] == [str(held), str(read)]
    assert str(held).startswith("crops are held in memory: they take 0.0 MiB")


def test_batches_that_are_kept_keep_their_content(store):
    """The memory of batches is used again, but not while somebody looks at them."""
    batches = [crops.numpy() for crops, _ in make_batches(store, LOCATIONS, batch_size=4, dtype="uint8", epochs=range(5))]
    rows = [crops[0] for crops, _ in make_batches(store, LOCATIONS, batch_size=4, dtype="uint8", epochs=range(5))]
    expected = np.concatenate([epoch_order(21, 0, epoch) for epoch in range(5)])
    np.testing.assert_array_equal(np.concatenate(batches)[:, 0, 0, 0], expected)
    assert [int(row[0, 0, 0]) for row in rows] == [batch[0, 0, 0, 0] for batch in batches]


def test_balance():
    targets = np.array([[1, 0, 0]] * 8 + [[0, 1, 0]] * 2 + [[0, 0, 0]])
    weights = balance_weights(targets)
    assert weights.mean() == pytest.approx(1) and weights[9] == pytest.approx(4 * weights[0]) and weights[10] == weights[0]
    drawn = np.concatenate([epoch_order(11, 0, epoch, probabilities=weights) for epoch in range(400)])
    assert np.isin(drawn, (8, 9)).mean() == pytest.approx(np.isin(drawn, range(8)).mean(), rel=0.15)


def test_weights_come_third(store):
    batch = next(iter(make_batches(store, LOCATIONS, balance="weights")))
    assert len(batch) == 3 and batch[2].shape == (21,)


def test_batches_with_augmentation_repeat(store):
    def all_crops():
        return np.concatenate([crops.numpy() for crops, _ in make_batches(store, LOCATIONS, augment=("flip", "rotate90", "intensity", "noise"), batch_size=8)])

    np.testing.assert_array_equal(all_crops(), all_crops())


def test_seeds_epochs_and_places_do_not_share_their_chance(store):
    def noise(seed, epoch, step):
        batches = make_batches(store, LOCATIONS, shuffle=False, seed=seed, epochs=range(epoch, epoch + 1), first_step=step, batch_size=7, augment=["intensity"])
        return next(iter(batches))[0].numpy()[1] / (7 * step + 1)

    found = [noise(seed, epoch, step) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1)]
    assert all((a != b).any() for i, a in enumerate(found) for b in found[:i])


def test_weights_are_mixed_with_the_crops(store):
    arguments = {"balance": "weights", "shuffle": False, "batch_size": 21}
    (plain,), (mixed,) = (list(make_batches(store, LOCATIONS, augment=augment, **arguments)) for augment in ([], ["mixup"]))
    assert len(mixed) == 3 and mixed[2].shape == (21,) and float(np.ptp(plain[2])) > 0
    assert (mixed[2].numpy() != plain[2].numpy()).any() and mixed[2].numpy().max() <= plain[2].numpy().max() + 1e-6


def test_wrong_arguments(store):
    wrong = [({"balance": "much"}, "balance"), ({"dtype": "uint8", "augment": ["flip"]}, "dtype"), ({"cache": "disk"}, "cache"), ({"dtype": "int8"}, "dtype"),
             ({"batch_size": 0}, "batch_size"), ({"batch_size": 2.5}, "batch_size"), ({"seed": -1}, "seed"), ({"seed": -1, "augment": ["flip"]}, "seed"), ({"first_step": 1}, "first_step"), ({"epochs": range(0, 4, 2)}, "epochs")]  # fmt: skip
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=f"expected {message}"):
            make_batches(store, LOCATIONS, **arguments)


@pytest.mark.parametrize(
    "query",
    ["field_id.str.foo()", "'unclosed", "area > 'a'", "area > (3", "area if 1 else 2", "area; 3", "x = 3", "@nothing > 1", "labels", "1 == 1", "area.sum() > 1", "labels.unique() == 'a'", "field_id[0:3] == 'f0'", 7],
)  # fmt: skip
def test_whatever_a_query_fails_with_is_one_sentence(store, query):
    with pytest.raises(ValueError) as caught:
        make_batches(store, LOCATIONS, query=query)
    text = str(caught.value)
    assert text.startswith("expected a query on the columns field_id, labels, area") and f"got {query!r}, " in text and "\n" not in text


def test_locations_are_checked(store):
    wrong = [("cytosol", "a list or tuple, got 'cytosol'"), ((), "at least one location"), (["cytosl"], "did you mean 'cytosol'")]
    for locations, message in wrong:
        with pytest.raises(ValueError, match=message):
            make_batches(store, locations)
    with_own = store.assign(labels="cilium")
    (_, targets), *_ = make_batches(with_own, ["cilium", "rods_and_rings"])  # of the index, and of the vocabulary of 2018
    assert targets.numpy().tolist() == [[1, 0]] * 21
