"""The crop store: kills, damage, takeover, plain readability."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpacell.feed import journal as journal_module
from hpacell.feed import writer as writer_module
from hpacell.feed.journal import BUILDING_NAME
from hpacell.feed.remote import fetch_store, write_store_to
from hpacell.feed.store import read_store
from hpacell.feed.verify import verify_store
from hpacell.feed.writer import DamagedPartError, StoreWriter

CHANNELS = ("microtubules", "protein", "nucleus", "er")
KEYS = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}


def make_field(number: int, n: int):
    """Arguments of `add`; the number alone decides what is in it."""
    crops = np.random.default_rng(number).integers(0, 256, (n, 4, 4, 4), np.uint8)
    cells = pd.DataFrame({"field_id": [f"f{number:02d}"] * n, "labels": ["cytosol"] * n, "cell_id": np.arange(n)})
    return f"key{number}", {"field_id": f"f{number:02d}", "labels": "cytosol", "height": 9}, cells, crops


def fill(folder, fields, stop=None, bad=(), labels="cytosol", made=None, **options):
    """Write the fields {number: cells} in order; finish unless stopped. `made` takes the numbers that were not there."""
    with StoreWriter(folder, (4, 4, 4), CHANNELS, {"crop_size": 4}, **options) as writer:
        for place, number in enumerate(sorted(fields)):
            if place == stop:
                return None
            key, field, cells, crops = make_field(number, fields[number])
            if number in bad:
                writer.quarantine(field["field_id"], "cannot be read")
            elif key in writer:
                writer.reuse(key, labels)
            else:
                writer.add(key, {**field, "labels": labels}, cells.assign(labels=labels), crops)
                if made is not None:
                    made.append(number)
        return writer.finish() if stop is None else None


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def holds(store, fields, bad=()) -> None:
    """The store is what the fields are, by every way of reading it."""
    numbers = [number for number in sorted(fields) if number not in bad]
    expected = np.concatenate([np.empty((0, 4, 4, 4), np.uint8), *(make_field(number, fields[number])[3] for number in numbers)])
    np.testing.assert_array_equal(store.crops(np.arange(len(store))), expected)
    assert store.fields["field_id"].tolist() == [f"f{number:02d}" for number in numbers]
    assert store.index["field_id"].tolist() == [f"f{number:02d}" for number in numbers for _ in range(fields[number])]
    assert store.fields["n_cells"].tolist() == [fields[number] for number in numbers]
    report = verify_store(store.folder)
    assert report, str(report)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of a few crops, so that there are many."""
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 400)


some_fields = st.dictionaries(st.integers(0, 30), st.integers(0, 5), min_size=1, max_size=12)


@settings(max_examples=30, **KEYS)
@given(fields=some_fields, data=st.data(), compression=st.sampled_from(["none", "zstd"]))
def test_a_kill_anywhere_ends_in_the_same_bytes(tmp_path, small_shards, fields, data, compression):
    bad = data.draw(st.sets(st.sampled_from(sorted(fields)), max_size=2))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    holds(fill(whole, fields, bad=bad, compression=compression), fields, bad)
    for _ in range(data.draw(st.integers(1, 3))):
        made: list[int] = []
        before = data.draw(st.integers(0, len(fields)))
        fill(killed, fields, stop=before, bad=bad, compression=compression, made=made)
        # What a kill can leave behind: bytes of a field that is not complete, and a line that is cut short.
        for name in ("crops", "journal.jsonl"):
            path = killed / BUILDING_NAME / name
            if path.exists():
                with open(path, "ab") as file:
                    file.write(b"x" * data.draw(st.integers(0, 200)))
    again: list[int] = []
    holds(fill(killed, fields, bad=bad, compression=compression, made=again), fields, bad)
    assert not set(made) & set(again), "a finished field was made again"
    assert content(whole) == content(killed)


@settings(max_examples=20, **KEYS)
@given(first=some_fields, second=some_fields, kill=st.integers(0, 12))
def test_any_state_leads_to_any_other_with_the_same_bytes(tmp_path, small_shards, first, second, kill):
    for folder in ("fresh", "changed"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    second = {number: first.get(number, n) for number, n in second.items()}
    fill(tmp_path / "changed", first)
    fill(tmp_path / "changed", second, stop=kill, labels="nucleoli")
    made: list[int] = []
    holds(fill(tmp_path / "changed", second, labels="nucleoli", made=made), second)
    assert not set(made) & set(first), "a field that was there was made again"
    fill(tmp_path / "fresh", second, labels="nucleoli")
    assert content(tmp_path / "fresh") == content(tmp_path / "changed")


def test_a_new_field_changes_few_shards(tmp_path, small_shards):
    fields = dict.fromkeys(range(0, 60, 2), 2)
    before = set(content(fill(tmp_path / "store", fields).folder))
    store = fill(tmp_path / "store", fields | {31: 2})
    kept = before & set(content(store.folder))
    assert len(store.manifest["shards"]) > 6
    assert sum(name.startswith("shards/crops") for name in kept) >= len(store.manifest["shards"]) - 3


def test_kill_between_any_two_steps_of_sealing_and_finishing(tmp_path, small_shards, monkeypatch):
    """Each call that changes a name or removes a file is a place to die; all of them are tried."""
    fields = dict.fromkeys(range(6), 2)
    fill(tmp_path / "whole", fields)
    changes = [("os", "replace"), ("Path", "unlink"), ("shutil", "rmtree")]

    class Killed(BaseException):
        pass

    def run(folder, step) -> int:
        count = 0
        with monkeypatch.context() as patch:
            for module, name in changes:
                owner = {"os": os, "Path": Path, "shutil": shutil}[module]
                original = getattr(owner, name)

                def dying(*args, original=original, **kwargs):
                    nonlocal count
                    count += 1
                    if count == step:
                        raise Killed
                    return original(*args, **kwargs)

                patch.setattr(owner, name, dying)
            try:
                fill(folder, fields)
            except Killed:
                pass
        return count

    steps = run(tmp_path / "count", 10**9)
    assert steps > 10
    for step in range(1, steps + 1):
        folder = tmp_path / f"killed-{step}"
        fill(folder, dict.fromkeys(range(1, 4), 2))
        run(folder, step)
        found = read_store(folder)  # whatever happened, it is the former state or the new one
        numbers = [int(field_id[1:]) for field_id in found.fields["field_id"]]
        assert numbers in ([1, 2, 3], list(fields))
        np.testing.assert_array_equal(found.crops(np.arange(len(found))), np.concatenate([make_field(n, 2)[3] for n in numbers]))
        fill(folder, fields)
        assert content(folder) == content(tmp_path / "whole"), f"killed at step {step} of {steps}"


def test_shards_roll_over_and_rows_find_their_crops(tmp_path, small_shards):
    fields = dict(enumerate([3, 0, 4, 2, 6, 5, 5]))
    store = fill(tmp_path / "store", fields)
    assert len(store.manifest["shards"]) > 2
    expected = np.concatenate([make_field(number, n)[3] for number, n in fields.items()])
    rows = np.random.default_rng(0).permutation(len(store))
    np.testing.assert_array_equal(store.crops(rows), expected[rows])
    with pytest.raises(IndexError, match="expected rows from 0 to 24"):
        store.crops([25])
    plain = np.concatenate([np.load(tmp_path / "store" / shard["name"]) for shard in store.manifest["shards"]])
    np.testing.assert_array_equal(plain, expected)


def test_a_store_without_any_cell(tmp_path):
    store = fill(tmp_path / "store", {0: 0, 1: 0})
    assert len(store) == 0 and store.crops([]).shape == (0, 4, 4, 4) and len(store.fields) == 2


def test_only_bad_fields(tmp_path):
    store = fill(tmp_path / "store", {0: 1, 1: 1}, bad={0, 1})
    assert len(store) == 0 and len(store.fields) == 0
    assert store.quarantine["field_id"].tolist() == ["f00", "f01"]


def test_other_columns_and_types_meet_in_one_index(tmp_path, small_shards):
    """A shard whose column has no value at all, and one whose numbers are whole, go into one index."""
    with StoreWriter(tmp_path / "store", (4, 4, 4), CHANNELS, {}) as writer:
        for number, value in enumerate([None, 3, 2.5] * 4):
            key, field, cells, crops = make_field(number, 3)
            writer.add(key, {**field, "pixel_um": value}, cells.assign(length=value), crops)
        store = writer.finish()
    assert len(store.manifest["shards"]) > 2
    assert store.index["length"].tolist()[3:9] == [3, 3, 3, 2.5, 2.5, 2.5] and store.index["length"].isna().sum() == 12


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {"flip": flip, "cut": lambda path: os.truncate(path, path.stat().st_size * 2 // 3), "delete": lambda path: path.unlink()}
KINDS = ["shards/crops-*", "shards/cells-*", "index-*", "fields-*", "manifest.json", "quarantine.csv"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_mended_and_no_more_is_made_than_needed(tmp_path, small_shards, kind, damage, compression):
    fields = dict.fromkeys(range(12), 3)
    whole = content(fill(tmp_path / "store", fields, bad={4}, compression=compression).folder)
    path = sorted((tmp_path / "store").glob(kind))[-1]
    DAMAGES[damage](path)
    report = verify_store(tmp_path / "store")
    assert not report and path.relative_to(tmp_path / "store").as_posix() in set(report.problems["file"]), str(report)
    made: list[int] = []
    fill(tmp_path / "store", fields, bad={4}, made=made, verify=True, compression=compression)
    assert content(tmp_path / "store") == whole
    # A flipped bit costs one field; a shard that is short or gone costs its own fields; tables and lists cost none.
    if kind != "shards/crops-*":
        assert made == []
    elif damage == "flip":
        assert len(made) <= 1


def test_reading_sees_short_and_missing_files_and_broken_tables(tmp_path):
    folder = Path(fill(tmp_path / "store", {0: 3}).folder)
    for kind, damage, message in [
        ("shards/crops-*", "cut", "expected 320 bytes, got 213: the store is damaged, mend it with hpacell verify"),
        ("shards/crops-*", "delete", "expected 320 bytes, got no such file"),
        ("index-*", "cut", "the store is damaged"),
        ("index-*", "flip", "the store is damaged"),
        ("manifest.json", "flip", "the store is damaged"),
    ]:
        copy = tmp_path / f"{kind[:5].replace('/', '')}-{damage}"
        shutil.copytree(folder, copy)
        DAMAGES[damage](sorted(copy.glob(kind))[0])
        with pytest.raises(ValueError, match=message):
            read_store(copy)
    (folder / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match="expected format version 2, got 99"):
        read_store(folder)


def test_a_flipped_bit_is_not_copied_on(tmp_path):
    fill(tmp_path / "store", dict.fromkeys(range(3), 2))
    flip(sorted((tmp_path / "store").glob("shards/crops-*"))[0])
    with pytest.raises(DamagedPartError, match="the crops of f01"):
        fill(tmp_path / "store", dict.fromkeys(range(4), 2))


def test_writer_refuses_what_does_not_fit(tmp_path):
    key, field, cells, crops = make_field(0, 2)
    with StoreWriter(tmp_path / "store", (4, 4, 4), CHANNELS, {}) as writer, pytest.raises(ValueError, match="expected crops"):
        writer.add(key, field, cells, crops.astype(np.float32))
    with pytest.raises(ValueError, match="expected a compression among none, zstd"):
        StoreWriter(tmp_path / "store", (4, 4, 4), CHANNELS, {}, compression="gzip")


def test_one_writer_at_a_time(tmp_path):
    with StoreWriter(tmp_path / "store", (4, 4, 4), CHANNELS, {}), pytest.raises(ValueError, match="another process"):
        fill(tmp_path / "store", {0: 1})
    holds(fill(tmp_path / "store", {0: 1}), {0: 1})


def test_a_reader_keeps_what_it_opened(tmp_path):
    fields = dict.fromkeys(range(4), 3)
    reading = fill(tmp_path / "store", fields)
    fill(tmp_path / "store", {7: 1})
    np.testing.assert_array_equal(reading.crops([0, 11]), np.stack([make_field(0, 3)[3][0], make_field(3, 3)[3][2]]))


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_full_disk_keeps_what_was_done(tmp_path, small_shards, monkeypatch, compression):
    fields = dict.fromkeys(range(9), 2)
    fill(tmp_path / "whole", fields, compression=compression)
    fill(tmp_path / "full", {3: 2}, compression=compression)
    before = content(tmp_path / "full")
    room = 1500
    original = journal_module._write_all

    def write(file, data):
        nonlocal room
        data = bytes(memoryview(data).cast("B")) if len(data) else b""
        original(file, data[: max(room, 0)])
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)

    made: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_write_all", write)
        with pytest.raises(OSError, match="expected room on the disk .* make space and run the same again"):
            fill(tmp_path / "full", fields, made=made, compression=compression)
    assert {name: data for name, data in content(tmp_path / "full").items() if name in before} == before
    again: list[int] = []
    fill(tmp_path / "full", fields, made=again, compression=compression)
    assert content(tmp_path / "full") == content(tmp_path / "whole")
    assert not set(made) & set(again)


def test_remote_copy_and_its_update(tmp_path):
    fields = {0: 3, 1: 2}
    store = fill(tmp_path / "store", fields)
    write_store_to(store, "memory://stores/copy")
    folder = fetch_store("memory://stores/copy", tmp_path / "cache")
    assert content(folder) == content(tmp_path / "store")
    write_store_to(fill(tmp_path / "store", fields | {5: 1}), "memory://stores/copy")
    assert fetch_store("memory://stores/copy", tmp_path / "cache") == folder
    np.testing.assert_array_equal(read_store(folder).crops([5]), make_field(5, 1)[3])
    assert fetch_store(str(tmp_path / "store"), tmp_path / "cache") == str(tmp_path / "store")
    import fsspec

    listed = [name for name in fsspec.filesystem("memory").find("/stores/copy") if "crops-" in name]
    assert len(listed) == 1, "what no manifest names is taken away"


def test_nothing_but_a_store_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "field_red.png").write_bytes(b"precious")
    for folder in (tmp_path / "mine", tmp_path / "mine" / "field_red.png"):
        with pytest.raises(ValueError, match="choose another folder"):
            StoreWriter(folder, (4, 4, 4), CHANNELS, {})
    assert (tmp_path / "mine" / "field_red.png").read_bytes() == b"precious"
