"""Gathering: shards in any number and kind, memory limits, buffers, copies for other processes."""

import os
import pickle
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hpacell.memory as memory_module
from hpacell.feed import gather as gather_module
from hpacell.feed.batches import make_batches
from hpacell.feed.gather import BatchPlan, CropGatherer, _PlainFiles, choose_cache
from hpacell.feed.pixels import Buffers
from hpacell.feed.store import CropStore
from hpacell.feed.writer import StoreWriter
from hpacell.memory import free_memory

SHAPE = (5, 5, 3)


def make_store(folder, crops: np.ndarray, shard_bytes: int = 2**20, compression: str = "none") -> CropStore:
    """A store of crops, a field for each three of them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("hpacell.feed.writer.SHARD_BYTES", shard_bytes)
        channels = [f"channel{i}" for i in range(crops.shape[3])]
        with StoreWriter(folder, crops.shape[1:], channels, {}, compression=compression) as writer:
            for start in range(0, len(crops), 3):
                part, name = crops[start : start + 3], f"{start:03d}"
                cells = pd.DataFrame({"field_id": name, "labels": ["cytosol"] * len(part)})
                writer.add(name, {"field_id": name, "labels": "cytosol"}, cells, part)
            return writer.finish()


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory, crops):
    return make_store(tmp_path_factory.mktemp("gather") / "store", crops, 6 * 75)


@pytest.fixture(params=["plain", "too many shards", "compressed"])
def any_store(request, store, crops, tmp_path, monkeypatch):
    if request.param == "too many shards":
        monkeypatch.setattr(_PlainFiles, "N_OPEN", 2)
    return make_store(tmp_path / "store", crops, 6 * 75, "zstd") if request.param == "compressed" else store


def test_the_store_has_many_shards(store):
    assert len(store.shards()) > 4


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_any_store_any_type(any_store, crops, cache, dtype):
    rows = np.random.default_rng(1).permutation(40)[:30]
    gather = CropGatherer(any_store, rows, cache)
    positions = np.random.default_rng(2).integers(0, 30, 50)
    found = gather(positions, dtype)
    assert found.dtype == dtype and found.shape == (50, *SHAPE)
    np.testing.assert_array_equal(found, crops[rows[positions]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(gather))(positions, dtype), found)
    assert gather(positions[:0], dtype).shape == (0, *SHAPE)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=30), st.sampled_from(["memory", "none"]), st.data())
def test_positions_are_those_among_the_rows(store, crops, rows, cache, data):
    positions = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    found = CropGatherer(store, np.array(rows), cache)(np.array(positions, np.int64))
    np.testing.assert_array_equal(found, crops[np.array(rows)[np.array(positions, np.int64)]])


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_pickled_copy_reads_from_the_files(store, crops, cache):
    gather = CropGatherer(store, np.arange(40), cache)
    content = pickle.dumps(gather)
    assert len(content) < crops.nbytes  # no crop is among it
    np.testing.assert_array_equal(pickle.loads(content)(np.array([39, 0])), crops[[39, 0]])


def test_a_shard_that_got_shorter_is_named(tmp_path, crops):
    store = make_store(tmp_path / "store", crops)
    gather = CropGatherer(store, np.arange(40))
    path = store.shards()[0].filename
    os.truncate(path, os.path.getsize(path) - 10)
    with pytest.raises(ValueError, match="expected 75 bytes at .*, got 65: the store is damaged"):
        gather(np.array([3, 39]))


def test_a_store_that_is_replaced_is_still_read(tmp_path, crops):
    store = make_store(tmp_path / "store", crops)
    make_store(tmp_path / "store", crops[::-1].copy())
    for cache in ("memory", "none"):
        np.testing.assert_array_equal(CropGatherer(store, np.arange(40), cache)(np.array([7, 39])), crops[[7, 39]])


def test_a_copy_does_not_read_another_state_of_the_store(tmp_path, crops):
    content = pickle.dumps(CropGatherer(make_store(tmp_path / "store", crops, compression="zstd"), np.arange(40)))
    make_store(tmp_path / "store", crops[::-1].copy(), compression="zstd")
    with pytest.raises(ValueError, match="expected the store as it was"):
        pickle.loads(content)(np.array([1]))


def test_files_are_closed(store):
    before = len(os.listdir("/proc/self/fd"))
    gather = CropGatherer(store, np.arange(40))
    assert len(os.listdir("/proc/self/fd")) > before
    del gather
    assert len(os.listdir("/proc/self/fd")) == before


def n_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_feeds_of_a_store_share_its_files(store):
    first = CropGatherer(store, np.arange(40))
    before = n_open()
    second = CropGatherer(store, np.arange(3))
    assert n_open() == before and second._files is first._files
    del first
    assert second(np.array([1])).shape == (1, *SHAPE)


def test_without_free_descriptors_the_maps_are_read(store, crops):
    limits, before = resource.getrlimit(resource.RLIMIT_NOFILE), n_open()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 2, limits[1]))  # enough for some of the shards
        gather = CropGatherer(store, np.arange(40))
        assert gather._files is None
        found = gather(np.array([39, 3]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    np.testing.assert_array_equal(found, crops[[39, 3]])
    assert n_open() == before


@pytest.mark.parametrize("copied", [False, True])
def test_more_shards_than_are_open_of_a_store_that_was_replaced(tmp_path, crops, monkeypatch, copied):
    monkeypatch.setattr(_PlainFiles, "N_OPEN", 2)
    monkeypatch.setattr("hpacell.feed.store.MOST_OPEN", 2)
    gather = CropGatherer(make_store(tmp_path / "store", crops, 6 * 75), np.arange(40))
    gather = pickle.loads(pickle.dumps(gather)) if copied else gather
    assert gather._files is None
    make_store(tmp_path / "store", crops[::-1].copy(), 6 * 75)
    with pytest.raises(ValueError, match="expected the store as it was, .*: make the feed again"):
        gather(np.arange(40))


def test_a_copy_of_a_plain_store_that_was_replaced(tmp_path, crops):
    content = pickle.dumps(CropGatherer(make_store(tmp_path / "store", crops), np.arange(40)))
    make_store(tmp_path / "store", crops[::-1].copy())
    copied = pickle.loads(content)
    with pytest.raises(ValueError, match="expected the store as it was, .*: make the feed again"):
        copied(np.array([1]))
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(ValueError, match="make the feed again"):
        copied(np.array([1]))


def test_buffers_are_used_again_only_when_nothing_refers_to_them():
    buffers = Buffers(n_idle=2)
    kind = np.dtype(np.uint8)
    arrays = [buffers.take((4, 100), kind) for _ in range(5)]
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    for i, array in enumerate(arrays):
        array[:] = i
    row = np.asarray(arrays[2]).reshape(2, 200)[1:, 3:][0]  # a view of views
    del arrays, array
    later = [buffers.take((4, 100), kind) for _ in range(5)]
    for array in later:
        array[:] = 99
    assert (row == 2).all()
    assert sum(map(len, buffers._idle.values())) == 0


def test_idle_memory_of_many_sizes_is_bounded(monkeypatch):
    monkeypatch.setattr(Buffers, "IDLE_BYTES", 100_000)
    buffers, kind, fresh = Buffers(), np.dtype(np.uint8), []
    monkeypatch.setattr(gather_module, "memoryview", lambda array: fresh.append(1) or memoryview(array), raising=False)
    sizes = np.random.default_rng(0).integers(1, 60_000, 500).tolist()
    for size in sizes:
        held = [buffers.take((size,), kind), buffers.take((size // 2 + 1,), kind)]
        assert [len(array) for array in held] == [size, size // 2 + 1] and all(array.ctypes.data % 64 == 0 for array in held)
        del held
        assert sum(map(len, buffers._idle.values())) <= 100_000
    assert len(fresh) < 50  # the large ones served the small
    large = buffers.take((200_000,), kind)
    del large
    assert sum(map(len, buffers._idle.values())) <= 100_000


def test_an_epoch_uses_few_buffers(store, monkeypatch):
    made = []
    monkeypatch.setattr(gather_module, "memoryview", lambda array: made.append(1) or memoryview(array), raising=False)
    for _ in make_batches(store, ["cytosol"], batch_size=4, epochs=range(20)):
        pass
    assert len(made) <= 10


def write_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


MIB = 2**20


@pytest.mark.parametrize(
    "membership, groups, expected",
    [
        ("0::/", {"": {"memory__max": "max"}}, 8192),
        ("0::/", {"": {"memory__max": 1000 * MIB, "memory__current": 300 * MIB, "memory__stat": f"inactive_file {100 * MIB}"}}, 800),
        ("0::/a/b", {"a": {"memory__max": 500 * MIB, "memory__current": 100 * MIB, "memory__stat": ""}, "a/b": {"memory__max": "max"}}, 400),
        ("4:memory:/job\n0::/", {"memory/job": {"memory__limit_in_bytes": 600 * MIB, "memory__usage_in_bytes": 700 * MIB, "memory__stat": "total_inactive_file 0"}}, 0),
        ("4:cpu,memory:/host/path", {"memory": {"memory__limit_in_bytes": 600 * MIB, "memory__usage_in_bytes": 0, "memory__stat": ""}}, 600),
        ("4:memory:/", {"memory": {"memory__limit_in_bytes": 2**63 - 4096, "memory__usage_in_bytes": 0, "memory__stat": ""}}, 8192),
        ("3:cpu:/job", {"memory": {"memory__limit_in_bytes": 1, "memory__usage_in_bytes": 0, "memory__stat": ""}}, 8192),
        ("nonsense", {}, 8192),
    ],
)
def test_limits_of_containers_count(tmp_path, monkeypatch, membership, groups, expected):
    monkeypatch.setattr(memory_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=8192 * MIB))
    (tmp_path / "cgroup").write_text(membership + "\n")
    for name, files in groups.items():
        write_group(tmp_path / "groups" / name, **files)
    assert free_memory(tmp_path / "cgroup", tmp_path / "groups") == expected * MIB


def test_a_small_container_is_not_filled(monkeypatch):
    monkeypatch.setattr(gather_module, "free_memory", lambda: 100 * MIB)
    assert choose_cache(49 * MIB).choice == "memory"
    refused = choose_cache(51 * MIB)
    assert refused.choice == "none" and "they take 51.0 MiB, 100 MiB are free" in str(refused)
    assert choose_cache(51 * MIB, "memory").choice == "memory"


def test_plans_count_their_batches(store):
    assert len(BatchPlan(store, ["cytosol"], batch_size=7, epochs=range(2, 5), first_step=2)) == 16
    assert len(BatchPlan(store, ["cytosol"], epochs=range(0))) == 0
