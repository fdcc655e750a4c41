"""Files, settings and vocabulary: properties and faults."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpacell.files import (
    fingerprint,
    join_path,
    list_files,
    path_exists,
    read_bytes,
    read_json,
    read_table,
    write_atomic,
    write_json,
    write_table,
)  # fmt: skip
from hpacell.settings import read_settings
from hpacell.vocabulary import LOCATIONS, decode_labels, encode_labels, format_labels, parse_labels


@given(st.lists(st.binary(max_size=8), max_size=5), st.lists(st.binary(max_size=8), max_size=5))
def test_fingerprints_differ_where_parts_differ(first, second):
    assert (fingerprint(*first) == fingerprint(*second)) == (first == second)


@given(st.lists(st.sets(st.sampled_from(LOCATIONS)), max_size=6))
def test_labels_round_trip(rows):
    ordered = [tuple(location for location in LOCATIONS if location in row) for row in rows]
    assert decode_labels(encode_labels(ordered)) == ordered
    assert [parse_labels(format_labels(row)) for row in ordered] == ordered
    numbers = ["|".join(str(LOCATIONS.index(label)) for label in row) for row in ordered]
    np.testing.assert_array_equal(encode_labels(numbers), encode_labels(ordered))


def test_memory_addresses():
    folder = "memory://files-test"
    write_json(join_path(folder, "a.json"), {"x": np.int64(1)})
    with write_atomic(join_path(folder, "b.csv"), "w") as file:
        file.write("x,y\n1,2\n")
    assert [path.rsplit("/", 1)[1] for path in list_files(folder)] == ["a.json", "b.csv"]
    assert read_json(join_path(folder, "a.json")) == {"x": 1}
    assert read_table(join_path(folder, "b.csv"))["y"].tolist() == [2]
    assert path_exists(join_path(folder, "b.csv")) and not path_exists(join_path(folder, "c.csv"))
    with pytest.raises(FileNotFoundError):
        list_files("memory://nowhere")


def test_an_interrupted_remote_write_leaves_nothing():
    with pytest.raises(KeyboardInterrupt):
        with write_atomic("memory://files-test/half.bin") as file:
            file.write(b"half")
            raise KeyboardInterrupt
    assert not path_exists("memory://files-test/half.bin")


def test_a_killed_write_leaves_the_former_version(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("former")
    code = f"""
import os, signal
from hpacell.files import write_atomic
with write_atomic({str(path)!r}, "w") as file:
    file.write("new" * 100000); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert path.read_text() == "former"


def test_damaged_tables_are_named(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="bad.parquet: expected a .parquet table"):
        read_table(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="expected a .parquet or .csv path"):
        write_table(tmp_path / "table.xlsx", None)


def test_settings_precedence(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nruns = here\ndata = /abs\n[engine]\nworkers = 3\n")
    inside = tmp_path / "deep"
    inside.mkdir()
    found = read_settings(inside, environ={})
    assert (found.paths_runs, found.paths_data, found.engine_workers) == (str(tmp_path / "here"), "/abs", 3)
    assert found.serve_port == 8050
    found = read_settings(inside, environ={"HPACELL_ENGINE_WORKERS": "5", "HPACELL_PATHS_RUNS": "env"})
    assert (found.paths_runs, found.engine_workers) == ("env", 5)
    assert read_settings(inside, {"engine_workers": 7}, {"HPACELL_ENGINE_WORKERS": "5"}).engine_workers == 7
    (tmp_path / "settings.ini").write_text("[engine]\nworkres = 3\n")
    with pytest.raises(ValueError, match=r"settings.ini: expected a known setting.*engine_workers"):
        read_settings(inside, environ={})
    (tmp_path / "settings.ini").write_text("no section\n")
    with pytest.raises(ValueError, match="expected an INI file"):
        read_settings(inside, environ={})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_json(tmp_path / "a.json", {})


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "nothing.png")


def test_fingerprints_stay_what_they_were():
    assert fingerprint(b"ab", "c", {"x": 1}) == "e583eee2c17f1fc538808e356be99273"
    assert fingerprint(b"ab", b"c") != fingerprint(b"a", b"bc")
