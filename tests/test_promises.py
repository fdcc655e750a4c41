"""What a store promises: faults that pass cost nothing, repair changes nothing else, what is somebody's stays."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pandas as pd
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from hpacell.feed import writer as writer_module
from hpacell.feed.remote import fetch_store, write_store_to
from hpacell.feed.store import read_store
from hpacell.feed.verify import verify_store
from hpacell.feed.writer import StoreWriter
from hpacell.fields.read import FieldError
from hpacell.fields.simulate import simulate_fields
from hpacell.pipeline import extract as extract_module
from hpacell.pipeline import repair as repair_module
from hpacell.pipeline import segment as segment_module
from hpacell.pipeline.extract import ExtractSettings, extract_fields
from hpacell.pipeline.repair import repair_store
from hpacell.pipeline.segment import segment_fields

SMALL = ExtractSettings(crop_size=16)
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    """Five small simulated fields."""
    folder = tmp_path_factory.mktemp("fields")
    simulate_fields(folder, n_fields=5, seed=5, size=(96, 128), n_cells=4)
    shutil.rmtree(folder / "truth")
    return folder


@pytest.fixture
def work(fields, tmp_path) -> Path:
    """A copy of them to change."""
    return shutil.copytree(fields, tmp_path / "fields")


@pytest.fixture
def small_shards(monkeypatch):
    """A shard for every field or two."""
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 6000)


def extract(fields, store, labels=None, settings=SMALL, **options):
    return extract_fields(fields, store, labels=labels, settings=settings, **{"workers": 1, **options})


def content(folder: Path) -> dict[str, bytes]:
    """All files but the sums that save time, which know when a file was written, and the lock."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name not in ("signatures.json", ".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def ids_of(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix("_blue.png") for path in folder.glob("*_blue.png"))


def sound(folder) -> None:
    report = verify_store(folder)
    assert report, str(report)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_crop(path: Path, place: int) -> None:
    """One bit of the first crop of a plain shard, or of the last."""
    crops = np.load(path, mmap_mode="r+")
    crops[place, 8, 8, 2] ^= 4
    crops.flush()


# -- a fault that passes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_file_that_is_away_for_one_run_costs_nothing(work, tmp_path, small_shards, compression):
    folder = tmp_path / "store"
    assert extract(work, folder, labels=work / "labels.csv", compression=compression).n_made == 5
    before, lost = content(folder), ids_of(work)[2]
    (work / f"{lost}_yellow.png").rename(tmp_path / "away.png")
    for _ in range(2):  # the spare stays for more than one run
        report = extract(work, folder, labels=work / "labels.csv", compression=compression)
        assert report.n_made == 0 and report.quarantine["field_id"].tolist() == [lost]
        assert report.store.manifest["spare"] and lost not in set(report.store.index["field_id"])
        sound(folder)
    (tmp_path / "away.png").rename(work / f"{lost}_yellow.png")
    report = extract(work, folder, labels=work / "labels.csv", compression=compression)
    assert report.n_made == 0 and len(report.quarantine) == 0 and report.store.manifest["spare"] == []
    assert content(folder) == before
    sound(folder)


def test_a_disk_that_is_away_for_one_run_costs_nothing(work, tmp_path, small_shards):
    rows = [{"field_id": field_id, **{colour: str(work / f"{field_id}_{colour}.png") for colour in COLOURS}} for field_id in ids_of(work)]
    pd.DataFrame(rows).to_csv(tmp_path / "paths.csv", index=False)
    folder = tmp_path / "store"
    assert extract(tmp_path / "paths.csv", folder).n_made == 5
    before = content(folder)
    work.rename(tmp_path / "away")
    with pytest.raises(ValueError, match="got 5 fields that cannot be used, .* no such file.* The store stays as it was"):
        extract(tmp_path / "paths.csv", folder)
    assert content(folder) == before
    sound(folder)
    (tmp_path / "away").rename(work)
    assert extract(tmp_path / "paths.csv", folder).n_made == 0
    assert content(folder) == before


def test_fewer_pixels_allowed_quarantines_what_is_larger(work, tmp_path):
    folder = tmp_path / "store"
    for colour in COLOURS:  # one field that is larger than the others
        path = str(work / f"{ids_of(work)[0]}_{colour}.png")
        cv2.imwrite(path, np.pad(cv2.imread(path, cv2.IMREAD_UNCHANGED), ((0, 40), (0, 0))))
    extract(work, folder)
    before = content(folder)
    lower = ExtractSettings(crop_size=16, max_pixels=96 * 128)
    for _ in range(2):
        report = extract(work, folder, settings=lower)
        assert report.n_made == 0 and report.quarantine["field_id"].tolist() == ids_of(work)[:1]
        assert set(report.store.fields["field_id"]) == set(ids_of(work)[1:])
        sound(folder)
    assert extract(work, folder).n_made == 0
    assert content(folder) == before


def hide(work, tmp_path, field_id) -> Path:
    return (work / f"{field_id}_red.png").rename(tmp_path / "hidden.png")


def show(work, tmp_path, field_id) -> Path:
    return (tmp_path / "hidden.png").rename(work / f"{field_id}_red.png")


def test_what_is_spare_is_what_the_store_had(work, tmp_path, small_shards, monkeypatch):
    """An extraction with other settings that did not end has the field too; its crops are of no use to this store."""
    folder, lost = tmp_path / "store", ids_of(work)[1]
    extract(work, folder)
    before = content(folder)
    kill_extraction(work, folder, monkeypatch, ExtractSettings(crop_size=16, clear_outside=False), after=4)
    hide(work, tmp_path, lost)
    assert extract(work, folder).n_made == 0
    show(work, tmp_path, lost)
    assert extract(work, folder).n_made == 0
    assert content(folder) == before


@pytest.mark.parametrize("killed", [False, True])
def test_repair_leaves_the_spare(work, tmp_path, small_shards, monkeypatch, killed):
    folder, lost = tmp_path / "store", ids_of(work)[1]
    extract(work, folder)
    hide(work, tmp_path, lost)
    extract(work, folder)
    before = content(folder)
    show(work, tmp_path, lost)
    if killed:
        kill_extraction(work, folder, monkeypatch, ExtractSettings(crop_size=16, clear_outside=False), after=4)
    assert repair_store(folder, workers=1).n_made == 0
    assert content(folder) == before


@pytest.mark.parametrize("kind", ["cells", "crops", "flip"])
def test_a_damaged_spare_is_found_and_goes(work, tmp_path, kind):
    folder, lost = tmp_path / "store", ids_of(work)[1]
    extract(work, folder)
    hide(work, tmp_path, lost)
    (spare,) = extract(work, folder).store.manifest["spare"]
    if kind == "flip":
        flip_crop(folder / spare["name"], -1)
    else:
        (folder / (spare["cells"]["name"] if kind == "cells" else spare["name"])).unlink()
    assert not verify_store(folder)
    assert repair_store(folder, workers=1).n_made == 0
    sound(folder)


def test_a_damaged_spare_does_not_replace_good_crops(work, tmp_path):
    folder, lost = tmp_path / "store", ids_of(work)[0]
    before = extract(work, folder).store.crops([-1 % len(read_store(folder))])
    hide(work, tmp_path, lost)
    (spare,) = extract(work, folder).store.manifest["spare"]
    flip_crop(folder / spare["name"], -1)
    show(work, tmp_path, lost)
    store = extract(work, folder).store
    np.testing.assert_array_equal(store.crops([len(store) - 1]), before)


# -- workers -------------------------------------------------------------------------------------------------------------


def test_a_script_without_a_main_guard_is_told_so(work, tmp_path):
    folder, away = tmp_path / "store", tmp_path / "away"
    away.mkdir()
    for field_id in ids_of(work)[:3]:
        for colour in COLOURS:
            (work / f"{field_id}_{colour}.png").rename(away / f"{field_id}_{colour}.png")
    extract(work, folder)
    before = content(folder)
    for path in away.iterdir():
        path.rename(work / path.name)
    lines = [
        "from hpacell.pipeline.extract import ExtractSettings, extract_fields",
        f"extract_fields({str(work)!r}, {str(folder)!r}, settings=ExtractSettings(crop_size=16), workers=2)",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, str(tmp_path / "mine.py")], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "WorkersError: expected worker processes, got none that starts" in last and "if __name__ == '__main__':" in last
    after = content(folder)
    assert {name: after[name] for name in before} == before
    assert len(read_store(folder).fields) == 2
    assert extract(work, folder).n_made == 3
    sound(folder)


# -- repair --------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run in the middle."""


def kill_extraction(fields, store, monkeypatch, settings, after=2, **options) -> None:
    """An extraction that ends after some fields, as by a kill."""
    original, n_cut = extract_module.cut_field, 0

    def cut(*arguments, **options):
        nonlocal n_cut
        n_cut += 1
        if n_cut > after:
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "cut_field", cut)
        with pytest.raises(Killed):
            extract(fields, store, settings=settings, **options)


@pytest.mark.parametrize("damaged", ["nothing", "shards/crops-*", "index-*", "manifest.json"])
@pytest.mark.parametrize(
    "other", [ExtractSettings(crop_size=24), ExtractSettings(crop_size=16, clear_outside=False), ExtractSettings(crop_size=16, bits=12)]
)
def test_a_killed_extraction_with_other_settings_is_nothing_to_repair(work, tmp_path, small_shards, monkeypatch, damaged, other):
    folder = tmp_path / "store"
    extract(work, folder)
    before = content(folder)
    kill_extraction(work, folder, monkeypatch, other)
    assert (folder / ".building" / "plan.json").exists()
    if damaged != "nothing":
        sorted(folder.glob(damaged))[0].unlink()
    report = repair_store(folder, workers=1)
    assert report.n_made <= 2 and (damaged == "shards/crops-*" or report.n_made == 0)
    assert content(folder) == before
    sound(folder)


@pytest.mark.parametrize("with_bad", [False, True])
@pytest.mark.parametrize(
    ("kind", "today"),
    # Without its manifest a store becomes what its fields are today.
    [("manifest.json", "other code")]
    + [(kind, today) for kind in ("index-*", "fields-*", "shards/cells-*") for today in ("other code", "fields gone", "one file gone")]
    + [("quarantine.csv", "fields gone"), ("nothing", "one file gone")],
)
def test_tables_are_mended_without_any_field(work, tmp_path, small_shards, monkeypatch, kind, today, with_bad):
    folder = tmp_path / "store"
    if with_bad:
        (work / f"{ids_of(work)[1]}_red.png").unlink()
    extract(work, folder, labels=work / "labels.csv")
    before = content(folder)
    if kind != "nothing":
        sorted(folder.glob(kind))[0].unlink()
    if today == "other code":
        monkeypatch.setattr(repair_module, "field_key", lambda *arguments: "another")
    elif today == "fields gone":
        shutil.rmtree(work)
    else:
        (work / f"{ids_of(work)[-1]}_green.png").unlink()
    assert repair_store(folder, workers=1).n_made == 0
    assert content(folder) == before
    sound(folder)


@pytest.mark.parametrize("today", ["other code", "other picture", "field gone", "fields gone", "file gone"])
@pytest.mark.parametrize(("place", "shard_bytes"), [(0, 6000), (-1, writer_module.SHARD_BYTES)])
def test_what_cannot_be_made_as_it_was_is_told_and_nothing_changes(work, tmp_path, monkeypatch, today, place, shard_bytes):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", shard_bytes)
    folder = tmp_path / "store"
    store = extract(work, folder).store
    flip_crop(folder / store.manifest["shards"][place]["name"], place)
    before = content(folder)
    for field_id in [ids_of(work)[place]]:
        for colour in COLOURS:
            path = work / f"{field_id}_{colour}.png"
            if today == "other picture":
                cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
            elif today == "field gone" or (today == "file gone" and colour == "red"):
                path.unlink()
    if today == "fields gone":
        shutil.rmtree(work)
    elif today == "other code":
        monkeypatch.setattr(repair_module, "field_key", lambda *arguments: "another")
    with pytest.raises(FieldError if today == "fields gone" else ValueError):
        repair_store(folder, workers=1)
    assert content(folder) == before


def test_damaged_crops_are_made_as_they_were(work, tmp_path, small_shards):
    folder = tmp_path / "store"
    extract(work, folder, labels=work / "labels.csv")
    before = content(folder)
    # What changed meanwhile is not for repair to take up.
    (work / "labels.csv").write_text("ID,Label\n")
    for path in sorted(folder.glob("shards/crops-*"))[:2]:
        flip(path)
    assert 1 <= repair_store(folder, workers=1).n_made <= 2
    assert content(folder) == before


def test_repair_keeps_what_lies_beside_the_store(work, tmp_path):
    folder = tmp_path / "store"
    extract(work, folder)
    (folder / "README.txt").write_text("mine")
    before = content(folder)
    (folder / "manifest.json").write_bytes(before["manifest.json"][:100])
    assert repair_store(folder, workers=1).n_made == 0
    assert content(folder) == before


# -- label images --------------------------------------------------------------------------------------------------------


def test_label_images_are_those_of_the_last_call(work, tmp_path):
    images = {}
    for name, border in [("keep", "keep"), ("cells", "cells")]:
        segment_fields(work, tmp_path / name, border=border, workers=1)
        images[border] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
    assert images["keep"] != images["cells"]
    for border in ("keep", "cells", "keep"):
        segment_fields(work, tmp_path / "masks", border=border, workers=1)
        assert {path.name: path.read_bytes() for path in (tmp_path / "masks").glob("*.png")} == images[border]
    assert segment_fields(work, tmp_path / "masks", border="keep", workers=1).n_made == 0


def test_label_images_after_a_kill_are_those_of_the_last_call(work, tmp_path, monkeypatch):
    segment_fields(work, tmp_path / "masks", border="keep", workers=1)
    whole = content(tmp_path / "masks")
    original, n_done = segment_module.segment_source, 0

    def dying(*arguments, **options):
        nonlocal n_done
        n_done += 1
        if n_done > 2:
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "segment_source", dying)
        with pytest.raises(Killed):
            segment_fields(work, tmp_path / "masks", border="cells", workers=1)
    segment_fields(work, tmp_path / "masks", border="keep", workers=1)
    after = content(tmp_path / "masks")
    assert {name: data for name, data in after.items() if name != "done.jsonl"} == {n: d for n, d in whole.items() if n != "done.jsonl"}


def test_only_one_writes_label_images(work, tmp_path, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    original = segment_module.segment_source

    def waiting(*arguments, **options):
        started.set()
        assert go_on.wait(30)
        return original(*arguments, **options)

    monkeypatch.setattr(segment_module, "segment_source", waiting)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(segment_fields, work, tmp_path / "masks", workers=1)
        assert started.wait(30)
        with pytest.raises(ValueError, match="expected to be the only one who writes"):
            segment_fields(work, tmp_path / "masks", workers=1)
        go_on.set()
        assert first.result().n_made == 5


# -- what is somebody's --------------------------------------------------------------------------------------------------

FOREIGN = {
    "thesis.tmp": b"years of work",
    "index-of-plates.parquet": b"plates",
    "shards/crops-train.npy": b"mine",
    "manifest.json": b'{"name": "another program"}',
    "manifest.json with a version": b'{"format_version": "1.0", "name": "another program"}',
    "manifest.json with a number": b'{"format_version": 2, "name": "another program"}',
    "manifest.json of the future": b'{"format_version": 3}',
    "manifest.json that is a list": b"[1, 2]",
    "quarantine.csv": b"plate,reason\nP1,fungus\n",
    "origin.json": b'{"origin": "of the samples"}',
    ".building/plan.txt": b"of the house",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_no_store_where_something_else_is(fields, tmp_path, name):
    path = tmp_path / "mine" / name.partition(" ")[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(FOREIGN[name])
    message = "expected format version 2, got 3" if "future" in name else "choose another folder"
    with pytest.raises(ValueError, match=message):
        extract(fields, tmp_path / "mine")
    with pytest.raises(ValueError, match=message):
        StoreWriter(tmp_path / "mine", (4, 4, 4), COLOURS, {})
    assert [(found, found.read_bytes()) for found in (tmp_path / "mine").rglob("*") if found.is_file()] == [(path, FOREIGN[name])]


def test_what_lies_beside_a_store_stays(work, tmp_path):
    folder = tmp_path / "store"
    extract(work, folder)
    mine = {".DS_Store": b"1", "README.txt": b"2", ".ipynb_checkpoints/x.ipynb": b"3", "index-of-plates.parquet": b"4", "shards/crops-train.npy": b"5", "shards/.DS_Store": b"6"}  # fmt: skip
    for name, data in mine.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    for path in work.glob(f"{ids_of(work)[0]}_*.png"):
        path.unlink()
    assert extract(work, folder).n_made == 0
    assert extract(work, folder, settings=ExtractSettings(crop_size=24)).n_made == 4
    after = content(folder)
    assert {name: after[name] for name in mine} == mine
    read_store(folder)


def test_an_address_with_something_else(fields, tmp_path):
    memory = fsspec.filesystem("memory")
    store = extract(fields, tmp_path / "store").store
    memory.pipe("/mine/manifest.json", b'{"name": "another program"}')
    with pytest.raises(ValueError, match="choose another address"):
        write_store_to(store, "memory://mine")
    assert memory.find("/mine") == ["/mine/manifest.json"] and memory.cat("/mine/manifest.json") == b'{"name": "another program"}'
    mine = {"/shared/index-of-plates.parquet": b"plates", "/shared/shards/crops-train.npy": b"mine", "/shared/README.txt": b"hello"}
    for name, data in mine.items():
        memory.pipe(name, data)
    for settings in (SMALL, ExtractSettings(crop_size=24), SMALL):
        write_store_to(extract(fields, tmp_path / "store", settings=settings).store, "memory://shared")
        assert {name: memory.cat(name) for name in mine} == mine
    assert len(memory.find("/shared")) == len(mine) + len(content(tmp_path / "store")) - 1  # origin.json is not sent


# -- what is told --------------------------------------------------------------------------------------------------------


def deepen(folder: Path, field_id: str, factor: int) -> None:
    """A field of 8 bits as one of 16, `factor` times as bright."""
    for colour in COLOURS:
        path = str(folder / f"{field_id}_{colour}.png")
        cv2.imwrite(path, cv2.imread(path, cv2.IMREAD_UNCHANGED).astype(np.uint16) * factor)


def test_fields_brighter_than_the_first_are_told(work, tmp_path):
    ids = ids_of(work)
    for place, field_id in enumerate(ids):
        deepen(work, field_id, 3 if place < 2 else 200)
    (tmp_path / "dim").mkdir()
    for field_id in ids[:2]:
        for colour in COLOURS:
            shutil.copy(work / f"{field_id}_{colour}.png", tmp_path / "dim")
    report = extract(tmp_path / "dim", tmp_path / "store")
    assert [note.partition(",")[0] for note in report.notes] == ["16-bit numbers are scaled to 8 bits as 10 bits"]
    for _ in range(2):
        report = extract(work, tmp_path / "store")
        assert any(note.startswith("3 fields with pixels brighter than the range of the crops") for note in report.notes), report.notes
    assert report.n_made == 0 and any("brighter" in line for line in str(report).splitlines())
    given = ExtractSettings(crop_size=16, bits=16)
    report = extract(work, tmp_path / "store", settings=given)
    assert report.n_made == 5 and not any("brighter" in note for note in report.notes)
    assert any("bits 10 -> 16" in note for note in report.notes), report.notes


@pytest.mark.parametrize("bits", [10, 16])
def test_with_bits_given_the_way_does_not_matter(work, tmp_path, small_shards, bits):
    ids, given = ids_of(work), ExtractSettings(crop_size=16, bits=bits)
    for place, field_id in enumerate(ids):
        deepen(work, field_id, 3 if place < 2 else 200)
    for field_id in ids[1:4]:
        (work / f"{field_id}_blue.png").rename(tmp_path / f"{field_id}_blue.png")
    extract(work, tmp_path / "store", settings=given)
    for field_id in ids[1:4]:
        (tmp_path / f"{field_id}_blue.png").rename(work / f"{field_id}_blue.png")
    assert extract(work, tmp_path / "store", settings=given).n_made == 3
    extract(work, tmp_path / "fresh", settings=given, workers=2)
    assert content(tmp_path / "store") == content(tmp_path / "fresh")


def test_a_rerun_tells_what_it_undoes(work, tmp_path, capsys):
    folder, other = tmp_path / "store", tmp_path / "other"
    extract(work, folder, labels=work / "labels.csv")
    labelled = content(folder)
    report = extract(work, folder)
    told = [note for note in report.notes if "without --labels it has none any more" in note]
    assert told and told[0] in capsys.readouterr().err and report.n_made == 0
    assert set(report.store.index["labels"]) == {""}
    assert extract(work, folder, labels=work / "labels.csv").notes == ()
    assert content(folder) == labelled
    other.mkdir()
    for path in work.glob(f"{ids_of(work)[0]}_*.png"):
        shutil.copy(path, other / f"new{path.name[path.name.index('_') :]}")
    with pytest.raises(ValueError, match="expected fields of the store .* got none of its 5 fields but new_5_00000: choose another folder"):
        extract(other, folder)
    assert content(folder) == labelled
    for field_id in ids_of(work)[1:]:
        for path in work.glob(f"{field_id}_*.png"):
            path.unlink()
    report = extract(work, folder, labels=work / "labels.csv")
    assert "4 fields of 5 are not there any more and leave the store" in report.notes
    assert report.store.fields["field_id"].tolist() == ids_of(work)
    sound(folder)


# -- many at once --------------------------------------------------------------------------------------------------------


def rewrite(folder, numbers) -> None:
    """A store of these fields, without sense, 2 crops each."""
    with StoreWriter(folder, (4, 4, 4), COLOURS, {}) as writer:
        for number in numbers:
            name = f"f{number:02d}"
            if name in writer:
                writer.reuse(name, "")
            else:
                cells = pd.DataFrame({"field_id": [name] * 2, "labels": [""] * 2})
                writer.add(name, {"field_id": name, "labels": ""}, cells, np.full((2, 4, 4, 4), number, np.uint8))
        writer.finish()


def test_a_reader_beside_a_writer_sees_one_of_the_states(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 300)
    states = [list(range(12)), list(range(0, 12, 3)), list(range(0, 12, 2)), list(range(3, 12))]
    folder, ended, seen = tmp_path / "store", threading.Event(), set()
    rewrite(folder, states[0])

    def read() -> int:
        n_read = 0
        while not ended.is_set():
            store = read_store(folder)
            numbers = [int(field_id[1:]) for field_id in store.fields["field_id"]]
            assert numbers in states
            assert store.crops(np.arange(len(store)))[:, 0, 0, 0].tolist() == [number for number in numbers for _ in range(2)]
            seen.add(len(numbers))
            n_read += 1
        return n_read

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        try:
            for turn in range(1, 30):
                rewrite(folder, states[turn % len(states)])
                if any(reader.done() for reader in readers):
                    break
        finally:
            ended.set()
        assert all(reader.result() > 0 for reader in readers)
    assert len(seen) > 1


@pytest.mark.parametrize("states", [[1, 2, 3], [1, 2, 1], [1, 2, 3, 1, 2, 3]])
def test_a_reader_that_is_overtaken_reads_again(tmp_path, monkeypatch, states):
    """Whenever a manifest has been read, the store becomes another before its files are, and may become what it was."""
    from hpacell.feed import store as store_module

    folder, coming = tmp_path / "store", list(states[1:])
    rewrite(folder, range(states[0]))
    original = store_module._open_store

    def overtaken(*arguments):
        if not coming:
            return original(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "_open_store", original)
            rewrite(folder, range(coming.pop(0)))
            try:
                return original(*arguments)
            finally:
                if coming:  # and once more before the reader asks what the store is now
                    rewrite(folder, range(coming.pop(0)))

    monkeypatch.setattr(store_module, "_open_store", overtaken)
    assert len(read_store(folder).fields) in states


def test_many_fetch_at_once(fields, tmp_path):
    store = extract(fields, tmp_path / "store").store
    address, cache = "memory://fetched/store", tmp_path / "cache"
    for settings in (SMALL, ExtractSettings(crop_size=24)):
        store = extract(fields, tmp_path / "store", settings=settings).store
        write_store_to(store, address)
        with ThreadPoolExecutor(4) as threads:
            folders = {future.result() for future in [threads.submit(fetch_store, address, cache) for _ in range(4)]}
        (folder,) = folders
        expected = {name: data for name, data in content(tmp_path / "store").items() if name != "origin.json"}
        assert content(folder) == expected
        read_store(folder)


def test_damage_at_an_address_is_told_and_mended(fields, tmp_path):
    memory, address = fsspec.filesystem("memory"), "memory://damaged/store"
    store = extract(fields, tmp_path / "store").store
    write_store_to(store, address)
    for kind in ("shards/crops-*", "shards/cells-*", "index-*", "fields-*"):
        name = memory.glob(f"/damaged/store/{kind}")[0]
        data = bytearray(memory.cat(name))
        data[len(data) // 2] ^= 4
        memory.pipe(name, bytes(data))
        cache = tmp_path / kind.replace("/", "").rstrip("*")
        with pytest.raises(ValueError, match="the copy there is damaged, send it again"):
            fetch_store(address, cache)
        with pytest.raises(FileNotFoundError):
            read_store(next(cache.iterdir()))
        write_store_to(store, address, verify=True)
        fetched = fetch_store(address, cache)
        np.testing.assert_array_equal(read_store(fetched).crops([0]), store.crops([0]))
        sound(fetched)


MANY_SHARDS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
import numpy as np, pandas as pd, pyarrow as pa
from hpacell.feed import writer as writer_module
from hpacell.feed.store import read_store
from hpacell.feed.verify import verify_store
from hpacell.feed.writer import StoreWriter
writer_module.SHARD_BYTES = 1
folder, compression, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = pa.table({"labels": [""]})
for turn in range(2):
    with StoreWriter(folder, (4, 4, 1), ("nucleus",), {}, compression) as writer:
        assert turn == len(writer.known_fields()) // n
        for i in range(n):
            if turn:
                writer.reuse(f"f{i:04d}", "")
            else:
                writer.add(f"f{i:04d}", {"field_id": f"f{i:04d}", "labels": ""}, rows, np.full((1, 4, 4, 1), i % 251, np.uint8))
        writer.finish()
store = read_store(folder)
assert len(store.manifest["shards"]) == n, len(store.manifest["shards"])
chosen = np.random.default_rng(0).permutation(n)
assert (store.crops(chosen)[:, 0, 0, 0] == chosen % 251).all()
for i in chosen[:300]:
    assert store.crops([i])[0, 0, 0, 0] == i % 251
assert verify_store(folder)
if sys.argv[4:] == ["feed"]:
    from hpacell.feed.gather import CropGatherer

    assert (CropGatherer(store, np.arange(n))(chosen)[:, 0, 0, 0] == chosen % 251).all()
print("well")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the number of open files cannot be set there")
@pytest.mark.parametrize(("compression", "feed"), [("none", ""), ("zstd", ""), ("none", "feed")])
def test_more_shards_than_files_may_be_open(tmp_path, compression, feed):
    fast = Path("/dev/shm")  # a thousand shards are some thousand waits for a real disk
    folder = tmp_path / "store" if not os.access(fast, os.W_OK) else fast / f"hpacell-{os.getpid()}-{compression}{feed}"
    try:
        words = [sys.executable, "-c", MANY_SHARDS, str(folder), compression, "600" if feed else "1150", *filter(None, [feed])]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
        assert done.stdout.strip() == "well", done.stderr
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- odd names -----------------------------------------------------------------------------------------------------------


def test_odd_reasons_and_names(tmp_path):
    odd = ["no file /data/f\udcff\ud800.png", "two\nlines\r\nand\u2028more\x85", 'quotes " and, commas', "NA", "nul\x00"]
    with StoreWriter(tmp_path / "store", (4, 4, 4), COLOURS, {}) as writer:
        writer.add("NA", {"field_id": "NA", "labels": ""}, pd.DataFrame({"field_id": ["NA"], "labels": [""]}), np.ones((1, 4, 4, 4), np.uint8))
        for place, reason in enumerate(odd):
            writer.quarantine(["None", "nan", "null", "-", "1"][place], reason)
        store = writer.finish()
    sound(tmp_path / "store")
    assert store.fields["field_id"].tolist() == store.index["field_id"].tolist() == ["NA"]
    assert store.quarantine["field_id"].tolist() == ["None", "nan", "null", "-", "1"]
    listed = pd.read_csv(tmp_path / "store" / "quarantine.csv", keep_default_na=False)
    assert listed["reason"].tolist()[:4] == store.quarantine["reason"].tolist()[:4]
    assert all(len(reason.splitlines()) == 1 for reason in store.quarantine["reason"])


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
@pytest.mark.parametrize("name", [b"two\nlines", b"Gl\xe4ser"])
def test_a_folder_whose_name_is_odd(work, tmp_path, name):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    work.rename(odd)
    ids = ids_of(Path(odd))
    for colour in COLOURS:
        os.rename(f"{odd}/{ids[0]}_{colour}.png", f"{odd}/NA_{colour}.png")
    table = pd.read_csv(f"{odd}/labels.csv", dtype=str)
    table.loc[table["ID"] == ids[0], "ID"] = "NA"
    table.to_csv(f"{odd}/labels.csv", index=False)
    Path(f"{odd}/{ids[1]}_green.png").write_bytes(b"no picture")
    Path(f"{odd}/{ids[2]}_red.png").unlink()
    report = extract(odd, tmp_path / "store", labels=f"{odd}/labels.csv")
    assert report.quarantine["field_id"].tolist() == ids[1:3] and report.unlabelled == ()
    assert "NA" in set(report.store.fields["field_id"]) and all(report.store.fields["labels"])
    sound(tmp_path / "store")
    assert extract(odd, tmp_path / "store", labels=f"{odd}/labels.csv").n_made == 0
    before = content(tmp_path / "store")
    flip(next((tmp_path / "store" / "shards").glob("crops-*")))
    repair_store(tmp_path / "store", workers=1)
    assert content(tmp_path / "store") == before


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
def test_a_store_whose_name_is_no_text(fields, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/Gl\xe4ser")
    extract(fields, folder)
    assert extract(fields, folder).n_made == 0
    sound(folder)


# -- fields at an address ------------------------------------------------------------------------------------------------


class ListingCacheFileSystem(MemoryFileSystem):
    """Keeps listings for ever and answers from them, as file systems of object stores do."""

    protocol = "listed"
    store: dict = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("listed:/"))

    def unstrip_protocol(self, name):
        return f"listed:/{name}"

    find = AbstractFileSystem.find

    def ls(self, path, detail=True, **options):
        path = self._strip_protocol(path).rstrip("/")
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **options)
        entries = self.dircache[path]
        return entries if detail else sorted(entry["name"] for entry in entries)

    def info(self, path, **options):
        path = self._strip_protocol(path)
        parent = path.rsplit("/", 1)[0]
        if parent in self.dircache:
            found = [entry for entry in self.dircache[parent] if entry["name"] == path]
            if not found:
                raise FileNotFoundError(path)
            return found[0]
        return super().info(path, **options)

    def exists(self, path, **options):
        try:
            return bool(self.info(path))
        except FileNotFoundError:
            return False

    def invalidate_cache(self, path=None):
        if path is None:
            self.dircache.clear()
        else:
            path = self._strip_protocol(path)
            while path:
                self.dircache.pop(path, None)
                path = path.rpartition("/")[0]


fsspec.register_implementation("listed", ListingCacheFileSystem, clobber=True)


def put(address: str, data: bytes) -> None:
    """An object that another program sends: no listing of this process knows of it."""
    name = ListingCacheFileSystem._strip_protocol(address)
    other = ListingCacheFileSystem(skip_instance_cache=True)
    other.pipe_file(name, data)


@pytest.mark.parametrize("protocol", ["memory", "listed"])
@pytest.mark.parametrize("way", ["folder", "pattern", "deep pattern", "table"])
def test_what_changes_at_an_address_is_seen(work, tmp_path, protocol, way):
    send = put if protocol == "listed" else lambda address, data: fsspec.filesystem("memory").pipe(address, data)
    root = f"{protocol}://changing-{way.replace(' ', '-')}/fields"
    below = "{}_{}.png" if way != "deep pattern" else "{}/{}.png"
    ids = ids_of(work)

    def send_field(field_id, source=None):
        for colour in COLOURS:
            send(f"{root}/{below.format(field_id, colour)}", (work / f"{source or field_id}_{colour}.png").read_bytes())

    for field_id in ids[:2]:
        send_field(field_id)
    options = {} if way in ("folder", "table") else {"pattern": below.format("{field_id}", "{channel}")}

    def run():
        if way == "table":
            rows = [{"field_id": field_id, **{colour: f"{root}/{field_id}_{colour}.png" for colour in COLOURS}} for field_id in sent]
            pd.DataFrame(rows).to_csv(tmp_path / "paths.csv", index=False)
            return extract(tmp_path / "paths.csv", tmp_path / "store", **options)
        return extract(root, tmp_path / "store", **options)

    sent = ids[:2]
    if way == "table" and protocol == "listed":
        fsspec.filesystem("listed").ls(ListingCacheFileSystem._strip_protocol(root))  # as a look into the folder would do
    assert run().n_made == 2
    assert run().n_made == 0
    send_field(ids[2])
    sent = ids[:3]
    report = run()
    assert report.n_made == 1 and len(report.quarantine) == 0 and report.store.fields["field_id"].tolist() == ids[:3]
    send_field(ids[1], source=ids[3])
    assert run().n_made == 1
    fresh = extract(tmp_path / "paths.csv" if way == "table" else root, tmp_path / "fresh", **options)
    assert content(tmp_path / "store") == content(Path(fresh.store.folder))


def test_a_store_at_an_address_that_keeps_listings(fields, tmp_path, monkeypatch):
    monkeypatch.setenv("HPACELL_PATHS_CACHE", str(tmp_path / "cache"))
    address = "listed://stores/one"
    with pytest.raises(FileNotFoundError):
        fetch_store(address, tmp_path / "fetched")
    for settings in (SMALL, ExtractSettings(crop_size=24)):
        store = extract(fields, address, settings=settings).store
        fsspec.filesystem("listed").ls("/stores/one")
        folder = fetch_store(address, tmp_path / "fetched")
        assert content(folder)["manifest.json"] == content(store.folder)["manifest.json"]
    # Another machine brings it up to date while this one still has the listing.
    other = ListingCacheFileSystem(skip_instance_cache=True)
    newer = extract(fields, tmp_path / "newer").store
    for path in Path(newer.folder).rglob("*"):
        if path.is_file() and path.name not in (".lock", "signatures.json", "origin.json"):
            other.pipe_file(f"/stores/one/{path.relative_to(newer.folder).as_posix()}", path.read_bytes())
    folder = fetch_store(address, tmp_path / "fetched")
    assert json.loads(content(folder)["manifest.json"]) == newer.manifest
