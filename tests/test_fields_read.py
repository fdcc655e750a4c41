"""Finding and reading fields: naming, containers, channels, depths, remote paths, real data."""

import gzip
import io

import cv2
import fsspec
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpacell.fields.decode import decode_image
from hpacell.fields.depth import to_uint8
from hpacell.fields.find import check_has_nucleus
from hpacell.fields.read import FieldError, FieldSource, find_fields, read_field
from hpacell.vocabulary import CHANNELS, HPA_COLOURS

COLOURS = tuple(HPA_COLOURS)


def planes(dtype=np.uint8, shape=(24, 31), n=4, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (n, *shape), dtype=dtype, endpoint=True)


def write_four(folder, field_id="a", arrays=None, suffix=".png", names=COLOURS):
    arrays = planes() if arrays is None else arrays
    for name, plane in zip(names, arrays, strict=True):
        Image.fromarray(plane).save(folder / f"{field_id}_{name}{suffix}")
    return arrays


def write_tiff(path, array, **options):
    tifffile.imwrite(path, array, **{"photometric": "minisblack", **options})
    return path


def only(folder, **options):
    (source,) = find_fields(folder, **options)
    return read_field(source)


# ---- four files a field


def test_four_files_are_one_field_in_stain_order(tmp_path):
    arrays = write_four(tmp_path)
    field = only(tmp_path)
    assert (field.field_id, field.channels, field.shape) == ("a", CHANNELS, (24, 31, 4))
    assert np.array_equal(field.image, arrays.transpose(1, 2, 0)) and field.image.flags.c_contiguous
    assert np.array_equal(field.channel("er"), arrays[3]) and field.has("er") and not field.has("actin")


@pytest.mark.parametrize("suffix", [".PNG", ".tif", ".TIFF", ".bmp", ".pgm"])
def test_any_suffix_and_stain_names(tmp_path, suffix):
    arrays = write_four(tmp_path, suffix=suffix, names=CHANNELS)
    assert np.array_equal(only(tmp_path).image, arrays.transpose(1, 2, 0))


def test_upper_case_colours_and_other_files_are_left_alone(tmp_path):
    write_four(tmp_path, names=("Red", "GREEN", "blue", "Yellow"))
    for name in (
        "a_predictedmask.png",
        "a_cells.png",
        "a_nuclei.png",
        "a_blue_red_green.jpg",
        "b_mask.tif",
        "labels.csv",
        "._a_red.png",
    ):
        (tmp_path / name).write_bytes(b"x")
    assert [source.field_id for source in find_fields(tmp_path)] == ["a"]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_missing_channel_names_its_file(tmp_path, colour):
    write_four(tmp_path)
    (tmp_path / f"a_{colour}.png").unlink()
    (source,) = find_fields(tmp_path)
    with pytest.raises(FieldError, match=rf"a_{colour}\.png: expected the {HPA_COLOURS[colour]} channel .* --channels"):
        read_field(source)


def test_missing_channels_of_one_field_do_not_touch_the_others(tmp_path):
    write_four(tmp_path, "a")
    write_four(tmp_path, "b")
    (tmp_path / "a_red.png").unlink()
    (tmp_path / "a_green.png").unlink()
    a, b = find_fields(tmp_path)
    with pytest.raises(FieldError, match="a_red.png"):
        read_field(a)
    assert read_field(b).channels == CHANNELS


def test_two_stains_throughout_are_two_channels(tmp_path):
    for field_id in "ab":
        write_four(tmp_path, field_id, planes(n=2), names=("green", "blue"))
    assert [source.channels for source in find_fields(tmp_path)] == [("protein", "nucleus")] * 2


def test_channels_select_and_order(tmp_path):
    arrays = write_four(tmp_path)
    field = only(tmp_path, channels=["er", "nucleus"])
    assert field.channels == ("er", "nucleus") and np.array_equal(field.image[..., 1], arrays[2])
    assert only(tmp_path, channels="blue").channels == ("nucleus",)
    with pytest.raises(FieldError, match="the channel actin"):
        find_fields(tmp_path, channels=["actin"])


def test_channels_of_different_size_name_both_files(tmp_path):
    write_four(tmp_path)
    Image.new("L", (31, 25)).save(tmp_path / "a_green.png")
    with pytest.raises(FieldError, match=r"a_green\.png: expected 24 x 31 pixels as in .*a_red\.png, got 25 x 31"):
        only(tmp_path)


def test_two_files_for_one_channel_are_refused(tmp_path):
    write_four(tmp_path)
    Image.new("L", (31, 24)).save(tmp_path / "a_blue.tif")
    with pytest.raises(FieldError, match="one file for the nucleus channel of a"):
        find_fields(tmp_path)


def test_8_and_16_bit_channels_keep_their_numbers(tmp_path):
    red = np.array([[0, 4000]], np.uint16)
    write_tiff(tmp_path / "a_red.tif", red)
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a_blue.png")
    field = only(tmp_path)
    assert field.image.dtype == np.uint16 and field.image[0, 1].tolist() == [4000, 255]
    assert [numbers.kind for numbers in field.numbers] == ["unsigned", "uint8"]


# ---- one file a field


def test_grey_images_are_nuclei(tmp_path):
    for name in ("x", "y"):
        Image.fromarray(planes()[0]).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}_nuclei.png").write_bytes(b"what hpacell wrote before")
    sources = find_fields(tmp_path)
    assert [source.field_id for source in sources] == ["x", "y"]
    assert {read_field(source).channels for source in sources} == {("nucleus",)}


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
def test_grey_in_any_png_mode(tmp_path, mode):
    grey = np.tile(np.array([0, 80, 255], np.uint8), (5, 2))
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "x.png")
    field = only(tmp_path, channels=["nucleus"])
    assert field.shape == (5, 6, 1)
    assert (field.image[..., 0] > 0).sum() == (np.asarray(image.convert("1" if mode == "1" else "L")) > 0).sum()


@pytest.mark.parametrize(
    ("colour", "lit"), [("red", [0]), ("green", [1]), ("blue", [2]), ("yellow", [0, 1]), ("grey", [0, 1, 2])]
)
def test_coloured_single_channel_jpeg_is_grey(tmp_path, colour, lit):
    truth = cv2.GaussianBlur(planes(shape=(96, 96))[0], (0, 0), 4)
    truth = cv2.normalize(truth, None, 0, 255, cv2.NORM_MINMAX)
    rgb = np.zeros((96, 96, 3), np.uint8)
    rgb[..., lit] = truth[..., None]
    Image.fromarray(rgb).save(tmp_path / "x.jpg", quality=95, subsampling=0)
    field = only(tmp_path)
    assert field.channels == ("nucleus",)
    assert np.abs(field.image[..., 0].astype(int) - truth).mean() < 4


def test_a_composite_is_microtubules_protein_nucleus(tmp_path):
    rgb = planes(n=3).transpose(1, 2, 0)
    Image.fromarray(rgb).save(tmp_path / "x.png")
    field = only(tmp_path)
    assert field.channels == ("microtubules", "protein", "nucleus") and np.array_equal(field.image, rgb)
    assert np.array_equal(only(tmp_path, channels=["nucleus"]).image[..., 0], rgb[..., 2])
    assert np.array_equal(only(tmp_path, channels=["nucleus", "protein"]).image, rgb[..., [2, 1]])
    with pytest.raises(FieldError, match="expected a channel actin, got a picture of several colours, .*: name the three stains"):
        only(tmp_path, channels=["actin"])
    assert only(tmp_path, channels=["nucleus", "protein", "actin"]).channels == ("nucleus", "protein", "actin")


def test_four_named_channels_in_an_rgba_png(tmp_path):
    rgba = planes().transpose(1, 2, 0)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    assert np.array_equal(only(tmp_path, channels=CHANNELS).image, rgba)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"compression": "lzw"}, {"tile": (16, 16)}, {"bigtiff": True}]
)
def test_multi_page_tiff(tmp_path, dtype, options):
    arrays = planes(dtype)
    write_tiff(tmp_path / "x.tif", arrays, **options)
    field = only(tmp_path)
    assert field.channels == CHANNELS and np.array_equal(field.image, arrays.transpose(1, 2, 0))


def test_tiff_axes_h_w_c(tmp_path):
    array = planes(np.uint16).transpose(1, 2, 0)
    write_tiff(tmp_path / "plain.tif", array)
    write_tiff(tmp_path / "planar.tif", array, planarconfig="contig")
    for source in find_fields(tmp_path):
        assert np.array_equal(read_field(source).image, array)


def test_ome_tiff_names_and_pixel_size(tmp_path):
    arrays = planes(np.uint16, n=2)
    notes = {"axes": "CYX", "Channel": {"Name": ["Tubulin", "DAPI"]}, "PhysicalSizeX": 80.0, "PhysicalSizeXUnit": "nm"}
    write_tiff(tmp_path / "x.ome.tif", arrays, metadata=notes)
    field = only(tmp_path)
    assert (field.field_id, field.channels, field.pixel_um) == ("x", ("microtubules", "nucleus"), 0.08)
    assert np.array_equal(only(tmp_path, channels=["nucleus"]).image[..., 0], arrays[1])


def test_imagej_pixel_size_and_blue_lut(tmp_path):
    luts = np.zeros((2, 3, 256), np.uint8)
    luts[0, 1] = luts[1, 2] = np.arange(256)
    notes = {"axes": "CYX", "unit": "micron", "LUTs": list(luts), "mode": "composite"}
    write_tiff(tmp_path / "x.tif", planes(n=2), imagej=True, resolution=(5.0, 5.0), metadata=notes)
    field = only(tmp_path)
    assert field.channels == ("protein", "nucleus") and field.pixel_um == 0.2


def test_screen_resolution_is_no_pixel_size(tmp_path):
    write_tiff(tmp_path / "x.tif", planes()[0], resolution=(72, 72), resolutionunit="INCH")
    assert only(tmp_path).pixel_um is None


def test_focus_slices_become_their_projection(tmp_path):
    stack = planes(np.uint16, n=6).reshape(3, 2, 24, 31)
    write_tiff(tmp_path / "x.ome.tif", stack, metadata={"axes": "ZCYX"})
    assert np.array_equal(only(tmp_path).image, stack.max(axis=0).transpose(1, 2, 0))


@pytest.mark.parametrize("imagej", [True, False])
def test_a_time_series_is_refused(tmp_path, imagej):
    name = "x.tif" if imagej else "x.ome.tif"
    write_tiff(tmp_path / name, planes(n=3), imagej=imagej, metadata={"axes": "TYX"})
    with pytest.raises(FieldError, match="expected one field, got 3 moments in time: save each"):
        only(tmp_path)


def test_several_positions_are_refused_and_a_thumbnail_is_not(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif") as tiff:
        for plane in planes(n=2):
            tiff.write(plane, photometric="minisblack", metadata={"axes": "YX"})
    with pytest.raises(FieldError, match="expected one field, got 2 images"):
        only(tmp_path)
    with tifffile.TiffWriter(tmp_path / "x.ome.tif") as tiff:
        tiff.write(planes()[0], photometric="minisblack", metadata={"axes": "YX"})
        tiff.write(planes()[0, ::2, ::2], photometric="minisblack", metadata={"axes": "YX"})
    assert only(tmp_path).shape == (24, 31, 1)


def test_part_of_a_multi_file_ome_tiff_is_its_own_pages(tmp_path):
    write_tiff(tmp_path / "x.ome.tif", planes(n=2), metadata={"axes": "CYX"})
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tiff:
        xml = tiff.ome_metadata.replace(
            '<TiffData IFD="0" PlaneCount="2"/>',
            (
                '<TiffData IFD="0" FirstC="0" PlaneCount="1"/><TiffData IFD="0" FirstC="1" PlaneCount="1">'
                '<UUID FileName="y.ome.tif">urn:uuid:0</UUID></TiffData>'
            ),
        )
    assert "y.ome.tif" in xml
    plane = planes()[0]
    tifffile.imwrite(tmp_path / "x.ome.tif", plane, photometric="minisblack", metadata=None, description=xml.encode())
    field = only(tmp_path)
    assert field.channels == ("nucleus",) and np.array_equal(field.image[..., 0], plane)


def test_two_nameless_channels_keep_numbers_and_ask_for_names(tmp_path):
    write_tiff(tmp_path / "x.tif", planes(n=2))
    field = only(tmp_path)
    assert field.channels == ("channel_0", "channel_1")
    with pytest.raises(FieldError, match="expected a nucleus channel, got only channel_0, channel_1: .*--channels"):
        field.channel("nucleus")
    assert only(tmp_path, channels=["nucleus", "protein"]).channels == ("nucleus", "protein")
    with pytest.raises(FieldError, match=r"expected 1 channel \(nucleus\), got 2"):
        only(tmp_path, channels=["nucleus"])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[-128, 127]], np.int8), [-128, 127]),
        (np.array([[-5, 300]], np.int16), [-5, 300]),
        (np.array([[5, 300]], np.int32), [5, 300]),
        (np.array([[0, 2**32 - 1]], np.uint32), [0, 2**32]),  # 24 bits are kept
        (np.array([[0.25, 0.75]], np.float32), [0.25, 0.75]),
        (np.array([[1e-3, 1e300]], np.float64), [np.float32(1e-3)] * 2),  # infinite in 32 bits
        (np.array([[np.nan, 2.0]], np.float64), [2, 2]),
        (np.array([[-np.inf, 0, 1, np.inf]], np.float32), [0, 0, 1, 1]),
        (np.array([[False, True]]), [0, 255]),
    ],
)
def test_number_types(tmp_path, array, expected):
    write_tiff(tmp_path / "x.tif", array)
    assert only(tmp_path).image.ravel().tolist() == expected


def test_white_is_zero(tmp_path):
    write_tiff(tmp_path / "x.tif", np.array([[0, 255]], np.uint8), photometric="miniswhite")
    assert only(tmp_path).image.ravel().tolist() == [255, 0]


def test_the_first_bytes_decide_not_the_name(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(planes()[0]).save(buffer, "JPEG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    (tmp_path / "y.tif.gz").write_bytes(gzip.compress(buffer.getvalue()))
    x, y = (read_field(source) for source in find_fields(tmp_path))
    assert np.array_equal(x.image, y.image) and (x.field_id, y.field_id) == ("x", "y")


# ---- patterns, tables, addresses


def test_pattern_with_words_of_ones_own(tmp_path):
    for well in ("A01_s1", "A02_s1"):
        write_four(tmp_path, f"plate_{well}", planes(n=2), ".tif", names=("w1", "w2"))
    (tmp_path / "plate_A01_s1_thumb.txt").touch()
    words = {"w1": "nucleus", "w2": "protein"}
    for channels in (words, ["w1=nucleus", "w2=protein"]):
        sources = find_fields(tmp_path, "plate_{field_id}_{channel}.tif", channels)
        assert [(source.field_id, source.channels) for source in sources] == [
            ("A01_s1", ("nucleus", "protein")), ("A02_s1", ("nucleus", "protein")),
        ]  # fmt: skip
    (tmp_path / "plate_A02_s1_w2.tif").unlink()
    with pytest.raises(FieldError, match="plate_A02_s1_w2.tif: expected the protein channel"):
        read_field(find_fields(tmp_path, "plate_{field_id}_{channel}.tif", words)[1])


def test_pattern_with_stains_people_write(tmp_path):
    write_four(tmp_path, "x", planes(n=2), ".tif", names=("DAPI", "tubulin"))
    (source,) = find_fields(tmp_path, "{field_id}_{channel}.tif")
    assert source.channels == ("microtubules", "nucleus")


def test_pattern_over_folders_and_channel_first(tmp_path):
    for colour, plane in zip(COLOURS, planes(), strict=True):
        (tmp_path / colour).mkdir()
        Image.fromarray(plane).save(tmp_path / colour / "f7.png")
    (source,) = find_fields(tmp_path, "{channel}/{field_id}.png")
    assert source.field_id == "f7" and np.array_equal(read_field(source).image, planes().transpose(1, 2, 0))


@pytest.mark.parametrize("pattern", ["{channel}.png", "{field_id}_{stain}.png", "{field_id"])
def test_bad_patterns(tmp_path, pattern):
    with pytest.raises(ValueError, match="expected {field_id}"):
        find_fields(tmp_path, pattern)


def test_regex_characters_in_a_pattern_are_plain_text(tmp_path):
    Image.fromarray(planes()[0]).save(tmp_path / "x(1)+[a].png")
    assert [s.field_id for s in find_fields(tmp_path, "{field_id}(1)+[a].png")] == ["x"]


def test_table_of_paths(tmp_path):
    write_four(tmp_path, "a")
    Image.fromarray(planes()[0]).save(tmp_path / "x.png")
    table = tmp_path / "fields.csv"
    table.write_text("path\n" + "".join(f"a_{colour}.png\n" for colour in COLOURS) + f"{tmp_path / 'x.png'}\nx.png\n")
    four, one = find_fields(table)
    assert four.channels == CHANNELS and one.field_id == "x"
    table.write_text("Field_ID,path\nq1,a_red.png|a_green.png|a_blue.png|a_yellow.png\nq2,x.png\n")
    assert [(s.field_id, len(s.paths)) for s in find_fields(table)] == [("q1", 4), ("q2", 1)]


def test_table_of_channels(tmp_path):
    write_four(tmp_path, "a")
    table = tmp_path / "fields.csv"
    table.write_text("field_id,nucleus,protein\n007,a_blue.png,a_green.png\n")
    (source,) = find_fields(table)
    assert source.field_id == "007" and source.channels == ("protein", "nucleus")
    assert np.array_equal(read_field(source).image[..., 1], planes()[2])
    table.write_text("red,green,blue\na_red.png,a_green.png,a_blue.png\n")
    assert find_fields(table)[0].channels == ("microtubules", "protein", "nucleus")
    table.write_text("nucleus,protein\na_blue.png,\n")
    with pytest.raises(FieldError, match="images in column 'protein', got nothing in row 2"):
        find_fields(table)
    table.write_text("path\na_blue.png\nnotes.txt\n")
    with pytest.raises(FieldError, match="images in column 'path', got notes.txt in row 3"):
        find_fields(table)
    table.write_text("id,file\n1,a_blue.png\n")
    with pytest.raises(FieldError, match="a column 'path' or one column per channel, got the columns id, file"):
        find_fields(table)


def test_remote_folder(tmp_path):
    system = fsspec.filesystem("memory")
    arrays = write_four(tmp_path)
    for path in tmp_path.iterdir():
        system.pipe(f"/reads/{path.name}", path.read_bytes())
    try:
        field = only("memory://reads")
        assert np.array_equal(field.image, arrays.transpose(1, 2, 0)) and field.paths[0].startswith("memory://")
        assert only("memory://reads", pattern="{field_id}_{channel}.png").channels == CHANNELS
    finally:
        system.rm("/reads", recursive=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "got 0 files"),
        (("a.nd2", "b.txt"), r"got 2 files \(.nd2, .txt\)"),
        (("a_mask.png",), "1 mask or label image by their names.*--pattern .{field_id}_mask.png."),
    ],
)
def test_folder_without_fields(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FieldError, match=message):
        find_fields(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(FieldError, match="expected a folder, got .*nowhere"):
        find_fields(tmp_path / "nowhere")


def test_one_image_alone(tmp_path):
    Image.fromarray(planes()[0]).save(tmp_path / "x_mask.png")
    assert only(tmp_path / "x_mask.png").channels == ("nucleus",)


# ---- depths


@given(st.integers(1, 65535), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_to_uint8_keeps_order_and_uses_the_range(top, seed):
    image = np.random.default_rng(seed).integers(0, top, (5, 6, 2), dtype=np.uint16, endpoint=True)
    image[0, 0, 0] = top
    small = to_uint8(image)
    order = np.argsort(image.ravel(), kind="stable")
    assert small.dtype == np.uint8 and np.all(np.diff(small.ravel()[order].astype(int)) >= 0)
    assert small.max() >= 63 or top < 256
    assert to_uint8(small) is small


@given(
    st.sampled_from(["PNG", "TIFF", "BMP", "PPM"]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1)
)
@settings(max_examples=60, deadline=None)
def test_lossless_formats_round_trip(kind, height, width, seed):
    array = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    assert np.array_equal(decode_image(buffer.getvalue()).pixels[..., 0], array)


# ---- real data


def test_real_scc_fields_equal_opencv(shared_data):
    sources = find_fields(shared_data / "hpa" / "scc")
    assert len(sources) == 4 and all(source.channels == CHANNELS for source in sources)
    field = read_field(sources[0])
    assert all(np.array_equal(field.image[..., i], cv2.imread(p, -1)) for i, p in enumerate(field.paths))


def test_real_public_fields(shared_data):
    assert only(shared_data / "hpa" / "public").shape == (1728, 1728, 4)
    field = only(shared_data / "hpa" / "public_jpeg")
    assert field.channels == CHANNELS and field.shape == (2048, 2048, 4)
    assert (field.image.reshape(-1, 4).max(axis=0) == 255).all()
    server = only(shared_data / "containers" / "hpa")
    assert (server.channels, server.shape, server.image.dtype) == (("nucleus",), (2048, 2048, 1), np.uint16)
    assert server.pixel_um == pytest.approx(0.0801, abs=1e-4)
    assert only(shared_data / "containers" / "hpa" / "jpeg_named_png").channels == ("microtubules", "nucleus")


def test_real_containers(shared_data):
    folder = shared_data / "containers"
    channels = {}
    for name in ("neubias", "neubias/watershed", "ome", "ome/multi-tiff", "multichannel", "stardist", "pillow_valid"):
        for source in find_fields(folder / name):
            if source.field_id.startswith("multipage") and "last" not in source.field_id:  # pictures of several sizes
                with pytest.raises(FieldError, match="got 2 images .*--scene"):
                    read_field(source)
                continue
            field = read_field(source)
            assert field.image.ndim == 3 and field.image.dtype in (np.uint8, np.uint16, np.float32)
            channels[field.field_id] = field.channels
    assert not any("labels" in name for name in channels)
    assert channels["xy_16bit__h2b"] == ("nucleus",) and channels["instanseg_Fluorescence_example"] == (
        "protein",
        "nucleus",
    )
    assert channels["xyc_16bit__hela-cells"] == ("microtubules", "protein", "nucleus")


def test_real_nuclei(shared_data):
    sources = find_fields(shared_data / "dsb2018" / "kaggle_layout", "{field_id}/images/*.png", "nucleus")
    assert len(sources) == 4
    for source in sources:
        field = read_field(source)  # RGBA; the flat folder holds grey copies of most
        flat = shared_data / "dsb2018" / "images" / f"{source.field_id}.png"
        if flat.exists():
            assert np.array_equal(field.image, read_field(FieldSource("x", (str(flat),), ("nucleus",))).image)
    grey = [read_field(source) for source in find_fields(shared_data / "dsb2018" / "images")[::10]]
    assert sum(field.channels == ("nucleus",) for field in grey) > 40


# ---- names that cannot name a file, and calls that cannot work


NO_NAMES = ["../x", "a/b", "/etc/x", "a\\b", ".", "..", "", "  ", "a\x00b", "a\nb", "a\rb", "a\r\nb", "a\u2028b"]


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("head", ["field_id,path", "path,ID"])
def test_a_table_cannot_name_a_field_so(tmp_path, name, head):
    Image.fromarray(planes()[0]).save(tmp_path / "x.png")
    cells = {"field_id": f'"{name}"', "ID": f'"{name}"', "path": "x.png"}
    (tmp_path / "fields.csv").write_bytes(f"{head}\n\n{','.join(cells[column] for column in head.split(','))}\n".encode())
    with pytest.raises(FieldError, match="fields.csv: expected a field's id that can be a file's name, got .* in row") as caught:
        find_fields(tmp_path / "fields.csv")
    assert len(str(caught.value).splitlines()) == 1 and ("name the field" in str(caught.value) or "fill it in" in str(caught.value))
    with pytest.raises(FieldError, match="expected a field's id"):
        FieldSource(name, ("x.png",))


def test_odd_names_that_can_name_a_file(tmp_path):
    names = ["..a", "B2 site 3", "Zelle_ä", "細胞-1", "a.b", "-x", "a:b*"]
    rows = "".join(f"{name},{i}.png\n" for i, name in enumerate(names))
    (tmp_path / "fields.csv").write_text(f"field_id,path\n{rows}", encoding="utf-8")
    assert sorted(names) == [source.field_id for source in find_fields(tmp_path / "fields.csv")]


def test_file_names_that_are_not_text_are_refused_by_name(tmp_path):
    (tmp_path / "a\nb.png").touch()
    with pytest.raises(FieldError, match="expected a field's id that can be a file's name, got 'a.*nb'"):
        find_fields(tmp_path)


def test_rows_are_counted_as_a_spreadsheet_does(tmp_path):
    (tmp_path / "fields.csv").write_text("path\n\nx.png\n\nnotes.txt\n")
    with pytest.raises(FieldError, match="got notes.txt in row 5"):
        find_fields(tmp_path / "fields.csv")
    (tmp_path / "fields.csv").write_text('path\n"' + "x" * 200_000 + '"\n')
    with pytest.raises(FieldError, match="expected images in column 'path', got x{80} in row 2"):
        find_fields(tmp_path / "fields.csv")


def test_a_call_without_the_nucleus_is_refused_once(tmp_path):
    write_four(tmp_path)
    for channels in (["protein"], ["er", "protein"]):
        with pytest.raises(FieldError, match=f"the channel nucleus, by which cells are found, got {', '.join(channels)}: take it along"):
            check_has_nucleus(find_fields(tmp_path, channels=channels))
    for channels in (None, ["nucleus"], ["protein", "nucleus"]):
        check_has_nucleus(find_fields(tmp_path, channels=channels))
    (tmp_path / "a_blue.png").unlink()
    check_has_nucleus(find_fields(tmp_path))  # a missing file of one field is that field's own trouble
    check_has_nucleus([FieldSource("a", ("a.tif",)), FieldSource("b", ("b.png",), ("protein",))])
    check_has_nucleus([])
