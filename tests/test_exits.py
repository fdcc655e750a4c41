"""How processes end: with the promised code, whatever threads of libraries do, and with all that was due at the end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpacell.exits import BROKEN_PIPE, arrow_buffer, flush_output

# A thread of Arrow's that reads from an object of Python's for ever, and an interpreter that takes long to take itself
# apart: the thread asks for its lock meanwhile, always. (In real processes it is a matter of microseconds.)
HAZARD = """
import sys, threading, time
import pyarrow as pa
import pyarrow.csv

class Endless:
    closed = False

    def read(self, size=-1):
        reading.set()
        time.sleep(0.005)
        return b"a,b\\n1,2\\n"

    def readable(self):
        return True

class Lasting:
    def __del__(self, sleep=time.sleep):
        sleep(1)

reading = threading.Event()
threading.Thread(target=lambda: pa.csv.read_csv(pa.PythonFile(Endless(), mode="r")), daemon=True).start()
reading.wait()
sys.lasting = Lasting()
"""
COMMAND = "import runpy, sys; sys.argv = ['hpacell', 'verify', '/no/store']; runpy.run_module('hpacell', run_name='__main__', alter_sys=True)"
SCRIPT = "import sys; sys.argv = ['hpacell', 'verify', '/no/store']; from hpacell.cli import main; sys.exit(main())"


def python(root: Path, code: str, **options) -> subprocess.CompletedProcess:
    """Run code in a fresh Python that buffers what it prints, as it does by default."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run([sys.executable, "-c", code], env=environment, text=True, stderr=subprocess.PIPE, **{"stdout": subprocess.PIPE, **options})


@pytest.mark.parametrize("way", [COMMAND, SCRIPT])
def test_a_thread_of_a_library_does_not_change_the_exit_code(root, way):
    done = python(root, HAZARD + way)
    assert done.returncode == 2, done
    assert done.stderr.startswith("hpacell: expected a crop store, got /no/store") and "terminate" not in done.stderr


def test_the_hazard_is_one(root):
    """Python's own end does abort there, so the test above can fail."""
    assert python(root, HAZARD + "sys.exit(2)").returncode == -signal.SIGABRT


def test_a_run_of_a_sweep_ends_by_itself(root, tmp_path):
    from hpacell.pipeline.sweep import _job

    command = _job(tmp_path / "no-run").command
    done = python(root, HAZARD + f"sys.argv = ['-c', {command[3]!r}]\nexec({command[2]!r})", input="")
    assert done.returncode in (1, 128 + signal.SIGTERM), done  # no run there; or its closed input told it that nobody waits
    assert "terminate" not in done.stderr


def test_what_is_due_at_the_end_is_done(root, tmp_path):
    code = f"""
import atexit, concurrent.futures, gc, multiprocessing, os, tempfile, threading, time
from hpacell.exits import end_process

class Circle:  # only freed by a collection
    def __init__(self):
        self.own = self

    def __del__(self):
        with open({str(tmp_path / "file")!r}, "w") as file:
            file.write("written")

Circle()
gc.disable()
folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r}, prefix="temporary-")
atexit.register(print, "first registered")
atexit.register(print, "last registered")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
child = multiprocessing.get_context("fork").Process(target=lambda: (time.sleep(0.5), open({str(tmp_path / "child")!r}, "w").close()))
child.start()
pool = concurrent.futures.ThreadPoolExecutor(1)
pool.submit(lambda: (time.sleep(0.3), open({str(tmp_path / "pool")!r}, "w").close()))
print("printed")
end_process(7)
"""
    done = python(root, "import warnings; warnings.simplefilter('ignore')\n" + code)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.split("\n") == ["printed", "thread", "last registered", "first registered", ""]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "file", "pool"]
    assert (tmp_path / "file").read_text() == "written"


def test_an_error_at_the_end_is_told_and_the_rest_is_done(root):
    code = "import atexit; from hpacell.exits import end_process; atexit.register(print, 'rest'); atexit.register(lambda: 1 / 0); end_process(1)"
    done = python(root, code)
    assert (done.returncode, done.stdout) == (1, "rest\n") and "ZeroDivisionError" in done.stderr


def test_output_that_nobody_reads(root):
    """As in `hpacell runs --help | true`, but sure: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    words = "from hpacell.cli import main; import sys; sys.argv = ['hpacell', 'runs', '--help']; main()"
    try:
        done = python(root, words, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")


def test_a_command_whose_reader_leaves(root):
    """The pipe breaks while the command prints, not at its end."""
    read, write = os.pipe()
    os.close(read)
    words = (
        "import sys; import hpacell.cli as cli; cli.COMMANDS['runs'] = lambda parsed: [print('line', flush=True) for _ in range(3)]; "
        "sys.argv = ['hpacell', 'runs']; cli.main()"
    )
    try:
        done = python(root, words, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_that_finds_no_space(root):
    with open("/dev/full", "w") as full:
        done = python(root, "from hpacell.exits import end_process; print('x'); end_process(0)", stdout=full)
    assert done.returncode == 2 and done.stderr.startswith("hpacell: expected to write all of the output, got ") and done.stderr.count("\n") == 1


def test_words_that_are_given_leave_the_process_alone(capsys):
    from hpacell.cli import main

    assert main(["runs", "--help"]) == 0 and main(["no-such-command"]) == 2
    assert "usage: hpacell runs" in capsys.readouterr().out


def test_streams_that_are_missing_or_closed(tmp_path):
    closed = open(tmp_path / "file", "w")
    closed.close()
    assert flush_output(None) == flush_output(closed) == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", bytes(range(256)) * 1000])
def test_memory_of_arrow(content):
    """The bytes are Arrow's: the ones they were copied from are free at once."""
    import pyarrow as pa

    mutable = bytearray(content)
    buffer = arrow_buffer(mutable)
    mutable.clear()  # a BufferError while anybody holds it
    assert buffer.to_pybytes() == content and pa.BufferReader(buffer).read() == content


def test_tables_are_read_from_memory_of_arrow(tmp_path, monkeypatch):
    """No thread of Arrow's may hold an object of Python's that a table is read from."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hpacell.feed.parts import read_rows
    from hpacell.files import read_table, write_table

    write_table(tmp_path / "table.parquet", pd.DataFrame({"a": [1, 2]}))
    sources = []
    opened = pq.ParquetFile.__init__

    def note(self, source, *arguments, **options):
        sources.append(source)
        opened(self, source, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "__init__", note)
    assert read_rows(tmp_path / "table.parquet").num_rows == 2
    monkeypatch.setattr(pd, "read_parquet", lambda source: sources.append(source) or pd.DataFrame({"a": [1, 2]}))
    assert len(read_table(tmp_path / "table.parquet")) == 2
    assert [type(source) for source in sources] == [pa.BufferReader] * 2
    assert not any(isinstance(source, pa.PythonFile) for source in sources)


def test_what_is_lost_in_a_broken_pipe_is_no_error(root):
    """A long text goes past the buffer: nothing is left to be flushed when the command ends."""
    read, write = os.pipe()
    os.close(read)
    words = "import sys; import hpacell.cli as cli; cli.COMMANDS['runs'] = lambda parsed: print('line ' * 100_000); sys.argv = ['hpacell', 'runs']; cli.main()"
    try:
        done = python(root, words, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")


def test_another_pipe_that_breaks_is_an_error(root):
    words = (
        "import sys; import hpacell.cli as cli; import os; r, w = os.pipe(); os.close(r); "
        "cli.COMMANDS['runs'] = lambda parsed: os.write(w, b'x'); sys.argv = ['hpacell', 'runs']; cli.main()"
    )
    done = python(root, words)
    assert done.returncode == 2 and "Broken pipe" in done.stderr
