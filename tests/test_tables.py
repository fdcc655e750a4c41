"""Text tables and params files: what spreadsheets and people do to them is read, or refused with row, column and remedy."""

import csv
import functools
import gzip
import io
import re
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpacell.cells.windows import read_boxes
from hpacell.cli import main
from hpacell.columns import match_ids, read_any_table, read_numbers
from hpacell.feed.rows import describe_crops, read_raw_rows
from hpacell.fields.catalog import catalog_fields, read_labels
from hpacell.fields.duplicates import read_duplicates
from hpacell.fields.find import FieldSource, find_fields
from hpacell.masks.archives import find_rows
from hpacell.masks.tissue import find_tissue_table, read_header, read_tissue
from hpacell.metrics.triples import read_true_cells
from hpacell.pipeline import plan as plan_module
from hpacell.pipeline import templates
from hpacell.pipeline.params_yaml import load_yaml
from hpacell.pipeline.plan import count_matches, read_params, read_plan
from hpacell.pipeline.points import read_sweep
from hpacell.pipeline.templates import list_workflows, yaml_text
from hpacell.tables import normal_id, read_names, read_text_table, shown_names

READERS = {
    "labels": read_labels, "pairs": read_duplicates, "boxes": read_boxes, "crops": read_raw_rows, "paths": find_fields, "truth": read_true_cells,
    "runs": lambda path: find_rows(Path(path)), "tissue": read_tissue, "any": read_any_table,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def put(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def labels_of(path):
    frame = read_labels(path)
    return dict(zip(frame["field_id"], frame["labels"], strict=True))


# ---- one table of labels in many forms

PLAIN = "ID,Label\n007,0|5\nf2,16\nf3,\n"
WANTED = {"007": "nucleoplasm|nuclear_bodies", "f2": "cytosol", "f3": ""}
FORMS = {
    "as it is": PLAIN,
    "trailing comma in rows": "ID,Label\n007,0|5,\nf2,16,\nf3,,\n",
    "trailing commas everywhere": "ID,Label,,\n007,0|5,,\nf2,16,,\nf3,,,\n",
    "semicolons": PLAIN.replace(",", ";"),
    "semicolons, empty columns": "ID;Label;;\r\n007;0|5;;\r\nf2;16;;\r\nf3;;;\r\n",
    "tabs": PLAIN.replace(",", "\t"),
    "sep line": "sep=;\r\n" + PLAIN.replace(",", ";"),
    "quoted sep line": '"sep=;"\r\n' + PLAIN.replace(",", ";"),
    "bars between columns": 'ID|Label\n007|"0|5"\nf2|16\nf3|\n',
    "a column that counts rows": ",ID,Label\n0,007,0|5\n1,f2,16\n2,f3,\n",
    "two that do": ",Unnamed: 0,ID,Label\n0,4,007,0|5\n1,7,f2,16\n2,9,f3,\n",
    "an index by name": "index,ID,Label\n0,007,0|5\n1,f2,16\n2,f3,\n",
    "other capitals": "iD,LABEL\n007,0|5\nf2,16\nf3,\n",
    "Windows": PLAIN.replace("\n", "\r\n"),
    "old Mac": PLAIN.replace("\n", "\r"),
    "blank lines": "\n\nID,Label\n\n007,0|5\n  \nf2,16\n,\nf3,\n\n",
    "comments": "# made by hand, in 2024\n#\nID,Label\n# the first two\n007,0|5\nf2,16\n# and, one, more\nf3,\n",
    "a comment as a spreadsheet keeps it": "# made by hand,\nID,Label\n007,0|5\n# a remark,\nf2,16\nf3,\n",
    "a header that is a comment": "# ID,Label\n007,0|5\nf2,16\nf3,\n",
    "blanks": " ID , Label \n 007 , 0 | 5 \n\tf2\u00a0,\u00a016\u202f\nf3 , \n",
    "quotes": '"ID","Label"\n"007","0|5"\n"f2","16"\n"f3",""\n',
    "blanks before quotes": 'ID, Label\n007, "0|5"\nf2, "16"\nf3, ""\n',
    "line breaks in a cell": 'ID,Label,remark\n007,0|5,"one\ntwo, three"\nf2,16,\nf3,,\n',
    "numbers with decimals": "ID,Label\n007,0.0|5.0\nf2,16.0\nf3,\n",
    "an end as DOS writes it": PLAIN + "\x1a",
    "no line end": PLAIN.rstrip("\n"),
    "byte order mark": "\ufeff" + PLAIN,
    "zero width blank": "\u200bID,Label\n\u200b007,0|5\nf2,16\nf3,\n",
    "names for locations": "ID;Label\n007;Nucleoplasm|Nuclear\u00a0bodies\nf2;cytosol\nf3;\n",
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "UTF-16, the other order": PLAIN.encode("utf-16-be"),
    "UTF-32": PLAIN.encode("utf-32"),
    "gzip": gzip.compress(PLAIN.encode()),
    "gzip of UTF-16 with tabs, as Excel's Unicode text": gzip.compress(PLAIN.replace(",", "\t").encode("utf-16")),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_in_every_form(write, form):
    assert labels_of(write(FORMS[form])) == WANTED


def test_rows_of_pairs_boxes_paths_and_crops_in_other_forms(write, tmp_path):
    for text in ("a,b\nx,y,\nz,w,\n", "index,a,b\n0,x,y\n1,z,w\n", ",a,b\n3,x,y\n5,z,w\n", "a;b\r\nx;y\r\n\r\nz;w\r\n", "n;field_id_a;field_id_b\n;x;y\n;z;w\n"):
        assert read_duplicates(write(text)).to_numpy().tolist() == [["x", "y"], ["z", "w"]], text
    boxes = read_boxes(write("Image;Label;xmin;ymin;xmax;ymax;\r\na.png;red;1,5;2;1.024,5;1.030;\r\n\r\nb.png;red;0;0;5;5;\r\n"))
    assert boxes["col1"].tolist() == [1024, 5] and boxes["row1"].tolist() == [1030, 5] and boxes["line"].tolist() == [2, 4] and (boxes["problem"] == "").all()
    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    for text in ("Path;ID;\np.png;007;\n", ",path,id\n0,p.png,007\n", "\ufeffsep=\t\npath\tID\np.png\t007\n"):
        assert [source.field_id for source in find_fields(write(text))] == ["007"], text
    assert [source.field_id for source in find_fields(write("path\np.png;\n"))] == ["p"]
    crops = read_raw_rows(str(write("crop_id;field_id;labels;area;code;\na;f;0;3,5;0012;\nb;g;5;2;0013;\n")))
    assert crops["area"].tolist() == [3.5, 2] and crops["code"].tolist() == ["0012", "0013"] and crops["labels"].tolist() == ["0", "5"]


def test_the_cases_of_a_trailing_comma(write, tmp_path):
    assert labels_of(write("ID,Label\nf1,16,\nf2,16,\n")) == {"f1": "cytosol", "f2": "cytosol"}
    described = describe_crops(["f1", "f2"], str(write("crop_id,field_id,labels\nf1,f1,0,\nf2,f2,5,\n")))
    assert described["labels"].tolist() == ["nucleoplasm", "nuclear_bodies"]
    Image.new("L", (5, 3)).save(tmp_path / "a.png")
    (labelled,) = find_rows(write("ImageId,EncodedPixels,Height,Width\na,1 2,3,5,\na,11 2,3,5,\n"))
    assert labelled.read_truth().labels.max() == 2
    assert read_tissue(write("id,organ,img_height,img_width,age\n7,lung,30,20,60,\n"))["field_id"].tolist() == ["7"]


# ---- what is refused

REFUSED = [
    ("labels", "ID,Id,Label\nx,1,0\n", r"each column once, in capitals or not, got id twice \(columns 1 and 2: ID, Id\)"),
    ("labels", "ID,Label,Target\nx,1,0\n", r"got labels twice \(columns 2 and 3: Label, Target\)"),
    ("labels", "ID;Etikett\nx;0\n", "expected the columns ID,Label .* got ID, Etikett: rename"),
    ("labels", '"ID,Label"\n"x,0"\n', "got 'ID,Label': rename"),
    ("labels", "ID,Label\nx,0,5\n", "row 2: expected 2 cells as in the header, got 3: write a cell that holds ',' in double quotes"),
    ("labels", "ID,Label,\nx,0,5\n", "expected a name for column 3, got none, though row 2 has '5' there"),
    ("labels", "ID,Label\n\nx,0\ny\n", "row 4: expected 2 cells as in the header, got 1, none for the column Label"),
    ("labels", 'ID,Label\nx,0\ny,"5\n', "row 3: .* quotes that do not match"),
    ("labels", 'ID,Label\nx,0\ny,"5"6\n', "quotes that do not match"),
    ("labels", "ID,Label\n#x,0\n", "row 2: expected a row, got '#x,0', which may be a comment: remove the line, or write \"#x\" in quotes"),
    ("labels", "ID,Label\nx,0;5\n", r"row 2: expected a known location or several with '\|' between them, got '0;5': write e.g. 'nucleoplasm\|nuclear_membrane'"),
    ("labels", 'ID,Label\nx,"[0, 5]"\n', r"several with '\|' between them"),
    ("labels", "Id,Target\nx,0|5\n", "several with ' ' between them"),
    ("labels", "Labels of a plate\nID,Label\nx,0\n", "row 2: expected 1 cell as in the header, got 2"),
    ("labels", "# a comment\n\n", "got no row"),
    ("labels", ",,,\n", "got no row"),
    ("labels", "id,organ,img_height\n\n1,lung,tall\n", "row 3, column img_height: expected a whole number, got 'tall': write digits alone"),
    ("labels", "id,organ,img_height\n1,lung,3.5\n", "row 2, column img_height: expected a whole number, got '3.5'"),
    ("labels", 'id,organ,pixel_size\n1,lung,"1,024"\n', "row 2, column pixel_size: expected a number, got '1,024': write 1024 or 1.0240"),
    ("labels", "id;organ;pixel_size\n1;lung;1.024\n", "write 1024 or 1.0240"),
    ("labels", 'id,organ,img_width\n1,lung,"1,000"\n', "column img_width: expected a whole number, got '1,000': write 1000$"),
    ("labels", 'ID,Label,remark\nx,0,"one\ntwo"\ny,"5\nz,1\n', "row 4: .* quotes that do not match"),
    ("labels", "id,organ,age\n1,lung,inf\n", "expected a number, got 'inf'"),
    ("labels", "ID,Label\n\n# one\na,0\n\na,5\n", r"1 repeated \(a in rows 4, 6\)"),
    ("labels", 'ID,Label,remark\na,0,"x\ny"\nb,99,\n', "row 4: expected a class number"),
    ("labels", "ID,Label\nПривет,0\n".encode("cp1251"), "expected a CSV of labels in UTF-8, got other bytes in line 2, whose encoding is not certain: save it as CSV UTF-8"),
    ("labels", "ID,Label\nJosé,0\n".encode("mac_roman"), "not certain"),
    ("labels", "ID,Label\nJosé,0\n".encode("cp850"), "not certain"),
    ("labels", "ID,Label\n試料,0\n".encode("shift_jis"), "not certain"),
    ("labels", PLAIN.encode("utf-16")[:-1], "damaged UTF-16"),
    ("labels", b"PK\x03\x04" + bytes(30), "an Excel workbook or a ZIP archive: save it as CSV UTF-8"),
    ("labels", b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel workbook"),
    ("labels", b"PAR1....", "a Parquet file"),
    ("labels", b"BZh9....", "a bzip2 file: unpack it"),
    ("labels", bytes(range(256)) * 4, "save it as CSV UTF-8"),
    ("labels", "<!DOCTYPE html><p>log in</p>", "a web page"),
    ("pairs", "field_id_a,field_id_b,x\na,b,1\n\na,,1\n", r"got \['a', ''\] in row 4"),
    ("boxes", "image,x,y,w,h\na,1,2,3\n", "none for the column h"),
    ("boxes", "Bild;x;y;w;h\na;1;2;3;4\n", "expected a column field_id or .* got Bild, x, y, w, h"),
    ("paths", "Pfad;ID\nx.png;1\n", "got the columns Pfad, ID"),
    ("paths", "path,path\nx.png,y.png\n", "each column once"),
    ("crops", "ID,field,Label,label\na_1,a,cytosol,x\n", "got label twice"),
    ("runs", "ImageId,EncodedPixels\n,1 2\n", "expected the name of an image in each row, got none in row 2"),
    ("runs", "ImageId,EncodedPixels,Height,Width\na,1 2,three,5\n", "row 2, column Height: expected a whole number, got 'three'"),
    ("tissue", "id,organ,img_height,img_width\n\n1,lung,0,5\n", "row 3: expected a height and width of 1 pixel or more, got 0 x 5"),
    ("tissue", "ID,Label\n1,0\n", "expected the columns id, organ, img_height and img_width, got ID, Label"),
    ("truth", "ID,Label\nf,0\n", "got the columns ID, Label: add rle, the mask of each cell; labels of whole fields cannot be scored"),
    ("truth", "ID;ImageWidth;ImageHeight;PredictionString\nf;5;5;\n", "separate the columns by commas, not by ';'"),
    ("truth", "Name;Label;rle\nf;0;x\n", "got the columns Name, Label, rle: add field_id"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "content", "message"), REFUSED)
def test_refused_in_a_sentence(write, kind, content, message):
    path = write(content)
    with pytest.raises(ValueError) as error:
        READERS[kind](str(path))
    assert re.search(message, str(error.value)) and str(error.value).startswith(str(path)), error.value


@pytest.mark.parametrize("kind", sorted(set(READERS) - {"runs", "paths"}))
def test_a_folder_is_no_table(tmp_path, kind):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(ValueError, match="got a folder: give the path of the table"):
        READERS[kind](str(tmp_path / "t.csv"))


def test_western_text_is_read_and_said(write, capsys):
    for encoding in ("latin-1", "cp1252"):
        path = write("ID;Label;µm\nZürich;0;é\n".encode(encoding), f"{encoding}.csv")
        assert labels_of(path) == {"Zürich": "nucleoplasm"} and labels_of(path)
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "taken as Windows-1252" in told and str(path) in told


def test_ids_are_composed_in_every_reader(write, tmp_path):
    composed, taken_apart = "Zürich", unicodedata.normalize("NFD", "Zürich")
    assert composed != taken_apart and normal_id(f"\u00a0{taken_apart} ") == composed
    assert list(labels_of(write(f"ID,Label\n{taken_apart},0\n"))) == [composed]
    assert read_duplicates(write(f"a,b\n{taken_apart},x/{taken_apart}.png\n")).to_numpy().tolist() == [[composed] * 2]
    assert read_boxes(write(f"image,x,y,w,h\n{taken_apart}.png,1,2,3,4\n"))["field_id"].tolist() == [composed]
    assert read_true_cells(write(f"ID,Label,rle,height,width\n{taken_apart},,,3,5\n"))[1]["field_id"].tolist() == [composed]
    assert read_true_cells(write(f"ID,ImageWidth,ImageHeight,PredictionString\n{taken_apart},5,3,\n"))[1]["field_id"].tolist() == [composed]
    assert describe_crops([composed], str(write(f"crop_id,field_id,labels\n{taken_apart},{taken_apart},0\n")))["field_id"].tolist() == [composed]
    Image.new("L", (5, 3)).save(tmp_path / f"{taken_apart}.png")
    (labelled,) = find_rows(write(f"ImageId,EncodedPixels\n{taken_apart},1 2\n"))
    assert labelled.image_id == composed and len(labelled.paths) == 1
    (source,) = find_fields(write(f"path,ID\n{taken_apart}.png,{taken_apart}\n"))
    assert source.field_id == composed
    with pytest.raises(ValueError, match="1 repeated"):
        read_labels(write(f"ID,Label\n{taken_apart},0\n{composed},5\n"))


def test_ids_that_a_spreadsheet_took_for_numbers(capsys):
    sources = [FieldSource(name, (f"{name}.png",)) for name in ("7", "8.0", "1e5")]
    labels = pd.DataFrame({"field_id": ["7.0", "8.0", "1e5"], "labels": ["cytosol", "nucleoli", "vesicles"]})
    frame = catalog_fields(sources, labels).frame
    assert dict(zip(frame["field_id"], frame["labels"], strict=True)) == {"7": "cytosol", "8.0": "nucleoli", "1e5": "vesicles"}
    assert "got 1 such as 7.0: taken as 7" in capsys.readouterr().err
    assert match_ids(pd.Series(["a/x.png", "y.ome.tif", "z.png"]), ["x", "y", "z", "z.png"]).tolist() == ["x", "y", "z.png"]
    with pytest.raises(ValueError, match=r"such as '7', got '1\.23E\+59', which a spreadsheet made of an id: format the column as text"):
        match_ids(pd.Series(["1.23E+59", "8.0"]), ["7", "8.0"], "t.csv")
    with pytest.raises(ValueError, match="the files are named like '7', the table has no row"):
        catalog_fields(sources[:1], labels[:0])


def test_ids_are_counted_as_they_are_joined(write, tmp_path):
    Image.new("L", (5, 3)).save(tmp_path / "7.png")
    assert count_matches(tmp_path, write("ID;Label;\n7.0;0;\n8;5;\n")) == (1, 2)


NUMBERS = [
    (",", ["1024", "1,024.5", "2 048", "1'000.5", ""], [1024, 1024.5, 2048, 1000.5, np.nan]),
    (",", ["0,5", "1,024", "n/a"], [0.5, 1.024, np.nan]),
    (",", ["0.5", "1,024"], [0.5, 1024]),
    (",", ["1,024,000"], [1024000]),
    (",", ["1.024"], [1.024]),
    (";", ["0,325", "1,024", "12"], [0.325, 1.024, 12]),
    (";", ["1.024,5", "1.024"], [1024.5, 1024]),
    (";", ["0.325", "1.024"], [0.325, 1.024]),
    (",", ["\u22123", "+4", "1e-3", "2E5", ".5", "7."], [-3, 4, 1e-3, 2e5, 0.5, 7]),
    (",", ["1\u202f024", "1\u00a0024,5"], [1024, 1024.5]),
]


@pytest.mark.parametrize(("separator", "texts", "numbers"), NUMBERS)
def test_numbers_of_every_country(separator, texts, numbers):
    table = pd.DataFrame({"x": texts})
    table.attrs["separator"] = separator
    np.testing.assert_array_equal(read_numbers(table, "x"), numbers)


@pytest.mark.parametrize("text", ["1,024", "12,34,56", "0x10", "1_000", "five", "1.2.3", "1e999", "٣", "3 µm", "1/2", "--3", "1 02", "50%"])
def test_what_is_no_number_has_a_remedy_that_is_taken(text):
    table = pd.DataFrame({"x": [text]}, index=[4])
    table.attrs = {"path": "t.csv", "names": {"x": "X"}}
    with pytest.raises(ValueError, match=r"t\.csv: row 4, column X: expected a number, got") as error:
        read_numbers(table, "x")
    for hint in re.findall(r"(?:write|or|such as) ([\d.]+\d)", str(error.value)):
        assert np.isfinite(read_numbers(pd.DataFrame({"x": [hint]}), "x")).all(), error.value
    assert read_numbers(table, "x", strict=False).isna().all()


def test_sizes_with_thousands_and_decimals(write):
    table = read_tissue(write('id,organ,img_height,img_width\n1,lung,"3,000","2,999"\n2,lung,"2,999",512\n'))
    assert table[["height", "width"]].to_numpy().tolist() == [[3000, 2999], [2999, 512]]
    assert read_tissue(write("id;organ;img_height;img_width;pixel_size\n1;lung;3000,0;2.999;0,4\n"))["width"].tolist() == [2999]
    _, fields = read_true_cells(write("ID;Label;rle;ImageHeight;ImageWidth\nf;;;40,0;1.024\ng;;;40;60\n"))
    assert fields[["height", "width"]].to_numpy().tolist() == [[40, 1024], [40, 60]]


def test_headers_alone(write, tmp_path):
    assert read_names(write("\ufeffID;Organ;RLE\n1;lung;" + "1 2 " * 50_000), ("id",)) == {"id", "organ", "rle"}
    assert read_header(write(gzip.compress(b"sep=,\n#x\nid,Organ\n"), "t.csv.gz")) == {"id", "organ"}
    assert read_names(write(b"\x1f\x8bno")) == read_names(write("")) == read_names(tmp_path / "none.csv") == set()
    write("Id;Organ;rle\n1;lung;\n", "tissue.csv")
    write("a;b\n", "other.csv")
    (tmp_path / "table.csv").unlink()
    (tmp_path / "t.csv.gz").unlink()
    assert Path(find_tissue_table(tmp_path)).name == "tissue.csv"


def test_tables_of_any_kind(write, tmp_path):
    text = "field_id;Cell_ID;area;code;labels\n007;1;2,5;0012;3\n008;2;3;0013;\n"
    table = read_any_table(write(text))
    assert table["field_id"].tolist() == ["007", "008"] and table["cell_id"].tolist() == [1, 2] and table["area"].tolist() == [2.5, 3]
    assert table["code"].tolist() == ["0012", "0013"] and table["labels"].tolist() == ["3", ""] and table.index.tolist() == [2, 3]
    pd.DataFrame({"ID": ["a"], "Id": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="each column once"):
        read_any_table(tmp_path / "t.parquet")
    assert shown_names(read_text_table(write("ID; Label ;\nx;0;\n"))) == "ID, Label"


def test_the_command_line_has_a_sentence_for_each(write, tmp_path, capsys):
    folder = tmp_path / "fields"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "x.png")
    for text, message in (("ID,Id,Label\nx,1,0\n", "got id twice"), ("ID,Label\nx,0,5\n", "row 2: expected 2 cells"), ("ID;Label\nx;Golgi aparatus\n", "did you mean 'golgi_apparatus'")):
        assert main(["extract", str(folder), "--labels", str(write(text)), "--method", "classical", "--workers", "1", "--out", str(tmp_path / "store")]) == 2
        told = capsys.readouterr().err
        assert message in told and "unexpected" not in told and "Traceback" not in told
    (tmp_path / "s.csv").write_text("ID,ImageWidth,ImageHeight,PredictionString\nx,40,40,\n")
    assert main(["score", str(tmp_path / "s.csv"), str(write("ID,Label\nx,0\n"))]) == 2
    assert "got the columns ID, Label: add rle" in capsys.readouterr().err


# ---- any table, in any dialect

LETTERS = st.text(st.sampled_from("abcXYZ019äéß試 -_.,;|\t'\"\n#\u00a0"), max_size=8)
NAMES = st.lists(st.sampled_from(["ID", "Label", "Größe", "remark", "a b", "X,Y", "n;m", "path"]), min_size=2, max_size=5, unique=True)


@st.composite
def rendered(draw):
    names = draw(NAMES)
    rows = draw(st.lists(st.tuples(*[LETTERS] * len(names)), max_size=5))
    mark, end = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quoting = csv.QUOTE_ALL if end == "\r" else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))  # the writer leaves \n bare there
    file, index, tail = io.StringIO(newline=""), draw(st.booleans()), draw(st.sampled_from([[], [""]]))
    writer = csv.writer(file, delimiter=mark, lineterminator=end, quoting=quoting)
    writer.writerow([""] * index + names)
    for number, row in enumerate(rows):
        writer.writerow([str(number)] * index + [*row] + tail)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    return names, rows, file.getvalue().encode(encoding), {"sep": mark, "encoding": encoding, "index": index}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tables") / "any.csv"


@given(rendered())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_in_any_dialect(place, table):
    names, rows, content, dialect = table
    place.write_bytes(content)
    first = [str(number) for number in range(len(rows))] if dialect["index"] else [row[0] for row in rows]
    known = {" ".join(name.split()).lower() for name in names}
    filled = [[cell.strip() for cell in row] for row in rows]
    try:
        read = read_text_table(place, known=known)
    except ValueError as error:
        assert any(cell.lstrip().startswith("#") for cell in first), error  # a row that may be a comment
        assert str(place) in str(error)
        return
    assert read.columns.tolist() == [name.lower() for name in names]
    kept = [row for row, start in zip(filled, first, strict=True) if (dialect["index"] or any(row)) and not re.match(r"\s*#", start)]
    found = [row for row in read.to_numpy().tolist()]
    if not any(re.match(r"\s*#", start) for start in first):
        assert found == kept
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pd.read_csv(place, sep=dialect["sep"], encoding=dialect["encoding"], dtype=str, keep_default_na=False, index_col=False, skipinitialspace=True)
        expected = expected[names].map(str.strip)
        assert found == [row for row in expected.to_numpy().tolist() if dialect["index"] or any(row)]


STARTS = [b"", b"ID,Label\n", b"field_id_a;field_id_b\r\n", b"image,label,x,y,w,h\n", b"path\n", b"ImageId,EncodedPixels,Height\n", b"id,organ,img_height,img_width,age\n1,lung,", b"ID,labels,rle\n", b"\xff\xfe", b"\x1f\x8b", "ID\tLabel\n".encode("utf-16")]


@given(st.sampled_from(STARTS), st.one_of(st.binary(max_size=60), st.text(st.sampled_from('a1,;\t"\n\r#|.-é\x00 \u2028'), max_size=40).map(str.encode)))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_in_a_table_or_a_sentence(place, start, tail):
    place.write_bytes(start + tail)
    for kind, read in READERS.items():
        try:
            read(str(place))
        except ValueError as error:
            assert str(place) in str(error), (kind, error)


# ---- params files


@pytest.fixture
def fast(monkeypatch):
    """Parameters of the workflows, read once."""
    known = functools.cache(templates.workflow_parameters)
    for module in (templates, plan_module):
        monkeypatch.setattr(module, "workflow_parameters", known)
    return known


def read_value(folder, text, workflow="train_classifier"):
    """The parameters of a file with one line of text."""
    (folder / f"{workflow}.yaml").write_text(text, encoding="utf-8")
    return read_plan(folder / f"{workflow}.yaml").steps[workflow]


def hint_of(message):
    """The value that an error says to write."""
    found = re.search(r": write (?:it as|it in quotes, as|\S+ as|.*such as the default) (.*?)(?:, since YAML.*)?$", message, re.DOTALL)
    return found[1] if found else None


TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("epochs: 30.0", 30), ("epochs: 1_000", 1000), ("epochs: 0x10", 16), ("epochs: 3e1", None), ("learning_rate: 1", 1.0), ("learning_rate: 1.0e-7", 1e-7), ("store: 007", "007"),
        ("store: 2024-01-01", "2024-01-01"), ("store: 12:30", "12:30"), ("balance: no", "no"), ("balance: off", "off"), ("store: yes", "yes"), ("head: 1e5", "1e5"), ("augment: []", []),
    ],
)  # fmt: skip
def test_values_that_have_one_meaning(tmp_path, line, value):
    name = line.partition(":")[0]
    if value is None:
        with pytest.raises(ValueError, match="write it as 30$"):
            read_value(tmp_path, line)
    else:
        assert read_value(tmp_path, line) == {name: value} and type(read_value(tmp_path, line)[name]) is type(value)


@pytest.mark.parametrize("text", ["yes", "on", "True", '"true"', "'no'", "off"])
def test_switches(tmp_path, text):
    assert read_value(tmp_path, f"clear_outside: {text}", "extract") == {"clear_outside": text.strip("'\"").lower() in ("yes", "on", "true")}


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('epochs: "30"', "30"), ("weight_decay: 1e-7", "1.0e-7"), ("epochs: 010", "10"), ("epochs: 12:30", "30"), ("epochs: 0o17", "15"), ('epochs: "1_000"', "1000"), ("epochs: 2.5", "30"), ("epochs:", "30"),
        ("epochs: true", "30"), ("learning_rate: 1e-400", "0.001"), ("learning_rate: .inf", "0.001"), ('learning_rate: "0,01"', "0.01"), ("store: 1.5", '"1.5"'), ("store: true", '"true"'), ("store:", '"store"'),
        ("augment: flip", '["flip"]'), ('augment: "flip, rotate90"', '["flip", "rotate90"]'), ("augment: 3", '["flip", "rotate90", "intensity"]'), ("model_parameters: [1]", "{}"), ("epochs: 1.0e+400", "30"),
    ],
)  # fmt: skip
def test_hints_are_accepted(tmp_path, line, hint):
    name = line.partition(":")[0]
    with pytest.raises(ValueError, match=rf"train_classifier\.yaml: expected \w+ for train_classifier\.{name}, got") as error:
        read_value(tmp_path, line)
    assert hint_of(str(error.value)) == hint
    assert name in read_value(tmp_path, f"{name}: {hint}")


def test_numbers_inside_of_values(tmp_path):
    for line, said in (("model_parameters: {rate: 1e-3}", "write it as {\"rate\": 0.001}, since YAML takes 1e-3"), ("augment: [{scale: {least: 5e-1}}]", r"write it as \[{\"scale\": {\"least\": 0.5}}\]")):
        with pytest.raises(ValueError, match=said):
            read_value(tmp_path, line)
    assert read_value(tmp_path, "model_parameters: {rate: 0.001}") == {"model_parameters": {"rate": 0.001}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 30\nstore: x\nepochs: 5\n", "expected each key once, got epochs in lines 1 and 3: remove one"),
        ("workflows:\n  extract: {}\n  extract: {crop_size: 3}\n", "got extract in lines 2 and 3"),
        ("model_parameters:\n  a: 1\n  b: 2\n  a: 3\n", "got a in lines 2 and 4"),
        ('epochs: 3\n"epochs": 4\n', "got epochs in lines 1 and 2"),
        ("sweep: {seed: [1], seed: [2]}\n", "got seed in lines 1 and 1"),
        ("[]\n", "expected names with values, got list"), ("0\n", "got int"), ("''\n", "got str"),
        ("augment: &a [*a]\n", "expected YAML"), ("epochs: !!int x\n", "expected YAML"), ("a: !!python/object:os.system x\n", "expected YAML"),
        ("? [a]\n: 1\n", "expected YAML"), ("\tepochs: 3\n", "expected YAML"), ("[" * 5000, "expected YAML"), ("epochs: 3\n---\nepochs: 4\n", "expected YAML"),
        ("null: 3\n", "got 'null'"), ("1: 3\n", "got '1'"),
    ],
)  # fmt: skip
def test_params_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "train_classifier.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_plan(path) if "sweep" not in text else read_params(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_merged_keys_may_be_set_again(tmp_path):
    text = "workflows:\n  extract: &a {crop_size: 32, workers: 1}\n  train_classifier: {epochs: 3}\n  predict:\n    workers: 2\n"
    (tmp_path / "p.yaml").write_text(text)
    assert read_plan(tmp_path / "p.yaml").steps["predict"] == {"workers": 2}
    (tmp_path / "m.yaml").write_text("base: &a {x: 1, y: 2}\nnext:\n  <<: *a\n  y: 3\n")
    assert read_params(tmp_path / "m.yaml")["next"] == {"x": 1, "y": 3}


def test_options_of_the_command_line(tmp_path):
    path = tmp_path / "train_classifier.yaml"
    path.write_text("epochs: 3\n")
    given = ["epochs=30.0", "learning_rate=1e-7", "store=007", "augment=[flip]", "batch_size=010"]
    assert read_plan(path, given).steps["train_classifier"] == {"epochs": 30, "learning_rate": 1e-7, "store": "007", "augment": ["flip"], "batch_size": 10}
    for wrong in ("epochs", "nothing", "augment=[flip", "epochs=3e1", "augment=flip"):
        with pytest.raises(ValueError) as error:
            read_plan(path, [wrong])
        said = re.search(r"write (?:e\.g\. (?:-p )?|it as )(.*)$", str(error.value))[1]
        assert read_plan(path, [said if "=" in said else f"{wrong.partition('=')[0]}={said}"])


@pytest.mark.parametrize("text", ["epochs: 3", "epochs:", "epochs: []", "model: batch_norm", "augment:", "train_classifier.epochs: {}"])
def test_hints_of_sweeps_are_accepted(tmp_path, text):
    path = tmp_path / "train_classifier.yaml"
    path.write_text(f"sweep: {{{text}}}\n")
    with pytest.raises(ValueError, match="expected a list of values") as error:
        read_sweep(path)
    path.write_text(f"sweep: {{{str(error.value).rpartition('write e.g. ')[2]}}}\n")
    assert len(read_sweep(path).points) == 1
    path.write_text("sweep: [3]\n")
    with pytest.raises(ValueError, match="expected a list of runs") as error:
        read_sweep(path)
    path.write_text(f"sweep:\n{str(error.value).rpartition('write e.g. ')[2]}\n")
    assert len(read_sweep(path).points) == 1


SCALARS = st.sampled_from(["1e-7", "1e5", "1_000", "0x1F", "010", "0o10", "12:30", "1:2:3", "yes", "no", "On", "off", "~", "null", "", ".inf", "-.inf", ".nan", "2024-01-01", "30.0", "1.", ".5", "+3", "-0", "'30'", '"1e3"', "1,5", "true", "1e400", "0b11", "9" * 40, "[1e-3]", "{a: 1e-3}", "[]", "{}", "flip", "[flip, 3]", "a,b", "'[a]'", "1 000", "½", "!!str 3", "|\n  text"])


@given(st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_fits_or_has_a_hint_that_fits(tmp_path, fast, data):
    workflow = data.draw(st.sampled_from(["train_classifier", "extract", "tissue", "explore"]))
    known = fast(workflow)[data.draw(st.sampled_from(sorted(fast(workflow))))]
    plain = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(st.sampled_from("ab1.e-+:,[]{}#'\" _é"), max_size=6))
    values = st.one_of(plain, st.lists(plain, max_size=2), st.dictionaries(st.sampled_from("ab"), plain, max_size=2))
    text = data.draw(st.one_of(SCALARS, values.map(yaml_text)))
    for _ in range(2):
        try:
            value = read_value(tmp_path, f"{known.name}: {text}", workflow)[known.name]
        except ValueError as error:
            if "expected YAML" in str(error):
                return
            text, before = hint_of(str(error)), text
            assert text is not None, (before, str(error))
        else:
            assert type(value) is TYPES[known.kind], (known, text)
            return
    pytest.fail(f"{known.kind}: the hint for {before!r} is refused: {text!r}")


@given(st.one_of(st.binary(max_size=60), st.text(st.sampled_from("a:-[]{}&*!|>'\"#%@,? \n\t1é"), max_size=40).map(str.encode)))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_parameters_or_a_sentence(tmp_path, fast, content):
    (tmp_path / "extract.yaml").write_bytes(content)
    try:
        read_plan(tmp_path / "extract.yaml")
    except ValueError as error:
        assert str(tmp_path) in str(error) or "hpacell sweep" in str(error)


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=8), st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3)))
def test_what_is_written_is_read_again(value):
    assume(not (isinstance(value, str) and re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", value)))
    read = load_yaml(yaml_text(value))
    assert read == value and type(read) is type(value)


def test_defaults_are_accepted_as_hints(tmp_path, fast):
    import ast

    for workflow in list_workflows():
        text = "".join(f"{name}: {yaml_text(ast.literal_eval(known.default))}\n" for name, known in fast(workflow).items())
        assert list(read_value(tmp_path, text, workflow)) == list(fast(workflow))
