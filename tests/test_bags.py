"""Bags: all cells of a field together, once, with the field's labels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpacell.feed.bags import BagPlan, make_bags
from hpacell.feed.choice import target_array
from hpacell.feed.pixels import Buffers
from hpacell.feed.writer import StoreWriter

LOCATIONS = ("nucleoli", "cytosol", "vesicles")
SIZES = {"e": 4, "a": 1, "d": 7, "b": 2, "c": 3}
FIELD_LABELS = {"e": "cytosol", "a": "vesicles|cytosol", "d": "nucleoli", "b": "", "c": "vesicles"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """17 crops of five fields; a crop's pixels hold its number, from 1."""
    ids = [field for field, size in SIZES.items() for _ in range(size)]
    crops = np.broadcast_to(np.arange(1, 18, dtype=np.uint8)[:, None, None, None], (17, 3, 3, 2))
    with StoreWriter(tmp_path_factory.mktemp("bags") / "store", (3, 3, 2), ("a", "b"), {}) as writer:
        for field, size in SIZES.items():
            chosen = np.array(ids) == field
            cells = pd.DataFrame({"field_id": field, "labels": FIELD_LABELS[field], "big": np.arange(size) % 2 == 0})
            writer.add(field, {"field_id": field, "labels": FIELD_LABELS[field]}, cells, crops[chosen])
        return writer.finish()


def cells_of(bags) -> list[list[int]]:
    """Numbers of the crops in each bag."""
    found = []
    for cells, _ in bags:
        crops, mask = cells["crops"].numpy(), cells["mask"].numpy()
        assert (crops[~mask] == 0).all() and (crops.max((2, 3, 4)) == crops.min((2, 3, 4))).all()
        found += [crops[i, mask[i], 0, 0, 0].astype(int).tolist() for i in range(len(crops))]
    return found


EXPECTED = [[1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11, 12], [13, 14], [15, 16, 17]]


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_every_cell_once_with_its_field(store, cache, dtype):
    bags = make_bags(store, LOCATIONS, batch_size=2, shuffle=False, cache=cache, dtype=dtype)
    assert bags.element_spec[0]["crops"].shape.as_list() == [None, 7, 3, 3, 2] and bags.element_spec[0]["crops"].dtype == dtype
    assert cells_of(bags) == EXPECTED
    targets = np.concatenate([targets for _, targets in bags])
    np.testing.assert_array_equal(targets, target_array(store.fields, LOCATIONS))
    assert BagPlan(store, LOCATIONS).field_ids.tolist() == list(SIZES)
    assert bags.cache_choice.choice == cache


def test_shuffled_by_seed_and_epoch(store):
    order = cells_of(make_bags(store, LOCATIONS, batch_size=2, epochs=range(3)))
    assert sorted(order[:5]) == sorted(EXPECTED) and order[:5] != order[5:10]
    assert cells_of(make_bags(store, LOCATIONS, batch_size=2, epochs=range(1, 3), first_step=1)) == order[7:]
    assert cells_of(make_bags(store, LOCATIONS, batch_size=2, epochs=range(3), seed=1)) != order


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 8), st.integers(0, 3))
def test_a_cap_draws_cells_by_seed_and_epoch(store, max_cells, seed):
    arguments = {"max_cells": max_cells, "seed": seed, "shuffle": False}
    first, second = (cells_of(make_bags(store, LOCATIONS, epochs=range(epoch, epoch + 1), **arguments)) for epoch in (0, 1))
    assert cells_of(make_bags(store, LOCATIONS, epochs=range(2), **arguments)) == first + second
    for bag, whole in zip(first, EXPECTED, strict=True):
        assert len(bag) == min(max_cells, len(whole)) and set(bag) <= set(whole) and bag == sorted(bag)


def test_ragged(store):
    bags, targets = next(iter(make_bags(store, LOCATIONS, batch_size=5, layout="ragged", max_cells=4, dtype="uint8", shuffle=False)))
    assert bags.row_lengths().numpy().tolist() == [4, 1, 4, 2, 3] and targets.shape == (5, 3)
    assert bags[4].numpy()[:, 0, 0, 0].tolist() == [15, 16, 17]


def test_a_query_chooses_cells_and_empty_fields_are_left_out(store):
    assert cells_of(make_bags(store, LOCATIONS, query="big and field_id != 'c'", shuffle=False)) == [[1, 3], [5], [6, 8, 10, 12], [13]]


def test_wrong_arguments(store):
    for arguments, message in [({"query": "field_id == 'z'"}, "at least one crop"), ({"max_cells": 0}, "max_cells"), ({"max_cells": 1.5}, "max_cells"), ({"batch_size": 2.0}, "batch_size"), ({"seed": -1}, "seed"), ({"dtype": "int8"}, "dtype"), ({"first_step": 9}, "first_step")]:
        with pytest.raises(ValueError, match=f"expected {message}"):
            make_bags(store, LOCATIONS, **arguments)
    for locations, message in [("cytosol", "a list or tuple, got 'cytosol'"), ((), "at least one location"), (("cytosl",), "did you mean 'cytosol'")]:
        with pytest.raises(ValueError, match=message):
            make_bags(store, locations)


def test_bags_of_many_sizes_keep_little_memory(store, monkeypatch):
    monkeypatch.setattr(Buffers, "IDLE_BYTES", 2000)
    plan = BagPlan(store, LOCATIONS, batch_size=2, max_cells=5, epochs=range(100), cache="none")
    assert len({plan.batch(number)[0].nbytes for number in range(len(plan))}) > 5
    idle = [len(memory) for memory in plan.gather._buffers._idle.values()]
    assert 0 < sum(idle) <= 2000 and len(idle) <= 8
