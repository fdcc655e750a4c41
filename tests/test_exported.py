"""What export writes, import reads: the same pixels, rows and channels; what cannot be read back is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpacell.cli import main
from hpacell.feed.export import EXPORT_FORMATS, export_store
from hpacell.feed.exported import READERS
from hpacell.feed.foreign import import_crops
from hpacell.feed.store import read_store
from hpacell.feed.verify import verify_store
from hpacell.feed.writer import StoreWriter

CHANNELS = ("nucleus", "protein", "own stain µ")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two fields with boxes, measurements that are missing here and there, and labels of fields."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("source") / "store"
    with StoreWriter(folder, (16, 16, 3), CHANNELS, {"made_by": "test"}) as writer:
        for field_id, n, labels in (("größe 1", 70, "nucleoplasm|cytosol"), ("b.2", 3, "")):
            corners = rng.integers(0, 500, (n, 2))
            cells = pd.DataFrame({"field_id": field_id, "cell_id": np.arange(n, 0, -1) * 3, "labels": labels})
            cells = cells.assign(row0=corners[:, 0], col0=corners[:, 1], row1=corners[:, 0] + 9, col1=corners[:, 1] + 7, height=9, width=7)
            cells["ratio"] = np.where(np.arange(n) % 2, rng.random(n), np.nan)
            crops = rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
            writer.add(field_id, {"field_id": field_id, "labels": labels}, cells, crops)
        return writer.finish()


def test_each_format_that_is_written_is_read():
    assert READERS.keys() == EXPORT_FORMATS.keys()


@pytest.mark.parametrize("to", EXPORT_FORMATS)
@pytest.mark.parametrize("query", [None, "cell_id % 2 == 0"])
def test_exports_come_back(store, tmp_path, to, query):
    rows = np.arange(len(store)) if query is None else np.flatnonzero(store.index["cell_id"] % 2 == 0)
    again = import_crops(export_store(store, tmp_path / "out", to, query), tmp_path / "again")
    np.testing.assert_array_equal(again.crops(range(len(again))), store.crops(rows))
    assert again.channels == CHANNELS and again.shape == store.shape
    expected = store.index.iloc[rows].reset_index(drop=True)
    assert set(again.index) == {"crop_id", *expected}
    pd.testing.assert_frame_equal(again.index[list(expected)], expected)
    assert again.fields[["field_id", "labels"]].values.tolist() == store.fields[["field_id", "labels"]].values.tolist()
    assert verify_store(tmp_path / "again")


def test_the_same_export_gives_the_same_store(store, tmp_path):
    out = export_store(store, tmp_path / "out", "webdataset")
    first = (import_crops(out, tmp_path / "a"), Path(tmp_path / "a" / "manifest.json").read_bytes())[1]
    import_crops(out, tmp_path / "b")
    import_crops(out, tmp_path / "a")
    assert first == (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def spoil(folder: Path, how: str) -> None:
    about = json.loads((folder / "export.json").read_text())
    if how == "format":
        (folder / "export.json").write_text(json.dumps(about | {"format": "lmdb"}))
    elif how == "no index":
        (folder / "index.parquet").unlink()
    elif how == "index of another":
        pd.read_parquet(folder / "index.parquet").iloc[1:].to_parquet(folder / "index.parquet")
    elif how == "shape":
        (folder / "export.json").write_text(json.dumps(about | {"crop_shape": [16, 8, 3]}))
    elif how == "cut":
        path = next(folder.glob("crops*"))
        os.truncate(path, path.stat().st_size // 2)
    else:
        next(folder.glob("crops*")).unlink()


@pytest.mark.parametrize(
    ("to", "how", "message"),
    [
        ("webdataset", "format", "expected an export as tfrecord, .* got lmdb: update hpacell"),
        ("hdf5", "no index", "expected the table of the crops"),
        ("hdf5", "index of another", "expected a row for each of 73 crops .* got 72 rows"),
        ("webdataset", "shape", "expected 73 crops .* as webdataset, got files that cannot be read .got one of"),
        ("webdataset", "cut", "expected 73 crops .* as webdataset, got"),
        ("tfrecord", "cut", "expected 73 crops .* as tfrecord, got"),
        ("hdf5", "cut", "expected 73 crops .* as hdf5, got"),
        ("hdf5", "gone", "expected 73 crops .* as hdf5, got"),
        ("tfrecord", "gone", "expected 73 crops .* as tfrecord, got"),
    ],
)
def test_what_cannot_be_read_back_is_refused(store, tmp_path, to, how, message):
    out = Path(export_store(store, tmp_path / "out", to))
    spoil(out, how)
    with pytest.raises(ValueError, match=message):
        import_crops(out, tmp_path / "again")
    assert not (tmp_path / "again" / "manifest.json").exists()


def test_an_export_names_its_own_channels(store, tmp_path, capsys):
    out = export_store(store, tmp_path / "out", "hdf5")
    assert main(["import", out, "--out", str(tmp_path / "again"), "--channels", "a,b,c"]) == 2
    assert "leave them out, or export as png" in capsys.readouterr().err and not (tmp_path / "again").exists()
    assert main(["import", out, "--out", str(tmp_path / "again")]) == 0
    assert read_store(tmp_path / "again").channels == CHANNELS


def test_labels_that_were_edited_beside_pictures_are_believed(store, tmp_path):
    out = Path(export_store(store, tmp_path / "out", "png"))
    table = (out / "labels.csv").read_text().replace("nucleoplasm|cytosol", "golgi_apparatus")
    (out / "labels.csv").write_text(table)
    again = import_crops(out, tmp_path / "again")
    assert set(again.index.loc[again.index["field_id"] == "größe 1", "labels"]) == {"golgi_apparatus"}
