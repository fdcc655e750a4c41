"""Exports, read with the tools of the worlds they are for, equal the store bit for bit; whole or absent."""

import errno
import gc
import glob
import json
import os
import signal
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpacell.feed import export as export_module
from hpacell.feed.export import EXPORT_FORMATS, export_store
from hpacell.feed.store import CropStore
from hpacell.fields.find import find_fields
from hpacell.fields.read import read_field
from hpacell.locks import FolderInUse, build_beside

CHANNELS = ("microtubules", "protein", "nucleus", "er")
FIELDS = ("plain", "with.dots.v2", "größe µm 細胞", "mask", "a_1", "a")


class Held(CropStore):
    """A store in memory: exports read `index`, `shape`, `channels`, `crops` and the length."""

    def __init__(self, crops: np.ndarray, index: pd.DataFrame, channels=CHANNELS):
        self.held, self.index, self.manifest = crops, index, {"crop_shape": crops.shape[1:], "channels": channels}

    def crops(self, rows) -> np.ndarray:
        return self.held[np.asarray(rows, np.int64)]


def make_store(counts=(3, 0, 4, 2, 1, 5), size=6, channels=CHANNELS) -> Held:
    rng = np.random.default_rng(0)
    rows = [(field, cell, "nucleoli|cytosol" if cell % 2 else "") for field, n in zip(FIELDS, counts, strict=False) for cell in range(1, n + 1)]
    index = pd.DataFrame(rows, columns=["field_id", "cell_id", "labels"]).astype({"field_id": "str", "cell_id": "int64", "labels": "str"})
    n = len(index)
    index["cell_area"] = rng.integers(1, 100, n)
    index["pixel_um"] = pd.array([None if i % 3 else 0.5 for i in range(n)], dtype="Float64")
    index["nucleus_area"] = pd.array(np.arange(n), dtype="Int64")
    index["on_border"] = np.arange(n) % 2 == 0
    index["ratio"] = np.where(np.arange(n) % 2, 0.5, np.nan)
    index["stage"] = pd.array([None if i % 2 else "G1 phase µ" for i in range(n)], dtype="str")
    return Held(rng.integers(0, 256, (n, size, size, len(channels)), np.uint8), index, channels)


def read_tfrecord(folder):
    import tensorflow as tf

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("crop", "field_id", "labels")}
    spec |= {"shape": tf.io.FixedLenFeature([3], tf.int64), "cell_id": tf.io.FixedLenFeature([], tf.int64)}
    records = tf.data.TFRecordDataset(sorted(glob.glob(f"{glob.escape(str(folder))}/*.tfrecord")))
    rows = [tf.io.parse_single_example(record, spec) for record in records]
    crops = [tf.reshape(tf.io.decode_raw(row["crop"], tf.uint8), row["shape"]).numpy() for row in rows]
    return crops, [(row["field_id"].numpy().decode(), int(row["cell_id"]), row["labels"].numpy().decode()) for row in rows]


def read_webdataset(folder):
    import webdataset

    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        rows = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
        gc.collect()
    assert len({row["__key__"] for row in rows}) == len(rows) and not any("." in row["__key__"] for row in rows)
    return [row["npy"] for row in rows], [(row["json"]["field_id"], row["json"]["cell_id"], row["json"]["labels"]) for row in rows]


def read_png(folder):
    table = pd.read_csv(folder / "labels.csv", keep_default_na=False)
    crops = [np.stack([cv2.imread(str(folder / path), cv2.IMREAD_UNCHANGED) for path in paths.split("|")], axis=2) for paths in table["path"]]
    return crops, list(zip(table["field"], table["cell_id"], table["Label"], strict=True))


def read_hdf5(folder):
    with h5py.File(folder / "crops.h5") as file:
        assert file.attrs["channels"].tolist() == json.loads((folder / "export.json").read_text())["channels"]
        index = file["index"]
        return file["crops"][:], list(zip(index["field_id"].asstr()[:], index["cell_id"][:], index["labels"].asstr()[:], strict=True))


def read_zarr(folder):
    group = zarr.open_group(str(folder / "crops.zarr"), mode="r")
    assert group.attrs["channels"] == json.loads((folder / "export.json").read_text())["channels"]
    table = pd.read_parquet(folder / "index.parquet")
    return group["crops"][:], list(zip(table["field_id"], table["cell_id"], table["labels"], strict=True))


READERS = {"tfrecord": read_tfrecord, "webdataset": read_webdataset, "png": read_png, "hdf5": read_hdf5, "zarr": read_zarr}


def check(store, folder, to, rows=slice(None)):
    crops, described = READERS[to](Path(folder))
    expected = store.index.iloc[rows]
    assert described == list(zip(expected["field_id"], expected["cell_id"], expected["labels"], strict=True))
    truth = store.held[rows]
    np.testing.assert_array_equal(np.asarray(crops, np.uint8).reshape(len(crops), *store.shape), truth)
    pd.testing.assert_frame_equal(pd.read_parquet(Path(folder) / "index.parquet"), expected.reset_index(drop=True))
    assert json.loads((Path(folder) / "export.json").read_text())["n_crops"] == len(expected)


def test_every_format_has_a_reader_here():
    assert list(EXPORT_FORMATS) == list(READERS)


@pytest.mark.parametrize("to", READERS)
def test_exports_equal_the_store(tmp_path, to, monkeypatch):
    monkeypatch.setattr(export_module, "SHARD_BYTES", 5 * (6 * 6 * 4 + 512))
    monkeypatch.setattr(export_module, "_CHUNK_BYTES", 4 * 6 * 6 * 4)
    store = make_store()
    out = tmp_path / "größe" / "out.v1"
    assert export_store(store, out, to) == str(out)
    check(store, out, to)
    if to in ("tfrecord", "webdataset"):
        assert len([name for name in os.listdir(out) if name.startswith("crops-")]) == 3
    assert os.listdir(out.parent) == ["out.v1"]


@pytest.mark.parametrize("to", READERS)
def test_a_store_without_crops(tmp_path, to):
    store = make_store(counts=(0,))
    check(store, export_store(store, tmp_path / "out", to), to)


@pytest.mark.parametrize("to", READERS)
def test_a_query_chooses(tmp_path, to):
    store = make_store()
    chosen = np.flatnonzero((store.index["cell_area"] > 40) & ~store.index["on_border"])
    check(store, export_store(store, tmp_path / "out", to, query="cell_area > 40 and not on_border"), to, chosen)


@pytest.mark.parametrize("to", READERS)
@pytest.mark.parametrize("channels", [("nucleus",), ("nucleus", "channel_0", "Actin.1"), tuple(f"c{i}" for i in range(7))])
def test_any_number_of_channels(tmp_path, to, channels):
    store = make_store(counts=(2, 1), channels=channels)
    check(store, export_store(store, tmp_path / "out", to), to)


@pytest.mark.parametrize("to", READERS)
def test_two_exports_are_the_same_bytes(tmp_path, to):
    store = make_store()
    both = [Path(export_store(store, tmp_path / name, to)) for name in "ab"]
    files = [{path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} for out in both]
    assert files[0] == files[1]


def test_hdf5_holds_the_whole_index(tmp_path):
    store = make_store()
    with h5py.File(Path(export_store(store, tmp_path / "out", "hdf5")) / "crops.h5") as file:
        index = {name: column.asstr()[:] if h5py.check_string_dtype(column.dtype) else column[:] for name, column in file["index"].items()}
        assert file["crops"].chunks == (1, 6, 6, 4) and file["crops"].compression == "lzf"
    assert set(index) == set(store.index)
    for name in ("cell_area", "on_border", "nucleus_area"):
        assert index[name].dtype.kind in "ib" and index[name].tolist() == store.index[name].tolist()
    np.testing.assert_array_equal(index["ratio"], store.index["ratio"])
    np.testing.assert_array_equal(index["pixel_um"], store.index["pixel_um"].to_numpy(float, na_value=np.nan))
    assert index["stage"].tolist() == store.index["stage"].fillna("").tolist()


def test_webdataset_is_plain_tar_and_json(tmp_path):
    store = make_store()
    with tarfile.open(Path(export_store(store, tmp_path / "out", "webdataset")) / "crops-00000.tar") as tar:
        rows = [json.loads(tar.extractfile(name).read(), parse_constant=pytest.fail) for name in tar.getnames() if name.endswith(".json")]
    assert rows[1]["stage"] is None and rows[1]["pixel_um"] is None and rows[0]["stage"] == "G1 phase µ"
    assert set(rows[0]) == set(store.index)


def test_png_is_found_and_read_like_fields(tmp_path, monkeypatch):
    store = make_store()
    for limit in (10_000, 10):  # in one folder, and spread
        monkeypatch.setattr(export_module, "FOLDER_FILES", limit)
        folder = Path(export_store(store, tmp_path / str(limit), "png"))
        assert any(path.is_dir() for path in folder.iterdir()) == (limit == 10)
        names = (store.index["field_id"] + "_" + store.index["cell_id"].astype(str)).tolist()
        sources = {source.field_id: source for source in find_fields(folder / "labels.csv")}
        assert sorted(sources) == sorted(names)
        for name, crop in zip(names, store.held, strict=True):
            field = read_field(sources[name])
            assert field.channels == CHANNELS
            np.testing.assert_array_equal(field.image, crop)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=5, unique=True))
def test_safe_names_are_file_names_and_differ(tmp_path, names):
    safe = [export_module._safe_name(name) for name in names]
    assert len(set(safe)) == len(names)
    for name in safe:
        assert name and "/" not in name and not name.startswith(".") and len(name.encode()) <= 190
        path = tmp_path / f"{name}_123456789_microtubules.png"
        path.write_bytes(b"")
        path.unlink()


def test_a_cell_twice_is_refused_only_where_it_matters(tmp_path):
    store = make_store(counts=(2,))
    store.index["cell_id"] = 1
    with pytest.raises(ValueError, match="got cell 1 of plain twice"):
        export_store(store, tmp_path / "out", "png")
    check(store, export_store(store, tmp_path / "out", "zarr"), "zarr")


def test_nothing_is_replaced(tmp_path):
    store = make_store()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "beside.partial").mkdir()
    (tmp_path / "beside.partial" / "precious").write_text("mine")
    for name in ("full", "file", "beside"):
        with pytest.raises(ValueError, match="expected a new or an empty folder|expected nothing at"):
            export_store(store, tmp_path / name, "png")
    assert (tmp_path / "full" / "precious").exists() and (tmp_path / "beside.partial" / "precious").exists()
    (tmp_path / "empty").mkdir()
    check(store, export_store(store, tmp_path / "empty", "png"), "png")


@pytest.mark.parametrize("to", READERS)
def test_an_error_leaves_nothing(tmp_path, to, monkeypatch):
    store = make_store()
    monkeypatch.setattr(export_module, "_CHUNK_BYTES", 1)

    def fail(rows, read=store.crops):
        if rows[0] == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return read(rows)

    store.crops = fail
    with pytest.raises(OSError, match="got a full disk: make room"):
        export_store(store, tmp_path / "out", to)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", READERS)
def test_a_full_disk(tmp_path, to):
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", mounted], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        store = make_store(counts=(9, 9, 9, 9, 9, 9), size=64)
        with pytest.raises(OSError, match="got a full disk: make room"):
            export_store(store, mounted / "out", to)
        assert os.listdir(mounted) == []
        small = make_store(counts=(2,))
        check(small, export_store(small, mounted / "out", to), to)
    finally:
        subprocess.run(["umount", mounted], check=True)  # fails if a file is still open


def test_one_export_at_a_time(tmp_path):
    store = make_store()
    with build_beside(tmp_path / "out", lambda out: None) as building, pytest.raises(FolderInUse, match="got another process that does .process"):
        (building / "crops.tar").touch()
        export_store(store, tmp_path / "out", "png")
    assert sorted(os.listdir(tmp_path / "out")) == ["crops.tar"]


SLOW_EXPORT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_export import make_store, export_module
export_module._CHUNK_BYTES = 1
store = make_store()
def slow(rows, read=store.crops):
    time.sleep(0.02)
    if rows[0] == 3: print("writing", flush=True)
    return read(rows)
store.crops = slow
export_module.export_store(store, {out!r}, {to!r})
"""


@pytest.mark.parametrize("to", ["png", "hdf5"])
def test_a_kill_leaves_nothing_under_the_name(tmp_path, to):
    out = tmp_path / "out"
    code = SLOW_EXPORT.format(tests=str(Path(__file__).parent), out=str(out), to=to)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists() and (tmp_path / "out.partial").exists()
    store = make_store()
    check(store, export_store(store, out, to), to)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("to", "package"), [("hdf5", "h5py"), ("zarr", "zarr"), ("tfrecord", "tensorflow")])
def test_a_missing_package_is_named(tmp_path, to, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeError, match=rf"the package {package} .*pip install 'hpacell\[export\]'"):
        export_store(make_store(), tmp_path / "out", to)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("query", ["area > 3", "cell_area +", "cell_area + 1", "cell_area > 1000", "[1, 2]"])
def test_wrong_queries_are_sentences(tmp_path, query):
    with pytest.raises(ValueError, match="expected.*query"):
        export_store(make_store(), tmp_path / "out", "png", query=query)


def test_memory_does_not_hold_the_store(tmp_path):
    """No more than some crops are asked for at once."""
    store, asked = make_store(counts=(40, 40), size=512), []
    read = store.crops
    store.crops = lambda rows: asked.append(len(rows)) or read(rows)
    export_store(store, tmp_path / "out", "zarr")
    assert sum(asked) == 80 and max(asked) * 512 * 512 * 4 <= 16 * 2**20


def test_a_place_that_cannot_be_renamed_to(tmp_path):
    store = make_store()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert export_store(store, tmp_path / "link", "zarr") == str(tmp_path / "folder")
    check(store, tmp_path / "link", "zarr")
    mounted = tmp_path / "small"
    mounted.mkdir()
    (tmp_path / "way").symlink_to(mounted)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mounted], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        store.crops = pytest.fail
        for name in ("small", "way"):
            with pytest.raises(ValueError, match="where a disk is mounted: choose a new folder inside it"):
                export_store(store, tmp_path / name, "zarr")
        assert sorted(os.listdir(tmp_path)) == ["folder", "link", "small", "way"]
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize("limit", [10_000, 1])
def test_png_names_differ_in_more_than_capitals(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(export_module, "FOLDER_FILES", limit)
    names = ["a/b", "a_b-638110ac", "A", "a", "labels.csv", "\u00e9", "e\u0301"]
    held = np.random.default_rng(0).integers(0, 256, (len(names), 6, 6, 4), np.uint8)
    store = Held(held, pd.DataFrame({"field_id": names, "cell_id": 1, "labels": ""}), ("Actin", "actin", "c", "d"))
    out = Path(export_store(store, tmp_path / "out", "png"))
    crops, rows = read_png(out)
    np.testing.assert_array_equal(np.stack(crops), held)
    assert [row[0] for row in rows] == names
    paths = [str(path.relative_to(out)).casefold() for path in out.rglob("*.png")]
    assert len(set(paths)) == len(paths) == 4 * len(names)


def test_webdataset_takes_every_kind_of_column(tmp_path):
    store = make_store(counts=(2,))
    kinds = {"when": [pd.Timestamp("2024-01-01"), pd.NaT], "inf": [np.inf, -np.inf], "raw": [b"x", None], "parts": [[1, np.nan], np.array([2.5])]}
    store.index = store.index.assign(**{name: pd.Series(values) for name, values in kinds.items()})
    with tarfile.open(Path(export_store(store, tmp_path / "out", "webdataset")) / "crops-00000.tar") as tar:
        rows = [json.loads(tar.extractfile(name).read(), parse_constant=pytest.fail) for name in tar.getnames() if name.endswith(".json")]
    assert [[row[name] for name in kinds] for row in rows] == [["2024-01-01 00:00:00", None, "b'x'", [1, None]], [None, None, None, [2.5]]]


def test_hdf5_loses_nothing_or_says_so(tmp_path):
    store = make_store(counts=(3,))
    index = store.index
    store.index = index.assign(o=pd.Series([None, "a", "b"], dtype=object), n=pd.array([2**53, None, -3], dtype="Int64"), big=pd.array([2**60 + 1] * 3, dtype="Int64"))
    with h5py.File(Path(export_store(store, tmp_path / "out", "hdf5")) / "crops.h5") as file:
        assert file["index/o"].asstr()[:].tolist() == ["", "a", "b"] and file["index/big"][0] == 2**60 + 1
        np.testing.assert_array_equal(file["index/n"][:], [2**53, np.nan, -3])
    for value, message in ((pd.array([2**60 + 1, None, 3], dtype="Int64"), "up to 2\\*\\*53 in the column v"), (["a\0b"] * 3, "a NUL in the column v")):
        store.index = index.assign(v=value)
        with pytest.raises(ValueError, match=message):
            export_store(store, tmp_path / "new", "hdf5")
    assert os.listdir(tmp_path) == ["out"]


def test_a_query_changes_no_number(tmp_path):
    store = make_store()
    numbers = store.index["cell_id"]
    store.index = store.index.drop(columns="cell_id")
    out = Path(export_store(store, tmp_path / "out", "zarr", query="cell_area > 40"))
    assert pd.read_parquet(out / "index.parquet")["cell_id"].tolist() == numbers[store.index["cell_area"] > 40].tolist()
