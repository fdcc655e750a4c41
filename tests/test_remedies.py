"""Messages name only what is there: options, commands, parameters, functions, extras and files of the package."""

import argparse
import ast
import importlib
import re
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest

from hpacell.arguments import make_parser
from hpacell.cli import main
from hpacell.extras import explain_import, extra_of
from hpacell.fields.intensity import to_channels
from hpacell.pipeline.plugins import GROUP
from hpacell.pipeline.templates import list_workflows, workflow_parameters
from hpacell.pipeline.values import check_values
from hpacell.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path for path in (ROOT / "hpacell").rglob("*.py") if path.name != "_modidx.py")


def parsers() -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))


def options_of(parser) -> set[str]:
    return {word for action in parser._actions for word in action.option_strings}


def messages(path: Path) -> list[tuple[int, str]]:
    """Texts of a module that people may read: all but docstrings; {} stands for what is filled in."""
    tree, docs, parts, found = ast.parse(path.read_text()), set(), set(), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and node.body and isinstance(node.body[0], ast.Expr):
            docs.add(id(node.body[0].value))
        if isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append((node.lineno, "".join(value.value if isinstance(value, ast.Constant) else "{}" for value in node.values)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docs | parts):
            found.append((node.lineno, node.value))
    return [(line, text) for line, text in found if " " in text]


ALL = [(path, line, text) for path in MODULES for line, text in messages(path)]
COMMANDS = parsers()
# Parameters that people can give: of public functions and classes, of workflows.
PARAMETERS = {name for step in list_workflows() for name in workflow_parameters(step)}


def arguments_in(tree) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            found |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_there_are_messages_to_look_at():
    assert len(ALL) > 900 and sum("--" in text for _, _, text in ALL) > 80


def test_options_that_messages_name_exist():
    known = set().union(*map(options_of, [make_parser(), *COMMANDS.values()]))
    wrong = [f"{path.name}:{line}: {option}" for path, line, text in ALL for option in re.findall(r"(?<![\w(-])--[a-z][a-z-]*\b(?![:-])", text) if option not in known]
    assert not wrong, wrong  # (a style sheet writes --ink: and var(--ink))


def test_commands_that_messages_name_exist_and_take_the_options_beside_them():
    wrong = []
    for path, line, text in ALL:
        for command, rest in re.findall(r"(?<![/\w.-])hpacell ([a-z][a-z_-]*)((?: (?:[A-Z]+|\{\}|--[a-z-]+|-p [\w=.{}]+|[\w./]+\.(?:yaml|csv)))*)", text):
            if command in ("splits", "anew", "or", "and"):  # hpacell does something: no command
                continue
            options = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) if command in COMMANDS else set()
            if command not in COMMANDS or not options <= options_of(COMMANDS[command]):
                wrong.append(f"{path.name}:{line}: hpacell {command} {rest}")
    assert not wrong, wrong


def test_names_with_dots_that_messages_name_exist():
    wrong = []
    for path, line, text in ALL:
        for name in set(re.findall(r"hpacell(?:\.[A-Za-z_]\w*)+", text)) - {GROUP}:  # of entry points: no module
            module, _, last = name.rpartition(".")
            try:
                importlib.import_module(name)
            except ImportError:
                try:
                    getattr(importlib.import_module(module), last)
                except (ImportError, AttributeError):
                    wrong.append(f"{path.name}:{line}: {name}")
    assert not wrong, wrong


def test_parameters_that_messages_set_exist():
    """What is written with an equals sign is a parameter of some function, setting or workflow."""
    known = PARAMETERS | {field.name for field in fields(Settings)} | set().union(*(arguments_in(ast.parse(path.read_text())) for path in MODULES))
    known |= {"return_inverse", "keep_default_na"}  # of numpy.unique and pandas.read_csv, by which the caller makes the input
    names = [(path, line, name) for path, line, text in ALL for name in re.findall(r"(?<![\w{.<>!-])([a-z][a-z_]{2,})=(?=[\w{'\"\[( ])", text) if "expected" in text or ": " in text]
    assert len({name for *_, name in names}) > 5
    wrong = [f"{path.name}:{line}: {name}=" for path, line, name in names if name not in known and name not in MARKUP]
    assert not wrong, wrong


MARKUP = ("class", "style", "href", "src", "charset", "content", "name", "http", "alt", "id", "key")  # of HTML, and an example


def test_parameters_that_messages_ask_to_raise_or_lower_are_the_callers():
    """The remedy "raise x" or "lower x" is for something that the module's callers can give."""
    wrong = []
    for path, line, text in ALL:
        for name in re.findall(r"(?:[Rr]aise|[Ll]ower|[Ii]ncrease|[Rr]educe|or lower|set|[Cc]orrect) ([a-z]+_[a-z_]+)", text):
            if name not in PARAMETERS and name not in arguments_in(ast.parse(path.read_text())):
                wrong.append(f"{path.name}:{line}: {name}")
    assert not wrong, wrong


def test_examples_of_files_exist():
    wrong = [f"{path.name}:{line}: {name}" for path, line, text in ALL for name in re.findall(r"see (params/\w+\.yaml)", text) if not (ROOT / name).exists()]
    assert not wrong, wrong


def test_extras_that_messages_name_exist():
    known = set(metadata.metadata("hpacell").get_all("Provides-Extra"))
    wrong = [f"{path.name}:{line}: {extra}" for path, line, text in ALL for extra in re.findall(r"hpacell\[(\w+)\]", text) if extra not in known]
    assert not wrong and extra_of("zarr") in known and extra_of("s3fs") == "remote" and extra_of("numpy") == ""


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (ImportError("Install s3fs to access S3"), "pip install 'hpacell[remote]'"),
        (ImportError("Please install gcsfs to access Google Storage"), "pip install 'hpacell[remote]'"),
        (ImportError("Install adlfs to access Azure Datalake Gen2 and Azure Blob Storage"), "pip install adlfs"),
        (ModuleNotFoundError("No module named 'zarr.storage'", name="zarr.storage"), "pip install 'hpacell[export]'"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(error, wanted, monkeypatch, capsys):
    assert explain_import(error).endswith(wanted)

    def failing(arguments):
        raise error

    monkeypatch.setitem(importlib.import_module("hpacell.cli").COMMANDS, "runs", failing)
    assert main(["runs"]) == 2
    assert capsys.readouterr().err == f"hpacell: {explain_import(error)}\n"


def test_an_address_without_its_package_is_refused_before_a_run(monkeypatch):
    import fsspec

    def lacking(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lacking)
    with pytest.raises(ValueError, match=r"extract: fields s3://b/f: expected the package s3fs, got none: .*'hpacell\[remote\]'"):
        check_values({"extract": {"fields": "s3://b/f"}})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="extract: expected store as a path or an address"):
        check_values({"extract": {"store": "nosuch://b/f"}})


def test_channels_that_do_not_fit_are_told_with_a_parameter_of_every_door():
    import numpy as np

    with pytest.raises(ValueError, match="train with n_channels=4, or give images of 1"):
        to_channels(np.zeros((4, 4, 4)), 1)
    for step in ("train_segmenter", "tissue"):
        assert "n_channels" in workflow_parameters(step)


def test_the_remedy_for_few_fields_can_be_typed(tmp_path):
    from hpacell.feed.store import read_store
    from hpacell.fields.simulate import simulate_fields
    from hpacell.models.recipe import split_store
    from hpacell.pipeline.extract import ExtractSettings, extract_fields

    simulate_fields(tmp_path / "f", n_fields=4, seed=1, size=(128, 128))
    extract_fields(tmp_path / "f", tmp_path / "s", labels=tmp_path / "f" / "labels.csv", settings=ExtractSettings(crop_size=16), workers=1)
    asked = make_parser().parse_args(["train", "s", "--out", "m"])
    settings = argparse.Namespace(n_folds=5, test_fold=0, duplicates="", seed=asked.seed)
    with pytest.raises(ValueError, match="--folds 4") as caught:
        split_store(read_store(tmp_path / "s"), settings)
    words = re.search(r"--folds \d+", str(caught.value))[0].split()
    settings.n_folds = make_parser().parse_args(["train", "s", "--out", "m", *words]).n_folds
    assert set(split_store(read_store(tmp_path / "s"), settings)) == {"train", "valid", "test"}
