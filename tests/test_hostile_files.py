"""Truncated, damaged and malicious files: one clear error or a correct read, in bounded time and memory."""

import gzip
import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpacell.fields.decode import decode_image
from hpacell.fields.read import FieldError, FieldSource, find_fields, read_field

GREY = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
READABLE = {  # of pillow_corrupt: odd, but all pixels are there
    "crash-0da013a13571cc8eb457a39fee8db18f8a3c7127.tif", "hopper_bad_exif.jpg",
    "tiff_wrong_bits_per_sample_2.tiff", "tiff_wrong_bits_per_sample_3.tiff",
}  # fmt: skip


def saved(kind, **options):
    buffer = io.BytesIO()
    if kind == "TIFF":
        tifffile.imwrite(buffer, GREY, photometric="minisblack", metadata=None, **options)
    else:
        Image.fromarray(GREY).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, raw, depth=8, colour=0, end=True):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + (chunk(b"IDAT", zlib.compress(raw)) if raw is not None else b"")
    return b"\x89PNG\r\n\x1a\n" + body + (chunk(b"IEND", b"") if end else b"")


FILES = {
    "png": saved("PNG"), "jpeg": saved("JPEG"), "progressive": saved("JPEG", progressive=True), "tiff": saved("TIFF"),
    "tiff_zlib": saved("TIFF", compression="zlib", rowsperstrip=8), "tiff_tiled": saved("TIFF", tile=(16, 16)),
    "tiff_lzw": saved("TIFF", compression="lzw"), "bigtiff": saved("TIFF", bigtiff=True), "bmp": saved("BMP"),
    "gif": saved("GIF"), "pgm": saved("PPM"), "webp": saved("WEBP", lossless=True), "gzip": gzip.compress(saved("PNG")),
}  # fmt: skip
WHOLE = {name: decode_image(content, name).pixels for name, content in FILES.items()}


@pytest.mark.parametrize("name", FILES)
@given(share=st.floats(0, 0.999))
@settings(max_examples=25, deadline=None)
def test_a_truncated_file_is_refused_or_lost_no_pixel(name, share):
    try:
        pixels = decode_image(FILES[name][: int(share * len(FILES[name]))], f"x.{name}").pixels
    except FieldError as error:
        assert str(error).startswith(f"x.{name}: expected ")
    else:
        assert np.array_equal(pixels, WHOLE[name])


@pytest.mark.parametrize("name", ["png", "jpeg", "tiff", "pgm"])
def test_the_last_tenth_is_missing(name):
    with pytest.raises(FieldError):
        decode_image(FILES[name][: len(FILES[name]) * 9 // 10], "x")


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_flipped_bytes_end_in_the_error_or_an_image(name, data):
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 8))):
        # Half of the damage goes to the header, where it does most harm.
        last = min(64, len(content) - 1) if data.draw(st.booleans()) else len(content) - 1
        content[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(content), "x", max_pixels=1_000_000)
    except FieldError as error:
        assert str(error).startswith("x: expected ") and "\n" not in str(error)
    else:
        assert decoded.pixels.ndim == 3 and decoded.pixels.dtype in (np.uint8, np.uint16)


@given(st.binary(max_size=300), st.sampled_from([b"", *(content[:12] for content in FILES.values())]))
@settings(max_examples=100, deadline=None)
def test_any_bytes(tail, start):
    try:
        decode_image(start + tail, "x", max_pixels=1_000_000)
    except FieldError:
        pass


def test_a_flipped_bit_in_png_pixels_is_found():
    content = bytearray(FILES["png"])
    content[len(content) // 2] ^= 4
    with pytest.raises(FieldError, match="wrong checksum"):
        decode_image(bytes(content), "x.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (png(0, 5, b""), "expected pixels, got an image of 5 x 0"),
        (png(4, 4, None), "a PNG without any"),
        (png(4, 4, b"\0" * 9), "Not enough image data"),
        (png(4, 4, b"\0" * 20, end=False), "ends early"),
        (png(60_000, 60_000, b"\0" * 100), "at most 100,000,000 pixels, got 60000 x 60000"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"just text", "expected PNG, TIFF"),
        (b"P5 99999 99999 255\n", "at most 100,000,000 pixels|DecompressionBomb"),
        (gzip.compress(b"hello", mtime=0), "expected PNG, TIFF"),
    ],
)
def test_one_clear_error(content, message):
    with pytest.raises(FieldError, match=message) as caught:
        decode_image(content, "folder/x.png")
    assert str(caught.value).startswith("folder/x.png: expected ")


def test_animations_are_refused():
    buffer = io.BytesIO()
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(FieldError, match="one still image, got an animation"):
        decode_image(buffer.getvalue(), "x.gif")


def test_max_pixels_is_the_callers(tmp_path):
    (tmp_path / "x.png").write_bytes(FILES["png"])
    (source,) = find_fields(tmp_path)
    assert read_field(source, max_pixels=2000).shape == (40, 50, 1)
    with pytest.raises(FieldError, match="at most 1,999 pixels, got 40 x 50: .*max_pixels takes a greater limit"):
        read_field(source, max_pixels=1999)


def test_files_over_the_limit_are_not_even_opened(tmp_path):
    path = tmp_path / "x.tif"
    with open(path, "wb") as file:
        file.write(b"II*\0")
        file.truncate(1 << 34)  # 16 GiB, sparse
    with pytest.raises(FieldError, match="at most .* bytes, got 17,179,869,184"):
        read_field(FieldSource("x", (str(path),)))


def test_a_gzip_bomb_stops_at_the_limit():
    bomb = gzip.compress(b"\0" * (1 << 25))
    with pytest.raises(FieldError, match="more when unpacked"):
        decode_image(bomb, "x.tif.gz", max_pixels=10_000)


def test_a_stack_of_planes_has_a_limit_too():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((50, 64, 64), np.uint8), photometric="minisblack", compression="zlib")
    with pytest.raises(FieldError, match="at most 80,000 values in all planes"):
        decode_image(buffer.getvalue(), "x.tif", max_pixels=10_000)


def test_a_folder_named_like_an_image(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(FieldError, match="IsADirectoryError"):
        read_field(FieldSource("x", (str(tmp_path / "x.png"),)))


def test_nothing_is_printed(capfd):
    for content in (FILES["tiff"][:900], FILES["tiff_zlib"][:300], FILES["jpeg"][:500]):
        with pytest.raises(FieldError):
            decode_image(content, "x")
    assert capfd.readouterr() == ("", "")


_READ_ALL = """
import json, resource, sys, time
from hpacell.fields.read import FieldError, find_fields, read_field
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for source in find_fields(sys.argv[1]):
    start = time.process_time()
    try:
        outcome = list(read_field(source).shape)
    except FieldError as error:
        outcome = str(error)
    # Not ru_maxrss: that keeps the peak of the process which started this one.
    peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10
    print(json.dumps([source.paths[0].rsplit("/", 1)[-1], outcome, time.process_time() - start, peak]))
"""


def test_pillow_corrupt(shared_data):
    folder = shared_data / "containers" / "pillow_corrupt"
    command = [sys.executable, "-X", "faulthandler", "-c", _READ_ALL, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == sum(1 for path in folder.iterdir())
    assert {name for name, outcome, *_ in outcomes if isinstance(outcome, list)} == READABLE
    for name, outcome, seconds, peak_mib in outcomes:
        assert isinstance(outcome, list) or (name in outcome and "expected" in outcome and "got" in outcome)
        assert seconds < 5 and peak_mib < 512
