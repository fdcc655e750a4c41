"""Boxes that people drew: tables of every form, their faults by line, and windows equal to naive ones."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import downscale_local_mean

from hpacell.cells.windows import cut_windows, outside_of, read_boxes, window_sides

CORNERS = ["row0", "col0", "row1", "col1"]


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "boxes.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def naive_window(image: np.ndarray, box, side: int) -> np.ndarray:
    """A window pixel by pixel, black outside."""
    row0, col0, row1, col1 = map(int, box)
    top, left = (row0 + row1 - side) // 2, (col0 + col1 - side) // 2
    out = np.zeros((side, side, image.shape[2]), image.dtype)
    for row in range(side):
        for col in range(side):
            if 0 <= top + row < image.shape[0] and 0 <= left + col < image.shape[1]:
                out[row, col] = image[top + row, left + col]
    return out


BOX = st.tuples(st.integers(0, 30), st.integers(0, 50), st.integers(1, 25), st.integers(1, 25))


@settings(max_examples=80, deadline=None)
@given(st.lists(BOX, min_size=1, max_size=4), st.integers(1, 40), st.integers(1, 6))
def test_windows_are_naive_windows(boxes, side, depth):
    image = np.random.default_rng(0).integers(1, 256, (31, 57, depth), np.uint8)
    boxes = np.array([(row, col, min(row + height, 31), min(col + width, 57)) for row, col, height, width in boxes])
    crops = cut_windows(image, boxes, np.full(len(boxes), side), side)
    for crop, box in zip(crops, boxes, strict=True):
        np.testing.assert_array_equal(crop, naive_window(image, box, side))


def test_what_is_outside_of_the_box_is_cleared():
    image = np.random.default_rng(0).integers(1, 256, (40, 60, 3), np.uint8)
    boxes = np.array([[10, 20, 19, 27], [0, 0, 6, 5], [30, 50, 40, 60]])
    alone = np.zeros((3, *image.shape), np.uint8)
    for canvas, (row0, col0, row1, col1) in zip(alone, boxes, strict=True):
        canvas[row0:row1, col0:col1] = image[row0:row1, col0:col1]
    for side in (8, 24):  # within the largest box, and around all
        crops = cut_windows(image, boxes, np.full(3, side), side, clear_outside=True)
        for crop, canvas, box in zip(crops, alone, boxes, strict=True):
            np.testing.assert_array_equal(crop, naive_window(canvas, box, side))


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_shrinking_averages_and_growing_keeps_the_middle(depth):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, depth), np.uint8)
    box = np.array([[20, 30, 36, 62]])
    shrunk = cut_windows(image, box, np.array([32]), 8)[0]
    np.testing.assert_allclose(shrunk, downscale_local_mean(naive_window(image, box[0], 32), (4, 4, 1)), atol=0.51)
    flat = np.full((30, 50, depth), 77, np.uint8)
    assert (cut_windows(flat, np.array([[10, 20, 20, 30]]), np.array([10]), 33) == 77).all()


def test_sixteen_bits_are_scaled_for_the_whole_image():
    image = np.zeros((20, 20, 1), np.uint16)
    image[2:6, 2:6], image[10:14, 10:14] = 4000, 400
    crops = cut_windows(image, np.array([[2, 2, 6, 6], [10, 10, 14, 14]]), np.array([4, 4]), 4)
    assert crops.dtype == np.uint8 and crops[0].max() == 4000 >> 4 and crops[1].max() == 400 >> 4


def test_sides():
    boxes = np.array([[0, 0, 10, 20]] * 9 + [[0, 0, 100, 50]])
    assert window_sides(boxes, "box", margin=0.25).tolist() == [30] * 9 + [150]
    assert window_sides(boxes[:9], "fixed", margin=0.25).tolist() == [30] * 9
    assert window_sides(boxes, "fixed", margin=0).tolist() == [100] * 10
    assert window_sides(boxes, window=64).tolist() == [64] * 10
    assert window_sides(np.zeros((0, 4)), "box").shape == (0,)
    assert (window_sides(np.array([[0, 0, 1, 1]]), "box", margin=0) == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "boxes"}, "expected a known scale, got 'boxes': did you mean 'box'"),
        ({"scale": "box", "window": 9}, "expected a window of 1 or more for the scale 'fixed'"),
        ({"window": 0}, "expected a window of 1 or more"),
        ({"margin": -0.1}, "expected a margin from 0 to 10"),
        ({"margin": float("nan")}, "expected a margin from 0 to 10"),
    ],
)
def test_sides_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        window_sides(np.array([[0, 0, 5, 5]]), **arguments)


def test_windows_that_are_refused():
    image, box = np.zeros((9, 9, 3), np.uint8), np.array([[0, 0, 5, 5]])
    for arguments in ((image[..., 0], box, [5], 5), (image, box, [5], 0), (image, box, [5, 5], 5), (image, box, [0], 5)):
        with pytest.raises(ValueError, match="expected an image"):
            cut_windows(*arguments)


FORMS = {
    "image_id,cell_type,row0,col0,row1,col1": "{name},{kind},2,4,8,10",
    "field_id,labels,col0,row0,col1,row1": "{name},{kind},4,2,10,8",
    "filename,width,height,class,xmin,ymin,xmax,ymax": "{name},640,480,{kind},4,2,10,8",
    "image,x,y,w,h,label": "{name},4,2,6,6,{kind}",
    "Path,X,Y,Width,Height,Category": "{name},4.2,1.8,6,6.1,{kind}",
}


@pytest.mark.parametrize(("header", "row"), FORMS.items())
def test_every_form_of_columns(write, header, row):
    rows = [row.format(name=name, kind=kind) for name, kind in (("a.jpg", "red"), ("data/v1.2/b.PNG", "white"), ("a", "red"))]
    table = read_boxes(write("\n".join([header, *rows]) + "\n"))
    assert table["field_id"].tolist() == ["a", "b", "a"] and table["cell_id"].tolist() == [1, 1, 2]
    assert table["labels"].tolist() == ["red", "white", "red"]
    assert table[CORNERS].to_numpy(int).tolist() == [[2, 4, 8, 10]] * 3
    assert table["line"].tolist() == [2, 3, 4] and (table["problem"] == "").all()


def test_other_columns_stay_and_labels_may_be_missing(write):
    table = read_boxes(write("image_id,row0,col0,row1,col1,age,code\na,0,0,5,5,3,007\n"))
    assert table.columns.tolist() == ["field_id", "cell_id", "labels", *CORNERS, "line", "problem", "age", "code"]
    assert table["labels"].tolist() == [""] and table["problem"].tolist() == [""] and table["code"].tolist() == ["007"]


def test_every_fault_is_told_by_its_line(write):
    text = """image_id,label,row0,col0,row1,col1
a,red,0,0,5,5
a,red,5,5,5,9
a,red,9,9,3,12
a,red,nan,0,5,5
a,red,,0,5,5
a,red,one,0,5,5
a,red,0,0,inf,5
,red,0,0,5,5
a,,0,0,5,5
a,red,0.2,0,0.4,5

b,red,-1,0,5,5
"""
    table = read_boxes(write(text))
    bad = table[table["problem"] != ""]
    assert bad["line"].tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11]  # a blank line is no row; the last row is bad only in its image
    kinds = ["row0 < row1"] * 2 + ["four numbers"] * 4 + ["the name of an image", "a class", "row0 < row1"]
    for problem, kind in zip(bad["problem"], kinds, strict=True):
        assert problem.startswith("expected") and kind in problem and "got" in problem, problem
    assert table.loc[table["field_id"] == "a", "cell_id"].tolist() == list(range(1, 10))  # a repaired line changes no other number


@pytest.mark.parametrize(
    ("box", "inside"),
    [((0, 0, 30, 40), True), ((29, 39, 30, 40), True), ((0, 0, 31, 40), False), ((0, 0, 30, 41), False), ((-1, 0, 5, 5), False), ((0, -1, 5, 5), False), ((50, 50, 60, 60), False)],
)  # fmt: skip
def test_boxes_outside_of_an_image_that_is_not_square(box, inside):
    (problem,) = outside_of(pd.DataFrame([box], columns=CORNERS), (30, 40, 3))
    assert (problem == "") == inside
    assert inside or problem.startswith(f"expected a box inside of 30 x 40 pixels, got {', '.join(map(str, box))}")


def test_classes_are_own_or_of_the_atlas_but_no_slips(write):
    def labels(*texts, **arguments):
        return read_boxes(write("image,label,x,y,w,h\n" + "".join(f"a,{text},0,0,5,5\n" for text in texts)), **arguments)["labels"].tolist()

    assert labels("WBC", "3", "left side", "WBC|RBC") == ["WBC", "3", "left side", "WBC|RBC"]
    assert labels("Golgi apparatus|cytosol", "nuclear_membrane") == ["golgi_apparatus|cytosol", "nuclear_membrane"]
    assert labels("negative", "positive", classes=("positive", "negative")) == ["negative", "positive"]
    for texts, arguments, message in (
        (("cytosol", "nucleoly"), {}, "line 3: expected a known class, got 'nucleoly': did you mean 'nucleoli'.*name all classes"),
        (("red", "red", "withe"), {"classes": ("red", "white")}, "line 4: expected a known class, got 'withe': did you mean 'white'"),
    ):
        with pytest.raises(ValueError, match=message):
            labels(*texts, **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a CSV of boxes"),
        (b"image,x,y,w,h\n\xff\xfe,1,2,3,4\n", "expected a CSV of boxes"),
        ("image,x,y,w\na,1,2,3\n", "expected the columns row0,col0,row1,col1 or"),
        ("x,y,w,h\n1,2,3,4\n", "expected a column field_id or image_id"),
        ("image,x,X,y,w,h\na,1,1,2,3,4\n", "got x twice"),
        ("image,x,y,w,h\na,0.1,0.2,0.3,0.3\nb,0.5,0.5,0.1,0.2\n", "expected boxes in pixels, got numbers from 0 to 1"),
    ],
)
def test_tables_that_are_refused(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=message) as error:
        read_boxes(path)
    assert str(error.value).startswith(f"{path}: ")


def test_the_blood_cells(shared_data):
    table = read_boxes(shared_data / "bccd" / "boxes.csv", classes=("RBC", "WBC", "Platelets"))
    assert table["labels"].value_counts().to_dict() == {"RBC": 3157, "WBC": 276, "Platelets": 267}
    assert table.loc[table["problem"] != "", "line"].size == 2  # two boxes without pixels
    assert outside_of(table[table["problem"] == ""], (480, 640)).eq("").all()
