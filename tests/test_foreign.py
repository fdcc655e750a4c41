"""Stores of what somebody else made: pictures, files per channel, arrays, boxes on images; fields, labels, sizes, bad files."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from hpacell.cells.crops import crop_cells
from hpacell.cells.windows import cut_windows, window_sides
from hpacell.feed import export as export_module
from hpacell.feed import foreign as foreign_module
from hpacell.feed.export import export_store
from hpacell.feed.foreign import import_boxes, import_crops
from hpacell.feed.store import manifest_checksum, read_store
from hpacell.fields.catalog import catalog_fields
from hpacell.fields.depth import IntensityScale
from hpacell.fields.find import find_fields
from hpacell.fields.image import Reading
from hpacell.fields.read import FieldError, read_field
from hpacell.files import write_json
from hpacell.vocabulary import HPA_COLOURS


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "theirs").mkdir()
    return tmp_path / "theirs"


def of_crop(store, name: str) -> np.ndarray:
    """The crop with a name."""
    return store.crops(np.flatnonzero(store.index["crop_id"] == name))[0]


def test_grey_colour_and_many_channels(tmp_path, folder, rng):
    for depth, suffix in ((1, "png"), (3, "png"), (4, "png"), (5, "tif")):
        mine = folder / str(depth)
        mine.mkdir()
        truth = rng.integers(0, 256, (3, 12, 12, depth), np.uint8)
        for i, crop in enumerate(truth):
            if suffix == "tif":
                tifffile.imwrite(mine / f"f_{i}.tif", np.moveaxis(crop, 2, 0), photometric="minisblack", metadata={"axes": "CYX"})
            else:
                Image.fromarray(crop.squeeze()).save(mine / f"f_{i}.png")
        if depth == 4:  # a fourth channel, or alpha? nobody can tell
            with pytest.raises(FieldError, match="calls alpha although its values vary: name all 4 .*--channels microtubules,protein,nucleus,er"):
                import_crops(mine, tmp_path / f"store{depth}")
            continue
        store = import_crops(mine, tmp_path / f"store{depth}")
        np.testing.assert_array_equal(store.crops(range(3)), truth)
        assert store.index["field_id"].tolist() == ["f"] * 3 and store.index["cell_id"].tolist() == [0, 1, 2]
    store = import_crops(folder / "4", tmp_path / "named", channels=["microtubules", "protein", "nucleus", "er"])
    assert store.shape == (12, 12, 4) and store.channels[3] == "er"


@pytest.mark.parametrize("words", [("red", "green", "blue", "yellow"), ("microtubules", "protein", "nucleus", "er")])
def test_a_file_for_each_channel(tmp_path, folder, rng, words):
    truth = rng.integers(0, 256, (2, 10, 10, 4), np.uint8)
    for i, crop in enumerate(truth):
        for channel, word in enumerate(words):
            Image.fromarray(crop[..., channel]).save(folder / f"plate_a_{i + 3}_{word}.png")
    store = import_crops(folder, tmp_path / "store")
    assert store.channels == tuple(HPA_COLOURS.values())
    np.testing.assert_array_equal(store.crops([0, 1]), truth)
    assert store.index[["field_id", "cell_id"]].values.tolist() == [["plate_a", 3], ["plate_a", 4]]


def test_patterns_and_words(tmp_path, folder, rng):
    for i in range(2):
        (folder / f"w{i}").mkdir()
        for word in ("w1", "w2"):
            Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(folder / f"w{i}" / f"crop{i}-{word}.png")
    store = import_crops(folder, tmp_path / "store", pattern="*/{field_id}-{channel}.png", channels=["w2=protein", "w1=nucleus"])
    assert store.channels == ("protein", "nucleus") and store.index["field_id"].tolist() == ["crop0", "crop1"]
    np.testing.assert_array_equal(store.crops([1])[0, ..., 0], cv2.imread(str(folder / "w1" / "crop1-w2.png"), 0))


def test_a_colour_picture_that_shows_one_colour_keeps_its_channels(tmp_path, folder, rng):
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[..., 2] = rng.integers(1, 256, (8, 8))
    for i in range(5):
        Image.fromarray(blue).save(folder / f"blue_{i}.png")
    assert import_crops(folder, tmp_path / "one").shape == (8, 8, 1)
    full = rng.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(full).save(folder / "full_1.png")
    store = import_crops(folder, tmp_path / "three")
    assert store.shape == (8, 8, 3) and not len(store.quarantine)
    np.testing.assert_array_equal(of_crop(store, "blue_2"), blue)
    np.testing.assert_array_equal(of_crop(store, "full_1"), full)


def test_sizes(tmp_path, folder, rng):
    crops = {"a_1": (16, 16), "a_2": (16, 16), "a_3": (32, 16), "b_1": (5, 40), "b_2": (3, 3)}
    crops = {name: rng.integers(1, 256, (*shape, 3), np.uint8) for name, shape in crops.items()}
    for name, crop in crops.items():
        Image.fromarray(crop).save(folder / f"{name}.png")
    store = import_crops(folder, tmp_path / "store")
    assert store.shape == (16, 16, 3)
    assert store.index.set_index("crop_id")[["height", "width"]].T.to_dict("list") == {name: list(crop.shape[:2]) for name, crop in crops.items()}
    np.testing.assert_array_equal(of_crop(store, "a_2"), crops["a_2"])
    tall = of_crop(store, "a_3")  # aspect kept, padded left and right
    assert tall[:, 4:12].all(axis=2).mean() > 0.99 and not tall[:, :4].any() and not tall[:, 12:].any()
    for name, crop in crops.items():  # as a field's cells are fitted
        expected = crop_cells(crop, np.ones(crop.shape[:2], np.int32), 16, clear_outside=False, clean_protein=False, channels=store.channels)[0]
        np.testing.assert_array_equal(of_crop(store, name), expected)
    assert import_crops(folder, tmp_path / "large", size=50).shape == (50, 50, 3)


def test_sixteen_bits_have_one_scale(tmp_path, folder, capsys):
    names = ("f_1", "f_2", "g_1", "h_1")
    dim, bright, hot = (np.full((8, 8), level, np.uint16) for level in (200, 4000, 65535))
    for name, crop in zip(names, (dim, bright, bright, hot), strict=True):
        cv2.imwrite(str(folder / f"{name}.png"), crop)
    store = import_crops(folder, tmp_path / "store")
    assert [of_crop(store, name)[0, 0, 0] for name in names] == [200 >> 4, 4000 >> 4, 4000 >> 4, 255]
    shown = capsys.readouterr().err
    assert "as 12 bits" in shown and "1 crop with pixels brighter" in shown
    for name in names:  # a store keeps its scale, whatever comes later
        cv2.imwrite(str(folder / f"x{name}.png"), hot)
    again = import_crops(folder, tmp_path / "store")
    assert of_crop(again, "f_2")[0, 0, 0] == 4000 >> 4
    wide = import_crops(folder, tmp_path / "wide", intensity_scale=IntensityScale(bits=16))
    assert [of_crop(wide, name)[0, 0, 0] for name in names] == [0, 4000 >> 8, 4000 >> 8, 255]


def test_bad_crops_are_passed_over(tmp_path, folder, rng):
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"f_{i}.png")
    (folder / "f_2.png").write_bytes((folder / "f_2.png").read_bytes()[:50])
    (folder / "g_1.png").write_bytes(b"")
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / "grey_1.png")
    store = import_crops(folder, tmp_path / "store")
    assert store.index["cell_id"].tolist() == [0, 1, 3, 4, 5] and len(store.fields) == 1
    reasons = store.quarantine.set_index("field_id")["reason"]
    assert sorted(reasons.index) == ["f_2", "g_1", "grey_1"]
    assert "ends early" in reasons["f_2"] and "empty file" in reasons["g_1"] and "expected 3 channels" in reasons["grey_1"]
    for path in folder.glob("f_*"):
        path.write_bytes(b"")
    (folder / "grey_1.png").unlink()
    with pytest.raises(FieldError, match="expected at least one readable crop, got none of 7"):
        import_crops(folder, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_labels_of_crops_and_of_fields(tmp_path, folder, rng):
    for name in ("a_1", "a_2", "alone", "b_1"):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{name}.png")
    table = tmp_path / "mine.csv"
    table.write_text("Id,Target\na,0 16\nb_1,25\nalone,8\n")
    store = import_crops(folder, tmp_path / "store", labels=table)
    assert store.index.set_index("crop_id")["labels"].to_dict() == dict.fromkeys(("a_1", "a_2"), "nucleoplasm|cytokinetic_bridge") | {"alone": "peroxisomes", "b_1": "cytosol"}
    assert store.fields.set_index("field_id")["labels"].to_dict()["a"] == "nucleoplasm|cytokinetic_bridge"
    table.write_text("Id,Target\na,0 16\na_2,25\n")
    with pytest.raises(ValueError, match="mine.csv: expected rows for fields or for crops, got both a and a_2"):
        import_crops(folder, tmp_path / "unclear", labels=table)
    table.write_text("ID,Label,Field,cell_id,stage,area\na_1,2,p1,5,G1,3.5\na_2,,p1,,S,\nalone,Golgi apparatus,,,,\n")
    store = import_crops(folder, tmp_path / "rows", labels=table)
    rows = store.index.set_index("crop_id")
    assert rows["field_id"].to_dict() == {"a_1": "p1", "a_2": "p1", "alone": "alone", "b_1": "b"}
    assert rows["labels"].to_dict() == {"a_1": "nucleoli", "a_2": "", "alone": "golgi_apparatus", "b_1": ""}
    assert rows.loc["a_1", "stage"] == "G1" and rows.loc["a_1", "area"] == 3.5 and not rows.duplicated(["field_id", "cell_id"]).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,Label\nother,2\n", "expected rows for the crops, got none"),
        ("ID,Label\na_1,nukleoli\n", "did you mean 'nucleoli'"),
        ("id,field,label\na_1,f,nukleoli\n", "did you mean 'nucleoli'"),
        ("id,field,label\na_1,f,\na_1,g,\n", "got a_1 twice"),
        ("id,field,label\na_1,../f,\n", "can be a file's name"),
        ("name,what\na_1,2\n", "expected the columns"),
        ("ID,Label\na_1,2\na_1,3\n", "repeated"),
        ('id,"field\n', "expected a table of crops"),
    ],
)
def test_wrong_tables_are_named(tmp_path, folder, rng, text, message):
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "a_1.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        import_crops(folder, tmp_path / "store", labels=tmp_path / "labels.csv")
    assert "labels.csv" in str(caught.value) and not (tmp_path / "store").exists()


def test_cells_are_counted_anew_where_numbers_repeat(tmp_path, folder, rng):
    for name in ("f_1", "f_01", "f_2", "g_7", "x_12345678901234567890"):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{name}.png")
    rows = import_crops(folder, tmp_path / "store").index
    assert sorted(rows.loc[rows["field_id"] == "f", "cell_id"]) == [1, 2, 3]
    assert rows.set_index("crop_id").loc["g_7", "cell_id"] == 7
    assert "x_12345678901234567890" in set(rows["field_id"])


def test_arrays(tmp_path, rng):
    truth = rng.integers(0, 256, (5, 12, 8, 4), np.uint8)
    np.save(tmp_path / "cells.npy", truth)
    store = import_crops(tmp_path / "cells.npy", tmp_path / "alone")
    assert len(store.fields) == 5 and store.shape == (12, 12, 4) and store.index["field_id"][3] == "cells-0000003"
    np.testing.assert_array_equal(store.crops(range(5))[:, :, 2:10], truth)
    table = pd.DataFrame({"field_id": ["b", "a", "b", "a", "c"], "cell_id": [1, 1, 2, 2, 1], "labels": ["cytosol"] * 5, "score": np.arange(5) / 2})
    table.to_parquet(tmp_path / "cells.parquet")
    store = import_crops(tmp_path / "cells.npy", tmp_path / "rows")
    assert store.index["field_id"].tolist() == ["b", "b", "a", "a", "c"] and store.index["score"].tolist() == [0, 1, 0.5, 1.5, 2]
    np.testing.assert_array_equal(store.crops(range(5))[:, :, 2:10], truth[[0, 2, 1, 3, 4]])
    grey = tmp_path / "grey"
    grey.mkdir()
    np.save(grey / "one.npy", truth[..., 0])
    assert import_crops(grey, tmp_path / "grey_store").channels == ("nucleus",)
    assert import_crops(tmp_path / "cells.npy", tmp_path / "named", channels=["a", "b", "c", "d"]).channels == ("a", "b", "c", "d")
    np.save(grey / "two.npy", truth)
    with pytest.raises(ValueError, match="got 2 .npy files"):
        import_crops(grey, tmp_path / "new")
    with pytest.raises(ValueError, match="a name for each of 4 channels"):
        import_crops(tmp_path / "cells.npy", tmp_path / "new", channels=["a", "b"])
    (tmp_path / "cells.npy").write_bytes((tmp_path / "cells.npy").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cells.npy: expected an array of crops"):
        import_crops(tmp_path / "cells.npy", tmp_path / "new")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="expected an array of crops"):
        import_crops(tmp_path / "objects.npy", tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="expected an array on a local disk"):
        import_crops(tmp_path / "absent.npy", tmp_path / "new")


def fill(tmp_path, rng, channels, fields=("plain", "with.dots", "größe µm", "the_mask", "a_1", "a")):
    """A store from an array, with field names that are hard on file names."""
    truth = rng.integers(0, 256, (2 * len(fields), 9, 9, len(channels)), np.uint8)
    np.save(tmp_path / "made.npy", truth)
    rows = [(field, cell, ("nucleoli|cytosol", "peroxisomes")[cell - 1]) for field in fields for cell in (1, 2)]
    pd.DataFrame(rows, columns=["field_id", "cell_id", "labels"]).to_csv(tmp_path / "made.csv", index=False)
    return import_crops(tmp_path / "made.npy", tmp_path / "made", channels=channels), truth


@pytest.mark.parametrize("channels", [("microtubules", "protein", "nucleus", "er"), ("nucleus",), ("nucleus", "channel_0", "other")])
@pytest.mark.parametrize("limit", [10_000, 3])
def test_png_exports_come_back(tmp_path, rng, channels, limit, monkeypatch):
    monkeypatch.setattr(export_module, "FOLDER_FILES", limit)
    store, truth = fill(tmp_path, rng, channels)
    np.testing.assert_array_equal(store.crops(range(12)), truth)
    png = export_store(store, tmp_path / "png", "png")
    again = import_crops(png, tmp_path / "again")
    assert again.channels == channels and not len(again.quarantine)
    columns = ["field_id", "cell_id", "labels"]
    assert sorted(again.index[columns].values.tolist()) == sorted(store.index[columns].values.tolist())
    theirs = {(field, cell): i for i, (field, cell) in enumerate(zip(again.index["field_id"], again.index["cell_id"], strict=True))}
    order = [theirs[pair] for pair in zip(store.index["field_id"], store.index["cell_id"], strict=True)]
    np.testing.assert_array_equal(again.crops(order), truth)


def test_a_png_export_is_a_catalog(tmp_path, rng):
    store, _ = fill(tmp_path, rng, ("microtubules", "protein", "nucleus", "er"), fields=("a", "b"))
    store.index["labels"] = "cytosol"
    png = Path(export_store(store, tmp_path / "png", "png"))
    catalog = catalog_fields(png, png / "labels.csv")
    assert catalog.frame["field_id"].tolist() == ["a_1", "a_2", "b_1", "b_2"] and not catalog.missing_labels


def test_real_cells_go_out_and_come_back(tmp_path, shared_data):
    source = find_fields(shared_data / "hpa" / "scc")[0]
    field = read_field(source)
    cells = cv2.imread(source.paths[0].rsplit("_", 1)[0] + "_predictedmask.png", cv2.IMREAD_UNCHANGED).astype(np.int32)
    truth = crop_cells(field.image, cells, 64)
    np.save(tmp_path / "real.npy", truth)
    pd.DataFrame({"field_id": field.field_id, "cell_id": np.unique(cells)[1:], "labels": "nucleoli"}).to_csv(tmp_path / "real.csv", index=False)
    store = import_crops(tmp_path / "real.npy", tmp_path / "store")
    again = import_crops(export_store(store, tmp_path / "png", "png"), tmp_path / "again")
    order = [store.index["cell_id"].tolist().index(cell_id) for cell_id in again.index["cell_id"]]
    np.testing.assert_array_equal(again.crops(range(len(again))), truth[order])
    assert set(again.index["field_id"]) == {field.field_id} and set(again.index["labels"]) == {"nucleoli"}


def test_an_extracted_store_is_not_replaced(tmp_path, folder, rng):
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "a_1.png")
    store = import_crops(folder, tmp_path / "store")
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "a_2.png")
    assert len(import_crops(folder, tmp_path / "store")) == len(store) + 1
    manifest = tmp_path / "store" / "manifest.json"
    whole = manifest.read_bytes()
    for damaged in (b"[]", b"{", whole[:50], b"\xff"):  # an import's own store is made anew
        manifest.write_bytes(damaged)
        assert len(import_crops(folder, tmp_path / "store")) == 2 and manifest.read_bytes() == whole
    content = json.loads(whole) | {"origin": {"fields": "somewhere"}}
    write_json(manifest, content | {"checksum": manifest_checksum(content)})
    with pytest.raises(ValueError, match="a store of extracted cells"):
        import_crops(folder, tmp_path / "store")
    write_json(tmp_path / "store" / "origin.json", {})
    manifest.write_bytes(b"[]")
    with pytest.raises(ValueError, match="a store of extracted cells"):
        import_crops(folder, tmp_path / "store")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="choose another folder"):
        import_crops(folder, tmp_path / "other")
    with pytest.raises(ValueError, match="choose another folder"):
        import_crops(folder, folder)
    with pytest.raises(ValueError, match="write it locally"):
        import_crops(folder, "s3://bucket/store")


def make_pictures(folder, names, rng):
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{name}.png")


def assert_same(a, b):
    """Two stores with the same crops and rows."""
    pd.testing.assert_frame_equal(a.index, b.index)
    pd.testing.assert_frame_equal(a.fields.drop(columns="key"), b.fields.drop(columns="key"))
    np.testing.assert_array_equal(a.crops(range(len(a))), b.crops(range(len(b))))


def test_an_import_again_equals_a_fresh_one(tmp_path, folder, rng, monkeypatch):
    def tabulate(names, value):
        labels = ["cytosol" if i % 2 else "nucleoli" for i in range(len(names))]
        pd.DataFrame({"crop_id": names, "labels": labels, "p": value}).to_csv(folder / "labels.csv", index=False)

    names = ["b_1", "b_2", "c_1", "c_2"]
    make_pictures(folder, names, rng)
    tabulate(names, 1e-11)
    import_crops(folder, tmp_path / "again")
    make_pictures(folder, ["a_1"], rng)  # another field in front: the rest is copied
    for value in (1.23456789012, 1.23456789013, 9e-11):
        tabulate(["a_1", *names], value)
        assert_same(import_crops(folder, tmp_path / "again"), import_crops(folder, tmp_path / f"fresh{value}"))
    put, calls = foreign_module._put_field, []

    def stop(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(*args)

    monkeypatch.setattr(foreign_module, "_put_field", stop)
    with pytest.raises(KeyboardInterrupt):
        import_crops(folder, tmp_path / "resumed")
    monkeypatch.undo()
    assert_same(import_crops(folder, tmp_path / "resumed"), import_crops(folder, tmp_path / "fresh"))


def test_damaged_crops_are_imported_anew(tmp_path, folder, rng):
    make_pictures(folder, ["f_1", "h_1"], rng)
    store = import_crops(folder, tmp_path / "store")
    shard = tmp_path / "store" / store.manifest["shards"][0]["name"]
    content = bytearray(shard.read_bytes())
    content[130] ^= 1
    shard.write_bytes(content)
    assert_same(import_crops(folder, tmp_path / "store"), import_crops(folder, tmp_path / "fresh"))


def test_rows_are_matched_by_field_and_number(tmp_path, folder, rng, capsys):
    make_pictures(folder, ["f_095", "f_100", "g", "h_1", "h_01"], rng)
    table = folder / "labels.csv"
    table.write_text("field_id,cell_id,labels\nf,95,cytosol\nf,100,nucleoli\ng,,vesicles\nh,01,cytosol\nf,7,cytosol\n")
    labels = {"f_095": "cytosol", "f_100": "nucleoli", "g": "vesicles", "h_01": "cytosol", "h_1": ""}
    store = import_crops(folder, tmp_path / "numbers")
    assert store.index.set_index("crop_id")["labels"].to_dict() == labels
    error = capsys.readouterr().err
    assert "row for each crop, got none for 1 of them, e.g. h_1" in error and "crop for each row, got none for 1 of them, e.g. f_7" in error
    pd.DataFrame({"field_id": ["f", "f", "g"], "cell_id": [95, 100, None], "labels": "cytosol"}).to_parquet(tmp_path / "t.parquet")
    store = import_crops(folder, tmp_path / "floats", labels=tmp_path / "t.parquet")
    assert sorted(store.index.loc[store.index["labels"] != "", "crop_id"]) == ["f_095", "f_100", "g"]
    assert store.index["cell_id"].dtype == np.int64
    table.write_text("crop_id,labels\nf_095.png,cytosol\nf_100.PNG,nucleoli\ng,vesicles\nh_01.png,cytosol\n")
    store = import_crops(folder, tmp_path / "suffixes")
    assert store.index.set_index("crop_id")["labels"].to_dict() == labels


def test_a_crop_with_the_name_of_another_field(tmp_path, folder, rng):
    make_pictures(folder, ["w_1", "w_2", "w_1_1"], rng)
    table = tmp_path / "fields.csv"
    for text, first in (("w,cytosol\nw_1,nucleoli\n", "cytosol"), ("w_1,nucleoli\n", "")):
        table.write_text(f"field_id,labels\n{text}")
        store = import_crops(folder, tmp_path / f"store{first}", labels=table)
        assert store.index.set_index("crop_id")["labels"].to_dict() == {"w_1": first, "w_2": first, "w_1_1": "nucleoli"}


def test_columns_of_a_table_that_a_store_has_itself(tmp_path, folder, rng):
    make_pictures(folder, ["f_1", "f_2"], rng)
    (folder / "labels.csv").write_text("crop_id,labels,plate,crop_bytes,height,width,n\nf_1,cytosol,0012,5,2048,2048,3\nf_2,,0013,6,2048,,4\n")
    index = import_crops(folder, tmp_path / "store").index
    assert index["plate"].tolist() == ["0012", "0013"] and index["n"].tolist() == [3, 4]
    assert index[["height", "width"]].values.tolist() == [[8, 8], [8, 8]]
    assert index["table_height"].tolist() == [2048, 2048] and index["table_crop_bytes"].tolist() == [5, 6]


def test_wrong_arrays_and_tables_of_arrays(tmp_path, rng):
    np.save(tmp_path / "first.npy", rng.integers(0, 256, (3, 4, 3, 32), np.uint8))
    with pytest.raises(ValueError, match="expected channels last"):
        import_crops(tmp_path / "first.npy", tmp_path / "store")
    np.save(tmp_path / "first.npy", rng.integers(0, 256, (3, 2, 3, 4), np.uint8))
    assert import_crops(tmp_path / "first.npy", tmp_path / "store", channels=list("abcd")).shape == (3, 3, 4)
    pd.DataFrame({"crop_id": ["a_1", None, "b"], "labels": "cytosol"}).to_parquet(tmp_path / "first.parquet")
    with pytest.raises(ValueError, match="expected the name of a crop in each row, got none in row 2"):
        import_crops(tmp_path / "first.npy", tmp_path / "null", channels=list("abcd"))
    (tmp_path / "twice.csv").write_text("ID,field,Label,label\na_1,f,cytosol,x\n")
    with pytest.raises(ValueError, match="expected each column once, in capitals or not, got label twice"):
        import_crops(tmp_path / "first.npy", tmp_path / "null", labels=tmp_path / "twice.csv", channels=list("abcd"))


def test_batches_and_training_take_the_store(tmp_path, folder, rng):
    from hpacell.feed.batches import make_batches
    from hpacell.models.training import TrainingSettings, train_classifier

    lines = ["ID,Label"]
    for field in range(6):
        for cell in range(3):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"field{field}_{cell}.png")
        lines.append(f"field{field},{field % 2}")
    (folder / "labels.csv").write_text("\n".join(lines))
    import_crops(folder, tmp_path / "store")
    store = read_store(tmp_path / "store")
    crops, targets = next(iter(make_batches(store, ("nucleoplasm", "nuclear_membrane"), batch_size=18, shuffle=False, dtype="uint8")))
    np.testing.assert_array_equal(crops, store.crops(range(18)))
    assert targets.numpy().sum(axis=0).tolist() == [9, 9]
    settings = TrainingSettings(epochs=1, batch_size=6, n_folds=3, augment=())
    trained = train_classifier(store, tmp_path / "model", settings)
    assert trained is not None


BOX_COLUMNS = ["row0", "col0", "row1", "col1"]


@pytest.fixture
def smears(folder, rng) -> Path:
    """Images a, b, c of 40 x 70 pixels with boxes of two classes; c has none."""
    rows = []
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (40, 70, 3), np.uint8)).save(folder / f"{name}.png")
        rows += [] if name == "c" else [(name, "red", 5, 8, 15, 28), (name, "platelet", 34, 60, 40, 70), (name, "red", 0, 0, 12, 12)]
    pd.DataFrame(rows, columns=["image_id", "cell_type", *BOX_COLUMNS]).to_csv(folder / "boxes.csv", index=False)
    return folder


@pytest.mark.parametrize("arguments", [{"window": 24}, {"window": 24, "clear_outside": False}, {"scale": "box", "margin": 0.5}, {}], ids=str)
def test_boxes_become_windows(tmp_path, smears, arguments):
    store = import_boxes(smears, smears / "boxes.csv", tmp_path / "store", size=24, **arguments)
    assert store.shape == (24, 24, 3) and store.channels == ("red", "green", "blue") and not len(store.quarantine)
    assert store.index["field_id"].tolist() == ["a"] * 3 + ["b"] * 3 and store.index["cell_id"].tolist() == [1, 2, 3] * 2
    assert store.index["labels"].tolist() == ["red", "platelet", "red"] * 2
    assert store.fields["labels"].tolist() == ["platelet|red"] * 2 and store.fields[["height", "width"]].to_numpy().tolist() == [[40, 70]] * 2
    boxes = store.index[BOX_COLUMNS].to_numpy()
    assert boxes[:3].tolist() == [[5, 8, 15, 28], [34, 60, 40, 70], [0, 0, 12, 12]] and boxes.dtype == np.int64
    assert store.index[["height", "width"]].to_numpy()[:3].tolist() == [[10, 20], [6, 10], [12, 12]]  # the size is not lost
    sides = window_sides(boxes, **{name: value for name, value in arguments.items() if name != "clear_outside"})
    assert store.index["window"].tolist() == sides.tolist()
    for number, name in enumerate("ab"):
        rows = slice(3 * number, 3 * number + 3)
        image = np.asarray(Image.open(smears / f"{name}.png"))
        expected = cut_windows(image, boxes[rows], sides[rows], 24, arguments.get("clear_outside", True))
        np.testing.assert_array_equal(store.crops(range(3 * number, 3 * number + 3)), expected)
    kept = store.manifest["parameters"]
    assert kept["made_by"] == "import" and kept["size"] == 24 and kept.get("window", sides[0]) == sides[0]


def test_a_window_without_resizing_is_the_image(tmp_path, smears):
    store = import_boxes(smears, smears / "boxes.csv", tmp_path / "store", size=20, window=20, clear_outside=False)
    image = np.asarray(Image.open(smears / "a.png"))
    np.testing.assert_array_equal(store.crops([0])[0], image[0:20, 8:28])
    edge = store.crops([1])[0]  # the middle is row 37, column 65
    np.testing.assert_array_equal(edge[:13, :15], image[27:40, 55:70])
    assert not edge[13:].any() and not edge[:, 15:].any()


def test_bad_boxes_are_quarantined_by_line(tmp_path, smears):
    table = smears / "boxes.csv"
    table.write_text(table.read_text() + "a,red,5,5,41,9\na,red,9,9,5,12\nb,,1,1,5,5\nzz,red,1,1,5,5\nzz,red,1,1,6,6\nc,red,-3,0,5,5\nb,red,nan,0,5,5\na,red,1,1,3,3\n")
    (smears / "d.png").write_bytes((smears / "c.png").read_bytes()[:60])
    table.write_text(table.read_text() + "d,red,1,1,5,5\n")
    store = import_boxes(smears, table, tmp_path / "store", size=8, window=16)
    assert store.index["field_id"].value_counts().to_dict() == {"a": 4, "b": 3}
    assert store.index.loc[store.index["field_id"] == "a", "cell_id"].tolist() == [1, 2, 3, 6]
    reasons = dict(zip(store.quarantine["field_id"], store.quarantine["reason"], strict=True))
    expected = {
        "a_4": "line 8: expected a box inside of 40 x 70 pixels, got 5, 5, 41, 9", "a_5": "line 9: expected row0 < row1", "b_4": "line 10: expected a class, got none",
        "zz": "2 boxes, the first in line 11: expected an image of this name, got none", "c_1": "line 13: expected a box inside of", "b_5": "line 14: expected four numbers",
        "d": "1 boxes, the first in line 16",
    }  # fmt: skip
    assert set(reasons) == set(expected)
    for name, start in expected.items():
        assert reasons[name].startswith(f"{table}: {start}"), reasons[name]
    lines = table.read_text().replace("a,red,9,9,5,12", "a,red,5,9,9,12")
    table.write_text(lines)
    mended = import_boxes(smears, table, tmp_path / "store", size=8, window=16)  # in place of the former
    assert mended.index.loc[mended.index["field_id"] == "a", "cell_id"].tolist() == [1, 2, 3, 5, 6]


def test_box_tables_that_fit_nothing(tmp_path, smears):
    cases = (
        ("image,x,y,w,h\na,5,5,0,9\n", ValueError, "expected at least one good box, got none of 1, e.g. line 2: expected row0"),
        ("image,x,y,w,h\n", ValueError, "expected at least one good box, got no line"),
        ("image,x,y,w,h\nother,1,1,9,9\n", FieldError, "expected the images that the boxes name, such as other"),
    )
    for text, kind, message in cases:
        (tmp_path / "boxes.csv").write_text(text)
        with pytest.raises(kind, match=message):
            import_boxes(smears, tmp_path / "boxes.csv", tmp_path / "store")
        assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match="expected size of at least 1"):
        import_boxes(smears, smears / "boxes.csv", tmp_path / "store", size=0)
    write_json(tmp_path / "store" / "notes.json", {})
    with pytest.raises(ValueError, match="got"):
        import_boxes(smears, smears / "boxes.csv", tmp_path / "store")


def test_channels_of_boxed_images(tmp_path, folder, rng):
    planes = rng.integers(0, 256, (4, 30, 50), np.uint8)
    for colour, plane in zip(("red", "green", "blue", "yellow"), planes, strict=True):
        Image.fromarray(plane).save(folder / f"f_{colour}.png")
    (folder / "boxes.csv").write_text("field_id,labels,row0,col0,row1,col1\nf,Golgi apparatus|cytosol,3,4,23,24\n")
    store = import_boxes(folder, folder / "boxes.csv", tmp_path / "four", size=20, window=20)
    assert store.channels == ("microtubules", "protein", "nucleus", "er") and store.index["labels"].tolist() == ["golgi_apparatus|cytosol"]
    np.testing.assert_array_equal(store.crops([0])[0], np.moveaxis(planes, 0, 2)[3:23, 4:24])
    two = import_boxes(folder, folder / "boxes.csv", tmp_path / "two", size=20, window=20, channels=["nucleus", "er"])
    np.testing.assert_array_equal(two.crops([0])[0], np.moveaxis(planes[2:], 0, 2)[3:23, 4:24])


def test_columns_of_boxes_that_a_store_has_itself(tmp_path, smears):
    table = pd.read_csv(smears / "boxes.csv").assign(width=640, window=3, stain="giemsa")
    table.to_csv(smears / "boxes.csv", index=False)
    index = import_boxes(smears, smears / "boxes.csv", tmp_path / "store").index
    assert (index["table_window"] == "3").all() and (index["stain"] == "giemsa").all() and index["width"].tolist()[:2] == [20, 10]


def test_the_blood_cells(tmp_path, shared_data):
    bccd = shared_data / "bccd"
    store = import_boxes(bccd / "images", bccd / "boxes.csv", tmp_path / "store", size=32, classes=("RBC", "WBC", "Platelets"))
    assert len(store) == 3698 and store.index["field_id"].nunique() == 268
    assert store.index["labels"].value_counts().to_dict() == {"RBC": 3155, "WBC": 276, "Platelets": 267}
    assert len(store.quarantine) == 2 and store.quarantine["reason"].str.contains("expected row0 < row1").all()
    medians = store.index.groupby("labels")["height"].median()
    assert medians["Platelets"] < 60 < medians["RBC"] < 130 < medians["WBC"]
    row = store.index.iloc[100]
    image = cv2.cvtColor(cv2.imread(str(bccd / "images" / f"{row['field_id']}.jpg")), cv2.COLOR_BGR2RGB).astype(int)
    expected = cut_windows(image.astype(np.uint8), [row[BOX_COLUMNS].to_numpy(int)], [row["window"]], 32, clear_outside=True)[0]
    assert np.abs(expected.astype(int) - store.crops([100])[0]).max() <= 2  # two JPEG decoders


def test_training_learns_classes_that_the_atlas_does_not_know(tmp_path, folder, rng):
    from hpacell.models.evaluation import evaluate_classifier
    from hpacell.models.training import TrainingSettings, train_classifier

    rows = []
    for number in range(30):
        image = rng.integers(180, 220, (64, 96, 3), np.uint8)
        image[8:32, 8:32, 1:] //= 2
        image[40:48, 70:78] //= 3
        Image.fromarray(image).save(folder / f"smear{number:02}.png")
        rows += [(f"smear{number:02}", "red cell", 8, 8, 32, 32), (f"smear{number:02}", "platelet", 40, 70, 48, 78)]
    pd.DataFrame(rows, columns=["image_id", "label", *BOX_COLUMNS]).to_csv(folder / "boxes.csv", index=False)
    store = import_boxes(folder, folder / "boxes.csv", tmp_path / "store", size=16, window=32)
    settings = TrainingSettings(model_parameters={"filters": (4,), "kernels": (3,), "units": 0, "dropout": 0.0}, epochs=8, batch_size=4, n_folds=3, learning_rate=0.02, augment=())  # fmt: skip
    trained = train_classifier(store, tmp_path / "model", settings)
    assert trained.locations == ("platelet", "red cell")
    fields = trained.card["data"]["fields"]
    assert not set(fields["test"]) & (set(fields["train"]) | set(fields["valid"]))  # by image
    evaluation = evaluate_classifier(trained, store)
    summary = evaluation.summaries["cells_labelled"]
    assert summary["macro_average_precision"] > summary["macro_chance"] + 0.3 and evaluation.n_cells == 2 * evaluation.n_fields == 20


# ---- arrays of every kind of numbers, and what was assumed


def test_an_array_gives_the_crops_of_the_same_pictures(tmp_path, folder, rng, capsys):
    crops = rng.integers(0, 3000, (6, 12, 12)).astype(np.uint16)
    for i, crop in enumerate(crops):
        Image.fromarray(crop).save(folder / f"x{i}.png")
    pictures = import_crops(folder, tmp_path / "pictures", channels=["nucleus"])
    for dtype in (np.uint16, np.int32, np.uint32, np.float32, np.float64, np.int64):
        np.save(tmp_path / "array.npy", crops.astype(dtype))
        store = import_crops(tmp_path / "array.npy", tmp_path / f"of_{np.dtype(dtype)}", channels=["nucleus"])
        assert np.array_equal(store.crops(range(6)), pictures.crops(range(6))), dtype
    capsys.readouterr()
    store = import_crops(tmp_path / "array.npy", tmp_path / "given", intensity_scale=IntensityScale(intensity_range=(0, 1000)))
    assert store.manifest["parameters"]["intensity_range"] == [0, 1000]
    told = capsys.readouterr().err
    assert "6 crops with pixels brighter than the range" in told and "1 channel without names taken for nucleus (--channels names them): 6 crops" in told
    assert store.fields["notes"].str.contains("taken for nucleus").all()


def test_crops_without_a_number_in_an_array(tmp_path, rng):
    crops = rng.random((4, 8, 8))
    crops[1], crops[2, 0, 0] = np.nan, np.nan
    np.save(tmp_path / "array.npy", crops)
    store = import_crops(tmp_path / "array.npy", tmp_path / "store", channels=["nucleus"])
    assert len(store) == 3 and store.quarantine["reason"].str.contains("expected numbers, got only values that are not numbers").all()
    assert store.fields["notes"].str.contains("1 values that are no finite numbers").sum() == 1


@pytest.mark.parametrize("reading", [Reading(z="mid"), Reading(scene=1), Reading("CYX")])
def test_options_of_files_do_not_fit_an_array(tmp_path, rng, reading):
    np.save(tmp_path / "array.npy", rng.integers(0, 256, (4, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="expected pictures for --axes, --scene and --z, got an array"):
        import_crops(tmp_path / "array.npy", tmp_path / "store", reading=reading)


def test_what_an_import_assumes_is_told_once_and_recorded(tmp_path, folder, rng, capsys):
    for i in range(3):
        tifffile.imwrite(folder / f"x{i}.tif", rng.integers(0, 256, (2, 12, 12), np.uint8), imagej=True, metadata={"axes": "ZYX"})
    store = import_crops(folder, tmp_path / "store")
    told = capsys.readouterr().err
    assert told.count("brightest of 2 focus slices") == 1 and "3 crops, e.g. x0" in told and "taken for nucleus" in told
    assert store.fields["notes"].str.contains("brightest of 2 focus slices").all()
    store = import_crops(folder, tmp_path / "store", reading=Reading(z="1"), channels=["nucleus"])
    assert store.fields["notes"].tolist() == ["slice 1 of 2"] * 3


def test_images_with_boxes_say_what_was_assumed(tmp_path, folder, capsys, rng):
    tifffile.imwrite(folder / "a.tif", rng.integers(0, 256, (2, 40, 40), np.uint8), imagej=True, metadata={"axes": "ZYX"})
    (folder / "boxes.csv").write_text("image,xmin,ymin,xmax,ymax,label\na,2,2,20,20,x\n")
    store = import_boxes(folder, folder / "boxes.csv", tmp_path / "store")
    assert "brightest of 2 focus slices" in capsys.readouterr().err and "brightest of 2" in store.fields["notes"][0]
