"""The competition's file: what is written comes back, pycocotools agrees, and what is wrong is told with its line."""

import base64
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from hpacell.masks.rle import encode_hpa, encode_labels_rle
from hpacell.metrics.submission import read_submission, validate_submission, write_submission
from hpacell.vocabulary import LOCATIONS

#: pycocotools 2.0.11 decodes through an interface that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def prediction(seed=0, shapes=((120, 200), (90, 70), (60, 60)), n=6, locations=LOCATIONS):
    """Cells with confidences and their label images; the last field has no cell."""
    rng = np.random.default_rng(seed)
    images, rows = {}, []
    for i, shape in enumerate(shapes):
        labels = np.zeros(shape, np.int32)
        for k in range(n if i < len(shapes) - 1 else 0):
            centre = (int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0])))
            cv2.circle(labels, centre, int(rng.integers(3, 20)), k + 1, -1)
        images[f"field-{i}"] = labels
        rows += [{"field_id": f"field-{i}", "cell_id": cell_id, "rle": rle} for cell_id, rle in
                 zip(np.unique(labels[labels > 0]), encode_labels_rle(labels), strict=True)]  # fmt: skip
    cells = pd.DataFrame(rows)
    cells = cells.assign(**{f"p_{name}": rng.random(len(cells), np.float32) for name in locations})
    sizes = [{"field_id": name, "height": image.shape[0], "width": image.shape[1]} for name, image in images.items()]
    return cells, pd.DataFrame(sizes), images


def test_pycocotools_decodes_to_the_same_masks(tmp_path):
    cells, fields, images = prediction()
    write_submission(tmp_path / "s.csv", cells, fields)
    assert validate_submission(tmp_path / "s.csv", fields) == []
    frame = pd.read_csv(tmp_path / "s.csv", keep_default_na=False)
    assert list(frame) == ["ID", "ImageWidth", "ImageHeight", "PredictionString"]
    assert frame.ID.tolist() == fields.field_id.tolist()
    assert frame.PredictionString.iloc[-1] == ""
    for row in frame.itertuples():
        here = cells[cells.field_id == row.ID]
        tokens = row.PredictionString.split()
        triples = list(zip(tokens[::3], tokens[1::3], tokens[2::3], strict=True))
        assert len(triples) == len(here) * len(LOCATIONS)
        confidences = [float(confidence) for _, confidence, _ in triples]
        assert confidences == sorted(confidences, reverse=True)
        by_code = {}
        for number, confidence, code in triples:
            by_code.setdefault(code, {})[int(number)] = float(confidence)
        for cell, code in zip(here.to_dict("records"), map(encode_hpa, here.rle), strict=True):
            counts = zlib.decompress(base64.b64decode(code))
            mask = coco.decode({"size": [row.ImageHeight, row.ImageWidth], "counts": counts})
            np.testing.assert_array_equal(mask, images[row.ID] == cell["cell_id"])
            for number, location in enumerate(LOCATIONS):
                assert by_code[code][number] == pytest.approx(cell[f"p_{location}"], abs=5e-7)


def test_what_is_written_comes_back(tmp_path):
    cells, fields, _ = prediction(locations=("cytosol", "nucleoli", "negative"))
    write_submission(tmp_path / "s.csv", cells, fields, min_confidence=0.3)
    predictions, sizes = read_submission(tmp_path / "s.csv")
    pd.testing.assert_frame_equal(sizes[["field_id", "height", "width"]], fields, check_dtype=False)
    long = cells.melt(["field_id", "cell_id", "rle"], var_name="location", value_name="confidence")
    long = long[long.confidence >= 0.3]
    keys = ["field_id", "location", "rle"]
    long = long.assign(location=long.location.str[2:])[[*keys, "confidence"]].sort_values(keys)
    back = predictions[[*keys, "confidence"]].sort_values(keys)
    assert sizes.n_predictions.sum() == len(back) == len(long)
    assert back[keys].to_numpy().tolist() == long[keys].to_numpy().tolist()
    np.testing.assert_allclose(back.confidence, long.confidence, atol=5e-7)


def test_confidences_are_short(tmp_path):
    cells, fields, _ = prediction(locations=("cytosol",))
    cells["p_cytosol"] = np.resize([0, 1, 0.5, 1e-9, 0.1234567, 0.25], len(cells))
    write_submission(tmp_path / "s.csv", cells, fields)
    frame = pd.read_csv(tmp_path / "s.csv", keep_default_na=False)
    written = {token for text in frame.PredictionString for token in text.split()[1::3]}
    assert written == {"0", "1", "0.5", "0.123457", "0.25"}


def test_no_field_and_no_cell(tmp_path):
    cells, fields, _ = prediction()
    write_submission(tmp_path / "s.csv", cells[:0], fields)
    assert validate_submission(tmp_path / "s.csv", fields) == []
    assert read_submission(tmp_path / "s.csv")[1].n_predictions.tolist() == [0, 0, 0]
    write_submission(tmp_path / "s.csv", cells[:0], fields[:0][["field_id"]])
    predictions, sizes = read_submission(tmp_path / "s.csv")
    assert len(predictions) == len(sizes) == 0 and predictions.confidence.dtype == float


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1), min_size=1, unique=True)
)
def test_any_id_comes_back(tmp_path_factory, ids):
    cells, _, _ = prediction()
    path = tmp_path_factory.mktemp("ids") / "s.csv"
    write_submission(path, cells[:0], pd.DataFrame({"field_id": ids, "height": 5, "width": 7}))
    assert read_submission(path)[1].field_id.tolist() == ids
    assert validate_submission(path) == []
    if not any(i != i.strip() or i.startswith("\ufeff") for i in ids):
        assert pd.read_csv(path, dtype=str, keep_default_na=False).ID.tolist() == ids


def test_a_refused_write_leaves_the_former_file(tmp_path):
    cells, fields, _ = prediction()
    path = tmp_path / "s.csv"
    write_submission(path, cells, fields)
    before = path.read_bytes()
    bad_name = fields.assign(field_id=["field-0", "field-1", "two\nlines"])
    for broken in (lambda: write_submission(path, cells, fields[:1]), lambda: write_submission(path, cells, bad_name)):
        with pytest.raises(ValueError, match="expected"):
            broken()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["s.csv"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, f: (c.assign(p_cytosol=np.nan), f), "from 0 to 1"),
        (lambda c, f: (c.assign(p_cytosol=-0.1), f), "from 0 to 1"),
        (lambda c, f: (c.assign(p_peroxisomes=0.1), f), "got 'p_peroxisomes'"),
        (lambda c, f: (c[["field_id", "rle"]], f), "got none"),
        (lambda c, f: (c.drop(columns="rle"), f), "none named 'rle'"),
        (lambda c, f: (c, f.drop(columns="height")), "none named 'height'"),
        (lambda c, f: (c, pd.concat([f, f])), "twice"),
        (lambda c, f: (c, f[1:]), "a cell of 'field-0'"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, change, said):
    cells, fields, _ = prediction()
    with pytest.raises(ValueError, match=said):
        write_submission(tmp_path / "s.csv", *change(cells, fields))
    assert not list(tmp_path.iterdir())


GOOD = encode_hpa(np.eye(40, 60) > 0)
BOMB = base64.b64encode(zlib.compress(bytes(10**7), 9)).decode()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"f,60,40,0 0.5 {GOOD}", None),
        ("f,60,40,", None),
        (f'"f,1",60,40,"0 0.5 {GOOD}"', None),
        (f"f,60,40,0 0.5 {GOOD} 1 0.2", "got 5 words"),
        (f"f,60,40,19 0.5 {GOOD}", "class number from 0 to 18, got '19'"),
        (f"f,60,40,x 0.5 {GOOD}", "class number"),
        (f"f,60,40,1_0 0.5 {GOOD}", "class number"),
        (f"f,60,40,0 1.5 {GOOD}", "confidence from 0 to 1, got '1.5'"),
        (f"f,60,40,0 nan {GOOD}", "confidence"),
        (f"f,40,60,0 0.5 {GOOD} 1 0.5 eNoLCAgIMAEABJkBdQ==", "prediction 2: expected runs that fill"),
        (f"f,60,41,0 0.5 {GOOD}", "another size"),
        (f"f,60,40,0 0.5 {GOOD[:-6]}", "prediction 1: expected"),
        ("f,60,40,0 0.5 not*base64", "expected base64"),
        ("f,60,40,0 0.5 AAAA", "expected zlib"),
        (f"f,60,40,0 0.5 {BOMB}", "more than 4816 bytes"),
        ("f,60,40", "got 3"),
        ("f,sixty,40,", "a width"),
        ("f,60,0,", "a height"),
        ("f,1000000,1000000,0 0.5 eNo=", "at most"),
        (",60,40,", "expected a field's id"),
        ("first,60,40,", "each field once, got 'first' as in line 2"),
    ],
)
def test_problems_are_told_with_their_line(tmp_path, line, said):
    path = tmp_path / "s.csv"
    path.write_text(f"ID,ImageWidth,ImageHeight,PredictionString\nfirst,60,40,\n\n{line}\nlast,60,40,0 1 {GOOD}\n")
    problems = validate_submission(path)
    if said is None:
        assert problems == [] and len(read_submission(path)[1]) == 3
        return
    assert len(problems) == 1 and problems[0].startswith("line 4: ") and said in problems[0]
    with pytest.raises(ValueError, match="line 4"):
        read_submission(path)


@pytest.mark.parametrize("content", [b"", b"ID,Width\n", b"\xff\xfe\x00", b"ImageId,EncodedPixels\na,1 3\n"])
def test_other_files_are_refused_at_the_first_line(tmp_path, content):
    (tmp_path / "s.csv").write_bytes(content)
    problems = validate_submission(tmp_path / "s.csv")
    assert len(problems) == 1 and problems[0].startswith("line 1: expected")


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(f"\ufeffID,ImageWidth,ImageHeight,PredictionString\r\nf,60,40,0 1 {GOOD}\r\ng,60,40,\r\n".encode())
    assert validate_submission(path) == []
    assert read_submission(path)[1].field_id.tolist() == ["f", "g"]


def test_fields_that_should_be_there(tmp_path):
    cells, fields, _ = prediction()
    write_submission(tmp_path / "s.csv", cells, fields)
    more = pd.concat([fields, pd.DataFrame({"field_id": ["other"], "height": [4], "width": [5]})])
    assert validate_submission(tmp_path / "s.csv", more) == [
        "expected a line for field 'other', got none: add one, empty if it has no cell"
    ]
    turned = fields.rename(columns={"height": "width", "width": "height"})
    problems = validate_submission(tmp_path / "s.csv", turned)
    assert [problem[:7] for problem in problems] == ["line 2:", "line 3:"]
    assert validate_submission(tmp_path / "s.csv", fields[["field_id"]]) == []


def test_number_of_problems_is_bounded(tmp_path):
    lines = ["ID,ImageWidth,ImageHeight,PredictionString", *(f"f{i},60,40,0" for i in range(500))]
    (tmp_path / "s.csv").write_text("\n".join(lines))
    assert len(validate_submission(tmp_path / "s.csv")) == 100
    assert len(validate_submission(tmp_path / "s.csv", max_problems=3)) == 3


def test_real_sample_submission(shared_data):
    path = shared_data / "hpa_labels/scc_sample_submission.csv"
    assert validate_submission(path) == []
    predictions, fields = read_submission(path)
    assert len(predictions) == len(fields) == 559
    assert set(predictions.location) == {"nucleoplasm"} and set(fields.height) == {1728, 2048, 3072}
