"""The crop store: kills, damage, takeover, plain readability."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpacell.feed import writer as writer_module
from hpacell.feed.store import fetch_store, read_store, write_store_to
from hpacell.feed.writer import StoreWriter

CHANNELS = ("microtubules", "protein", "nucleus", "er")


def make_field(number: int, n: int):
    crops = np.random.default_rng(number).integers(0, 256, (n, 4, 4, 4), np.uint8)
    return f"key{number}", {"field_id": f"f{number}", "labels": "cytosol"}, pd.DataFrame({"field_id": [f"f{number}"] * n, "labels": ["cytosol"] * n, "cell_id": np.arange(n)}), crops


def fill(folder, counts, stop=None, bad=()):
    """Write fields from where the store stands up to `stop`; finish if all are there."""
    made = [make_field(i, n) for i, n in enumerate(counts)]
    with StoreWriter(folder, (4, 4, 4), CHANNELS, {"size": 4}, [key for key, *_ in made]) as writer:
        for i in range(writer.n_done, len(made) if stop is None else stop):
            key, field, cells, crops = made[i]
            if i in bad:
                writer.quarantine(key, field, "cannot be read")
            else:
                writer.add(key, field, cells, crops)
        return writer.finish() if stop is None else None


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
def test_a_kill_anywhere_ends_in_the_same_bytes(tmp_path, counts, data):
    bad = data.draw(st.sets(st.integers(0, len(counts) - 1), max_size=2))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(f"{killed}.partial", ignore_errors=True)
    fill(whole, counts, bad=bad)
    fill(killed, counts, stop=data.draw(st.integers(0, len(counts))), bad=bad)
    # What a kill can leave behind: shard bytes and a journal line that are not complete.
    build = Path(f"{killed}.partial")
    for path in (build / "shards").iterdir():
        with open(path, "ab") as file:
            file.write(b"x" * data.draw(st.integers(0, 200)))
    journal = (build / "journal.jsonl").read_bytes()
    (build / "journal.jsonl").write_bytes(journal[: data.draw(st.integers(0, len(journal)))])
    fill(killed, counts, bad=bad)
    assert content(whole) == content(killed)
    assert not build.exists()


def test_shards_roll_over_and_rows_find_their_crops(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 150)
    counts = [3, 0, 4, 2, 6]
    store = fill(tmp_path / "store", counts)
    assert len(store.manifest["shards"]) > 2
    expected = np.concatenate([make_field(i, n)[3] for i, n in enumerate(counts)])
    rows = np.random.default_rng(0).permutation(len(store))
    np.testing.assert_array_equal(store.crops(rows), expected[rows])
    with pytest.raises(IndexError, match="expected rows from 0 to 14"):
        store.crops([15])
    plain = np.concatenate([np.load(tmp_path / "store" / shard["name"]) for shard in store.manifest["shards"]])
    np.testing.assert_array_equal(plain, expected)


def test_a_store_without_any_cell(tmp_path):
    store = fill(tmp_path / "store", [0, 0])
    assert len(store) == 0 and store.crops([]).shape == (0, 4, 4, 4) and len(store.fields) == 2


def test_only_bad_fields(tmp_path):
    store = fill(tmp_path / "store", [1, 1], bad={0, 1})
    assert len(store) == 0 and len(store.fields) == 0
    assert store.quarantine["field_id"].tolist() == ["f0", "f1"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / "shards" / "crops-00000.npy", 100), "the store is damaged"),
        (lambda folder: (folder / "shards" / "crops-00000.npy").unlink(), "expected 320 bytes, got 0"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "expected JSON"),
        (lambda folder: (folder / "manifest.json").write_text(json.dumps({"format_version": 99})), "expected format version 1, got 99"),
        (lambda folder: pd.DataFrame({"a": [1]}).to_parquet(folder / "index.parquet"), "expected an index row for each crop"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    fill(tmp_path / "store", [3])
    damage(tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        read_store(tmp_path / "store")


def test_writer_refuses_what_does_not_fit(tmp_path):
    key, field, cells, crops = make_field(0, 2)
    with StoreWriter(tmp_path / "store", (4, 4, 4), CHANNELS, {}, [key, "other"]) as writer:
        with pytest.raises(ValueError, match="expected the field with key"):
            writer.add("other", field, cells, crops)
        with pytest.raises(ValueError, match="expected crops"):
            writer.add(key, field, cells, crops.astype(np.float32))
        with pytest.raises(ValueError, match="expected 2 fields, got 0"):
            writer.finish()


def test_a_changed_plan_keeps_the_common_beginning(tmp_path):
    fill(tmp_path / "store", [2, 3, 1], stop=2)
    made = [make_field(0, 2), make_field(7, 3)]
    with StoreWriter(tmp_path / "store", (4, 4, 4), CHANNELS, {"size": 4}, [key for key, *_ in made]) as writer:
        assert writer.n_done == 1
        writer.add(*made[1])
        assert len(writer.finish()) == 5


def test_remote_copy(tmp_path):
    store = fill(tmp_path / "store", [3, 2])
    write_store_to(store, "memory://stores/copy")
    folder = fetch_store("memory://stores/copy", tmp_path / "cache")
    assert content(folder) == content(tmp_path / "store")
    assert fetch_store("memory://stores/copy", tmp_path / "cache") == folder
    assert fetch_store(str(tmp_path / "store"), tmp_path / "cache") == str(tmp_path / "store")


def test_nothing_but_a_store_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "field_red.png").write_bytes(b"precious")
    for folder in (tmp_path / "mine", tmp_path / "mine" / "field_red.png"):
        with pytest.raises(ValueError, match="choose another folder"):
            StoreWriter(folder, (4, 4, 4), CHANNELS, {}, ["k"])
    assert (tmp_path / "mine" / "field_red.png").read_bytes() == b"precious"
