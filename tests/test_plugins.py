"""Segmenters of one's own: found by name, checked, and used by everything that segments."""

import importlib
import importlib.metadata
import importlib.util
import json
import marshal
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import hpacell
import hpacell.pipeline.closure as closure
import hpacell.pipeline.plugins as plugins
from hpacell.cells.segmentation import segment_cells
from hpacell.cli import main
from hpacell.feed.store import read_store
from hpacell.fields.find import FieldSource, find_fields
from hpacell.fields.read import Field, read_field
from hpacell.fields.simulate import simulate_fields
from hpacell.pipeline.extract import ExtractSettings, extract_fields
from hpacell.pipeline.field import extract_field, field_key
from hpacell.pipeline.plugins import load_plugin, plugin_signature
from hpacell.pipeline.segment import segment_fields
from hpacell.pipeline.segmenters import check_method, method_signature, processes_for
from hpacell.vocabulary import CHANNELS

OWN = """
import numpy as np
from scipy import ndimage
from skimage.segmentation import expand_labels

import own_helper
from hpacell.cells import segment_nuclei

LEAST = 30


def segment(image, channels, pixel_um=None, diameter=None):
    plane = ndimage.gaussian_filter(image[..., channels.index("nucleus")].astype(float), 2)
    nuclei = own_helper.number(plane > LEAST)
    return nuclei, expand_labels(nuclei, (diameter or 30) / 2)


def billions(image, channels):
    nuclei, cells = segment(image, channels)
    return nuclei.astype(np.int64) * 1_000_000_007, cells.astype(np.uint64) * 1_000_000_007


def spoil(image, channels):
    nuclei, cells = segment(image, channels)
    image[:] = 0
    return nuclei, cells


def ours(image, channels):
    return segment_nuclei(image, channels), None


def dark(image, channels):
    return (image[..., 0] < 120).astype(int), None


def declared(image, channels):
    return segment(image, channels)


declared.version = "weights of June"
declared.processes = 1


def mask(image, channels):
    return image[..., 0] > LEAST, None


def small(image, channels):
    return np.zeros((8, 8), int), None


def real(image, channels):
    return image[..., 0] / 2, None


def one(image, channels):
    return np.zeros(image.shape[:2], int)


def negative(image, channels):
    return np.full(image.shape[:2], -1), None


def apart(image, channels):
    nuclei, cells = segment(image, channels)
    return nuclei, np.where(cells > 0, cells.max() + 1 - cells, 0)


def fails(image, channels):
    return {}["nothing"]


number = 3
"""
HELPER = "from scipy import ndimage\n\n\ndef number(mask):\n    return ndimage.label(mask)[0]\n"
N = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with fields and a module of segmenters, on the path of this process."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "own_segmenters.py").write_text(OWN)
    (folder / "own_helper.py").write_text(HELPER)
    simulate_fields(folder / "fields", N, seed=5, size=(128, 128))
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("own_segmenters", "own_helper"):
        sys.modules.pop(name, None)


@pytest.fixture
def field(place):
    return read_field(find_fields(place / "fields")[0])


def read_labels(path):
    """A label image as it was written."""
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def own(name):
    return f"own_segmenters:{name}"


def test_it_segments_extracts_and_is_kept_in_any_number_of_processes(place, field, tmp_path):
    found = hpacell.segment(field, own("segment"))
    assert found.nuclei.max() == found.cells.max() > 3 and found.nuclei.dtype == np.int32
    stores = []
    for workers in (1, 2):
        settings = ExtractSettings(32, method=own("segment"))
        report = extract_fields(place / "fields", tmp_path / f"store{workers}", settings=settings, workers=workers)
        assert report.n_made == N and not len(report.quarantine)
        assert extract_fields(place / "fields", tmp_path / f"store{workers}", settings=settings, workers=workers).n_made == 0
        stores.append(report.store)
    pd.testing.assert_frame_equal(stores[0].index, stores[1].index)
    assert (stores[0].index["field_id"] == field.field_id).sum() == found.cells.max()
    segmented = segment_fields(place / "fields", tmp_path / "masks", method=own("segment"), workers=2)
    assert segmented.fields["n_cells"].sum() == len(stores[0])
    np.testing.assert_array_equal(read_labels(tmp_path / "masks" / f"{field.field_id}_cells.png"), found.cells)


def test_the_command_takes_it_from_the_working_folder(place, tmp_path):
    words = ["segment", "fields", "--out", str(tmp_path / "masks"), "--method", own("segment"), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(hpacell.__file__).parents[1])}
    done = subprocess.run([Path(sys.executable).with_name("hpacell"), *words], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "masks").glob("*_cells.png"))) == N


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("magic", "expected a method among auto, classical, unet, maskrcnn, the folder of a trained segmenter, or module:function of your own, got 'magic'"),
        ("nowhere_at_all:segment", "got none named nowhere_at_all: install it, or run in the folder where it lies"),
        (own("nothing"), "expected a function nothing in the module own_segmenters, got segment, billions"),
        (own("number"), "expected a function for the method 'own_segmenters:number', got int"),
        ("__main__:segment", "expected a module that other processes can import"),
    ],
)
@pytest.mark.parametrize("command", ["segment", "extract"])
def test_a_wrong_name_is_told_before_any_work(place, tmp_path, capsys, command, method, said):
    assert main([command, str(place / "fields"), "--out", str(tmp_path / "out"), "--method", method]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and not (tmp_path / "out").exists()


def test_a_module_that_breaks_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_segmenters.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match="expected a module broken_segmenters that can be imported, got ZeroDivisionError: division by zero: correct it"):
        check_method("broken_segmenters:segment")
    (tmp_path / "lacking_segmenters.py").write_text("import no_such_library\n")
    with pytest.raises(ValueError, match="got No module named 'no_such_library': install no_such_library, which it imports"):
        check_method("lacking_segmenters:segment")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mask", "expected nuclei as whole numbers of shape (128, 128) from own_segmenters:mask, got bool of shape (128, 128)"),
        ("small", "expected nuclei as whole numbers of shape (128, 128) from own_segmenters:small, got int64 of shape (8, 8)"),
        ("real", "got float64 of shape (128, 128)"),
        ("one", "expected two label images, (nuclei, cells), from own_segmenters:one, got ndarray"),
        ("negative", "expected nuclei from own_segmenters:negative from 0, got -1"),
        ("apart", "expected each cell from own_segmenters:apart around the nucleus of its number"),
        ("fails", "KeyError: 'nothing'"),
    ],
)
def test_what_is_no_label_image_is_in_quarantine(place, tmp_path, name, said):
    report = segment_fields(place / "fields", tmp_path / "masks", method=own(name), workers=1)
    assert len(report.quarantine) == N and report.quarantine["reason"].str.contains(said, regex=False).all(), report.quarantine["reason"][0]
    assert not list((tmp_path / "masks").glob("*.png"))


def test_numbers_up_to_billions_and_images_that_are_written_to_do_no_harm(field):
    plain = hpacell.segment(field, own("segment"))
    before = field.image.copy()
    for name in ("billions", "spoil"):
        found = hpacell.segment(field, own(name))
        np.testing.assert_array_equal(found.nuclei, plain.nuclei)
        np.testing.assert_array_equal(found.cells, plain.cells)
    np.testing.assert_array_equal(field.image, before)
    assert hpacell.segment(field, own("segment"), border="cells").cells.max() < plain.cells.max()


def test_a_diameter_goes_to_whoever_takes_one_and_is_refused_by_others(place, field, tmp_path, capsys):
    assert (hpacell.segment(field, own("segment"), diameter=60).cells > 0).sum() > (hpacell.segment(field, own("segment"), diameter=4).cells > 0).sum()
    for command in ("segment", "extract"):
        assert main([command, str(place / "fields"), "--out", str(tmp_path / "out"), "--method", own("ours"), "--diameter", "20"]) == 2
        assert "which has no parameter diameter: leave the diameter out" in capsys.readouterr().err


def test_processes_are_as_many_as_it_says(place):
    sources = [FieldSource("a", ("a.png",), CHANNELS)]
    assert processes_for(own("segment"), sources, 0) == 0
    assert processes_for(own("declared"), sources, 0) == 1 and processes_for(own("declared"), sources, 3) == 3


def test_an_entry_point_is_a_name_like_any_other(place, field, tmp_path, monkeypatch, capsys):
    """A package that declares one, installed as far as its metadata."""
    about = tmp_path / "own_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[hpacell.segmenters]\nmine = {own('segment')}\nclassical = {own('mask')}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(hpacell.__file__).parents[1]), str(tmp_path), str(place)])}
    words = [Path(sys.executable).with_name("hpacell"), "segment", str(place / "fields"), "--out", str(tmp_path / "masks"), "--workers", "2", "--method"]
    done = subprocess.run([*words, "mine"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_labels(tmp_path / "masks" / f"{field.field_id}_cells.png"), hpacell.segment(field, own("segment")).cells)
    done = subprocess.run([*words, "yours"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "auto, classical, unet, maskrcnn, mine, the folder" in done.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.entry_points.cache_clear()
    try:
        assert method_signature("mine") == method_signature(own("segment")) and method_signature("classical").startswith("classical ")
    finally:
        plugins.entry_points.cache_clear()
    assert "mine" in {entry.name for entry in importlib.metadata.entry_points(group=plugins.GROUP)}


# Keys


def forget():
    for cached in (closure._module, closure._piece, closure._code_of, closure.code_hash):
        cached.cache_clear()


def key_of(name):
    return field_key(FieldSource("a", ("a.png",), CHANNELS), "PNG:0a", ExtractSettings(method=own(name)))


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("own_segmenters.py", "LEAST = 30", "LEAST = 31", {"segment", "mask"}),
        ("own_segmenters.py", "number = 3", "number = 4", set()),
        ("own_helper.py", "ndimage.label(mask)[0]", "ndimage.label(~mask)[0]", {"segment"}),
        ("own_segmenters.py", '"weights of June"', '"weights of July"', set()),  # what is imported stays until the next start
    ],
)
def test_what_it_runs_is_in_the_key(place, monkeypatch, file, old, new, changed):
    forget()
    before = {name: key_of(name) for name in ("segment", "mask", "ours", "declared")}
    read = closure._source_of
    monkeypatch.setattr(closure, "_source_of", lambda path: read(path).replace(old, new) if path.name == file else read(path))
    forget()
    assert {name for name, key in before.items() if key_of(name) != key} == changed
    monkeypatch.undo()
    forget()


def test_a_method_that_calls_ours_changes_with_it(place, monkeypatch):
    forget()
    before = {name: key_of(name) for name in ("segment", "ours")}
    read = closure._source_of
    monkeypatch.setattr(closure, "_source_of", lambda path: read(path).replace("LEAST_HIT = ", "LEAST_HIT = 0 + ") if path.name == "segmentation.py" else read(path))
    forget()
    assert {name for name, key in before.items() if key_of(name) != key} == {"ours"}
    monkeypatch.undo()
    forget()


def test_a_declared_version_is_the_key(place, monkeypatch):
    function = load_plugin(own("declared")).function
    assert plugin_signature(own("declared")) == "own_segmenters:declared version weights of June"
    before = key_of("declared")
    monkeypatch.setattr(function, "version", "weights of July")
    assert key_of("declared") != before


def test_a_file_that_changes_while_python_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "edited_segmenters.py"
    path.write_text("def segment(image, channels):\n    return image[..., 0] * 0, None\n")
    check_method("edited_segmenters:segment")
    path.write_text("def segment(image, channels):\n    return image[..., 0] * 0 + 1, None\n")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="edited_segmenters.py as it was when it was imported, got a file that has changed since: start Python"):
        check_method("edited_segmenters:segment")


def test_code_that_cannot_be_read_must_declare_a_version():
    with pytest.raises(ValueError, match="got one whose source cannot be read: give the function an attribute version"):
        check_method("math:sqrt")


def test_code_that_is_not_python_must_have_a_version(tmp_path, monkeypatch):
    """A library without a source that lies beside the module: nothing would tell when it changes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "compiled_helper.pyc").write_bytes(compiled("def number(mask):\n    return mask * 1\n"))
    (tmp_path / "compiled_user.py").write_text("import compiled_helper\n\n\ndef segment(image, channels):\n    return compiled_helper.number(image[..., 0] > 30), None\n")
    with pytest.raises(ValueError, match="got one whose source cannot be read: give the function an attribute version"):
        check_method("compiled_user:segment")
    (tmp_path / "compiled_user.py").write_text((tmp_path / "compiled_user.py").read_text() + "\n\nsegment.version = '1'\n")
    sys.modules.pop("compiled_user")
    importlib.invalidate_caches()
    check_method("compiled_user:segment")


def compiled(text):
    """The bytes of a .pyc file."""
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(compile(text, "compiled_helper.py", "exec"))


# The one function


@pytest.mark.parametrize("method", ["classical", "unet", "maskrcnn", "auto"])
@pytest.mark.parametrize("channels", [None, ["nucleus"]])
def test_the_function_equals_the_commands(place, tmp_path, method, channels):
    if channels and method == "classical":
        method = "auto"
    (tmp_path / "fields").mkdir()
    for path in sorted((place / "fields").glob("*_00000_*.png")):
        if channels is None or path.name.endswith("_blue.png"):
            (tmp_path / "fields" / (path.name if channels is None else "alone.png")).write_bytes(path.read_bytes())
    source = find_fields(tmp_path / "fields", channels=channels)[0]
    field = read_field(source)
    found = hpacell.segment(field, method)
    words = [str(tmp_path / "fields"), "--method", method, "--workers", "1", *(["--channels", ",".join(channels)] if channels else []), "--out"]
    assert main(["segment", *words, str(tmp_path / "masks")]) == 0
    for kind, labels in (("nuclei", found.nuclei), ("cells", found.cells)):
        written = tmp_path / "masks" / f"{field.field_id}_{kind}.png"
        assert (labels is None) == (not written.exists())
        if labels is not None:
            np.testing.assert_array_equal(read_labels(written), labels)
    assert main(["extract", *words, str(tmp_path / "store"), "--size", "32"]) == 0
    index, cells = read_store(tmp_path / "store").index, found.nuclei if found.cells is None else found.cells
    assert index["cell_id"].tolist() == np.unique(cells)[1:].tolist() and index["cell_area"].sum() == (cells > 0).sum()
    assert len(extract_field(source, ExtractSettings(32, method=method)).cells) == len(index) > 0


def test_the_function_reads_paths_and_says_what_is_no_field(place, field, tmp_path):
    one = place / "fields" / "sim_5_00000_blue.png"
    alone = tmp_path / "alone.png"
    alone.write_bytes(one.read_bytes())
    np.testing.assert_array_equal(hpacell.segment(alone, "classical").nuclei, hpacell.segment(read_field(find_fields(alone)[0]), "classical").nuclei)
    with pytest.raises(ValueError, match=f"expected the path of one field, got {N} fields"):
        hpacell.segment(place / "fields")
    with pytest.raises(ValueError, match=r'of an array make a field, Field\("name", image, channels\)'):
        hpacell.segment(field.image)
    made = Field("name", field.image, field.channels)
    np.testing.assert_array_equal(hpacell.segment(made).cells, hpacell.segment(field).cells)


def test_names_of_the_package_are_functions_whatever_was_imported():
    code = "import hpacell, hpacell.pipeline.segment; from hpacell import segment; print(callable(segment), callable(hpacell.segment), sorted(hpacell.__all__) == list(hpacell.__all__))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["True"] * 3
    for name in hpacell.__all__:
        assert getattr(hpacell, name).__name__ == name


@pytest.mark.slow  # a kernel
def test_a_workflow_takes_it(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)  # a kernel looks for modules in its working folder
    words = ["run", str(Path(hpacell.__file__).parent / "params" / "extract.yaml"), "--runs", str(tmp_path / "runs")]
    values = {"fields": place / "fields", "labels": "", "store": tmp_path / "store", "method": own("segment"), "crop_size": 32, "workers": 2}
    assert main([*words, *(word for name, value in values.items() for word in ("-p", f"{name}={value}"))]) == 0
    store = read_store(tmp_path / "store")
    assert len(store) > 3 * N and store.manifest["parameters"]["method"] == own("segment")
    assert json.loads(next((tmp_path / "runs").rglob("metrics_extract.json")).read_text())


# What a segmenter leaves out, and how it ends


def write_module(folder, monkeypatch, name, text):
    """A module on the path of this process and, by the working folder, of the workers."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return name


@pytest.mark.parametrize("command", ["segment", "extract"])
def test_a_segmenter_that_ends_the_process_costs_its_field_alone(place, tmp_path, monkeypatch, capsys, command):
    name = write_module(tmp_path, monkeypatch, "ending_segmenters", "import sys\n\n\ndef segment(image, channels):\n    sys.exit(0)\n")
    assert main([command, str(place / "fields"), "--out", str(tmp_path / "out"), "--method", f"{name}:segment", "--workers", "1"]) == 1
    quarantine = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert len(quarantine) == N and quarantine["reason"].str.startswith("expected two label images, (nuclei, cells), from ending_segmenters:segment, got SystemExit: 0").all()
    assert "quarantined" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nsys.exit(0)\n", "expected a module odd_segmenters that can be imported, got SystemExit: 0: correct it"),
        ("import math\nmath.nothing\n", "expected a module odd_segmenters that can be imported, got AttributeError: module 'math' has no attribute 'nothing'"),
        ("import no_such_library.part\n", "expected a module odd_segmenters that can be imported, got No module named 'no_such_library': install no_such_library, which it imports"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(place, tmp_path, monkeypatch, capsys, text, said):
    name = write_module(tmp_path, monkeypatch, "odd_segmenters", text)
    assert main(["segment", str(place / "fields"), "--out", str(tmp_path / "out"), "--method", f"{name}:segment"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_cells_that_it_does_not_find_are_found_around_its_nuclei(place, field, tmp_path):
    found = hpacell.segment(field, own("ours"))
    np.testing.assert_array_equal(found.cells, segment_cells(field.image, found.nuclei, field.channels))
    assert (found.cells > 0).sum() > 1.5 * (found.nuclei > 0).sum()
    report = segment_fields(place / "fields", tmp_path / "masks", method=own("ours"), workers=1)
    assert report.fields["n_cells"].notna().all() and (report.fields["n_cells"] == report.fields["n_nuclei"]).all()
    np.testing.assert_array_equal(read_labels(tmp_path / "masks" / f"{field.field_id}_cells.png"), found.cells)
    store = extract_fields(place / "fields", tmp_path / "store", settings=ExtractSettings(32, method=own("ours")), workers=1).store
    assert (store.index["field_id"] == field.field_id).sum() == found.cells.max()


def test_nuclei_alone_stay_alone(field, place):
    nucleus = field.image[..., [list(field.channels).index("nucleus")]]
    assert hpacell.segment(Field("alone", nucleus, ("nucleus",)), own("ours")).cells is None
    section = np.full((*field.image.shape[:2], 3), 220, np.uint8)
    section[40:60, 40:60] = 90
    assert hpacell.segment(Field("section", section, ("nucleus", "protein", "er")), own("dark")).cells is None
