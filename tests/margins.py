"""A plug-in of pytest that writes down how near each numeric comparison came to its limit.

`tests/variants.py` runs the tests with it. Every comparison in an `assert` of a test with a number as its limit
(``assert error.mean() < 0.01``), every `pytest.approx` and every `np.testing.assert_allclose` becomes a line of JSON in
the file that ``HPACELL_MARGINS`` names: where it stands, what was measured, the limit, and how much of the limit is used
(1 is all). ``HPACELL_SEED_OFFSET`` is added to every seed that is set for Keras.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
from _pytest.assertion import rewrite

# Test modules that are compiled with a hook in each assert: kept apart from those of other runs.
rewrite.PYC_TAIL = f"-margins{rewrite.PYC_TAIL}"

TESTS = Path(__file__).parent
FOUND: list[dict] = []
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
COMPARISON = re.compile(rf"(?:np\.\w+\()?({NUMBER})\)? (<=|>=|<|>) ({NUMBER})(?![\w.])")
APPROXIMATION = re.compile(rf"(?:np\.\w+\()?({NUMBER})\)? == ({NUMBER}) ± ({NUMBER})")


def note(where: str, line: int, measured: float, op: str, limit: float, used: float) -> None:
    FOUND.append({"where": f"{where}:{line}", "measured": measured, "op": op, "limit": limit, "used": round(float(used), 4)})


def share_used(measured: float, op: str, limit: float) -> float:
    """How much of a limit is used: 1 all of it, 0.5 the half."""
    small, large = (abs(measured), abs(limit)) if op[0] == "<" else (abs(limit), abs(measured))
    return small / large if large else float(small > 0)


def pytest_assertion_pass(item, lineno, orig, expl):
    """Comparisons with a number that stands in the source; counts, which are whole, are no measurements."""
    lines = item.path.read_text().splitlines()
    if len(lines) < lineno or "assert" not in lines[lineno - 1]:
        return  # another module's: hypothesis has asserts of its own
    for measured, op, limit in COMPARISON.findall(expl):
        if re.search(rf"{re.escape(op)} [^<>=]*{re.escape(limit)}", orig) and ("." in measured or "e" in measured):
            note(item.path.name, lineno, float(measured), op, float(limit), share_used(float(measured), op, float(limit)))
    for measured, expected, tolerance in APPROXIMATION.findall(expl):
        off, tolerance = abs(float(measured) - float(expected)), float(tolerance)
        note(item.path.name, lineno, off, "±", tolerance, off / tolerance if tolerance else float(off > 0))


def pytest_configure(config):
    compare = np.testing.assert_allclose

    def noting(actual, desired, rtol=1e-7, atol=0, *arguments, **options):
        compare(actual, desired, rtol, atol, *arguments, **options)
        frame = sys._getframe(1)
        if Path(frame.f_code.co_filename).parent == TESTS and np.size(actual):
            here, there = np.asarray(actual, float), np.asarray(desired, float)
            with np.errstate(invalid="ignore", divide="ignore"):
                used = np.nan_to_num(np.abs(here - there) / (atol + rtol * np.abs(there))).max()
                off = np.nan_to_num(np.abs(here - there)).max()
            note(Path(frame.f_code.co_filename).name, frame.f_lineno, float(off), "close", float(atol or rtol), used)

    np.testing.assert_allclose = noting


def pytest_collection_finish(session):
    offset = int(os.environ.get("HPACELL_SEED_OFFSET", "0"))
    if offset and "keras" in sys.modules:
        keras = sys.modules["keras"]
        given = keras.utils.set_random_seed
        keras.utils.set_random_seed = lambda seed: given(seed + offset)


def pytest_sessionfinish(session):
    if "HPACELL_MARGINS" in os.environ:
        Path(os.environ["HPACELL_MARGINS"]).write_text("".join(f"{json.dumps(entry)}\n" for entry in FOUND))
