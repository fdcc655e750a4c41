"""Keys: what changes them and what does not, by changing the sources as they are read."""

import ast
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import hpacell.pipeline.closure as closure
import hpacell.pipeline.learned as learned
import hpacell.pipeline.segment as segment_module
from hpacell.cli import main
from hpacell.feed.store import read_store
from hpacell.fields.find import FieldSource
from hpacell.fields.simulate import simulate_fields
from hpacell.models.segmenter_recipe import METHODS as NETWORKS
from hpacell.pipeline.closure import COUNTED, NOT_COUNTED, code_hash, code_of
from hpacell.pipeline.extract import ExtractSettings, extract_fields
from hpacell.pipeline.field import _CUT, _NOT_CUT, _READ, field_key, reading_leaves
from hpacell.pipeline.segmenters import _METHODS_CODE, _NOT_FOLLOWED, code_roots, method_signature
from hpacell.vocabulary import CHANNELS

METHODS = ("classical", "unet", "maskrcnn")


def forget():
    """Read all sources again."""
    for cached in (closure._module, closure._piece, closure._code_of, closure.code_hash, closure.version_of):
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


PARSED: dict = {}  # by name: what no test changes is read once


def with_sources(monkeypatch, modules, edit) -> None:
    """Let the sources of some modules be other ones."""
    names = {f"hpacell.{module}" for module in modules}
    paths, own, read = {closure._path_of(name) for name in names}, {}, closure._source_of
    assert None not in paths
    original = {name: getattr(closure, name).__wrapped__ for name in ("_module", "_piece")}

    def cached(function, *arguments):
        held = own if arguments[0] in names else PARSED
        if (function, *arguments) not in held:
            held[function, *arguments] = original[function](*arguments)
        return held[function, *arguments]

    monkeypatch.setattr(closure, "_source_of", lambda path: edit(read(path)) if path in paths else read(path))
    monkeypatch.setattr(closure, "_module", lambda name: cached("_module", name))
    monkeypatch.setattr(closure, "_piece", lambda module, name: cached("_piece", module, name))
    closure._code_of.cache_clear()
    closure.code_hash.cache_clear()


def keys() -> dict[str, str]:
    """Keys of one field under each method and format: crops, and label images."""
    found = {}
    for method in METHODS:
        for kind in ("PNG", "TIFF"):
            source = FieldSource("f", ("f",), CHANNELS)
            found[f"crops {method} {kind}"] = field_key(source, f"{kind}:0a", ExtractSettings(method=method))
            row = {"channels": "|".join(CHANNELS), "formats": kind}
            found[f"masks {method} {kind}"] = segment_module._key(source, "the same file", row, method, "keep")
    return found


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """The keys of today's code."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_sources(monkeypatch, (), str)
        return keys()


def changed_by(monkeypatch, before, modules: list[str], edit) -> set[str]:
    """Names of the keys that change when the sources of some modules do."""
    with_sources(monkeypatch, modules, edit)
    return {name for name, key in keys().items() if key != before[name]}


def in_each_function(text: str) -> str:
    """A module in which every function does a little more."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body.append(ast.parse("more = 1").body[0])
    return ast.unparse(tree)


ALL = {f"{what} {method} {kind}" for what in ("crops", "masks") for method in METHODS for kind in ("PNG", "TIFF")}


def some(*words: str) -> set[str]:
    """Names of the keys that hold all of these words, between which `/` stands for or."""
    return {name for name in ALL if all(set(word.split("/")) & set(name.split()) for word in words)}


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["models.watershed"], some("unet")),
        (["models.unet"], some("unet")),
        (["maskrcnn.roi_align"], some("maskrcnn")),
        (["maskrcnn.proposals", "maskrcnn.detections"], some("maskrcnn")),
        (["fields.tiles"], some("unet/maskrcnn")),
        (["fields.intensity"], some("unet/maskrcnn")),
        (["pipeline.learned"], some("unet/maskrcnn")),
        (["models.weights"], some("unet/maskrcnn")),
        (["cells.crops"], some("crops")),
        (["cells.measurements"], some("crops")),
        (["fields.depth"], some("crops")),
        (["masks.writers"], some("masks")),
        (["fields.tiff"], some("TIFF")),
        (["fields.decode"], ALL),
        (["fields.read"], ALL),
        (["cells.segmentation"], ALL),
        (["pipeline.segmenters"], ALL),
        (["pipeline.field"], some("crops")),
        (["masks.coco", "masks.annotations", "masks.archives", "masks.layouts", "masks.overlaps", "masks.polygons", "masks.tissue"], set()),
        (["cells.windows", "models.training", "models.segmenter", "models.region_losses", "maskrcnn.targets", "maskrcnn.losses"], set()),
        (["figures.cells", "figures.overlays", "pipeline.predict", "pipeline.extract", "pipeline.engine", "feed.writer"], set()),
        (["fields.find", "fields.names", "fields.catalog", "fields.simulate", "pipeline.plugins", "pipeline.closure"], set()),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_what_a_change_in_a_module_makes_again(monkeypatch, before, modules, expected):
    assert changed_by(monkeypatch, before, modules, in_each_function) == expected


def quiet(text: str) -> str:
    """A module with other comments, docstrings, annotations and messages."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = ast.Constant("something else")
            node.body[: ast.get_docstring(node) is not None] = [ast.Expr(ast.Constant("Another docstring."))]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = [ast.Constant("another message")]
    return "# a comment\n" + ast.unparse(tree)


def test_words_change_no_key(monkeypatch, before):
    modules = ["cells.segmentation", "cells.crops", "models.unet", "maskrcnn.model", "fields.depth", "pipeline.field", "pipeline.segmenters", "masks.labels"]
    assert changed_by(monkeypatch, before, modules, quiet) == set()


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("tifffile", some("TIFF")), ("imagecodecs", ALL), ("opencv-python-headless", ALL), ("numpy", ALL), ("keras", some("unet/maskrcnn")),
        ("keras-cv", some("maskrcnn")), ("tensorflow", some("unet/maskrcnn")), ("pandas", set()), ("pyarrow", set()), ("plotly", set()),
    ],
)  # fmt: skip
def test_what_another_version_of_a_library_makes_again(monkeypatch, before, library, expected):
    distributed = closure._distributed
    monkeypatch.setattr(closure, "_distributed", lambda name: "9999.9" if name == library else distributed(name))
    closure.version_of.cache_clear()
    with_sources(monkeypatch, (), str)
    changed = {name for name, key in keys().items() if key != before[name]}
    closure.version_of.cache_clear()
    assert changed == expected


def test_a_corrected_version_of_a_library_makes_nothing_again(monkeypatch, before):
    distributed = closure._distributed
    monkeypatch.setattr(closure, "_distributed", lambda name: distributed(name) + ".1")
    closure.version_of.cache_clear()
    with_sources(monkeypatch, (), str)
    assert keys() == before


def test_every_library_that_is_met_is_known_and_every_import_is_found():
    roots = [*_CUT, *_READ, *_METHODS_CODE, *segment_module._WRITTEN, *(root for method in (*METHODS, "") for root in code_roots(method))]
    code = code_of(roots)
    assert set(code.libraries) <= set(COUNTED) | set(NOT_COUNTED) | sys.stdlib_module_names
    for place in code.definitions:
        module, _, name = place.partition(":")
        _, uses, own = closure._piece(module, name)
        for target, attribute in [*own.values(), *closure._module(module).imports.values()]:
            if target.split(".")[0] == "hpacell":
                found = closure._module(target)
                assert found and (not attribute or attribute in found.definitions or attribute in found.imports or closure._path_of(f"{target}.{attribute}")), (place, target, attribute)


def test_every_place_that_is_named_exists():
    for place in (*_NOT_CUT, *_NOT_FOLLOWED, *_METHODS_CODE, *segment_module._NOT_WRITTEN, *reading_leaves("BMP"), *reading_leaves("PNG")):
        assert code_of([place]).definitions
    with pytest.raises(LookupError, match="got none"):
        code_of(["hpacell.cells.crops:no_such_function"])
    assert set(NETWORKS) == set(learned.LEARNED)


def test_hidden_code_is_reached():
    """What the networks run is found behind a name that is put together, and through imports within functions."""
    reached = code_of(code_roots("unet"), _NOT_FOLLOWED).definitions
    assert {"hpacell.models.watershed:watershed_cells", "hpacell.models.segmenter_card:TrainedSegmenter", "hpacell.fields.intensity:normalise_intensity"} <= set(reached)
    assert {"hpacell.maskrcnn.roi_align:roi_align", "hpacell.maskrcnn.heads:make_mask_head"} <= set(code_of(code_roots("maskrcnn")).definitions)
    assert not any(place.startswith("hpacell.masks.coco:") for place in reached)


def test_a_method_has_the_key_of_what_it_stands_for():
    whole, nuclei = FieldSource("f", ("f",), CHANNELS), FieldSource("f", ("f",), ("nucleus",))

    def key(source, method):
        return field_key(source, "PNG:0a", ExtractSettings(method=method))

    assert key(whole, "auto") == key(whole, "classical") and key(nuclei, "auto") == key(nuclei, "maskrcnn")
    assert key(nuclei, "unet") == key(nuclei, str(learned.SHIPPED / "unet_nuclei"))
    assert len({key(whole, method) for method in METHODS}) == 3
    unnamed = FieldSource("f", ("f",))
    keys_by_channels = {field_key(unnamed, "PNG:0a", ExtractSettings(), channels) for channels in ((), ("nucleus",), CHANNELS)}
    assert len(keys_by_channels) == 3


def test_another_backend_is_another_result_of_networks_alone(monkeypatch):
    before = {method: method_signature(method) for method in METHODS}
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    changed = {method for method in METHODS if method_signature(method) != before[method]}
    assert changed == {"unet", "maskrcnn"}


def test_closures_follow_what_python_code_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "own_closure"
    package.mkdir()
    (package / "__init__.py").write_text(
        'import lazy_loader\n__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"deep": ["bottom"]})\n'
    )
    (package / "deep.py").write_text("import beside_closure as b\nSIZE, KIND = 3, 4\ndef bottom(): return b.helper() + SIZE\ndef unused(): return 1\n")
    (tmp_path / "beside_closure.py").write_text("try:\n    import numpy as fast\nexcept ImportError:\n    fast = None\nTABLE = {}\nTABLE['a'] = 1\nprint(end='')\ndef helper(): return fast.sum(TABLE)\n")
    (package / "top.py").write_text("from . import bottom as end\nimport own_closure.deep as whole\ndef run():\n    from own_closure import deep\n    return end() + whole.KIND + deep.SIZE\n")
    code = code_of(["own_closure.top:run"])
    assert list(code.definitions) == [
        "beside_closure:", "beside_closure:TABLE", "beside_closure:fast", "beside_closure:helper", "own_closure.deep:KIND", "own_closure.deep:SIZE", "own_closure.deep:bottom", "own_closure.top:run",
    ]  # fmt: skip
    assert "TABLE['a'] = 1" in code.definitions["beside_closure:TABLE"] and code.definitions["beside_closure:"] == "print(end='')"
    before = code_hash(("own_closure.top:run",))
    for name, change in (("own_closure/deep.py", "unused(): return 1"), ("beside_closure.py", "TABLE['a'] = 1")):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace(change, change.replace("1", "2")))
        forget()
        assert (code_hash(("own_closure.top:run",)) == before) == ("unused" in change)


# Stores


@pytest.fixture
def fields(tmp_path):
    simulate_fields(tmp_path / "fields", 3, seed=2, size=(128, 128))
    return tmp_path / "fields"


def test_a_store_is_made_again_only_for_what_made_it(fields, tmp_path, capsys):
    settings = ExtractSettings(32)
    extract_fields(fields, tmp_path / "store", settings=settings, workers=1)

    def made(module, settings=settings):
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as monkeypatch:
            with_sources(monkeypatch, [module], in_each_function)
            n_made = extract_fields(fields, tmp_path / "store", settings=settings, workers=1).n_made
        return n_made, capsys.readouterr().err

    for module in ("models.watershed", "masks.coco", "masks.writers"):
        n_made, told = made(module)
        assert n_made == 0 and "made again" not in told, module
    assert made("masks.coco", ExtractSettings(32, method="classical"))[0] == 0, "auto is classical here"
    assert made("masks.coco")[0] == 0
    n_made, told = made("cells.crops")
    assert n_made == 3 and "made again: another version of hpacell, of a library it calls or of a network's weights" in told


def test_only_the_fields_that_are_made_again_are_told(fields, tmp_path, monkeypatch, capsys):
    for path in fields.glob("sim_2_00000_*.png"):  # one field as TIFF
        cv2.imwrite(str(path.with_suffix(".tif")), cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        path.unlink()
    settings = ExtractSettings(32)
    first = extract_fields(fields, tmp_path / "store", settings=settings, workers=1)
    kinds = first.store.fields["content"].str.partition(":")[0].value_counts().to_dict()
    assert kinds == {"PNG": 2, "TIFF": 1}
    distributed = closure._distributed
    monkeypatch.setattr(closure, "_distributed", lambda name: "9999.9" if name == "tifffile" else distributed(name))
    forget()
    capsys.readouterr()
    assert extract_fields(fields, tmp_path / "store", settings=settings, workers=1).n_made == 1
    assert "1 field of 3 is made again: another version" in capsys.readouterr().err


def test_a_good_store_is_not_replaced_by_an_empty_one(fields, tmp_path, capsys):
    words = ["extract", str(fields), "--out", str(tmp_path / "store"), "--size", "32", "--workers", "1"]
    assert main(words) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    n_cells = len(read_store(tmp_path / "store"))
    (tmp_path / "wrong_keys.py").write_text("def segment(image, channels):\n    return image[..., 0] > 30, None\n\n\ndef nothing(image, channels):\n    return (image[..., 0] * 0).astype(int), None\n")
    sys.path.append(str(tmp_path))
    try:
        for method, said in (("segment", "got 3 fields that cannot be used"), ("nothing", "got fields without any cell")):
            assert main([*words, "--method", f"wrong_keys:{method}"]) == 2
            told = capsys.readouterr().err
            assert f"which holds {n_cells:,}, {said}" in told and "The store stays as it was" in told, told
    finally:
        sys.path.remove(str(tmp_path))
    after = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    shared = {path for path in before if path.name not in ("signatures.json", ".lock")}
    assert {path: after.get(path) for path in shared} == {path: before[path] for path in shared}
    assert main(words) == 0 and len(read_store(tmp_path / "store")) == n_cells


def test_the_list_of_a_stores_fields_is_read_once(fields, tmp_path, monkeypatch):
    import hpacell.pipeline.history as history

    extract_fields(fields, tmp_path / "store", settings=ExtractSettings(32), workers=1)
    calls, read = [], history.read_rows
    monkeypatch.setattr(history, "read_rows", lambda path: calls.append(path) or read(path))
    extract_fields(fields, tmp_path / "store", settings=ExtractSettings(32), workers=1)
    assert len(calls) == 1


def test_masks_are_made_again_only_for_what_made_them(fields, tmp_path, monkeypatch):
    monkeypatch.setattr("hpacell.pipeline.signatures._TICK_NS", 0)
    out = tmp_path / "masks"
    assert segment_module.segment_fields(fields, out, workers=1).n_made == 3
    for module, expected in (("models.watershed", 0), ("cells.crops", 0), ("masks.coco", 0), ("masks.writers", 3)):
        with pytest.MonkeyPatch.context() as changed:
            with_sources(changed, [module], in_each_function)
            assert segment_module.segment_fields(fields, out, workers=1).n_made == expected, module
    rows = [json.loads(line) for line in (out / "done.jsonl").read_text().splitlines() if line]
    assert rows[-1]["row"]["formats"] == "PNG" and Path(out, "segmentation.csv").read_text().splitlines()[0].endswith("notes")


def test_a_model_that_is_trained_again_in_the_same_process_is_another_one(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"kind": "segmenter", "method": "unet"}))
    (tmp_path / "model.weights.h5").write_bytes(b"one")
    source, settings = FieldSource("f", ("f",), ("nucleus",)), ExtractSettings(32, method=str(tmp_path))
    before = field_key(source, "PNG:0a", settings)
    (tmp_path / "model.weights.h5").write_bytes(b"other")
    assert field_key(source, "PNG:0a", settings) != before


def test_contents_say_the_format_that_the_bytes_are_of(tmp_path):
    from hpacell.fields.read import find_fields, read_field

    grey = np.random.default_rng(0).integers(0, 99, (16, 16), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    cv2.imwrite(str(tmp_path / "b.tif"), grey)
    (tmp_path / "c.png").write_bytes((tmp_path / "b.tif").read_bytes())  # the name lies
    contents = [read_field(source).content for source in find_fields(tmp_path, channels=["nucleus"])]
    assert [content.partition(":")[0] for content in contents] == ["PNG", "TIFF", "TIFF"] and contents[1] == contents[2]
