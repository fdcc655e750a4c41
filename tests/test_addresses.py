"""Addresses of buckets as paths: read and written there, or refused in one sentence; never a local folder called s3:."""

from pathlib import Path

import fsspec
import nbformat
import numpy as np
import pytest

from hpacell.cli import main
from hpacell.feed import fetch as fetch_module
from hpacell.feed.store import read_store
from hpacell.feed.verify import verify_store
from hpacell.fields.simulate import simulate_fields
from hpacell.locks import own_folder
from hpacell.pipeline.extract import ExtractSettings, extract_fields
from hpacell.pipeline.templates import list_workflows, workflow_folder
from hpacell.pipeline.values import check_values

SMALL = ExtractSettings(crop_size=16)


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    simulate_fields(folder, n_fields=3, seed=2, size=(128, 128))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder with a cache of its own; nothing in it may be called like an address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPACELL_PATHS_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    assert not [path.name for path in tmp_path.rglob("*:")]


@pytest.fixture(scope="module")
def bucket():
    """An S3 server in this process; the address of a bucket."""
    moto = pytest.importorskip("moto.server", reason="no S3 server: install the extra dev")
    pytest.importorskip("s3fs", reason="no S3 client: install the extra dev")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    patch = pytest.MonkeyPatch()
    host, port = server.get_host_and_port()
    patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"})
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3").mkdir("doors")
    yield "s3://doors"
    patch.undo()
    server.stop()


def test_a_store_in_a_bucket_is_opened_by_its_address(fields, bucket, place, capsys):
    address = f"{bucket}/store"
    assert main(["extract", str(fields), "--labels", str(fields / "labels.csv"), "--out", address, "--size", "16", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert f" in {address} (" in shown and "building-" not in shown
    store = read_store(address)
    assert store.address == address and store.folder.startswith(str(place / "cache"))
    here = extract_fields(fields, place / "here", labels=fields / "labels.csv", settings=SMALL, workers=1).store
    np.testing.assert_array_equal(store.crops(range(len(store))), here.crops(range(len(here))))
    assert main(["verify", address]) == 0 and f"{address}: sound" in capsys.readouterr().out
    assert here.address == here.folder


def test_damage_in_a_bucket_is_told_with_a_remedy_that_mends_it(fields, bucket, place, capsys, monkeypatch):
    address, system = f"{bucket}/damaged", fsspec.filesystem("s3")
    words = ["extract", str(fields), "--out", address, "--size", "16", "--workers", "1"]
    assert main(words) == 0
    name = read_store(address).manifest["shards"][0]["name"]
    data = bytearray(system.cat_file(f"{address}/{name}"))
    data[-1] ^= 1
    system.pipe_file(f"{address}/{name}", bytes(data))
    capsys.readouterr()
    assert main(["verify", address]) == 1
    assert f"{name}: expected checksum" in (shown := capsys.readouterr().out) and "delete what is named there, and run hpacell extract with the same --out again" in shown
    assert main(["verify", address, "--repair"]) == 2
    assert "delete there what hpacell verify names" in capsys.readouterr().err
    system.rm_file(f"{address}/{name}")
    assert [tuple(row) for row in verify_store(address).problems.to_numpy()] == [(name, "missing")]
    assert main(words) == 0 and main(["verify", address]) == 0
    # From a machine that has no copy the whole store is made again.
    system.rm_file(f"{address}/{name}")
    monkeypatch.setenv("HPACELL_PATHS_CACHE", str(place / "elsewhere"))
    assert main(words) == 0 and main(["verify", address]) == 0


def test_what_is_not_at_an_address_leaves_nothing_in_the_cache(place):
    with pytest.raises(FileNotFoundError, match="make one with hpacell extract"):
        read_store("memory://nothing/there")
    assert not (place / "cache").exists()


def test_fields_of_another_store_are_told_with_its_address(fields, place, capsys):
    simulate_fields(place / "other", n_fields=1, seed=9, size=(128, 128))
    (place / "third").mkdir()
    for path in (place / "other").glob("*.png"):
        path.rename(place / "third" / f"z{path.name}")
    address = "memory://addresses/told"
    assert main(["extract", str(fields), "--out", address, "--size", "16", "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["extract", str(place / "third"), "--out", address, "--size", "16", "--workers", "1"]) == 2
    assert f"the store in {address}," in (shown := capsys.readouterr().err) and "building-" not in shown


def run_cells(workflow: str, **values) -> dict:
    """The names after all cells of a workflow with other parameters, without figures."""
    names = {"display": lambda *_: None}
    for number, cell in enumerate(cell for cell in nbformat.read(workflow_folder() / f"{workflow}.ipynb", as_version=4).cells if cell.cell_type == "code"):
        exec(compile(cell.source, workflow, "exec"), names)
        if number == 0:
            names |= values
    return names


def test_results_of_a_workflow_go_to_the_address(fields, place, monkeypatch):
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda *_, **__: None)
    out, store = "memory://results/out", "memory://results/store"
    run_cells("extract", fields=str(fields), store=store, out=out, crop_size=16, workers=1)
    system = fsspec.filesystem("memory")
    assert f'"store": "{store}"'.encode() in system.cat("/results/out/metrics_extract.json")
    run_cells("simulate", fields="memory://results/fields", n_fields=2, size=128, workers=1, out=out)
    assert system.exists("/results/out/metrics_simulate.json") and system.exists("/results/fields/truth/cells.csv")


@pytest.mark.parametrize("workflow", list_workflows())
def test_no_workflow_joins_its_out_as_a_local_path(workflow):
    code = "\n".join(cell.source for cell in nbformat.read(workflow_folder() / f"{workflow}.ipynb", as_version=4).cells if cell.cell_type == "code")
    joined = "Path(out" in code or "os.path.join(out" in code
    assert not joined or "check_local(given" in code or "check_local(out" in code or "if not is_remote(out):" in code
    assert "Path(model_folder" not in code or "check_local(model_folder" in code or "(model_folder, " in code


@pytest.mark.parametrize(
    ("step", "name"),
    [("tissue", "out"), ("tissue", "model_folder"), ("train_classifier", "model_folder"), ("train_segmenter", "model_folder"), ("predict", "predictions")],
)
def test_local_results_are_refused_before_a_run_begins(step, name, place, capsys):
    with pytest.raises(ValueError, match=f"^{step}: expected a local folder for .*s3://b/x"):
        check_values({step: {name: "s3://b/x"}})
    (place / f"{step}.yaml").write_text(f"{name}: s3://b/x\n")
    assert main(["run", f"{step}.yaml"]) == 2 and not (place / "runs").exists()
    assert "expected a local folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["segment", "FIELDS", "--out", "s3://b/x"], ["export", "STORE", "--to", "png", "--out", "s3://b/x"], ["train", "STORE", "--out", "s3://b/x"],
        ["import", "FIELDS", "--out", "s3://b/x"], ["convert", "FIELDS", "s3://b/x"], ["predict", "FIELDS", "--model", "m", "--out", "s3://b/x"],
        ["runs", "--runs", "s3://b/x"], ["compare", "a", "--out", "s3://b/x.html"], ["compare", "a", "--runs", "s3://b/x"],
        ["explore", "FIELDS", "--runs", "s3://b/x"], ["demo", "--runs", "s3://b/x"], ["run", "--resume", "s3://b/x"], ["sweep", "--resume", "a", "--runs", "s3://b/x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_commands_write_no_folder_called_s3(words, fields, place, capsys):
    extract_fields(fields, place / "store", labels=fields / "labels.csv", settings=SMALL, workers=1)
    words = [{"FIELDS": str(fields), "STORE": str(place / "store")}.get(word, word) for word in words]
    assert main(words) == 2
    assert "expected a local folder for" in capsys.readouterr().err


def test_a_lock_is_for_local_folders(place):
    with pytest.raises(ValueError, match="expected a local folder"), own_folder("s3://b/x"):
        pass


def test_a_cache_is_local(place, monkeypatch):
    monkeypatch.setenv("HPACELL_PATHS_CACHE", "s3://b/cache")
    monkeypatch.setattr(fetch_module, "read_manifest", lambda address: {})
    with pytest.raises(ValueError, match="expected a local folder for copies of stores, got s3://b/cache"):
        read_store("memory://any")
