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

from hpacell.cells.measurements import measure_cells
from hpacell.masks.rle import encode_hpa, encode_labels_rle
from hpacell.metrics.detections import score_detections
from hpacell.metrics.submission import (
    SubmissionScore,
    read_submission,
    score_submission,
    validate_submission,
    write_submission,
)
from hpacell.metrics.triples import read_true_cells
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
EMPTY = encode_hpa(np.zeros((40, 60), bool))
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
        (f"f,60,40,0 -0.1 {GOOD}", "confidence from 0 to 1, got '-0.1'"),
        (f"f,60,40,0 inf {GOOD}", "confidence"),
        (f"f,60,40,-1 0.5 {GOOD}", "class number"),
        (f"f,60,40,0;0.5;{GOOD}", "got 1 words"),
        (f"f;60;40;0 0.5 {GOOD}", "got 1: the line was cut"),
        (f"f,60,40,0 0.5 {EMPTY}", None),
        (f"f,60,40,0 0.5 {GOOD} 0 0.4 {GOOD}", None),
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"ID;ImageWidth;ImageHeight;PredictionString\nf;60;40;\n", "by commas, not by ';'"),
        (b"ID\tImageWidth\tImageHeight\tPredictionString\nf\t60\t40\t\n", "by commas, not by '\\t'"),
        ("ID,ImageWidth,ImageHeight,PredictionString\nf,60,40,\n".encode("utf-16"), "CSV in UTF-8"),
        ("ID,ImageWidth,ImageHeight,PredictionString\nf\xe9,60,40,\n".encode("latin-1"), "CSV in UTF-8"),
        (b"ID,ImageHeight,ImageWidth,PredictionString\nf,40,60,\n", "correct the first line"),
    ],
)
def test_other_separators_and_encodings(tmp_path, content, said):
    (tmp_path / "s.csv").write_bytes(content)
    (problem,) = validate_submission(tmp_path / "s.csv")
    assert problem.startswith("line 1: expected") and said in problem


def test_a_file_that_was_cut_is_told_wherever_the_cut_shows(tmp_path):
    """Cut at any byte of the last line: either a problem of that line, or what is left is whole triples."""
    text = f"ID,ImageWidth,ImageHeight,PredictionString\nf,60,40,0 0.5 {GOOD}\ng,60,40,3 0.25 {GOOD} 4 0.125 {GOOD}"
    start, told = text.rindex("\n") + 1, 0
    for end in range(start + 1, len(text)):
        (tmp_path / "s.csv").write_text(text[:end])
        problems = validate_submission(tmp_path / "s.csv")
        whole = text[start:end].strip() in ("g,60,40,", f"g,60,40,3 0.25 {GOOD}")
        assert bool(problems) != whole and all(problem.startswith("line 3: ") for problem in problems), text[start:end]
        told += bool(problems)
    assert told > 60


def test_what_is_allowed_but_costs_points(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(f"ID,ImageWidth,ImageHeight,PredictionString\nf,60,40,0 0.5 {GOOD} 1 0.5 {GOOD} 0 0.4 {GOOD}\ng,60,40,3 1 {EMPTY}\n")
    assert validate_submission(path) == []
    assert validate_submission(path, doubts=True) == [
        "line 2: prediction 3: class 0 for the mask of prediction 1 again, a false alarm: leave it out",
        "line 3: prediction 1: the mask is empty and can hit no cell: leave it out",
    ]
    assert validate_submission(path, doubts=True, max_problems=1)[0].startswith("line 2")


def test_fields_that_nobody_asked_for(tmp_path):
    cells, fields, _ = prediction()
    write_submission(tmp_path / "s.csv", cells, fields)
    (problem, missing) = validate_submission(tmp_path / "s.csv", fields.iloc[1:].replace({"field_id": {"field-2": "other"}}))[:2]
    assert problem == "line 2: expected one of 2 known fields, got 'field-0': drop the line"
    assert "field-2" in missing


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


# --------------------------------------------------------------------------------------------------------------- truth


def truth_table(cells, sizes, **columns):
    """A table of cells with two locations each, as the truth."""
    labels = [f"{LOCATIONS[i % 19]}|{LOCATIONS[(i + 3) % 19]}" for i in range(len(cells))]
    return cells[["field_id", "rle"]].assign(labels=labels, **columns).merge(sizes, on="field_id")


def rows_of(cells):
    return sorted(map(tuple, cells[["field_id", "location", "rle"]].to_numpy().tolist()))


def test_truth_in_all_its_shapes_is_one(tmp_path):
    cells, sizes, _ = prediction()
    table = truth_table(cells, sizes)
    files = {}
    files["coco.csv"] = table
    files["coco.parquet"] = table
    files["kaggle_names.csv"] = table.rename(columns={"field_id": "ID", "height": "ImageHeight", "width": "ImageWidth"})
    codes = [encode_hpa(rle) for rle in table.rle]
    files["hpa.csv"] = table.assign(rle=codes)
    files["numbers.csv"] = table.assign(labels=["|".join(str(LOCATIONS.index(x)) for x in text.split("|")) for text in table.labels])
    files["no_size.parquet"] = table.drop(columns=["height", "width"])
    hot = {f"p_{name}": [float(name in text.split("|")) for text in table.labels] for name in LOCATIONS}
    write_submission(tmp_path / "submission.csv", table[["field_id", "rle"]].assign(**hot), sizes, min_confidence=0.5)
    expected = sorted((row.field_id, name, row.rle) for row in table.itertuples() for name in row.labels.split("|"))
    for name, frame in files.items():
        (frame.to_csv if name.endswith("csv") else frame.to_parquet)(tmp_path / name, index=False)
    for path in sorted(tmp_path.iterdir()):
        true_cells, fields = read_true_cells(path)
        assert rows_of(true_cells) == expected, path.name
        known = fields.set_index("field_id")
        assert known.pixels["field-0"] == 120 * 200 and len(fields) == (3 if path.name == "submission.csv" else 2)
        assert known.height.isna().all() if "no_size" in path.name else known.width["field-0"] == 200


def test_measured_cells_are_a_truth_without_sizes(tmp_path):
    """The height and width that a measurement gives are those of the cell's box."""
    _, sizes, images = prediction()
    labels = images["field-0"]
    image = np.random.default_rng(0).integers(0, 255, (*labels.shape, 4), np.uint8)
    measured = measure_cells(image, labels, field_id="field-0", labels="nucleoli|cytosol")
    measured.to_parquet(tmp_path / "cells.parquet")
    true_cells, fields = read_true_cells(tmp_path / "cells.parquet")
    assert len(true_cells) == 2 * len(measured) and fields.height.isna().all() and fields.pixels.tolist() == [120 * 200]
    cells = measured[["field_id", "rle"]].assign(p_nucleoli=0.9, p_cytosol=0.8)
    write_submission(tmp_path / "s.csv", cells, sizes[:1])
    assert score_submission(tmp_path / "s.csv", tmp_path / "cells.parquet").summary["average_precision"] == 1
    write_submission(tmp_path / "other.csv", cells[:0], sizes[:1].assign(height=121))
    (problem,) = score_submission(tmp_path / "other.csv", tmp_path / "cells.parquet").problems
    assert problem.startswith("line 2: expected a size of 24000 pixels as in the truth, got 121 x 200")


def test_ids_keep_their_zeros_and_a_field_may_have_no_cell(tmp_path):
    cells, _, _ = prediction()
    rle = cells.rle[0]
    table = pd.DataFrame({"ID": ["0012", "0013"], "labels": ["2", ""], "rle": [rle, ""], "height": 120, "width": 200})
    table.to_csv(tmp_path / "truth.csv", index=False)
    true_cells, fields = read_true_cells(tmp_path / "truth.csv")
    assert fields.field_id.tolist() == ["0012", "0013"] and true_cells.location.tolist() == ["nucleoli"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns="labels"), "add labels"),
        (lambda t: t.drop(columns="field_id"), "add field_id"),
        (lambda t: t.assign(labels="nucleolus"), "line 2: expected a known location, got 'nucleolus'"),
        (lambda t: t.assign(labels="19"), "line 2: expected a class number from 0 to 18"),
        (lambda t: t.assign(width=201), "line 2: expected COCO counts or an HPA code of 120 x 201 pixels"),
        (lambda t: t.assign(height=0), "line 2: expected a height from 1"),
        (lambda t: t.assign(rle="not a mask"), "line 2: expected COCO counts or an HPA code"),
        (lambda t: t.assign(rle=[encode_hpa(r) for r in t.rle]).drop(columns=["height", "width"]), "add the columns height and width"),
        (lambda t: t.assign(rle="").drop(columns=["height", "width"]), "expected a mask in the column rle"),
        (lambda t: t.assign(field_id="field-0", height=1, width=[r.height * r.width for r in t.itertuples()]), "one size for field 'field-0'"),
        (lambda t: t.assign(labels=""), "fill in the column labels"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_truth_that_cannot_be_read(tmp_path, change, said, suffix):
    cells, sizes, _ = prediction()
    write_submission(tmp_path / "s.csv", cells, sizes)
    table, path = change(truth_table(cells, sizes)), tmp_path / f"truth.{suffix}"
    (table.to_csv if suffix == "csv" else table.to_parquet)(path, index=False)
    with pytest.raises(ValueError, match="expected") as refused:
        score_submission(tmp_path / "s.csv", path)
    assert said in str(refused.value) and str(refused.value).startswith(str(path))


def test_a_damaged_submission_as_truth(tmp_path):
    (tmp_path / "t.csv").write_text("ID,ImageWidth,ImageHeight,PredictionString\nf,60,40,0 1\n")
    with pytest.raises(ValueError, match="t.csv: line 2: expected triples"):
        score_submission(tmp_path / "t.csv", tmp_path / "t.csv")


# --------------------------------------------------------------------------------------------------------------- score


def test_the_files_give_the_score_of_the_tables(tmp_path):
    cells, sizes, _ = prediction(seed=3)
    truth = truth_table(cells, sizes)
    write_submission(tmp_path / "s.csv", cells, sizes)
    truth.to_csv(tmp_path / "t.csv", index=False)
    score = score_submission(tmp_path / "s.csv", tmp_path / "t.csv", n_bootstrap=50, seed=4)
    pred, fields = read_submission(tmp_path / "s.csv")
    fields = fields[fields.field_id.isin(truth.field_id)]
    assert score.problems and "got 'field-2'" in score.problems[0]  # a field that the truth's table does not name
    write_submission(tmp_path / "s.csv", cells, sizes[:2])
    score = score_submission(tmp_path / "s.csv", tmp_path / "t.csv", n_bootstrap=50, seed=4)
    true_cells, _ = read_true_cells(tmp_path / "t.csv")
    expected = score_detections(true_cells, pred, fields, n_bootstrap=50, seed=4)
    pd.testing.assert_frame_equal(score.table, expected)
    assert score.summary == expected.attrs["mean"] and score.problems == []
    absent = expected[(expected["n_truth"] == 0) & (expected["n_pred"] > 0)]
    assert score.notes == ["left out of the mean: " + ", ".join(f"{row.location} ({row.n_pred} predictions, no true cell)" for row in absent.itertuples())]
    lines = str(score).splitlines()
    assert lines[0].split()[:3] == ["location", "n_truth", "n_pred"] and len(lines) == 22
    assert lines[-1].startswith(f"Mean average precision at mask IoU 0.6: {score.summary['average_precision']:.3f} (no interval: 2 fields are too few, 8 are needed), over")
    assert lines[-1].endswith(f"over {score.summary['n_locations']} locations in 2 fields")


def test_a_submission_scored_by_itself_is_perfect(tmp_path):
    cells, sizes, _ = prediction()
    write_submission(tmp_path / "s.csv", cells, sizes, min_confidence=0.5)
    score = score_submission(tmp_path / "s.csv", tmp_path / "s.csv")
    assert score.summary["average_precision"] == 1 and score.summary["n_fields"] == 3
    assert (score.table.n_hits == score.table.n_truth).all()


def test_fields_that_the_submission_leaves_out_are_missed(tmp_path):
    cells, sizes, _ = prediction()
    write_submission(tmp_path / "t.csv", cells, sizes, min_confidence=0.5)
    write_submission(tmp_path / "s.csv", cells[cells.field_id == "field-0"], sizes[:1], min_confidence=0.5)
    score = score_submission(tmp_path / "s.csv", tmp_path / "t.csv")
    scored = score.table[score.table.n_truth > 0]
    shares = scored.n_hits / scored.n_truth
    np.testing.assert_allclose(scored.average_precision, shares)
    assert shares.min() < 1 and score.notes[-1] == "The submission has no line for 2 fields of the truth: their cells count as missed"
    assert score.notes[-1] in str(score)


def test_repeated_and_empty_masks_are_scored_and_told(tmp_path):
    header = "ID,ImageWidth,ImageHeight,PredictionString\n"
    (tmp_path / "t.csv").write_text(f"{header}f,60,40,0 1 {GOOD}\n")
    (tmp_path / "s.csv").write_text(f"{header}f,60,40,0 0.9 {EMPTY} 0 0.8 {GOOD} 0 0.7 {GOOD}\n")
    score = score_submission(tmp_path / "s.csv", tmp_path / "t.csv")
    assert score.summary["average_precision"] == 0.5 and len(score.notes) == 2  # an empty mask above the only hit
    assert "0.500 (no interval: 1 field is too few, 8 are needed), over 1 location in 1 field" in str(score).splitlines()[-1]


def test_an_interval_is_printed_without_further_brackets():
    summary = {"average_precision": 0.5, "average_precision_low": 0.4, "average_precision_high": 0.6, "n_fields": 9, "n_locations": 2, "iou": 0.6}
    table = pd.DataFrame({"location": ["nucleoli"], "n_truth": [1], "n_pred": [1]})
    assert str(SubmissionScore(table, summary, [], [])).endswith("0.500 [0.400, 0.600], over 2 locations in 9 fields")


def test_a_cell_that_is_not_outlined_or_has_no_labels_makes_false_alarms(tmp_path):
    """As the README says of a truth that people make."""
    image = np.zeros((40, 60), np.int32)
    for number, column in enumerate((0, 20, 40), 1):
        image[5:20, column : column + 10] = number
    masks = encode_labels_rle(image)
    cells = pd.DataFrame({"field_id": "f", "rle": masks, "p_nucleoli": [0.9, 0.8, 0.7]})
    write_submission(tmp_path / "s.csv", cells, pd.DataFrame({"field_id": ["f"], "height": [40], "width": [60]}))
    truth = {"field_id": "f", "rle": masks, "height": 40, "width": 60}
    for name, labels, kept in (("all", ["nucleoli"] * 3, 3), ("unjudged", ["", "nucleoli", "nucleoli"], 3), ("missing", ["nucleoli"] * 3, 2)):
        table = pd.DataFrame(truth | {"labels": labels})
        table[-kept:].to_csv(tmp_path / f"{name}.csv", index=False)
    scores = {name: score_submission(tmp_path / "s.csv", tmp_path / f"{name}.csv").summary["average_precision"] for name in ("all", "unjudged", "missing")}
    assert scores == pytest.approx({"all": 1, "unjudged": 2 / 3, "missing": 2 / 3})


def test_nothing_is_scored_where_the_submission_is_not_valid(tmp_path):
    cells, sizes, _ = prediction()
    write_submission(tmp_path / "t.csv", cells, sizes)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    lines[1] = lines[1].replace("field-0,200,120", "field-0,120,200")  # the width belongs first: as many pixels, another shape
    lines[2] += " 7 0.5"
    lines += ["field-9,4,4,"]
    (tmp_path / "s.csv").write_text("\n".join(lines))
    score = score_submission(tmp_path / "s.csv", tmp_path / "t.csv")
    assert [problem.split(":")[0] for problem in score.problems] == ["line 3", "line 2", "line 5"]
    assert "expected height and width 120 and 200, got 200 and 120" in score.problems[1]
    assert score.table.empty and score.summary == {}
    assert str(score).startswith("The submission is not valid, so nothing was scored:\n  line 3: expected triples")


def test_a_swap_of_width_and_height_changes_the_score(tmp_path):
    """The same cells painted in a turned frame: their runs fill the field, but lie elsewhere."""
    labels = np.zeros((40, 90), np.int32)
    labels[5:20, 8:30], labels[22:38, 45:85] = 1, 2
    turned = np.zeros((90, 40), np.int32)
    turned[5:20, 8:30], turned[22:38, 5:35] = 1, 2
    sizes = pd.DataFrame({"field_id": ["f"], "height": [40], "width": [90]})
    for name, image in (("right", labels), ("turned", turned)):
        cells = pd.DataFrame({"field_id": "f", "rle": encode_labels_rle(image), "p_cytosol": [0.9, 0.8]})
        write_submission(tmp_path / f"{name}.csv", cells, sizes)
    assert score_submission(tmp_path / "right.csv", tmp_path / "right.csv").summary["average_precision"] == 1
    assert score_submission(tmp_path / "turned.csv", tmp_path / "right.csv").summary["average_precision"] == 0


def test_real_sample_submission_finds_nothing(shared_data, tmp_path):
    """559 empty masks against two true cells."""
    path = shared_data / "hpa_labels/scc_sample_submission.csv"
    sizes = read_submission(path)[1][["field_id", "height", "width"]]
    mask = np.zeros((sizes.height[0], sizes.width[0]), bool)
    mask[10:200, 10:200] = True
    cells = pd.DataFrame({"field_id": sizes.field_id[:1], "rle": [encode_hpa(mask)], "p_nucleoplasm": [1.0]})
    cells["rle"] = encode_labels_rle(mask.astype(np.int32))
    write_submission(tmp_path / "t.csv", cells, sizes)
    score = score_submission(path, tmp_path / "t.csv", n_bootstrap=20)
    assert score.summary["average_precision"] == 0 and score.summary["n_fields"] == 559
    assert score.table.n_pred.sum() == 559 and "556 more" in score.notes[-1]


def test_the_tool_against_people(shared_data, tmp_path):
    """Cells as HPA's tool drew them against the same corrected by people, from files, on crops that are not square."""
    folder = shared_data / "hpa/manual_cells"
    rows, sizes = {"manual": [], "auto": []}, []
    for i, path in enumerate(sorted((folder / "masks_manual").glob("*_mask.png"))[:20]):
        field_id, crop = path.stem.removesuffix("_mask"), (np.s_[:, :], np.s_[50:600, :], np.s_[:, 40:700])[i % 3]
        for kind in rows:
            image = cv2.imread(str(next((folder / f"masks_{kind}").glob(f"{field_id}_*"))), cv2.IMREAD_UNCHANGED)[crop].astype(np.int32)
            rows[kind] += [(field_id, cell, rle) for cell, rle in zip(np.unique(image[image > 0]).tolist(), encode_labels_rle(image), strict=True)]
        sizes.append((field_id, *image.shape))
    sizes = pd.DataFrame(sizes, columns=["field_id", "height", "width"])
    assert (sizes.height != sizes.width).sum() > 10
    tables = {}
    for kind in rows:
        labels = pd.read_csv(folder / f"cells_{kind}.csv", dtype={"ID": str}).rename(columns={"ID": "field_id", "Cell_index": "cell_id"})
        cells = pd.DataFrame(rows[kind], columns=["field_id", "cell_id", "rle"]).merge(labels, on=["field_id", "cell_id"])
        tables[kind] = cells.assign(labels=cells.Cell_Label.str.replace(";", "|"))[["field_id", "labels", "rle"]].merge(sizes, on="field_id")
    tables["manual"].to_csv(tmp_path / "t.csv", index=False)
    sizes = sizes[sizes.field_id.isin(tables["manual"].field_id)]
    hot = {f"p_{name}": [float(str(i) in text.split("|")) for text in tables["auto"].labels] for i, name in enumerate(LOCATIONS)}
    write_submission(tmp_path / "s.csv", tables["auto"][["field_id", "rle"]].assign(**hot), sizes, min_confidence=0.5)
    score = score_submission(tmp_path / "s.csv", tmp_path / "t.csv")
    assert score.problems == [] and score.summary["n_locations"] >= 8
    assert 0.75 < score.summary["average_precision_low"] < score.summary["average_precision"] < 1
