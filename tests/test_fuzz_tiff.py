"""TIFFs of every shape, and with tags that lie: the pixels of tifffile, or one clear error; never another exception, never a hang."""

import io
import struct
import warnings

import numpy as np
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpacell.fields.decode import decode_image
from hpacell.fields.image import MAX_PIXELS, Decoded, FieldError, Reading

DTYPES = ("bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64")


def random_array(seed, dtype, shape):
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith("float"):
        return (rng.normal(0, 100, shape)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -(2**20)), min(info.max, 2**20), shape, endpoint=True).astype(dtype)


def written(array, **options):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@st.composite
def valid_files(draw):
    """A TIFF, the array in it, and what its axes mean."""
    axes = draw(st.sampled_from(["YX", "CYX", "ZYX", "ZCYX", "CZYX"]))
    sizes = {"C": draw(st.integers(2, 5)), "Z": draw(st.integers(2, 4)), "Y": draw(st.integers(17, 40)), "X": draw(st.integers(17, 40))}
    dtype = draw(st.sampled_from(DTYPES))
    array = random_array(draw(st.integers(0, 2**31)), dtype, [sizes[axis] for axis in axes])
    options = {"photometric": "minisblack", "byteorder": draw(st.sampled_from("<>"))}
    if dtype != "bool" and draw(st.booleans()):
        options |= {"compression": draw(st.sampled_from(["zlib", "lzw", "packbits", "zstd"]))}
    if dtype != "bool" and draw(st.booleans()):
        options |= {"tile": (16, 32)}
    if axes in ("ZYX", "ZCYX") and dtype in ("uint8", "uint16", "float32") and "tile" not in options and "compression" not in options and draw(st.booleans()):
        options |= {"imagej": True, "metadata": {"axes": axes}}
        options.pop("byteorder")
    else:
        options |= {"ome": True, "metadata": {"axes": axes}}
    return written(array, **options), array, axes


@given(valid_files())
@settings(max_examples=120, deadline=None)
def test_pixels_are_those_that_were_written(made):
    content, array, axes = made
    decoded = decode_image(content, "a.tif")
    expected = array.max(axis=axes.index("Z")) if "Z" in axes else array
    expected = np.moveaxis(expected, 0, -1) if "C" in axes else expected[..., None]
    assert bool(decoded.notes) == ("Z" in axes)
    if array.dtype == bool:  # tifffile tags its own yes and no as white-is-zero
        assert np.array_equal(decoded.pixels > 0, expected) or np.array_equal(decoded.pixels == 0, expected)
    else:
        assert decoded.pixels.shape == expected.shape and np.array_equal(decoded.pixels, expected.astype(decoded.pixels.dtype))
        assert np.array_equal(decoded.pixels.astype(np.float32), expected.astype(np.float32))


@given(valid_files(), st.sampled_from(["0", "mid", "max"]))
@settings(max_examples=40, deadline=None)
def test_the_slice_that_was_asked_for(made, z):
    content, array, axes = made
    assume("Z" in axes and array.dtype != bool)
    decoded = decode_image(content, "a.tif", reading=Reading(z=z))
    place = axes.index("Z")
    expected = array.max(axis=place) if z == "max" else array.take(0 if z == "0" else array.shape[place] // 2, axis=place)
    expected = np.moveaxis(expected, 0, -1) if "C" in axes else expected[..., None]
    assert np.array_equal(decoded.pixels.astype(np.float32), expected.astype(np.float32))


def outcome(content: bytes) -> Decoded | None:
    """What is decoded; None after one clear error."""
    try:
        return decode_image(content, "a.tif", max_pixels=4_000_000)
    except FieldError as error:
        text = str(error)
        assert text.startswith("a.tif: expected ") and ", got " in text and "\n" not in text
        return None


def independent(content: bytes) -> np.ndarray | None:
    """What tifffile makes of the first page."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            page = tiff.pages[0]
            if page.imagewidth * page.imagelength > 4_000_000 or int(page.photometric) not in (1,) or page.bitspersample not in (8, 16, 32):
                return None
            return page.asarray()
    except Exception:
        return None


PLAIN = written(np.random.default_rng(0).integers(0, 4096, (33, 41)).astype(np.uint16), photometric="minisblack", metadata=None, resolution=(3, 5))
COLOUR = written(np.random.default_rng(0).integers(0, 256, (33, 41, 3)).astype(np.uint8), photometric="rgb", compression="zlib")
PAGES = written(np.random.default_rng(0).integers(0, 4096, (4, 33, 41)).astype(np.uint16), photometric="minisblack", imagej=True, metadata={"axes": "CYX"})
OME = written(np.random.default_rng(0).integers(0, 256, (2, 33, 41)).astype(np.uint8), photometric="minisblack", ome=True, metadata={"axes": "CYX"})


def entries_of(content: bytes) -> list[int]:
    """Where the entries of the first directory stand."""
    order = "<" if content[:2] == b"II" else ">"
    start = struct.unpack(order + "I", content[4:8])[0]
    n = struct.unpack(order + "H", content[start : start + 2])[0]
    return [start + 2 + 12 * i for i in range(n)]


@given(st.sampled_from([PLAIN, COLOUR, PAGES, OME]), st.data())
@settings(max_examples=250, deadline=None)
def test_tags_that_lie(content, data):
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        entry = data.draw(st.sampled_from(entries_of(content)))
        where, size = data.draw(st.sampled_from([(0, 2), (2, 2), (4, 4), (8, 4)]))  # tag, type, count, value
        value = data.draw(st.one_of(st.integers(0, 20), st.integers(0, 2 ** (8 * size) - 1)))
        changed[entry + where : entry + where + size] = value.to_bytes(size, "little" if content[:2] == b"II" else "big")
    decoded, known = outcome(bytes(changed)), independent(bytes(changed))
    if decoded is not None and known is not None and known.ndim == 2 and decoded.kind == "grey" and not decoded.axes.startswith(("C", "Z")) and len(decoded.notes) == 0:
        assert decoded.pixels.shape[:2] == known.shape and np.array_equal(decoded.pixels[..., 0].astype(np.float64), known.astype(np.float32).astype(np.float64))


@given(st.sampled_from([PLAIN, COLOUR, PAGES, OME]), st.integers(0, 2**31), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_bytes_that_are_wrong(content, seed, n):
    rng = np.random.default_rng(seed)
    changed = np.frombuffer(content, np.uint8).copy()
    changed[rng.integers(0, min(len(changed), 3000), n)] = rng.integers(0, 256, n)
    outcome(changed.tobytes())
    outcome(changed.tobytes()[: rng.integers(8, len(changed))])


@given(st.text("TCZYXSQI yx1", max_size=6), st.integers(-2, 5), st.text("maxid0129-", max_size=3))
@settings(max_examples=100, deadline=None)
def test_any_way_to_read_is_refused_in_words_or_works(axes, scene, z):
    try:
        reading = Reading(axes, scene, z)
    except ValueError as error:
        assert "expected" in str(error) and ": write e.g." in str(error)
        return
    try:
        decode_image(PAGES, "a.tif", MAX_PIXELS, reading)
    except FieldError as error:
        assert str(error).startswith("a.tif: expected ")
