"""Files of masks and label images: every encoding gives the stored numbers, or one sentence that says why not."""

import gzip
import io
import struct
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from hpacell.fields.image import FieldError
from hpacell.fields.picture import write_png
from hpacell.masks.labelled import KaggleRuns, LabelFile, LabelledImage, MaskFiles
from hpacell.masks.layouts import find_labelled
from hpacell.masks.read import read_label_image, read_labels, read_mask
from hpacell.masks.tissue import find_tissue_images

ROWS, COLS = np.ogrid[:120, :160]
LABELS = np.zeros((120, 160), np.uint8)
for number, (row, col) in enumerate([(30, 30), (30, 80), (80, 40), (80, 120)], 1):
    LABELS[(ROWS - row) ** 2 + (COLS - col) ** 2 <= 144] = number
AREA = 441
PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0]


def tiff(pixels, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def pillow(pixels, form: str, mode: str | None = None, palette: list[int] | None = None, **options) -> bytes:
    image, file = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode), io.BytesIO()
    if palette:
        image = Image.fromarray(pixels)
        image.putpalette(palette)
    image.save(file, form, **options)
    return file.getvalue()


def png_of_4_bits(pixels) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + (row[0::2] << 4 | row[1::2]).astype(np.uint8).tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 4, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey3(pixels):
    return np.stack([pixels] * 3, axis=-1)


def with_alpha(pixels, alpha):
    return np.dstack([grey3(pixels), alpha]).astype(np.uint8)


WHOLE = {  # all hold the numbers 1 to 4
    "png": pillow(LABELS, "PNG"),
    "png, 16 bits": pillow(LABELS.astype(np.uint16), "PNG"),
    "png, 4 bits": png_of_4_bits(LABELS),
    "png, palette": pillow(LABELS, "PNG", palette=PALETTE),
    "png, palette of 4 bits": pillow(LABELS, "PNG", palette=PALETTE, bits=4),
    "gif, palette": pillow(LABELS, "GIF", palette=PALETTE),
    "bmp, palette": pillow(LABELS, "BMP", palette=PALETTE),
    "tiff, palette": pillow(LABELS, "TIFF", palette=PALETTE),
    "png, greys as colours": pillow(grey3(LABELS), "PNG"),
    "png, opaque": pillow(with_alpha(LABELS, 255 + 0 * LABELS), "PNG"),
    "png, transparent background": pillow(with_alpha(LABELS, 255 * (LABELS > 0)), "PNG"),
    "webp without loss": pillow(grey3(LABELS), "WEBP", lossless=True),
    "pgm with few greys": b"P5\n# by hand\n160 120\n4\n" + LABELS.tobytes(),
    "pgm in text": b"P2\n160 120\n4\n" + b" ".join(b"%d" % value for value in LABELS.ravel()),
    "tiff in gzip": gzip.compress(tiff(LABELS.astype(np.uint32))),
    "tiff, real": tiff(LABELS.astype(np.float32)),
    "tiff, other byte order": tiff(LABELS.astype(">u2"), byteorder=">"),
    "tiff, int64": tiff(LABELS.astype(np.int64)),
    "tiff, 0 is white": tiff(LABELS, photometric="miniswhite"),
    "tiff, planar colours": tiff(np.stack([LABELS] * 3), photometric="rgb", planarconfig="separate"),
    **{f"tiff, {name}": tiff(LABELS, compression=name) for name in ("lzw", "zlib", "zstd", "packbits", "lzma", "png", "jpeg2000")},
    "tiff, webp without loss": tiff(grey3(LABELS), photometric="rgb", compression="webp", compressionargs={"lossless": True}),
    "tiff, tiles": tiff(LABELS, tile=(32, 32), compression="zlib"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_stored_numbers_are_the_labels(tmp_path, name):
    (tmp_path / "a.png").write_bytes(WHOLE[name])
    read = read_label_image(tmp_path / "a.png")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, LABELS)


def test_a_pyramid_is_its_largest_picture(tmp_path):
    for ome in (True, False):
        with tifffile.TiffWriter(tmp_path / "a.tif", ome=ome) as file:
            extra = {"subifds": 1} if ome else {"metadata": None}
            file.write(LABELS, photometric="minisblack", **extra)
            file.write(LABELS[::2, ::2], subfiletype=1, photometric="minisblack", **({} if ome else {"metadata": None}))
        np.testing.assert_array_equal(read_label_image(tmp_path / "a.tif"), LABELS)


@pytest.mark.parametrize("content", [pillow(LABELS > 0, "PNG"), tiff(LABELS > 0), pillow(LABELS > 0, "BMP"), pillow(LABELS > 0, "TIFF", compression="group4")])
def test_yes_and_no_are_one_object(tmp_path, content):
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(read_label_image(tmp_path / "a.tif"), LABELS > 0)


WIDE = LABELS * np.uint8(50)
BIG = LABELS * np.uint8(60)
COLOURED = np.array(PALETTE, np.uint8).reshape(-1, 3)[LABELS]
SWAPPED = [255, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0]  # red is number 0, black is number 1
REFUSED = {
    "jpeg": (pillow(WIDE, "JPEG"), "JPEG, which changes"),
    "jpeg of the best quality": (pillow(WIDE, "JPEG", quality=100), "JPEG, which changes"),
    "webp with loss": (pillow(grey3(WIDE), "WEBP", quality=80), "lossy WebP"),
    "tiff, jpeg": (tiff(WIDE, compression="jpeg"), "JPEG inside TIFF"),
    "tiff, jpeg in tiles": (tiff(WIDE, compression="jpeg", tile=(64, 64)), "JPEG inside TIFF"),
    "tiff, jpeg 2000 with loss": (tiff(WIDE, compression="jpeg2000", compressionargs={"level": 40}), "JPEG 2000 inside TIFF"),
    "tiff, webp with loss": (tiff(grey3(WIDE), photometric="rgb", compression="webp", compressionargs={"lossless": False, "level": 80}), "WebP inside TIFF"),
    "tiff, jpeg xr": (tiff(WIDE, compression="jpegxr", compressionargs={"level": 50}), "JPEGXR inside TIFF"),
    "tiff, lerc": (tiff(WIDE, compression="lerc", compressionargs={"level": 3.0}), "LERC inside TIFF"),
    "jpeg saved as png": (pillow(imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(WIDE, 95)), "PNG"), "single pixels of other numbers"),
    "poor jpeg saved as png": (pillow(imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(BIG, 75)), "PNG"), "one number for each cell"),
    "enlarged": (pillow(cv2.resize(BIG, (320, 240), interpolation=cv2.INTER_LINEAR), "PNG"), "interpolation"),
    "enlarged, cubic": (pillow(cv2.resize(BIG, (480, 360), interpolation=cv2.INTER_CUBIC), "PNG"), "interpolation"),
    "enlarged, 16 bits": (tiff(cv2.resize(LABELS.astype(np.uint16) * 700, (320, 240), interpolation=cv2.INTER_LINEAR)), "interpolation"),
    "enlarged, small numbers": (pillow(cv2.resize(LABELS, (640, 480), interpolation=cv2.INTER_LINEAR), "PNG"), "interpolation"),
    "shrunk": (pillow(cv2.resize(BIG, (53, 40), interpolation=cv2.INTER_AREA), "PNG"), "interpolation"),
    "turned": (pillow(cv2.warpAffine(BIG, cv2.getRotationMatrix2D((80, 60), 17, 1), (160, 120)), "PNG"), "interpolation"),
    "smoothed": (pillow(cv2.GaussianBlur(BIG, (0, 0), 1.5), "PNG"), "interpolation"),
    "coloured": (pillow(COLOURED, "PNG"), "one number a pixel"),
    "numbers as colours": (pillow(np.stack([LABELS * np.uint8(70), LABELS, 0 * LABELS], axis=-1), "PNG"), r"red \+ 256 green \+ 65536 blue.*32-bit TIFF"),
    "planar colours": (tiff(np.stack([LABELS, 2 * LABELS, 3 * LABELS]), photometric="rgb", planarconfig="separate"), "one number a pixel"),
    "palette of another order": (pillow((LABELS + 1) % 5, "PNG", palette=SWAPPED), "number 0 is the background"),
    "reduced colours": (Image.fromarray(np.maximum(COLOURED, np.uint8(10))).quantize(16), "number 0 is the background"),
    "numbers under transparency": (pillow(with_alpha(LABELS, 255 * (LABELS > 2)), "PNG"), "transparent"),
    "fractions": (tiff(LABELS * np.float32(0.5)), "fractions"),
    "not a number": (tiff(np.where(LABELS, LABELS, np.nan)), "NaN"),
    "reals that are too large": (tiff(np.where(LABELS, LABELS + 2.0**24, 0).astype(np.float32)), "16777216"),
    "half precision": (tiff((LABELS * 3000.0).astype(np.float16)), "2048"),
    "negative": (tiff(LABELS.astype(np.int16) - 1), "set what is background or not to be counted to 0"),
    "over 2^31": (tiff(LABELS.astype(np.int64) << 40), "2147483647.*relabel"),
    "over 2^63": (tiff(LABELS.astype(np.uint64) << np.uint64(61)), "2147483647.*relabel"),
    "complex": (tiff(LABELS.astype(np.complex64)), "complex64"),
    "a page a cell": (tiff(np.stack([LABELS == i for i in range(1, 6)]).astype(np.uint8), photometric="minisblack"), "5 pages.*masks/"),
    "pages behind one": (tiff(np.stack([LABELS] * 5), photometric="minisblack", truncate=True), "5 pages"),
    "pages of ImageJ": (tiff(np.stack([LABELS] * 5), imagej=True), "5 pages"),
    "cut": (tiff(LABELS)[:-3000], "whole TIFF"),
    "cut in gzip": (gzip.compress(tiff(LABELS))[:-20], "whole gzip file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_label_image_is_refused(tmp_path, name):
    content, said = REFUSED[name]
    path = tmp_path / "a.png"
    content.save(path) if isinstance(content, Image.Image) else path.write_bytes(content)
    with pytest.raises(FieldError, match=rf"(?s)a\.png.*{said}"):
        read_label_image(path)


def partition(side: int, n: int, dtype=np.int32) -> np.ndarray:
    """Each pixel has the number of the nearest of n points, in random order."""
    from scipy.ndimage import distance_transform_edt

    rng = np.random.default_rng(3)
    points = np.ones((side, side), bool)
    points.flat[rng.choice(side * side, n, replace=False)] = False
    rows, cols = distance_transform_edt(points, return_indices=True, return_distances=False)
    return (rng.permutation(side * side)[rows * side + cols] + 1).astype(dtype)


SOUND = {
    "nearest neighbour": cv2.resize(LABELS, (480, 360), interpolation=cv2.INTER_NEAREST),
    "touching squares": np.kron(np.arange(200, dtype=np.uint8).reshape(10, 20), np.ones((9, 9), np.uint8)),
    "large touching cells": partition(300, 150),
    "small touching cells": partition(100, 1500),
    "a number a pixel": np.arange(3600).reshape(60, 60).astype(np.int32),
    "single pixels": np.where(np.arange(90_000).reshape(300, 300) % 5 == 0, np.arange(90_000).reshape(300, 300), 0).astype(np.int32),
    "debris": np.where(np.random.default_rng(0).random((120, 160)) < 0.02, np.arange(19_200).reshape(120, 160) + 5, LABELS).astype(np.int32),
    "lines one pixel wide": np.tile([0, 1, 0, 2, 0, 3], (60, 30)).astype(np.uint8),
    "nothing": np.zeros((50, 50), np.uint8),
}


@pytest.mark.parametrize("name", SOUND)
def test_crowded_and_tiny_cells_are_not_taken_for_blends(tmp_path, name):
    tifffile.imwrite(tmp_path / "a.tif", SOUND[name], photometric="minisblack")
    np.testing.assert_array_equal(read_label_image(tmp_path / "a.tif"), SOUND[name])


def test_what_was_assumed_is_said(tmp_path):
    contents = {
        "palette": (WHOLE["png, palette"], "indexes were taken"),
        "unknown": (pillow(np.where(ROWS < 3, np.uint8(255), LABELS), "PNG"), "number 255 was taken as a cell"),
        "no background": (pillow(LABELS + np.uint8(1), "PNG"), "no pixel is 0, and number 1 covers most"),
        "pieces": (pillow(255 * (LABELS > 0).astype(np.uint8), "PNG"), "one number in pieces"),
    }
    for name, (content, said) in contents.items():
        (tmp_path / name).write_bytes(content)
        (note,) = LabelFile(str(tmp_path / name)).read_truth().notes
        assert said in note
    (tmp_path / "plain").write_bytes(WHOLE["png"])
    assert read_labels(tmp_path / "plain").notes == ()


def test_a_label_image_of_another_size(tmp_path):
    write_png(tmp_path / "image.png", np.zeros((120, 160), np.uint8))
    for labels, said in ((LABELS.T, "exchanged: transpose"), (LABELS[:60], "labels of 60 x 160")):
        write_png(tmp_path / "labels.png", np.ascontiguousarray(labels))
        with pytest.raises(FieldError, match=said):
            LabelledImage("a", (str(tmp_path / "image.png"),), labels_at=LabelFile(str(tmp_path / "labels.png"))).read()


# -- one cell a file -----------------------------------------------------------------------------------------------------


def white(inside, top=255, dtype=np.uint8):
    return inside.astype(dtype) * dtype(top)


MASKS = {
    "tiff of yes and no": lambda m: tiff(m),
    "tiff, 0 is white, by its tag": lambda m: tiff(white(~m), photometric="miniswhite"),
    "tiff, 0 is white, against its tag": lambda m: tiff(white(m), photometric="miniswhite"),
    "tiff, fax": lambda m: pillow(m, "TIFF", compression="group4"),
    "tiff, 1 bit by its tag": lambda m: pillow(m, "TIFF", tiffinfo={262: 0}),
    "tiff of 1 bit, 0 is black": lambda m: pillow(m, "TIFF"),
    "png of 1 bit": lambda m: pillow(m, "PNG"),
    "0 and 1": lambda m: pillow(white(m, 1), "PNG"),
    "0 and 65535": lambda m: tiff(white(m, 65535, np.uint16)),
    "12 bits": lambda m: tiff(white(m, 4095, np.uint16)),
    "real 0 and 1": lambda m: tiff(white(m, 1, np.float32)),
    "real 0 and 255": lambda m: tiff(white(m, 255, np.float64)),
    "red": lambda m: pillow(np.dstack([white(m), 0 * white(m), 0 * white(m)]), "PNG"),
    "opacity on black": lambda m: pillow(with_alpha(0 * m, white(m)), "PNG"),
    "opacity on white": lambda m: pillow(with_alpha(255 + 0 * white(m), white(m)), "PNG"),
    "grey and opacity": lambda m: pillow(np.dstack([255 + 0 * white(m), white(m)]), "PNG"),
    "opaque": lambda m: pillow(with_alpha(white(m), 255 + 0 * white(m)), "PNG"),
    "palette": lambda m: pillow(m.astype(np.uint8), "PNG", palette=[0, 0, 0, 255, 0, 0]),
    "palette of white and black": lambda m: pillow((~m).astype(np.uint8), "PNG", palette=[255, 255, 255, 0, 0, 0]),
    "gif": lambda m: pillow(white(m), "GIF"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_single_cells(tmp_path, name):
    for i in range(1, 5):
        (tmp_path / f"m{i}.png").write_bytes(MASKS[name](LABELS == i))
    truth = MaskFiles(tuple(str(tmp_path / f"m{i}.png") for i in range(1, 5))).read_truth((120, 160))
    assert not truth.problems
    np.testing.assert_array_equal(truth.labels, LABELS)
    one = MaskFiles((str(tmp_path / "m1.png"),)).read_truth(None)
    np.testing.assert_array_equal(one.labels, LABELS == 1)
    assert ("opacity" in str(truth.notes)) == (name in ("opacity on black", "opacity on white", "grey and opacity"))


SOFT = {
    **{f"jpeg {quality}": lambda m, q=quality: pillow(white(m), "JPEG", quality=q) for quality in (30, 75, 95)},
    "jpeg of one colour": lambda m: pillow(np.dstack([0 * white(m), white(m), 0 * white(m)]), "JPEG", quality=90),
    "jpeg in tiff": lambda m: tiff(white(m), compression="jpeg"),
    "webp with loss": lambda m: pillow(grey3(white(m)), "WEBP", quality=60),
    "soft": lambda m: pillow(cv2.GaussianBlur(white(m), (0, 0), 1), "PNG"),
    "soft, 16 bits": lambda m: tiff(cv2.GaussianBlur(white(m, 65535, np.uint16), (0, 0), 1)),
    "soft, real": lambda m: tiff(cv2.GaussianBlur(white(m, 1, np.float32), (0, 0), 1)),
}


@pytest.mark.parametrize("name", SOFT)
def test_soft_and_lossy_edges_are_cut_at_half_of_white(tmp_path, name):
    for i in range(1, 5):
        (tmp_path / f"m{i}.png").write_bytes(SOFT[name](LABELS == i))
    truth = MaskFiles(tuple(str(tmp_path / f"m{i}.png") for i in range(1, 5))).read_truth((120, 160))
    assert np.abs(np.bincount(truth.labels.ravel())[1:] - AREA).max() <= 10
    assert len(truth.notes) == 1 and "half of white" in truth.notes[0] and not truth.problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pillow(LABELS, "PNG"), "belongs into labels/"),
        (pillow(BIG, "PNG"), "belongs into labels/"),
        (pillow(white(LABELS == 1, 1), "JPEG"), "belongs into labels/"),
        (tiff(np.where(LABELS == 1, np.nan, 0)), "NaN"),
        (tiff(-(LABELS == 1).astype(np.int16)), "greys from -1"),
        (tiff(np.stack([LABELS == i for i in range(1, 6)]).astype(np.uint8), photometric="minisblack"), "5 pages"),
        (pillow(with_alpha(255 - 90 * (ROWS < 9) + 0 * LABELS, white(LABELS == 1)), "PNG"), "opacity that differ"),
        (pillow(np.ascontiguousarray(white(LABELS == 1).T), "PNG"), "got 160 x 120, height and width exchanged"),
    ],
)
def test_what_is_no_mask_is_left_out_and_named(tmp_path, content, said):
    (tmp_path / "a.png").write_bytes(pillow(white(LABELS == 2), "PNG"))
    (tmp_path / "b.png").write_bytes(content)
    truth = MaskFiles((str(tmp_path / "a.png"), str(tmp_path / "b.png"))).read_truth((120, 160))
    np.testing.assert_array_equal(truth.labels, LABELS == 2)
    ((name, reason),) = truth.problems
    assert name == "b.png" and reason.startswith("left out: ") and said in reason


def test_inverted_masks_are_refused(tmp_path):
    for ending, inverted in (("png", lambda m: pillow(white(~m), "PNG")), ("jpg", lambda m: pillow(white(~m), "JPEG"))):
        paths = [tmp_path / f"m{i}.{ending}" for i in range(1, 5)]
        for i, path in enumerate(paths, 1):
            path.write_bytes(inverted(LABELS == i))
        with pytest.raises(FieldError, match="4 masks of which each covers more than half of the picture: invert them"):
            MaskFiles(tuple(map(str, paths))).read_truth((120, 160))
        (note,) = [note for note in MaskFiles((str(paths[0]),)).read_truth(None).notes if "covers" in note]
        assert "97 %" in note and "invert it" in note


def test_a_cell_that_fills_the_picture_is_no_inverted_mask(tmp_path):
    write_png(tmp_path / "a.png", np.full((9, 9), 255, np.uint8))
    truth = MaskFiles((str(tmp_path / "a.png"),)).read_truth(None)
    assert truth.labels.all() and not truth.notes


def test_white_of_one_large_cell_is_in_doubt(tmp_path):
    inside = np.zeros((20, 20), bool)
    inside[:, :8] = True
    tifffile.imwrite(tmp_path / "a.tif", inside)
    truth = MaskFiles((str(tmp_path / "a.tif"),)).read_truth(None)
    assert "white-is-zero" in truth.notes[0]
    assert read_mask(tmp_path / "a.tif").white_is_zero
    np.testing.assert_array_equal(truth.labels, inside)


def test_rows_of_a_table_with_another_size():
    runs = KaggleRuns(("1 2",), (2,), (4, 3))
    assert runs.read_truth((4, 3)).labels.sum() == 2
    with pytest.raises(FieldError, match="4 x 3 as the table states, got an image of 3 x 4, height and width exchanged: correct"):
        runs.read_truth((3, 4))
    for text in ("1 2 5", "0 2", "11 3", "1 -2", "a b", "1.5 2"):
        truth = KaggleRuns(("1 2", text), (2, 3), (4, 3)).read_truth(None)
        assert [where for where, _ in truth.problems] == ["row 3"] and truth.labels.sum() == 2


def test_sizes_in_a_table_of_rows(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("ImageId,EncodedPixels,Height,Width\na,1 2,4.0,3.0\na,5 1,4.0,3.0\n")
    assert find_labelled(table)[0].read_truth().labels.shape == (4, 3)
    table.write_text("ImageId,EncodedPixels,Height,Width\na,1 2,4,3\na,5 1,3,4\n")
    with pytest.raises(FieldError, match="one height and width for all rows"):
        find_labelled(table)


def test_masks_of_tissue_hold_0_1_and_255(tmp_path):
    write_png(tmp_path / "kidney_1.png", np.zeros((120, 160, 3), np.uint8))
    mask = Path(tmp_path / "kidney_1_mask.png")
    write_png(mask, np.where(ROWS < 3, np.uint8(255), (LABELS > 0).astype(np.uint8)))
    assert np.unique(find_tissue_images(tmp_path)[0].read()[1]).tolist() == [0, 1, 255]
    for pixels, said in ((white(LABELS > 0), "save units as 1"), (LABELS, "numbers up to 4")):
        write_png(mask, pixels)
        with pytest.raises(FieldError, match=said):
            find_tissue_images(tmp_path)[0].read()


def test_true_cells_in_a_tiff_of_32_bits(tmp_path):
    import pandas as pd

    from hpacell.cells.measurements import measure_cells
    from hpacell.masks.writers import write_label_image
    from hpacell.metrics.truth import true_labels
    from hpacell.pipeline.plan import check_truth

    labels = LABELS.astype(np.int32) + 70_000 * (LABELS > 0)
    cells = measure_cells(np.zeros((120, 160, 1), np.uint8), LABELS, channels=("nucleus",), field_id="a")
    pd.DataFrame({"field_id": "a", "cell_id": np.arange(70_001, 70_005), "labels": list("wxyz")}).to_csv(tmp_path / "cells.csv", index=False)
    assert write_label_image(tmp_path, "a_cells", labels) == "a_cells.tif"
    check_truth(tmp_path, ["a"])
    assert true_labels(cells, tmp_path).tolist() == list("wxyz")
    (tmp_path / "a_cells.tif").unlink()
    Image.fromarray(WIDE).save(tmp_path / "a_cells.png", "JPEG")
    with pytest.raises(ValueError, match=r"a_cells\.png: expected a label image in a lossless format"):
        true_labels(cells, tmp_path)


def test_written_label_images_are_read_back(tmp_path):
    from hpacell.masks.writers import write_label_image

    for top, name in ((255, "a.png"), (65_535, "a.png"), (65_536, "a.tif"), (2**31 - 1, "a.tif"), (7, "a.png")):
        for dtype in (np.int32, np.int64, np.uint64):
            labels = np.array([0, 1, 2, 3, top], dtype)[LABELS]
            assert write_label_image(tmp_path, "a", labels) == name
            assert [path.name for path in tmp_path.iterdir()] == [name]
            np.testing.assert_array_equal(read_label_image(tmp_path / name), labels)
    with pytest.raises(ValueError, match="up to 4294967295"):
        write_label_image(tmp_path, "a", np.array([[2**32]]))
