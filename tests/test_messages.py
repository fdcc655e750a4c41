"""What people read on their terminal: once, in plain words, with remedies that work when they are copied."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from hpacell.cli import main
from hpacell.fields import simulate_fields
from hpacell.fields.find import find_fields
from hpacell.fields.image import FieldError
from hpacell.fields.inspect import describe_table, inspect_fields
from hpacell.fields.patterns import pattern_of_mask
from hpacell.masks.layouts import find_labelled
from hpacell.pipeline.engine import map_items
from hpacell.pipeline.segmenters import segmenter_of

PLANE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 4096, (40, 50)).astype(np.float32), (0, 0), 2)


def write(path, plane=PLANE, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, plane.astype(np.uint16), **more)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    simulate_fields(folder, n_fields=2, seed=4, size=(256, 256))
    shutil.rmtree(folder / "truth")
    return folder


def said(capsys):
    """Both streams, without progress bars."""
    shown = capsys.readouterr()
    lines = [line for line in re.split("[\r\n]", shown.err) if line.strip() and "|" not in line]
    return shown.out, "\n".join(lines)


def test_a_clean_folder_gives_no_warning(clean, tmp_path, capsys):
    assert main(["inspect", str(clean)]) == 0
    out, err = said(capsys)
    assert err == "" and "note:" not in out and out.startswith("2 fields read alike, ") and len(out.splitlines()) == 6
    assert main(["segment", str(clean), "--out", str(tmp_path / "masks"), "--workers", "1"]) == 0
    assert said(capsys)[1] == ""
    words = ["extract", str(clean), "--labels", str(clean / "labels.csv"), "--out", str(tmp_path / "store"), "--workers", "1"]
    assert main(words) == 0
    out, err = said(capsys)
    assert err == "" and len(out.splitlines()) == 1
    assert pd.read_csv(tmp_path / "masks" / "segmentation.csv")["notes"].isna().all()


def test_fields_read_alike_are_described_together(tmp_path, capsys):
    for i, top in enumerate((1000, 3000, 4000)):
        write(tmp_path / f"f{i}.tif", np.clip(PLANE, 0, top))
    write(tmp_path / "g.tif", PLANE[:30])
    (tmp_path / "h.tif").write_bytes(b"II*\0broken")
    table = inspect_fields(tmp_path)
    lines = describe_table(table).splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["3 fields read alike, f0 to f2", "g", "h"]
    lows, highs = zip(*(map(float, reach.split(" to ")) for reach in table["range"][:3]), strict=True)
    assert lines[1] == f"  nucleus: assumed: one grey channel; {min(lows):g} to {max(highs):g}"
    assert "e+" not in describe_table(table)
    assert main(["inspect", str(tmp_path)]) == 1 and "5 fields, 1 of them cannot be read" in said(capsys)[0]


def test_fields_with_other_notes_or_sizes_are_described_apart(tmp_path):
    for name, axes in (("a", "ZYX"), ("b", "YX")):
        write(tmp_path / f"{name}.tif", np.stack([PLANE] * 3) if axes == "ZYX" else PLANE, imagej=True, metadata={"axes": axes})
    shown = describe_table(inspect_fields(tmp_path))
    assert "read alike" not in shown and shown.count("focus slices") == 1


def test_how_numbers_are_scaled_is_said_once(tmp_path, capsys):
    for i in range(2):
        write(tmp_path / "in" / f"f{i}.tif", np.stack([PLANE] * 4), imagej=True, metadata={"axes": "CYX"})
    assert main(["extract", str(tmp_path / "in"), "--out", str(tmp_path / "store"), "--workers", "1", "--method", "classical"]) == 0
    out, err = said(capsys)
    assert (out + err).count("scaled to 8 bits") == 1 and (out + err).count("four channels without names") == 1
    assert main(["extract", str(tmp_path / "in"), "--out", str(tmp_path / "store"), "--workers", "1", "--method", "classical", "--bits", "16"]) == 0
    out, err = said(capsys)
    assert (out + err).count("the store was made with other settings") == 1


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        (("a/x.tif", "b/y.tif"), "'*/{field_id}.tif'"),
        (("a/deep/x.tif", "b/deep/y.tif"), "'*/*/{field_id}.tif'"),
        (("a/x_w1.TIF", "a/x_w2.TIF"), "'*/{field_id}_{channel}.tif'"),
        (("a/x_red.tif", "a/x_blue.tif"), "'*/{field_id}_{channel}.tif'"),
    ],
)
def test_images_in_subfolders_are_named_with_a_pattern_that_works(tmp_path, names, suffix):
    for name in names:
        write(tmp_path / name)
    with pytest.raises(FieldError, match="give a folder with images, such as") as caught:
        find_fields(tmp_path)
    folder, pattern = re.search(r"such as (\S+), or .*--pattern (.*)$", str(caught.value)).groups()
    assert pattern == suffix
    sources = find_fields(tmp_path, shlex.split(pattern)[0])
    assert sorted(path for source in sources for path in source.paths) == sorted(str(tmp_path / name) for name in names)
    assert {str(path.parent) for path in tmp_path.rglob("*.[tT][iI][fF]")} >= {folder}


@pytest.mark.parametrize("name", ["a.nd2", "a.CZI", "deep/a.lif", "a.ome.zarr/0/0"])
def test_files_of_other_programs_are_to_be_saved_as_tiff(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    if name.startswith("deep"):
        write(tmp_path / "deep" / "b.tif")
        with pytest.raises(FieldError, match="give a folder with images"):
            find_fields(tmp_path)
        return
    with pytest.raises(FieldError, match=r"save what is in \.(nd2|czi|zarr) files as TIFF"):
        find_fields(tmp_path)


@pytest.mark.parametrize("name", ["a_mask.tif", "mask_7.tif", "b-labels.tif", "x_cp_masks.tif", "mask_a.tif", "Label a.tif", "a_masks_1.tif", "a_seg.ome.tif"])
def test_a_folder_of_masks_says_how_to_read_them_as_fields(tmp_path, name):
    write(tmp_path / name)
    try:
        sources = find_fields(tmp_path)
    except FieldError as error:
        assert f"--pattern {pattern_of_mask(name)!r}" in str(error)
        sources = find_fields(tmp_path, pattern_of_mask(name))
    assert [source.paths for source in sources] == [(str(tmp_path / name),)]


def test_a_pattern_that_matches_masks_alone_says_so(tmp_path):
    write(tmp_path / "a_mask.tif")
    with pytest.raises(FieldError, match=r"with names of masks alone, such as a_mask.tif: .* --pattern '\{field_id\}_mask.tif'"):
        find_fields(tmp_path, "{field_id}.tif")


def _no_nucleus(item):
    return segmenter_of("classical")(np.zeros((8, 8, 1)), ("protein",))


def _unpack(item):
    first, second = [item]
    return first + second


def test_errors_of_ones_own_carry_no_name_of_a_class():
    assert next(map_items(_no_nucleus, [0])).error.startswith("expected a channel nucleus, got protein")
    assert next(map_items(_unpack, [0])).error == "ValueError: not enough values to unpack (expected 2, got 1)"
    assert next(map_items(int, ["x"])).error.startswith("ValueError: invalid literal")


def test_masks_of_hpa_cell_segmentation_are_read(tmp_path):
    labels = np.zeros((40, 50), np.uint16)
    labels[5:20, 5:20] = 1
    for colour in ("red", "green", "blue", "yellow"):
        cv2.imwrite(str(tmp_path / f"a_{colour}.png"), PLANE.astype(np.uint8))
    cv2.imwrite(str(tmp_path / "a_cellmask.png"), labels)
    cv2.imwrite(str(tmp_path / "a_nucleimask.png"), labels * (np.arange(50) < 10).astype(np.uint16))
    (cells,), (nuclei,) = find_labelled(tmp_path), find_labelled(tmp_path, target="nuclei")
    assert cells.image_id == "a" and (cells.read_truth().labels > 0).sum() == 225 and (nuclei.read_truth().labels > 0).sum() == 75
    assert len(cells.paths) == 4


def test_tensorflow_says_nothing_about_itself(tmp_path):
    for i in range(2):
        write(tmp_path / "in" / f"f{i}.tif")
    words = [sys.executable, "-m", "hpacell", "segment", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--method", "unet", "--workers", "1"]
    ran = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"HPACELL_PROGRESS": os.devnull})
    lines = ran.stderr.splitlines()
    assert ran.returncode == 0 and not any("tensorflow" in line.lower() or "onednn" in line.lower() or "absl" in line for line in lines), ran.stderr


INSTRUMENTS = {
    "MetaMorph": (("p_w1DAPI.TIF", "p_w2GFP.TIF"), False),
    "MetaXpress": (("p_A01_s1_w10A1B2C3D-0000-1111-2222-333344445555.TIF", "p_A01_s1_w21A1B2C3D-0000-1111-2222-333344445556.TIF"), True),
    "Micro-Manager": (("img_000_DAPI_000.tif", "img_000_FITC_000.tif"), False),
    "IN Cell": (("A - 01(fld 1 wv DAPI - DAPI).tif", "A - 01(fld 1 wv FITC - FITC).tif"), False),
    "Fiji": (("C1-a.tif", "C2-a.tif"), True),
    "Leica": (("Series001_ch00.tif", "Series001_ch01.tif"), True),
    "ZEN": (("exp_c1_ORG.tif", "exp_c2_ORG.tif"), True),
    "Operetta": (("r01c01f01p01-ch1sk1fk1fl1.tiff", "r01c01f01p01-ch2sk1fk1fl1.tiff"), True),
    "CellInsight": (("MFGTMP_1_A01f00d0.TIF", "MFGTMP_1_A01f00d1.TIF"), True),
    "CellVoyager": (("W0001F0001T0001Z001C1.tif", "W0001F0001T0001Z001C2.tif"), True),
    "lasers": (("a_405.tif", "a_488.tif"), True),
}


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_the_names_of_instruments_are_read_or_asked_for(tmp_path, capsys, instrument):
    names, asks = INSTRUMENTS[instrument]
    for name in names:
        write(tmp_path / name)
    options = []
    if asks:
        assert main(["inspect", str(tmp_path)]) == 2
        options = shlex.split(re.search("say it with (.*), with what each really shows", said(capsys)[1])[1])
    assert main(["inspect", str(tmp_path), *options]) == 0
    out, _ = said(capsys)
    assert out.rstrip().endswith("1 field") and "2 channels" in out and "  nucleus: " in out and "  protein: " in out


def test_fields_that_cannot_be_read_for_one_reason_are_told_together(tmp_path, capsys):
    for name in "abc":
        write(tmp_path / f"{name}.tif", np.stack([PLANE] * 4), imagej=True, metadata={"axes": "CYX"})
    assert main(["inspect", str(tmp_path), "--channels", "nucleus,protein"]) == 1
    out, _ = said(capsys)
    assert "3 fields alike, a to c: cannot be read" in out and out.count("expected 2 channels") == 1
    options = shlex.split(re.search("e.g. (.*), or none", out)[1])
    assert main(["inspect", str(tmp_path), *options]) == 0 and "3 fields read alike" in said(capsys)[0]


@pytest.mark.parametrize(("name", "remedy"), [("a.nd2", "as TIFF"), ("a.docx", "check the path"), ("noend", "check the path")])
def test_a_single_file_that_is_no_image_is_named(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FieldError, match=f"expected images .*got 1 file .*{remedy}"):
        find_fields(tmp_path / name)


def test_a_diameter_that_is_no_number_is_one_sentence(capsys):
    assert main(["segment", "fields", "--out", "masks", "--diameter", "wide"]) == 2
    assert "expected a number above 0" in capsys.readouterr().err
