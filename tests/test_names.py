"""What file names say: channels, masks, composites, and folders that only people can read."""

import sys
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from hpacell.cli import main
from hpacell.feed.foreign import import_crops
from hpacell.fields.catalog import catalog_fields
from hpacell.fields.find import find_fields, survey_fields
from hpacell.fields.group import read_names
from hpacell.fields.image import FieldError
from hpacell.fields.read import read_field
from hpacell.masks.layouts import find_labelled

COLOURS = ("red", "green", "blue", "yellow")
FOUR = ("microtubules", "protein", "nucleus", "er")


def fill(folder, *names):
    """Small pictures, each of another grey."""
    folder.mkdir(exist_ok=True, parents=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 7), i + 1, np.uint8)).save(folder / name)
    return folder


def discs(path, seed=1):
    """A picture with four nuclei."""
    picture = np.full((130, 130), 12, np.float32)
    yy, xx = np.ogrid[:130, :130]
    for y, x in ((32, 32), (32, 96), (96, 32), (96, 96)):
        picture[(yy - y) ** 2 + (xx - x) ** 2 <= 196] = 180
    picture = cv2.GaussianBlur(picture, (0, 0), 1.2) + np.random.default_rng(seed).normal(0, 4, picture.shape)
    path.parent.mkdir(exist_ok=True, parents=True)
    cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8))


def found(*names, **options):
    """Field -> channels, in the order of names; empty for a file that is a field."""
    fields = {}
    for file in read_names(names, **options).files:
        fields.setdefault(file.field_id, []).extend([file.channel] if file.word else [])
    return fields


def asked(*names):
    return read_names(names).question


def files(ids, words, pattern="{}_{}.tif"):
    return [pattern.format(name, word) for name in ids for word in words]


# ---- channels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("plate1_A01_DAPI.png", "plate1_A01_GFP.png"), {"plate1_A01": ["nucleus", "protein"]}),
        (files(("e_w1DAPI", "e_w2FITC"), ("s1", "s2")), {"e_s1": ["nucleus", "protein"], "e_s2": ["nucleus", "protein"]}),
        (("img_000_DAPI_000.tif", "img_000_GFP_000.tif"), {"img_000_000": ["nucleus", "protein"]}),
        (("W_Green_A1_1.tif", "W_Phase_A1_1.tif"), {"W_A1_1": ["protein", "phase"]}),
        (("a_C1_DAPI.tif", "a_C2_GFP.tif"), {"a": ["nucleus", "protein"]}),
        (("a-DAPI.tif", "a-tubulin.TIF"), {"a": ["nucleus", "microtubules"]}),
        (("s.1 b (2)_Hoechst 33342.tif", "s.1 b (2)_Texas Red.tif"), {"s.1 b (2)": ["nucleus", "texas_red"]}),
        (("a (DAPI).tif", "a (ER tracker).tif"), {"a": ["nucleus", "er"]}),
        (("A1_Stitched[DAPI 377,447]_001.tif", "A1_Stitched[GFP 469,525]_001.tif"), {"A1_Stitched_001": ["nucleus", "protein"]}),
        (("A(fld 1 wv UV - DAPI).tif", "A(fld 1 wv Blue - FITC).tif"), {"A(fld 1 wv )": ["nucleus", "protein"]}),
        (("a_H2B-GFP.tif", "a_tubulin-RFP.tif"), {"a": ["nucleus", "microtubules"]}),
        (("a_DAPI-T1.tif", "a_AF488-T2.tif"), {"a": ["nucleus", "protein"]}),  # Zen's tracks
        (("DAPI_ER.tif", "GFP_ER.tif", "DAPI_protein.tif", "GFP_protein.tif"), {"ER": ["nucleus", "protein"], "protein": ["nucleus", "protein"]}),
        (files("ab", ("DAPI", "Ki67")), {"a": ["nucleus", "ki67"], "b": ["nucleus", "ki67"]}),
        (files("a", ("DAPI", "FITC", "Cy3", "Cy5", "BF")), {"a": ["nucleus", "protein", "cy3", "cy5", "bf"]}),
        (files("a", ("DAPI", "GFP", "FITC")), {"a": ["nucleus", "gfp", "fitc"]}),  # which is the protein?
        (files(("siRNA_GFP", "siRNA_x"), ("DAPI", "TRITC")), {"siRNA_GFP": ["nucleus", "tritc"], "siRNA_x": ["nucleus", "tritc"]}),
        (("DAPI_ER_1.png", "GFP_ER_1.png", "DAPI_protein_1.png", "GFP_protein_1.png"), {"ER_1": ["nucleus", "protein"], "protein_1": ["nucleus", "protein"]}),
    ],
)  # fmt: skip
def test_stains_make_fields(names, expected):
    assert asked(*names) is None and found(*names) == expected


@pytest.mark.parametrize("end", ["ER", "Protein", "Green", "DAPI", "GFP", "nucleus_2_red", "blue"])
def test_ids_may_end_with_words_of_channels(tmp_path, end):
    fill(tmp_path, *files((f"x_{end}", "x_ctrl"), COLOURS, "{}_{}.png"))
    assert [(source.field_id, source.channels) for source in find_fields(tmp_path)] == sorted([(f"x_{end}", FOUR), ("x_ctrl", FOUR)])


def test_what_was_assumed_is_said(tmp_path):
    survey = survey_fields(fill(tmp_path, "a_DAPI.png", "a_GFP.png", "b_DAPI.png", "b_GFP.png"))
    assert survey.notes == ("GFP taken for protein in 2 fields: if it shows something else, say so with --channels",)
    assert dict(zip(survey.sources[0].channels, survey.sources[0].reasons, strict=True)) == {
        "protein": "GFP taken for protein (assumed)", "nucleus": "'DAPI' in the file's name",
    }  # fmt: skip
    told = survey_fields(tmp_path, channels=["DAPI=nucleus", "GFP=er"])
    assert told.notes == () and told.sources[0].channels == ("nucleus", "er") and told.sources[0].reasons == ("--channels",) * 2


def test_a_channel_that_one_field_lacks(tmp_path):
    a, b = find_fields(fill(tmp_path, "a_DAPI.png", "a_GFP.png", "b_DAPI.png"))
    assert a.channels == b.channels == ("protein", "nucleus") and read_field(a).image[0, 0].tolist() == [2, 1]
    with pytest.raises(FieldError, match=r"b_GFP\.png: expected the protein channel of field b"):
        read_field(b)


def test_a_channel_that_few_fields_have_is_listed():
    read = read_names([*files("abcde", COLOURS), "c_actin.tif"])
    assert read.left_out == [("c_actin.tif", "a channel of 1 of 5 fields")] and len(read.files) == 20


def test_two_stains_of_the_nucleus_are_refused(tmp_path):
    with pytest.raises(FieldError, match=r"one file for the nucleus channel of a.*--channels Hoechst=nucleus"):
        find_fields(fill(tmp_path, "a_DAPI.png", "a_Hoechst.png", "a_GFP.png"))
    assert find_fields(tmp_path, channels=["Hoechst=nucleus", "GFP=protein"])[0].channels == ("nucleus", "protein")


# ---- words that say nothing


COUNTED = [
    (files(("p_A01", "p_A02"), ("ch00", "ch01")), ("ch00", "ch01")),
    (files(("p_s1", "p_s2"), ("w1", "w2")), ("w1", "w2")),
    (files("a", ("C=0", "C=1")), ("C=0", "C=1")),
    (files("a", ("c001", "c002")), ("c001", "c002")),
    (files("a", ("405", "488", "561", "640")), ("405", "488", "561", "640")),
    (files("a", ("channel00", "channel01"), "{}_{}_z1.tif"), ("channel00", "channel01")),
    (files("a", ("ch1", "ch2"), "{}-{}.tif"), ("ch1", "ch2")),
    (files(("exp-2 a", "exp-3 b"), ("C1", "C2"), "{1}-{0}.tif"), ("C1", "C2")),
    (files("12", ("ch1", "ch2"), "r01c0{}f01p01-{}sk1fk1fl1.tiff"), ("ch1", "ch2")),
    (files("ab", ("c0", "c1"), "{}_s1{}.tif"), ("c0", "c1")),
    (files("1", ("d0", "d1"), "M_A0{}f00{}.TIF"), ("d0", "d1")),
    (files("1", ("C01", "C02"), "P_A0{}_T0001F001L01A01Z01{}.tif"), ("C01", "C02")),
    (files("ab", ("ch00", "ch01"), "{}_z0_{}.tif"), ("ch00", "ch01")),
    (files("a", ("Channel 1", "Channel 2")), ("Channel 1", "Channel 2")),
    (files("a", ("Ch1-T1", "Ch2-T2")), ("Ch1-T1", "Ch2-T2")),
    (files(("a_561", "a_488"), ("DAPI",)), ("488", "561")),
    (["p_w11A2B3C4D-1111-2222-3333-123456789ABC.tif", "p_w29A2B3C4D-1111-2222-3333-123456789ABC.tif"], ("w1", "w2")),
    (["a_ch00.tif", "a_ch01.tif", "b_ch00.tif", "c_ch00.tif", "d_ch00.tif"], ("ch00", "ch01")),
]


@pytest.mark.parametrize(("names", "words"), COUNTED)
def test_numbers_of_channels_are_a_question_with_an_answer_that_works(tmp_path, names, words):
    fill(tmp_path, *names)
    with pytest.raises(FieldError, match=f"whose names differ by {', '.join(words)} alone") as caught:
        find_fields(tmp_path)
    message = str(caught.value)
    asked_for = message.split("--channels ")[1].split(", with")[0].strip("'")
    assert [pair.rpartition("=")[0] for pair in asked_for.split(",")] == list(words)
    pattern = message.split("--pattern '")[1].split("'")[0] if "say it with --pattern" in message else None
    sources = find_fields(tmp_path, pattern, asked_for.split(","))
    assert sum(path.rpartition("/")[2] in names for source in sources for path in source.paths) == len(names)
    assert all(source.channels[:2] == ("nucleus", "protein") and len(source.paths) == len(words) for source in sources)
    apart = message.rpartition("with --pattern '")[2].rstrip("'")
    assert len(find_fields(tmp_path, apart)) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        files("ab", "12"), files("a", ("s1", "s2")), files("a", ("t1", "t2", "t3")), files("a", ("f1", "p2")), files("p", ("A01", "A02", "B01", "C01")),
        files("p", ("C01", "C02", "C03")), files("p", ("A1", "C1", "C2")), files("p", ("B1_1", "C1_1", "C2_1", "C1_2")), files("x", [f"c{i}" for i in range(12)]),
        files("f", ("400", "405", "488", "489")), files("ab", ("DAPI",)), files("ab", ("w1",)), files(("ctrl", "GFP"), "12"), ["1.jpg", "105.jpg", "405.jpg"],
        files("r01c0", ("1f01", "2f01"), "{}{}.tif"), ["xy_16bit__h2b.tif", "xy_float__h2b_bg.tif", "xyc_16bit__nuclei_tubulin.tif"],
        [f"--W0002--P001--T{i:05}--Z000--C.tif" for i in range(4)], ["left.tif", "right.tif"], files("a", ("day1", "day2")),
    ],
)  # fmt: skip
def test_other_counters_are_fields_as_before(names):
    assert asked(*names) is None and found(*names) == {name.rpartition(".")[0]: [] for name in names}


def test_a_few_such_names_among_others_are_noted():
    read = read_names(["a_ch1.tif", "a_ch2.tif", "b.tif", "c.tif", "d.tif"])
    assert read.question is None and len(read.files) == 5 and "ch1, ch2" in read.notes[0]


def test_channels_without_a_field_in_their_names(tmp_path):
    fill(tmp_path / "A01", "DAPI.tif", "GFP.tif")
    with pytest.raises(FieldError, match=r"the folder above this one, with --pattern '\{field_id\}/\{channel\}\.\*'"):
        find_fields(tmp_path / "A01")
    assert find_fields(tmp_path, "{field_id}/{channel}.*")[0].channels == ("protein", "nucleus")


def test_the_command_asks_and_the_answer_works(tmp_path, capsys):
    for name in files("pq", ("ch00", "ch01")):
        discs(tmp_path / "in" / name)
    words = ["segment", str(tmp_path / "in"), "--method", "classical", "--workers", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 2 and not (tmp_path / "out").exists()
    assert "--channels ch00=nucleus,ch01=protein" in capsys.readouterr().err
    assert main([*words, "--pattern", "{field_id}_{channel}.tif", "--channels", "ch00=nucleus,ch01=protein"]) == 0
    assert "8 nuclei and 8 cells of 2 fields" in capsys.readouterr().out


# ---- patterns


@pytest.mark.parametrize("channels", [None, ["C1=nucleus", "C2=protein"]])
def test_a_channel_before_the_field(tmp_path, channels):
    fill(tmp_path, *files(("exp-2 a", "exp-3 b"), ("C1", "C2"), "{1}-{0}.png"))
    sources = find_fields(tmp_path, "{channel}-{field_id}.png", channels)
    assert [source.field_id for source in sources] == ["exp-2 a", "exp-3 b"]
    assert sources[0].channels == (("nucleus", "protein") if channels else ("c1", "c2"))


def test_words_decide_where_a_channel_ends(tmp_path):
    fill(tmp_path, *files(("000_a_1", "001_b_2"), ("DAPI_w", "Cy5_w"), "img_{1}_{0}.tif"))
    (source, _) = find_fields(tmp_path, "img_{channel}_{field_id}.tif", ["DAPI_w=nucleus", "Cy5_w=er"])
    assert (source.field_id, source.channels) == ("000_a_1", ("nucleus", "er"))
    assert len(find_fields(tmp_path, "img_{channel}_{field_id}.tif", ["DAPI_w=nucleus"])) == 2
    with pytest.raises(FieldError, match="expected files for the channel er, got files for"):
        find_fields(tmp_path, "img_{channel}_{field_id}.tif", ["DAPI_w=nucleus", "Cy7=er"])


def test_masks_of_a_pattern_are_listed(tmp_path):
    fill(tmp_path, "a.png", "a_seg.png", "mask_b.png")
    survey = survey_fields(tmp_path, "{field_id}.png")
    assert [source.field_id for source in survey.sources] == ["a", "mask_b"] and len(survey.left_out) == 1
    assert [source.field_id for source in find_fields(tmp_path, "{field_id}_seg.png")] == ["a"]


# ---- masks and composites


def test_label_images_are_left_out_and_named(tmp_path, capsys):
    for name in ("a.png", "b.png", "c.png"):
        discs(tmp_path / "in" / name)
    fill(tmp_path / "in", "a_seg.png", "b_label.png", "c_lbl.png", "c_cp_outlines.png", "a_thumb.jpg")
    words = ["segment", str(tmp_path / "in"), "--method", "classical", "--workers", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "12 nuclei of 3 fields" in told.out
    assert told.err.count("3 files taken for masks and left out: a_seg.png, b_label.png, c_lbl.png") == 1
    assert "1 file taken for outlines and left out: c_cp_outlines.png" in told.err and "a_thumb.jpg" in told.err


@pytest.mark.parametrize(
    "name",
    ["a_seg", "a_flows", "a_overlay", "a_Probabilities", "a_Simple Segmentation", "a_cp_masks", "a-mask", "a_mask_1", "mask_a", "a_cells", "a_nuclei_mask",
     "a_predictedmask", "a_labels_02", "a_GT", "overlay_a", "a_thumb"],
)  # fmt: skip
def test_what_stands_beside_its_picture(name):
    read = read_names(["a.tif", f"{name}.png", "b.tif"])
    assert [path for path, _ in read.left_out] == [f"{name}.png"] and [file.field_id for file in read.files] == ["a", "b"]


@pytest.mark.parametrize("name", ["mask_control_01", "labelfree_03", "unlabeled", "segA", "x_seg", "x_mask_01", "hela-cells", "overlay_7"])
def test_names_that_only_sound_like_masks(name):
    assert found(f"{name}.png", "other.png") == {name: [], "other": []}
    read = read_names([*files([name], COLOURS), f"{name}_seg.png", "other.png"])
    assert {file.field_id for file in read.files if file.word} == {name} and read.left_out == [(f"{name}_seg.png", "mask or label image")]


def test_such_a_name_is_noted():
    assert "mask_control_01" in read_names(["mask_control_01.png", "b.png"]).notes[0]


@pytest.mark.parametrize("extra", ["a_blue_red.png", "a_red_green.png", "a_merge.png", "a.png", "Composite-a.png", "a_RGB.png", "a_blue_red_green.jpg"])
def test_composites_are_listed(extra):
    read = read_names([*files("ab", ("red", "green", "blue"), "{}_{}.png"), extra])
    assert read.left_out == [(extra, "composite of the channels of a")] and len(read.files) == 6


def test_all_composites_at_once():
    extra = ["a_blue_green.png", "a_blue_red.png", "a_red_green.png"]
    read = read_names([*files("a", ("red", "green", "blue"), "{}_{}.png"), *extra])
    assert [path for path, _ in read.left_out] == extra and found("a_blue_red_green.jpg") == {"a_blue_red_green": []}


def test_label_images_of_both_kinds_are_not_channels(tmp_path):
    fill(tmp_path, "a_nuclei.png", "a_cells.png")
    with pytest.raises(FieldError, match="2 masks or label images"):
        find_fields(tmp_path)
    assert sorted(found("a_nuclei.png", "a_tubulin.png")["a"]) == ["microtubules", "nucleus"]


def test_masks_called_alike_where_labels_are_read(tmp_path):
    fill(tmp_path, "a.png", "a_lbl.png", "b.png", "b-mask.png")
    assert [(one.image_id, len(one.paths)) for one in find_labelled(tmp_path)] == [("a", 1), ("b", 1)]


@pytest.mark.parametrize(("image", "label"), [("a.png", "a.ome.tif"), ("a.ome.tif", "a.png"), ("a.ome.tiff", "a_mask.ome.tif")])
def test_label_images_called_ome(tmp_path, image, label):
    fill(tmp_path, f"images/{image}", f"labels/{label}")
    (one,) = find_labelled(tmp_path)
    assert one.image_id == "a" and len(one.paths) == 1


# ---- one name, two spellings


def decomposed(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.skipif(sys.platform == "darwin", reason="that disk spells names in its own way")
def test_ids_are_compared_composed(tmp_path):
    fill(tmp_path, *(decomposed(f"Zürich_{colour}.png") for colour in COLOURS), "b_blue.png")
    (tmp_path / "labels.csv").write_text("ID,Label\nZürich,0|5\nb,1\n", encoding="utf-8")
    zurich, b = find_fields(tmp_path)
    assert zurich.field_id == "Zürich" and all(decomposed("Zürich") in path for path in zurich.paths)
    catalog = catalog_fields([b, zurich], tmp_path / "labels.csv")
    assert catalog.frame["labels"].tolist()[0] == "nucleoplasm|nuclear_bodies" and not catalog.missing_labels
    (tmp_path / "labels.csv").write_text(decomposed("ID,Label\nZürich,0|5\n"), encoding="utf-8")
    assert catalog_fields([zurich], tmp_path / "labels.csv").missing_labels == ()


@pytest.mark.skipif(sys.platform == "darwin", reason="that disk spells names in its own way")
def test_masks_tables_and_patterns_in_another_spelling(tmp_path):
    fill(tmp_path, decomposed("images/né.png"), "labels/né.png")
    assert [(one.image_id, len(one.paths)) for one in find_labelled(tmp_path)] == [("né", 1)]
    (source,) = find_fields(tmp_path / "images", "{field_id}é.png")
    assert source.field_id == "n" and read_field(source).shape == (6, 7, 1)
    (tmp_path / "images" / "fields.csv").write_text("path\nné.png\n", encoding="utf-8")
    assert read_field(find_fields(tmp_path / "images" / "fields.csv")[0]).shape == (6, 7, 1)
    fill(tmp_path / "both", "ü_red.png", decomposed("ü_red.png"))
    with pytest.raises(FieldError, match="one file for the microtubules channel"):
        find_fields(tmp_path / "both")


def test_crops_in_another_spelling(tmp_path):
    fill(tmp_path / "crops", decomposed("ö_1.png"), decomposed("ö_2.ome.tif"))
    (tmp_path / "rows.csv").write_text("crop_id,labels\nö_1.png,cytosol\nö_2.ome.tif,nucleoli\n", encoding="utf-8")
    store = import_crops(tmp_path / "crops", tmp_path / "store", labels=tmp_path / "rows.csv")
    assert store.index["labels"].tolist() == ["cytosol", "nucleoli"]


def test_names_apart_by_case_alone_are_noted():
    assert "A, a differ in upper and lower case alone" in read_names(["A_blue.png", "a_blue.png"]).notes[0]


# ---- tables


def test_a_table_of_paths_is_read_as_a_folder_is(tmp_path):
    fill(tmp_path, "a_DAPI.png", "a_GFP.png", "b_ch00.png", "b_ch01.png")
    table = tmp_path / "fields.csv"
    table.write_text("path\na_DAPI.png\na_GFP.png\n")
    assert [source.channels for source in find_fields(table)] == [("protein", "nucleus")]
    table.write_text("field_id,path\nx,a_DAPI.png\nx,a_GFP.png\n")
    assert [(source.field_id, source.channels) for source in find_fields(table)] == [("x", ("protein", "nucleus"))]
    table.write_text("path\nb_ch00.png\nb_ch01.png\n")
    with pytest.raises(FieldError, match="add a column field_id and one for each channel"):
        find_fields(table)
    table.write_text("field_id,path\nb0,b_ch00.png\nb1,b_ch01.png\n")
    assert [source.field_id for source in find_fields(table)] == ["b0", "b1"]
    table.write_text("field_id,nucleus,protein\nb,b_ch00.png,b_ch01.png\n")
    assert find_fields(table)[0].reasons == ("column of the table",) * 2


# ---- what commands say


def test_other_commands_say_it_once(tmp_path, capsys):
    fill(tmp_path / "in", "a_1.png", "a_1_mask.png", "b_1.png")
    assert main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "store")]) == 0
    assert capsys.readouterr().err.count("1 file taken for masks and left out: a_1_mask.png") == 1


def test_twelve_thousand_names_are_read_in_time():
    names = [f"{i}_{colour}{mask}.png" for i in range(1500) for colour in COLOURS for mask in ("", "_mask")]
    read = read_names(names)
    assert len(read.files) == len(read.left_out) == 6000


def test_yokogawa_numbers_the_acquisition_of_each_channel(tmp_path):
    names = [f"AssayPlate_#7_{well}_T0001F00{f}L01A0{c}Z01C0{c}.tif" for well in ("A01", "A02") for f in (1, 2) for c in (1, 2)]
    fill(tmp_path / "plate", *names)
    with pytest.raises(FieldError, match="4 fields whose names differ by C01, C02 alone.*--channels C01=nucleus,C02=protein"):
        find_fields(tmp_path / "plate")
    sources = find_fields(tmp_path / "plate", channels=["C01=nucleus", "C02=protein"])
    assert [source.field_id for source in sources] == [f"AssayPlate_#7_{well}_T0001F00{f}L01Z01" for well in ("A01", "A02") for f in (1, 2)]
    assert all(read_field(source).shape == (6, 7, 2) for source in sources)
