"""Fixtures that many tests share."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HPACELL_PROGRESS", os.devnull)
# The same examples in each run, so that what passes once passes again; make test-all draws others each time.
# How long an example takes is the machine's affair: no test fails for it.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **PATIENT)
settings.register_profile("random", derandomize=False, **PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data from outside, which lies beside the repository on the developers' machines."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: the folder ../shared/data is not on this machine")
    return folder


@pytest.fixture
def notebook_style() -> Iterator[None]:
    """Plotly's template and renderer as in a notebook, and afterwards as they were."""
    import plotly.io as pio

    from hpacell.figures.style import use_hpacell_style

    before = pio.templates.default, pio.renderers.default
    use_hpacell_style()
    yield
    pio.templates.default, pio.renderers.default = before


@pytest.fixture
def step_under(root) -> Callable[[str, str], None]:
    """Runs code in a fresh Python under another backend of Keras; its last line is to be "stepped under BACKEND"."""

    def step(backend: str, code: str) -> None:
        if importlib.util.find_spec(backend) is None:
            pytest.skip(f"{backend} is not installed")
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.splitlines()[-1] == f"stepped under {backend}"

    return step
