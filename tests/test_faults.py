"""Real processes and real disks: a part of what `make torture` does, a bucket, and many small fields."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from torture import (
    COLOURS,
    DifferenceError,
    Place,
    Runner,
    can_mount,
    changed_field_trial,
    check_same,
    content,
    damage_trial,
    du,
    full_disk_trial,
    kill_trial,
    read_only_trial,
    two_writers_trial,
    unfinished_trial,
)

from hpacell.feed.journal import BUILDING_NAME
from hpacell.feed.remote import fetch_store, write_store_to
from hpacell.feed.shards import file_checksum
from hpacell.feed.store import manifest_files, read_manifest, read_store
from hpacell.feed.verify import verify_store
from hpacell.pipeline import extract as extract_module
from hpacell.pipeline.extract import ExtractSettings, extract_fields

SMALL = ExtractSettings(crop_size=32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dozen small fields, what an unbroken run makes of them, and a server of processes."""
    folder = tmp_path_factory.mktemp("faults")
    runner = Runner(folder)
    yield Place(folder, runner, n_fields=12)
    runner.close()


@pytest.fixture(scope="module")
def disks(place):
    """The same, where disks can be made."""
    if not can_mount(place.folder):
        pytest.skip("mounting a tmpfs is not allowed here: run the tests as root to fill a disk")
    return place


@pytest.mark.parametrize(("workers", "n"), [(1, 8), (2, 3)])
def test_a_killed_run_is_taken_up(place, workers, n):
    n_kills = trial = 0
    while n_kills < n:
        n_kills += len(kill_trial(place, f"killed-{workers}-{trial}", 100 * workers + trial, workers, former=trial % 3 == 1, times=(3,)))
        trial += 1


def test_a_second_writer_refuses(place):
    assert two_writers_trial(place, "two") == ["extract: refuses", "verify --repair: refuses", "the first: same bytes"]


@pytest.mark.parametrize(("after", "manner"), [(2, "rename"), (len(COLOURS), "in place, with the old time")])
def test_a_field_that_changes_while_it_is_read(place, after, manner):
    assert changed_field_trial(place, f"changed-{after}", after, manner) == "quarantined, then taken"


@pytest.mark.parametrize(("kind", "how"), [("crops", "flip"), ("crops", "flip at the start"), ("cells", "delete"), ("manifest", "cut"), ("origin", "cut")])
def test_damage_and_the_commands(place, kind, how):
    assert damage_trial(place, kind, how, seed=1).startswith("mended")


def test_damaged_sums_are_mended(place):
    assert damage_trial(place, "signatures", "empty", seed=1) == "mended"


@pytest.mark.parametrize(("kind", "how"), [("journal", "cut"), ("open crops", "flip"), ("crops", "cut")])
def test_damage_before_the_end(place, kind, how):
    assert unfinished_trial(place, kind, how, seed=2) == "same bytes"


@pytest.mark.parametrize(("share", "former"), [(0.02, False), (0.5, False), (0.5, True), (0.9, True)])
def test_a_full_disk(disks, share, former):
    size = int(du(disks.folder / "whole") * share)
    assert full_disk_trial(disks, f"full-{share}-{former}", size, former) == "one sentence, then the same bytes"


def test_a_disk_that_cannot_be_written(disks):
    assert len(read_only_trial(disks)) == 5


def test_the_trials_see_a_difference(place):
    store = place.copy("different")
    (store / "stray").write_bytes(b"")
    with pytest.raises(DifferenceError, match="other bytes in stray"):
        check_same(store, place.expected, "a stray file")


def test_what_a_store_leaves(place):
    """Every file is named by the manifest or known, under a name that is its checksum; another folder makes the same."""
    whole = place.folder / "whole"
    manifest = read_manifest(whole)
    named = {entry["name"]: entry["xxh3_128"] for entry in manifest_files(manifest)}
    assert len(manifest["shards"]) > 3
    for name, total in named.items():
        assert file_checksum(whole / name) == total and total[:16] in name
    known = {"manifest.json", "quarantine.csv", "origin.json", "signatures.json", ".lock"}
    found = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert found - known == set(named)
    moved = place.folder / "moved"
    shutil.copytree(place.fields, moved)
    words = ["extract", moved, "--labels", moved / "labels.csv", "--out", place.folder / "from-moved", "--size", 32, "--workers", 1]
    assert place.runner.run(*words).wait() == place.code
    place.runner.cut()
    other = content(place.folder / "from-moved")
    assert {name for name in found if name.startswith("shards/") and other.get(name) != place.expected[name]} == set()


@pytest.mark.parametrize("name", ["origin.json", "manifest.json", "quarantine.csv", "signatures.json"])
def test_a_half_written_file_is_taken_away(place, name):
    """What a kill leaves of a file that was about to get its name."""
    store = place.copy(f"half-{name}")
    (store / f".{name}.0123abcd.tmp").write_bytes(b"{")
    assert place.extract(store).wait() == place.code
    check_same(store, place.expected, f"a half-written {name}")
    assert place.runner.cut() == []


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An S3 server in this process; the address of a bucket."""
    moto = pytest.importorskip("moto.server", reason="no S3 server: install the extra dev")
    pytest.importorskip("s3fs", reason="no S3 client: install the extra dev")
    import fsspec

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    patch = pytest.MonkeyPatch()
    host, port = server.get_host_and_port()
    patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"})
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3").mkdir("cells")
    yield "s3://cells"
    patch.undo()
    server.stop()


def test_a_store_in_a_bucket(place, bucket, tmp_path, monkeypatch):
    import fsspec

    address, system = f"{bucket}/stores/whole", fsspec.filesystem("s3")
    arguments = {"labels": place.fields / "labels.csv", "settings": SMALL, "workers": 1}
    monkeypatch.setattr("hpacell.feed.writer.SHARD_BYTES", 200_000)
    monkeypatch.setenv("HPACELL_PATHS_CACHE", str(tmp_path / "cache"))
    # The line goes dead in the middle: nothing can be opened there; the same again sends the rest.
    put, n_put = system.put_file, 0

    def dying(source, target, **options):
        nonlocal n_put
        n_put += 1
        if n_put == 4:
            raise ConnectionError("the line is dead")
        return put(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(system, "put_file", dying)
        with pytest.raises(ConnectionError):
            extract_fields(place.fields, address, **arguments)
    with pytest.raises(FileNotFoundError, match="expected a crop store"):
        fetch_store(address, tmp_path / "early")
    assert extract_fields(place.fields, address, **arguments).n_made == 0
    fetched = Path(fetch_store(address, tmp_path / "fetched"))
    assert verify_store(fetched)
    shards = {name: data for name, data in content(fetched).items() if name.startswith("shards/")}
    assert shards == {name: data for name, data in place.expected.items() if name.startswith("shards/")}
    # An object that is shorter than it should be is sent again.
    name = next(name for name in shards if "crops-" in name)
    system.pipe_file(f"{address}/{name}", shards[name][:100])
    write_store_to(read_store(fetched), address)
    assert system.cat_file(f"{address}/{name}") == shards[name]
    # Another machine, which has no cache: what the bucket holds is taken over.
    monkeypatch.setenv("HPACELL_PATHS_CACHE", str(tmp_path / "elsewhere"))
    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "cut_field", None)
        report = extract_fields(place.fields, address, **arguments)
    assert report.n_made == 0 and len(report.store.fields) == place.n_fields - place.bad
    monkeypatch.setenv("HPACELL_PATHS_CACHE", str(tmp_path / "unfinished"))
    built = next((tmp_path / "cache").glob("building-*")).name  # a run that was killed here while another machine went on
    (tmp_path / "unfinished" / built / BUILDING_NAME).mkdir(parents=True)
    assert extract_fields(place.fields, address, **arguments).n_made == 0


def write_many(folder: Path, n: int) -> Path:
    """Fields of one channel and 8 x 8 pixels."""
    folder.mkdir()
    _, whole = cv2.imencode(".png", np.zeros((8, 8), np.uint8))
    for number in range(n):
        (folder / f"f{number:05d}.png").write_bytes(whole.tobytes())
    return folder


@pytest.mark.slow
def test_a_rerun_over_many_fields_reads_none(tmp_path, monkeypatch):
    fields = write_many(tmp_path / "fields", 5000)
    arguments = {"settings": SMALL, "channels": ["nucleus"], "workers": 1}
    assert extract_fields(fields, tmp_path / "store", **arguments).n_made == 5000
    before = content(tmp_path / "store")
    monkeypatch.setattr(extract_module, "read_field", None)
    report = extract_fields(fields, tmp_path / "store", **arguments)
    assert report.n_made == 0 and report.n_fields == 5000 and "all was there already" in str(report)
    assert content(tmp_path / "store") == before
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["n_fields"] == 5000
