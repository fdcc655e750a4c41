"""What is read, left out and assumed of files with several images, axes or meanings: recorded, or refused with both readings named."""

import io
import re
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from hpacell.cli import main
from hpacell.feed.store import read_store
from hpacell.fields.decode import decode_image
from hpacell.fields.find import find_fields
from hpacell.fields.image import Decoded, FieldError, Reading
from hpacell.fields.inspect import describe_inspected, inspect_fields, summarise_notes
from hpacell.fields.read import read_field
from hpacell.pipeline.extract import extract_fields
from hpacell.pipeline.field import ExtractSettings
from hpacell.pipeline.segment import segment_fields
from hpacell.vocabulary import CHANNELS

RNG = np.random.default_rng(0)
GREY = cv2.GaussianBlur(RNG.integers(0, 256, (48, 64)).astype(np.uint8), (0, 0), 2)
OTHER = cv2.GaussianBlur(RNG.integers(0, 256, (48, 64)).astype(np.uint8), (0, 0), 2)


def tiff(*arrays, **options):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=options.pop("ome", None)) as file:
        for array in arrays:
            file.write(array, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def saved(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def notes(content, **reading) -> str:
    return " / ".join(decode_image(content, "a", reading=Reading(**reading)).notes)


# ---- images of a file


@pytest.mark.parametrize("second", [OTHER[:24, :32], OTHER, OTHER[:, :40], cv2.resize(OTHER, (128, 96))])
@pytest.mark.parametrize("ome", [True, False])
def test_scenes_are_refused_until_one_is_chosen(second, ome):
    if second.shape == GREY.shape and not ome:
        return  # pages of one size are channels or slices
    content = tiff(GREY, second, ome=ome, metadata={"axes": "YX"} if ome else None)
    with pytest.raises(FieldError, match=r"expected one field, got 2 images \(0: 48 x 64; 1: .*choose one with --scene 0"):
        decode_image(content, "a.tif")
    first, other = (decode_image(content, "a.tif", reading=Reading(scene=n)) for n in (0, 1))
    assert np.array_equal(first.pixels[..., 0], GREY) and np.array_equal(other.pixels[..., 0], second) and "scene 1 of 2" in other.notes
    with pytest.raises(FieldError, match="expected scene 2, got 2 images .*choose one from 0 to 1"):
        decode_image(content, "a.tif", reading=Reading(scene=2))


@pytest.mark.parametrize("shrink", [2, 4])
@pytest.mark.parametrize("how", [cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LINEAR])
@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_smaller_copies_are_passed_over_and_noted(shrink, how, gamma):
    small = cv2.resize(GREY, (64 // shrink, 48 // shrink), interpolation=how)
    small = (255 * (small / 255) ** gamma).astype(np.uint8)
    decoded = decode_image(tiff(GREY, small, metadata=None), "a.tif")
    assert np.array_equal(decoded.pixels[..., 0], GREY) and any("1 smaller images" in note for note in decoded.notes)


def test_levels_of_a_pyramid_are_noted():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as file:
        file.write(GREY, photometric="minisblack", subifds=2, metadata={"axes": "YX"})
        file.write(GREY[::2, ::2], photometric="minisblack", subfiletype=1)
        file.write(GREY[::4, ::4], photometric="minisblack", subfiletype=1)
    assert "2 smaller images in the file" in notes(buffer.getvalue())


def test_a_scene_of_a_file_that_has_one_image():
    with pytest.raises(FieldError, match="expected scene 1, got a PNG, which holds one image: leave --scene out"):
        decode_image(saved(GREY, "PNG"), "a.png", reading=Reading(scene=1))


# ---- axes and slices


def test_slices_by_number_middle_and_brightest():
    stack = np.stack([GREY // 2, OTHER, GREY])
    content = tiff(stack, ome=True, metadata={"axes": "ZYX"})
    assert "brightest of 3 focus slices (--z max, mid or a number decides" in notes(content) and "--z" not in notes(content, z="max")
    for z, expected in (("max", stack.max(axis=0)), ("mid", OTHER), ("0", GREY // 2), ("2", GREY)):
        assert np.array_equal(decode_image(content, "a.tif", reading=Reading(z=z)).pixels[..., 0], expected)
    with pytest.raises(FieldError, match="expected a slice 3, got 3 slices: choose one from 0 to 2"):
        decode_image(content, "a.tif", reading=Reading(z="3"))


@pytest.mark.parametrize("axes", ["CYX", "cyx"])
def test_axes_that_are_given_win(axes):
    stack = np.stack([GREY // 2, OTHER, GREY])
    content = tiff(stack, ome=True, metadata={"axes": "TYX"})
    with pytest.raises(FieldError, match="got 3 moments in time: save each as a file of its own, or say that they are channels, --axes CYX"):
        decode_image(content, "a.tif")
    assert np.array_equal(decode_image(content, "a.tif", reading=Reading(axes=axes)).pixels, np.moveaxis(stack, 0, 2))
    assert np.array_equal(decode_image(content, "a.tif", reading=Reading(axes="ZYX", z="1")).pixels[..., 0], OTHER)
    swapped = decode_image(tiff(stack, metadata=None), "a.tif", reading=Reading(axes="CXY")).pixels
    assert np.array_equal(swapped, stack.transpose(2, 1, 0))


def test_axes_that_do_not_fit_the_file():
    with pytest.raises(FieldError, match=r"expected pixels with the axes TCZYX, got 48 x 64 \(YX\): give a letter for each of the 2 axes"):
        decode_image(tiff(GREY), "a.tif", reading=Reading(axes="TCZYX"))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_pages_without_a_meaning_ask_for_one(tmp_path, n, capsys):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY] * n), photometric="minisblack", metadata=None)
    assert main(["segment", str(tmp_path), "--method", "classical", "--workers", "1", "--out", str(tmp_path / "out")]) == 1
    assert "expected a channel nucleus" in capsys.readouterr().err
    field = read_field(find_fields(tmp_path)[0])
    assert f"{n} channels without names (--channels names them; if they are focus slices: --axes ZYX)" in field.notes
    assert read_field(find_fields(tmp_path, reading=Reading(axes="ZYX"))[0]).channels == ("nucleus",)


# ---- colours and alpha


def test_colours_that_are_no_brightness_are_refused():
    for photometric, name in (("separated", "CMYK"), ("cielab", "CIE Lab")):
        samples = 4 if photometric == "separated" else 3
        content = tiff(np.dstack([GREY] * samples), photometric=photometric, planarconfig="contig")
        with pytest.raises(FieldError, match=f"expected grey levels, RGB or channels, got {name}: export it as RGB"):
            decode_image(content, "a.tif")
    assert "CMYK colours converted to RGB" in notes(_cmyk_jpeg())


def _cmyk_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([GREY] * 3)).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_lookup_table_leaves_the_numbers_alone():
    ramp = np.zeros((3, 256), np.uint16)
    ramp[1] = np.arange(256) * 257
    decoded = decode_image(tiff(GREY, photometric="palette", colormap=ramp), "a.tif")
    assert np.array_equal(decoded.pixels[..., 0], GREY) and "lookup table left out" in " ".join(decoded.notes)
    wild = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
    decoded = decode_image(tiff(GREY, photometric="palette", colormap=wild), "a.tif")
    assert decoded.kind == "colour" and np.array_equal(decoded.pixels, (wild >> 8).astype(np.uint8).T[GREY]) and "palette applied" in " ".join(decoded.notes)


@pytest.mark.parametrize("opacity", [255, 0])
@pytest.mark.parametrize("samples", [1, 3])
def test_alpha_that_says_nothing_is_left_out_and_noted(tmp_path, opacity, samples):
    pixels = np.dstack([GREY] * samples + [np.full_like(GREY, opacity)])
    (tmp_path / "a.png").write_bytes(saved(pixels, "PNG"))
    field = read_field(find_fields(tmp_path)[0])
    assert np.array_equal(field.image[..., 0], GREY) and "alpha left out, which is the same everywhere" in field.notes


@pytest.mark.parametrize(("samples", "names"), [(1, ["nucleus", "protein"]), (3, list(CHANNELS))])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_alpha_that_varies_is_a_question(tmp_path, samples, names, kind):
    pixels = np.dstack([GREY, OTHER, GREY[::-1]][:samples] + [OTHER[::-1]])
    if kind == "png":
        (tmp_path / "a.png").write_bytes(saved(pixels, "PNG"))
    else:
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb" if samples == 3 else "minisblack", extrasamples=[2], planarconfig="contig")
    with pytest.raises(FieldError, match="a last sample that the file calls alpha although its values vary: name all") as caught:
        read_field(find_fields(tmp_path)[0])
    offered = re.search(r"--channels ([a-z,]+) in", str(caught.value))[1].split(",")
    assert np.array_equal(read_field(find_fields(tmp_path, channels=offered)[0]).image, pixels)  # the remedy works
    assert np.array_equal(read_field(find_fields(tmp_path, channels=names)[0]).image, pixels)
    fewer = read_field(find_fields(tmp_path, channels=names[:-1])[0])
    assert np.array_equal(fewer.image, pixels[..., :-1]) and "varying alpha left out" in fewer.notes


def test_names_in_the_file_are_not_overruled_by_a_guess(tmp_path):
    stack = np.stack([GREY, OTHER, GREY, OTHER])
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": ["Phalloidin", "Mito", "Draq", "ConA"]}})
    assert read_field(find_fields(tmp_path)[0]).channels == ("phalloidin", "mito", "draq", "cona")  # not the Atlas's four
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "DAPI", "GFP", "ER"]}})
    assert "nucleus" not in read_field(find_fields(tmp_path)[0]).channels  # which of the two?
    tifffile.imwrite(tmp_path / "a.ome.tif", GREY, photometric="minisblack", metadata={"axes": "YX", "Channel": {"Name": ["alpha-tubulin"]}})
    assert read_field(find_fields(tmp_path)[0]).channels == ("microtubules",)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack[:2], photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": ["protein", "DAPI"]}})
    swapped = read_field(find_fields(tmp_path, channels=["nucleus", "protein"])[0])
    assert np.array_equal(swapped.image, np.dstack([OTHER, GREY]))  # by name, not by place


def test_turned_pictures_are_noted():
    image, exif = Image.fromarray(GREY), Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert "orientation 6" in notes(buffer.getvalue()) and decode_image(buffer.getvalue()).pixels.shape[:2] == GREY.shape
    assert "orientation 3" in notes(tiff(GREY, extratags=[(274, "H", 1, 3, True)]))
    assert notes(saved(GREY, "JPEG")) == ""


# ---- size of a pixel


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}, 0.5), ({"resolution": (25_400, 25_400), "resolutionunit": "INCH"}, 1.0),
        ({"resolution": (20_000, 20_000), "resolutionunit": "NONE"}, None), ({"resolution": (600, 600), "resolutionunit": "INCH"}, None),
        ({"resolution": (20_000, 5_000), "resolutionunit": "CENTIMETER"}, 1.0), ({}, None),
    ],
)  # fmt: skip
def test_units_of_resolution(options, expected):
    assert decode_image(tiff(GREY, metadata=None, **options)).pixel_um == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("unit", "factor"), [("µm", 1), ("nm", 1e-3), ("mm", 1e3), ("Å", 1e-4), ("inch", 25400)])
def test_units_of_ome(unit, factor):
    sizes = {"PhysicalSizeX": 0.25 / factor, "PhysicalSizeXUnit": unit, "PhysicalSizeY": 0.5 / factor, "PhysicalSizeYUnit": unit}
    decoded = decode_image(tiff(GREY, ome=True, metadata={"axes": "YX", **sizes}))
    assert decoded.pixel_um**2 == pytest.approx(0.125, rel=1e-4) and "pixels are not square (0.5 x 0.25 µm, height x width)" in decoded.notes[0]


def test_the_pixel_size_is_that_of_the_scene():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as file:
        for array, size in ((GREY, 0.5), (OTHER, 0.25)):
            file.write(array, photometric="minisblack", metadata={"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size})
    assert [decode_image(buffer.getvalue(), reading=Reading(scene=n)).pixel_um for n in (0, 1)] == [0.5, 0.25]


def test_png_states_its_pixel_size():
    content = saved(GREY, "PNG", dpi=(50_800, 50_800))
    assert decode_image(content).pixel_um == pytest.approx(0.5, rel=1e-3)
    assert decode_image(saved(GREY, "PNG", dpi=(300, 300))).pixel_um is None


# ---- recorded where people look


@pytest.fixture
def folder(tmp_path):
    """Three fields, each with something to note."""
    place = tmp_path / "fields"
    place.mkdir()
    rows, cols = np.mgrid[:96, :96]
    nuclei = np.zeros((96, 96), np.uint8) + 5
    for row in (24, 72):
        for col in (24, 72):
            nuclei[(rows - row) ** 2 + (cols - col) ** 2 < 100] = 200
    tifffile.imwrite(place / "slices.tif", np.stack([nuclei, nuclei // 2]), imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(place / "oblong.tif", nuclei, imagej=True, resolution=(2, 1), metadata={"unit": "um"})
    cv2.imwrite(str(place / "plain.png"), nuclei)
    time.sleep(0.2)  # files that have just been written may still change unseen
    return place


def test_notes_are_in_the_tables(folder, tmp_path):
    masks = segment_fields(folder, tmp_path / "masks", method="classical", workers=1)
    table = pd.read_csv(tmp_path / "masks" / "segmentation.csv", keep_default_na=False).set_index("field_id")
    assert "brightest of 2 focus slices" in table.loc["slices", "notes"] and "not square" in table.loc["oblong", "notes"] and (table["n_nuclei"] == 4).all()
    assert table["channels"].eq("nucleus").all() and float(table.loc["oblong", "pixel_um"]) == pytest.approx(0.5**0.5, rel=1e-4)
    assert any("brightest of 2 focus slices" in note and note.endswith("1 field, e.g. slices") for note in masks.notes)
    again = segment_fields(folder, tmp_path / "masks", method="classical", workers=1)
    assert again.n_made == 0 and again.notes == masks.notes
    mid = segment_fields(folder, tmp_path / "masks", method="classical", workers=1, reading=Reading(z="mid"))
    assert mid.n_made == 3 and not any("brightest" in note for note in mid.notes)
    report = extract_fields(folder, tmp_path / "store", settings=ExtractSettings(method="classical", crop_size=32), workers=1)
    stored = read_store(tmp_path / "store").fields.set_index("field_id")["notes"]
    assert "brightest of 2 focus slices" in stored["slices"] and any("3 fields, e.g. oblong" in note for note in report.notes)


def test_inspect_prints_what_would_be_read(folder, tmp_path, capsys):
    (folder / "broken.tif").write_bytes(b"II*\0broken")
    assert main(["inspect", str(folder), "--out", str(tmp_path / "seen.csv")]) == 1
    shown = capsys.readouterr().out
    for words in ("slices: 96 x 96 pixels, 1 channel, uint8, 8 bits", "axes Z 2, Y 96, X 96", "nucleus: assumed: one grey channel; 5 to 200", "note: brightest of 2", "pixels of 0.707107 µm", "broken: cannot be read", "4 fields, 1 of them cannot be read"):
        assert words in shown, words
    assert len(pd.read_csv(tmp_path / "seen.csv")) == 4
    assert main(["inspect", str(folder / "slices.tif"), "--z", "1"]) == 0 and "slice 1 of 2" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--limit", "2"]) == 1 and "2 fields" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--axes", "QQ"]) == 2 and "expected axes of the letters" in capsys.readouterr().err


def test_inspect_agrees_with_what_is_read(folder):
    table = inspect_fields(folder)
    for row, source in zip(table.to_dict("records"), find_fields(folder), strict=True):
        field = read_field(source)
        assert row["channels"] == "|".join(field.channels) and row["shape"] == " x ".join(map(str, field.shape)) and row["notes"] == "|".join(field.notes)
        assert describe_inspected(row).startswith(f"{source.field_id}: ")


def test_decoded_pixels_are_given_without_alpha():
    assert Decoded(np.zeros((2, 2, 4), np.uint8), "colour", alpha=True).opaque.shape == (2, 2, 3)


def test_a_field_without_nuclei_says_what_was_looked_for(tmp_path):
    place = tmp_path / "fields"
    place.mkdir()
    cv2.imwrite(str(place / "empty.png"), np.full((96, 96), 7, np.uint8))
    report = extract_fields(place, tmp_path / "store", settings=ExtractSettings(method="classical", crop_size=32), workers=1)
    assert len(report.store) == 0 and any(re.search(r"no cells with nuclei of \d.* pixels or more across in 1 field: empty; .*--diameter", note) for note in report.notes)
# ---- numbers that a file stores turned over or shifted, and options for files that have nothing to choose from


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_white_as_zero_is_turned_over_before_slices_are_projected(dtype, slices):
    stack = np.stack([np.round(GREY * share).astype(dtype) for share in (1, 0.3, 0.6)[:slices]])
    content = tiff(np.iinfo(dtype).max - stack, photometric="miniswhite", metadata={"axes": "ZYX"})
    decoded = decode_image(content, "a.tif")
    assert np.array_equal(decoded.pixels[..., 0], GREY)
    assert "stored with white as 0: the numbers were inverted" in decoded.notes


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_white_as_zero_is_refused_where_black_is_not_known(dtype):
    with pytest.raises(FieldError, match="a.tif: expected black as 0, .*got white as 0 in .*invert the image"):
        decode_image(tiff(GREY.astype(dtype), photometric="miniswhite"), "a.tif")


def test_imagej_stores_numbers_with_a_sign_shifted():
    signed = GREY.astype(np.int16) - 20
    shifted = (signed.astype(np.int32) + 32768).astype(np.uint16)
    content = io.BytesIO()
    tifffile.imwrite(content, shifted, imagej=True, metadata={"cf": 0, "c0": -32768.0, "c1": 1.0, "vunit": "Gray Value"})
    decoded, plain = decode_image(content.getvalue(), "a.tif"), decode_image(tiff(signed), "a.tif")
    assert np.array_equal(decoded.pixels, plain.pixels) and decoded.numbers.kind == plain.numbers.kind == "real"
    other = io.BytesIO()
    tifffile.imwrite(other, shifted, imagej=True, metadata={"cf": 0, "c0": 0.0, "c1": 0.5, "vunit": "OD"})
    other = decode_image(other.getvalue(), "a.tif")
    assert np.array_equal(other.pixels[..., 0], shifted) and any("calibration of intensities" in note for note in other.notes)


@pytest.mark.parametrize("z, expected", [("0", 0), ("mid", 1), ("2", 2)])
def test_pages_without_a_meaning_are_slices_for_who_chooses_a_slice(z, expected):
    stack = np.stack([GREY, OTHER, GREY // 2])
    for content in (tiff(stack), tiff(stack, metadata=None)):
        assert np.array_equal(decode_image(content, "a.tif", reading=Reading(z=z)).pixels, stack[expected][..., None])
        if z == "mid":  # a name for each page
            assert decode_image(content, "a.tif", reading=Reading(z=z), n_names=3).pixels.shape[2] == 3


def test_slices_stay_slices_for_who_chooses_one(tmp_path):
    stack = np.stack([GREY, OTHER, GREY // 2])
    (tmp_path / "a.tif").write_bytes(tiff(stack, metadata={"axes": "ZYX"}))
    source = find_fields(tmp_path, channels=["nucleus", "protein", "er"], reading=Reading(z="mid"))[0]
    with pytest.raises(FieldError, match="expected 3 channels .*got 1"):
        read_field(source)


@pytest.mark.parametrize("content", [tiff(GREY), saved(GREY, "png"), saved(GREY, "bmp")])
def test_a_slice_of_a_file_without_slices(content):
    with pytest.raises(FieldError, match="expected a slice 3, got an image without focus slices: leave --z out"):
        decode_image(content, "a", reading=Reading(z="3"))
    for z in ("mid", "max", "0"):
        assert np.array_equal(decode_image(content, "a", reading=Reading(z=z)).pixels[..., 0], GREY)


def test_axes_of_pictures_that_are_no_tiff():
    colour = saved(np.dstack([GREY, OTHER, GREY // 2]), "png")
    assert decode_image(colour, "a.png", reading=Reading("YXC")).kind == "channels"
    assert decode_image(colour, "a.png", reading=Reading("YXS")).kind == "colour"
    for content, axes, remedy in ((saved(GREY, "png"), "CYX", "write YX, or"), (colour, "ZYX", "write YXS for colours or YXC for channels")):
        with pytest.raises(FieldError, match=f"expected pixels with the axes {axes}, got .*{remedy}"):
            decode_image(content, "a.png", reading=Reading(axes))


@pytest.mark.parametrize("axes", ["TCYX", "TZYX"])
def test_the_remedy_for_moments_works(axes):
    content = tiff(np.stack([np.stack([GREY, OTHER])] * 2), ome=True, metadata={"axes": axes})
    with pytest.raises(FieldError, match="2 moments in time: save each as a file of its own") as refused:
        decode_image(content, "a.tif")
    told = re.search(r"--axes (\w+)", str(refused.value))
    assert (told is None) == (axes == "TCYX")
    if told:
        assert decode_image(content, "a.tif", reading=Reading(told[1])).pixels.shape[2] == 2


def test_one_slice_with_values_that_are_no_numbers_leaves_the_others():
    stack = np.stack([GREY, OTHER]).astype(np.float32)
    stack[0, :10] = np.nan
    decoded = decode_image(tiff(stack, metadata={"axes": "ZYX"}), "a.tif")
    assert np.array_equal(decoded.pixels[:10, :, 0], OTHER[:10].astype(np.float32))


FIRE = np.stack([np.minimum(255, np.arange(256) * 2), np.maximum(0, np.arange(256) * 2 - 255), np.zeros(256, int)], axis=1).astype(np.uint8)


def indexed(numbers, table, kind):
    buffer, image = io.BytesIO(), Image.frombytes("P", numbers.shape[::-1], numbers.tobytes())
    image.putpalette(table.tobytes())
    image.save(buffer, kind, **({"optimize": False} if kind == "GIF" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("table", [FIRE, FIRE[:, ::-1].copy()], ids=["fire", "ice"])
def test_a_lookup_table_leaves_the_numbers_alone_in_every_format(kind, table):
    decoded = decode_image(indexed(GREY, table, kind), "a")
    assert np.array_equal(decoded.pixels[..., 0], GREY) and decoded.pixels.shape[2] == 1
    assert any("colours of a lookup table left out" in note for note in decoded.notes)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_colours_of_a_picture_that_only_rise_are_no_lookup_table(kind):
    table = np.where(np.arange(256)[:, None] % 2, FIRE, FIRE[:, ::-1])  # sorted by brightness
    assert np.array_equal(decode_image(indexed(GREY, table, kind), "a").pixels, table[GREY])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_greys_of_a_palette_are_greys(kind):
    table = np.repeat(np.sqrt(np.arange(256) * 255).astype(np.uint8)[:, None], 3, axis=1)
    assert np.array_equal(decode_image(indexed(GREY, table, kind), "a").pixels[..., 0], table[GREY][..., 0])


def test_imagej_gives_one_table_and_one_label_without_a_list():
    table = np.stack([np.zeros(256), np.zeros(256), np.arange(256)]).astype(np.uint8)
    content = io.BytesIO()
    tifffile.imwrite(content, GREY, imagej=True, metadata={"LUTs": [table], "Labels": ["DAPI"]})
    assert np.array_equal(decode_image(content.getvalue(), "a.tif").pixels[..., 0], GREY)
    content = io.BytesIO()
    tifffile.imwrite(content, np.stack([GREY] * 4), imagej=True, metadata={"axes": "CYX", "Labels": ["DAPI"]})
    assert decode_image(content.getvalue(), "a.tif").names == ()


def test_a_thousand_fields_have_one_line_for_each_kind_of_note():
    notes = [(f"f{n}", f"brightest of {n + 2} focus slices|{n + 1:,} values that are no finite numbers, replaced") for n in range(2000)]
    told = summarise_notes([*notes, ("g", ("alpha left out",)), ("h", ())])
    assert [line.rpartition(": ")[2] for line in told] == ["2000 fields, e.g. f0", "2000 fields, e.g. f0", "1 field, e.g. g"]
    assert any(line.startswith("brightest of 2 focus slices") for line in told)
