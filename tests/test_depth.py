"""One scale of intensities for all fields: no pixel, file or field decides how others are read; what does not fit is reported."""

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from hpacell.feed.store import read_store
from hpacell.fields.depth import (
    Brightness,
    IntensityScale,
    decide_scale,
    measure_brightness,
    misfit_of,
    robust_range,
    to_uint8,
)
from hpacell.fields.find import find_fields
from hpacell.fields.image import Numbers
from hpacell.fields.read import Field, read_field
from hpacell.pipeline.extract import extract_fields
from hpacell.pipeline.field import ExtractSettings
from hpacell.pipeline.repair import repair_store


def discs(level=180, ground=12, side=260, noise=4, seed=1):
    """Sixteen discs of 28 pixels, uint8."""
    rows, cols = np.mgrid[:side, :side]
    image = np.full((side, side), ground, np.float32)
    for row in range(32, side - 14, 64):
        for col in range(32, side - 14, 64):
            image[(rows - row) ** 2 + (cols - col) ** 2 <= 14**2] = level
    image = cv2.GaussianBlur(image, (0, 0), 1.2) + np.random.default_rng(seed).normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8)


CAMERA = discs().astype(np.uint16) * 16  # 12 bits


def write(folder, images, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        tifffile.imwrite(folder / f"f{i}.tif", image, photometric="minisblack", **options)
    return folder


def extract(folder, store, **options):
    return extract_fields(folder, store, settings=ExtractSettings(method="classical", crop_size=32, **options), workers=1)


def parameters_of(store):
    return store.manifest["parameters"]


def brightest(store):
    """Greatest level of the crops of each field."""
    crops = store.crops(np.arange(len(store))).reshape(len(store), -1).max(axis=1)
    return [int(crops[store.index["field_id"] == name].max()) for name in store.fields["field_id"]]


def at(dtype, *pixels):
    """The 12-bit field with some pixels changed."""
    image = CAMERA.astype(dtype)
    for row, col, value in pixels:
        image[row, col] = value
    return image


# ---- a pixel, a file, a field


@pytest.mark.parametrize("place", [(3, 3), (0, 0), (259, 0), (0, 130)])
def test_hot_pixels_decide_nothing(tmp_path, place):
    clean = extract(write(tmp_path / "clean", [CAMERA] * 3), tmp_path / "a").store
    report = extract(write(tmp_path / "hot", [CAMERA, at(np.uint16, (*place, 65535)), CAMERA]), tmp_path / "b")
    assert brightest(clean) == brightest(report.store) == [193] * 3
    assert parameters_of(report.store)["bits"] == 12 == parameters_of(clean)["bits"]
    means = [store.index["nucleus_intensity_mean"] for store in (clean, report.store)]
    np.testing.assert_allclose(*means, rtol=1e-6)
    assert any("1 field with pixels brighter" in note for note in report.notes)


def test_a_saturated_spot_in_one_of_three_fields_decides_nothing(tmp_path):
    spot = CAMERA.copy()
    spot[100:112, 100:112] = 65535
    report = extract(write(tmp_path / "fields", [CAMERA, spot, CAMERA]), tmp_path / "store")
    assert parameters_of(report.store)["bits"] == 12 and brightest(report.store)[0] == 193
    assert any("1 field with pixels brighter than the range of the crops" in note and "f1" in note for note in report.notes)


def test_real_numbers_have_one_scale(tmp_path):
    real = (discs() / 255).astype(np.float32)
    hot, dead, void = real.copy(), real.copy(), real.copy()
    hot[0, 0], dead[0, 0], void[:2] = 40, -40, np.nan
    report = extract(write(tmp_path / "fields", [real, hot, dead, void]), tmp_path / "store")
    store = report.store
    means = store.index.groupby("field_id")["nucleus_intensity_mean"].mean()
    assert len(store) == 64 and means.to_numpy() == pytest.approx(means.iloc[0], rel=0.01) and means.iloc[0] == pytest.approx(0.66, abs=0.02)
    assert np.ptp(brightest(store)) <= 2 and parameters_of(store)["real_range"] == [0.0, 1.0]
    assert any("real numbers from 0 to 1" in note for note in report.notes) and any("520 values that are no finite numbers" in note for note in report.notes)


def test_planes_of_8_and_16_bits_keep_their_own_depth(tmp_path):
    cells = cv2.GaussianBlur(discs(60, 1, noise=1, seed=2), (0, 0), 3).astype(np.float32)
    for name, gain in (("dim", 4), ("bright", 50)):
        protein = (cells * gain).clip(0, 4095).astype(np.uint16)
        for colour, plane in (("blue", discs(noise=1)), ("red", discs(60)), ("yellow", discs(60)), ("green", protein)):
            cv2.imwrite(str(tmp_path / f"{name}_{colour}.png"), plane)
    store = extract(tmp_path, tmp_path.parent / "store_of_mixed").store
    means = store.index.groupby("field_id")["nucleus_intensity_mean"].mean()
    assert means["dim"] == pytest.approx(means["bright"], rel=0.01) and means["dim"] > 30
    crops, first = store.crops(np.arange(len(store))), store.index["field_id"] == "dim"
    assert crops[first][..., 2].max() == crops[~first][..., 2].max() > 150
    assert parameters_of(store)["bits"] == 12


# ---- what a file states


def ome(bits):
    return {"ome": True, "metadata": {"axes": "YX", "SignificantBits": bits}}


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, 12), (ome(14), 14), (ome(16), 12), ({"imagej": True, "metadata": {"min": 0.0, "max": 16383.0}}, 14),
        ({"imagej": True, "metadata": {"min": 0.0, "max": 65535.0}}, 12), ({"extratags": [(281, "H", 1, 16383, True)]}, 14),
    ],
)  # fmt: skip
def test_the_depth_that_files_state(tmp_path, options, bits):
    report = extract(write(tmp_path / "fields", [CAMERA] * 2, **options), tmp_path / "store")
    assert parameters_of(report.store)["bits"] == bits
    assert any(("as the files state" in note) == (bits == 14) for note in report.notes if "scaled to 8 bits" in note)


def test_png_states_significant_bits(tmp_path):
    import zlib

    content = cv2.imencode(".png", CAMERA)[1].tobytes()
    chunk = b"sBIT" + bytes([14])
    stated = content[:33] + (1).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]
    (tmp_path / "a.png").write_bytes(stated)
    spread = cv2.imencode(".png", CAMERA * 16)[1].tobytes()  # as the standard wants it: over all 16 bits
    (tmp_path / "b.png").write_bytes(spread[:33] + (1).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + spread[33:])
    a, b = (read_field(source) for source in find_fields(tmp_path))
    assert np.array_equal(a.image[..., 0], CAMERA) and a.numbers[0].stated == (0.0, 2.0**14) and b.numbers[0].stated is None


def test_one_statement_among_many_files_decides_nothing(tmp_path):
    folder = write(tmp_path / "fields", [CAMERA] * 4)
    tifffile.imwrite(folder / "f0.ome.tif", CAMERA, photometric="minisblack", **ome(15))
    (folder / "f0.tif").unlink()
    assert parameters_of(extract(folder, tmp_path / "store").store)["bits"] == 12


def test_pgm_of_12_bits_keeps_its_numbers(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5\n# a camera\n260 260\n4095\n" + CAMERA.astype(">u2").tobytes())
    field = read_field(find_fields(tmp_path)[0])
    assert np.array_equal(field.image[..., 0], CAMERA) and field.numbers[0].stated == (0.0, 4096.0)


# ---- a store keeps its scale


def test_fields_added_later_change_no_scale(tmp_path):
    folder = write(tmp_path / "fields", [CAMERA] * 2)
    before = extract(folder, tmp_path / "store").store
    bright = CAMERA * 16
    for i in range(5):
        tifffile.imwrite(folder / f"g{i}.tif", bright, photometric="minisblack")
    report = extract(folder, tmp_path / "store")
    assert report.n_made == 5 and parameters_of(report.store)["bits"] == parameters_of(before)["bits"] == 12
    assert brightest(report.store)[:2] == brightest(before)
    assert any("5 fields with pixels brighter" in note for note in report.notes)


def test_wide_numbers_added_to_a_store_of_8_bits(tmp_path):
    folder = write(tmp_path / "fields", [discs()] * 2)
    assert parameters_of(extract(folder, tmp_path / "store").store)["bits"] == 0
    for i in range(3):
        tifffile.imwrite(folder / f"g{i}.tif", CAMERA, photometric="minisblack")
    store = extract(folder, tmp_path / "store").store
    assert parameters_of(store)["bits"] == 12 and np.ptp(brightest(store)) <= 1


def test_dim_fields_are_reported(tmp_path):
    folder = write(tmp_path / "fields", [CAMERA] * 3)
    tifffile.imwrite(folder / "dim.tif", CAMERA // 64, photometric="minisblack")
    notes = extract(folder, tmp_path / "store").notes
    assert any("1 field using little of the range" in note and "dim" in note and "--bits or --range" in note for note in notes)


def test_a_range_that_is_given_wins(tmp_path):
    folder = write(tmp_path / "fields", [CAMERA, CAMERA])
    tifffile.imwrite(folder / "eight.tif", discs(), photometric="minisblack")
    tifffile.imwrite(folder / "real.tif", CAMERA.astype(np.float32), photometric="minisblack")
    store = extract(folder, tmp_path / "store", intensity_range=(0, 8192)).store
    assert dict(zip(store.fields["field_id"], brightest(store), strict=True)) == {"eight": 6, "f0": 96, "f1": 96, "real": 96}
    assert parameters_of(store)["intensity_range"] == [0.0, 8192.0]
    again = extract(folder, tmp_path / "store", intensity_range=(0, 8192))
    assert again.n_made == 0 and not any("other settings" in note for note in again.notes)


def test_repair_keeps_the_scale(tmp_path):
    folder = write(tmp_path / "fields", [discs()] * 9)
    real = discs() / np.float32(100)
    tifffile.imwrite(folder / "f8.tif", real, photometric="minisblack")
    store = extract(folder, tmp_path / "store").store
    before = store.crops(np.arange(len(store)))
    shard = next((tmp_path / "store" / "shards").glob("*.npy"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 255
    shard.write_bytes(content)
    repair_store(tmp_path / "store", workers=1)
    assert np.array_equal(read_store(tmp_path / "store").crops(np.arange(len(store))), before)


# ---- the functions


@given(st.integers(8, 15), st.integers(0, 2**32 - 1), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_isolated_pixels_never_change_the_levels(bits, seed, n):
    rng = np.random.default_rng(seed)
    plane = cv2.GaussianBlur(rng.integers(0, 1 << bits, (64, 64)).astype(np.uint16), (0, 0), 2)
    hot = plane.copy()
    for row, col in rng.integers(0, 16, (n, 2)) * 4:
        hot[row, col] = 65535
    low, high = robust_range(plane)
    assert robust_range(hot)[1] <= float(plane.max()) and abs(robust_range(hot)[1] - high) <= 0.1 * (1 << bits) and low >= plane.min()


@given(st.lists(st.integers(300, 4000), min_size=3, max_size=12), st.integers(0, 2**31), st.integers(4096, 65535))
@settings(max_examples=60, deadline=None)
def test_no_single_field_decides(levels, seed, extreme):
    sample = [[Brightness("unsigned", 0, level, None)] for level in levels]
    place = seed % len(levels)
    changed = [*sample[:place], [Brightness("unsigned", 0, extreme, None)], *sample[place:]]
    assert decide_scale(changed)[0].bits <= decide_scale([[Brightness("unsigned", 0, max(levels), None)]])[0].bits


@pytest.mark.parametrize(
    ("reach", "expected"),
    [((0, 0.47), (0, 1)), ((0, 1.04), (0, 1)), ((0, 1.2), (0, 2)), ((0, 120), (0, 256)), ((0, 3000), (0, 4096)), ((-3, 3000), (0, 4096)),
     ((-900, 3000), (-1024, 4096)), ((0, 0.004), (0, 2**-8)), ((0, 1e6), (0, 2**20)), ((5, 5), (0, 8)), ((-4, -2), (-4, 0)), ((0, 0), (0, 1))],
)  # fmt: skip
def test_ranges_of_real_numbers(reach, expected):
    assert decide_scale([[Brightness("real", *reach, None)]])[0].real_range == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_8_bits_of_every_type_are_the_same(dtype):
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for bits in (10, 12, 14, 16):
        image = eight.astype(dtype) * (1 << (bits - 8))
        scale = IntensityScale(bits) if dtype == np.uint16 else IntensityScale(real_range=(0, 1 << bits))
        assert np.array_equal(to_uint8(image, scale), eight)
    assert np.array_equal(to_uint8(eight / np.float32(255), IntensityScale(real_range=(0, 1))), eight)


def test_mixed_kinds_are_scaled_each_by_its_own():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3)).astype(np.float32)
    image[..., 1] *= 16
    numbers = (Numbers("uint8"), Numbers("unsigned"), Numbers("real"))
    small = to_uint8(image, IntensityScale(12, (0, 512)), numbers)
    assert np.array_equal(small[..., 0], image[..., 0]) and np.array_equal(small[..., 1], image[..., 1] // 16) and np.array_equal(small[..., 2], image[..., 2] // 2)
    field = Field("a", image, ("a", "b", "c"), numbers=numbers)
    assert {one.kind for one in measure_brightness(field)} == {"unsigned", "real"}
    assert misfit_of(field, small, IntensityScale(12, (0, 512))) == {}


def test_real_numbers_added_to_a_store_of_whole_ones(tmp_path):
    folder = write(tmp_path / "fields", [CAMERA])
    before = extract(folder, tmp_path / "store").store
    kept = before.crops(np.arange(len(before)))
    tifffile.imwrite(folder / "g0.tif", CAMERA.astype(np.float32))
    report = extract(folder, tmp_path / "store")
    parameters = parameters_of(report.store)
    assert (parameters["bits"], parameters["real_range"]) == (12, [0.0, 4096.0])
    of = report.store.index["field_id"] == "f0"
    assert np.array_equal(report.store.crops(np.flatnonzero(of)), kept) and len(set(brightest(report.store))) == 1
    assert not any("brighter than the range" in note for note in report.notes)
    again = extract(folder, tmp_path / "store")
    assert again.n_made == 0


def test_shares_of_pixels_are_written_as_people_read_them(tmp_path):
    report = extract(write(tmp_path / "fields", [CAMERA.astype(np.float32) + 10]), tmp_path / "store", intensity_range=(0, 1))
    assert any("at most 100 % of a channel of f0" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
@pytest.mark.parametrize("bits", [12, 14, 16])
def test_bits_that_are_given_count_for_a_camera_whatever_the_type(tmp_path, dtype, bits):
    report = extract(write(tmp_path / "fields", [CAMERA, CAMERA.astype(dtype)]), tmp_path / "store", bits=bits)
    assert parameters_of(report.store)["real_range"] == [0.0, 2.0**bits]
    one, other = (report.store.crops(np.flatnonzero(report.store.index["field_id"] == name)) for name in ("f0", "f1"))
    assert np.array_equal(one, other)


def test_bits_say_nothing_about_shares_of_one():
    share, signed = [Brightness("real", 0.01, 0.9, None)], [Brightness("real", -900.0, 900.0, None)]
    assert decide_scale([share] * 3, IntensityScale(14))[0].real_range == (0.0, 1.0)
    assert decide_scale([signed] * 3, IntensityScale(14))[0].real_range == (-1024.0, 1024.0)
@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 100_000, 1), (700, 300, 4), (5, 2, 1)])
@pytest.mark.parametrize(("dtype", "scale"), [
    (np.uint16, IntensityScale(bits=12)), (np.uint16, IntensityScale(intensity_range=(30, 3000))), (np.float32, IntensityScale(real_range=(-1, 4000))),
])  # fmt: skip
def test_scaling_part_by_part_is_scaling_at_once(shape, dtype, scale):
    image = np.random.default_rng(0).gamma(0.7, 900, shape).clip(0, 65535).astype(dtype)
    low, high = scale.range_of(Field("a", image, tuple(map(str, range(shape[2])))).numbers[0])
    expected = np.floor((image.astype(np.float64) - low) * (256 / (high - low))).clip(0, 255)
    assert np.array_equal(to_uint8(image, scale), expected)
    assert np.array_equal(to_uint8(image[..., 0], scale), expected[..., 0])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_misfit_by_counting_all_pixels(seed):
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(1, 70, 2), int(rng.integers(1, 5)))
    image = rng.gamma(0.5, 2.0 ** rng.integers(0, 12), shape).clip(0, 65535).astype(np.uint16)
    image.flat[0] = rng.choice([0, 4095, 4096, 65535])
    numbers = tuple(Numbers(str(rng.choice(["uint8", "unsigned"]))) for _ in range(shape[2]))
    field, scale = Field("a", image, tuple(map(str, range(shape[2]))), numbers=numbers), IntensityScale(bits=12)
    small = to_uint8(image, scale, numbers)
    judged = [c for c in range(shape[2]) if numbers[c].kind == "unsigned"]
    few = max(4, 1e-5 * small[..., 0].size) if small[..., 0].size >= 1000 else 0
    tops = [max((level for level in range(256) if (small[..., c] >= level).sum() > few), default=0) for c in judged]
    beyond = max(((image[..., c] >= 4096).mean() for c in judged), default=0)
    expected = ({"saturated": beyond} if beyond else {}) | ({"used": (max(tops) + 1) / 256} if tops and max(tops) < 7 else {})
    assert misfit_of(field, small, scale) == expected
