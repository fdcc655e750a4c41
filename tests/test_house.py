"""The architecture is a test: floors, loads, sizes, generated files, parameters, docstrings."""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").glob("*.ipynb") if path.name != "index.ipynb")
WORKFLOWS = sorted((ROOT / "nbs" / "workflows").glob("*.ipynb"))
DOORS = ("sql", "api", "cli")


def floor_of(path: Path) -> int:
    return int(path.stem.split("_", 1)[0])


def module_of(path: Path) -> str:
    return "hpacell." + path.stem.split("_", 1)[1]


FLOORS = {module_of(path): floor_of(path) for path in NOTEBOOKS}
MODULES = sorted(FLOORS)


def cells_of(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def is_exported(cell) -> bool:
    return any(re.match(r"#\|\s*export\b", line) for line in cell.source.splitlines())


def imported_modules(source: str) -> set[str]:
    """Modules of hpacell that a cell imports, found in the syntax tree."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in FLOORS}


def loaded_after(statement: str) -> set[str]:
    """Top-level packages that a fresh Python has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_go_down(path):
    for cell in cells_of(path):
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))
        for module in imported_modules(source):
            assert FLOORS[module] < floor_of(path), f"{path.name} imports {module} from floor {FLOORS[module]}"


def test_one_notebook_one_floor():
    names = [path.stem for path in NOTEBOOKS]
    assert len({module_of(path) for path in NOTEBOOKS}) == len(names)
    for path in NOTEBOOKS:
        assert re.fullmatch(r"\d\d_[a-z0-9_]+(\.[a-z0-9_]+)?", path.stem), path.name
        exported_as = [cell.source for cell in cells_of(path) if "default_exp" in cell.source]
        assert exported_as == [f"#| default_exp {module_of(path).removeprefix('hpacell.')}"], path.name


def test_nothing_below_imports_pipeline_or_a_door():
    for path in NOTEBOOKS:
        own = module_of(path)
        if own.startswith("hpacell.pipeline.") or own.removeprefix("hpacell.") in DOORS:
            continue
        for cell in cells_of(path):
            bad = [m for m in imported_modules(cell.source) if m.startswith("hpacell.pipeline.") or m.removeprefix("hpacell.") in DOORS]
            assert not bad, f"{path.name} imports {bad}"


def test_package_loads_nothing():
    loaded = loaded_after("import hpacell")
    assert not loaded & {"numpy", "pandas", "tensorflow", "keras", "plotly"}


def test_low_floors_load_neither_tensorflow_nor_plotly():
    low = [module for module in MODULES if FLOORS[module] < 50]
    loaded = loaded_after("; ".join(f"import {module}" for module in low))
    assert not loaded & {"tensorflow", "keras", "keras_cv", "plotly", "papermill"}


def test_figures_and_the_command_line_load_no_tensorflow():
    shown = [module for module in MODULES if 80 <= FLOORS[module] < 90] + ["hpacell.cli", "hpacell.pipeline.extract", "hpacell.models", "hpacell.models.places"]
    loaded = loaded_after("; ".join(f"import {module}" for module in shown))
    assert not loaded & {"tensorflow", "keras"}


def test_plotly_only_in_figures():
    for path in NOTEBOOKS:
        exported = "\n".join(cell.source for cell in cells_of(path) if is_exported(cell))
        for node in ast.walk(ast.parse(exported)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "plotly" for name in names):
                # A run puts plotly's script beside its report; it draws nothing.
                assert 80 <= floor_of(path) < 90 or module_of(path) == "hpacell.pipeline.runs", path.name


def test_models_are_pure_keras():
    for path in NOTEBOOKS:
        if 60 <= floor_of(path) < 80:
            exported = "\n".join(cell.source for cell in cells_of(path) if is_exported(cell))
            assert not re.search(r"\btf\.|import tensorflow", exported), f"{path.name} uses TensorFlow itself"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small(module):
    text = (ROOT / (module.replace(".", "/") + ".py")).read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("# %% ")]  # what nbdev adds is no code
    assert len(lines) <= 400, f"{module} has {len(lines)} lines of code and docstrings: split it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_bounded(path):
    assert path.stat().st_size <= 500_000, f"{path.name}: bound its outputs"
    text = path.read_text()
    assert str(ROOT) not in text and not re.search(r'"(/tmp|/home|/root)/', text), f"{path.name} holds an absolute path"
    for cell in cells_of(path):
        assert not any(output.output_type == "error" for output in cell.outputs), f"{path.name} holds an error"


def test_generated_package_is_a_fresh_export(tmp_path):
    for name in ("nbs", "hpacell"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "_docs"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "params").mkdir()
    export = Path(sys.executable).with_name("nbdev-export")
    subprocess.run([export], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, capture_output=True)
    for module in MODULES:
        name = module.replace(".", "/") + ".py"
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name} is not a fresh export: make export"
    made = {str(path.relative_to(ROOT)) for path in (ROOT / "hpacell").rglob("*.py")} - {"hpacell/_modidx.py"}
    kept = {module.replace(".", "/") + ".py" for module in MODULES}
    assert {name for name in made - kept if not name.endswith(("__init__.py", "__main__.py"))} == set(), "a module without a notebook"


def test_readme_is_fresh():
    sys.path.insert(0, str(ROOT / "nbs"))
    from readme import readme_of

    assert readme_of(ROOT / "nbs" / "index.ipynb") == (ROOT / "README.md").read_text(), "make export"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(path):
    cells = nbformat.read(path, as_version=4).cells
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [1], "the second cell, and it alone, is tagged parameters"
    for line in cells[1].source.splitlines():
        assert re.match(r"\w+: \w+(\[.*\])? = .+  # .+", line), f"{path.stem}: a parameter has a type, a default and a comment: {line}"
    for cell in cells:
        assert not cell.get("outputs") and "#| export" not in cell.source


def test_params_name_known_parameters():
    from hpacell.pipeline.plan import read_plan
    from hpacell.pipeline.points import read_sweep

    files = sorted((ROOT / "params").glob("*.yaml"))
    assert files
    for path in files:
        content = yaml.safe_load(path.read_text())
        if "sweep" in content:
            assert read_sweep(path).points
            continue
        plan = read_plan(path)
        assert list(content.get("workflows", {path.stem: 0})) == list(plan.steps)


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module):
    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", []):
        thing = getattr(loaded, name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)) or thing.__module__ != module:
            continue
        text = inspect.getdoc(thing) or ""
        assert text, f"{module}.{name} has no docstring"
        if inspect.isfunction(thing) and name != "main":
            for parameter in inspect.signature(thing).parameters:
                assert re.search(rf"\b{re.escape(parameter)}\b", text), f"{module}.{name}: {parameter} is not documented"


def test_settings_are_documented():
    from dataclasses import fields

    from hpacell.settings import Settings

    written = (ROOT / "settings.ini").read_text()
    for field in fields(Settings):
        section, _, key = field.name.partition("_")
        if key:
            assert re.search(rf"^\[{section}\]", written, re.M) and re.search(rf"^{key} =", written, re.M), field.name


def test_faces_name_what_exists():
    for package in sorted({module.rsplit(".", 1)[0] for module in MODULES if module.count(".") == 2}):
        face = importlib.import_module(package)
        assert face.__doc__, f"{package} has no docstring"
        assert face.__all__, f"{package} names nothing"
        for name in face.__all__:
            assert getattr(face, name).__name__ == name


def test_lock_holds_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and not re.search(r"--(index|find-links|extra)", text)
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", text.strip()))


def test_no_leftovers():
    words = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    for path in [*NOTEBOOKS, *WORKFLOWS]:
        for cell in json.loads(path.read_text())["cells"]:
            assert not words.search("".join(cell["source"])), path.name


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in cells_of(ROOT / "nbs" / "index.ipynb"):
        exec(compile(cell.source, "index.ipynb", "exec"), names)
    assert len(names["cells"]) > 5 and "cell_area" in capsys.readouterr().out
