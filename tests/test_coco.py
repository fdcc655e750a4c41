"""COCO files: the same pixels as pycocotools sees, every mistake named, nothing lost on the way."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as reference

from hpacell.masks.boxes import boxes_of
from hpacell.masks.coco import MASKS, read_coco, write_coco
from hpacell.masks.labels import label_ids, masks_to_labels, relabel
from hpacell.masks.overlaps import paint_masks
from hpacell.masks.polygons import encode_polygons, outline_polygons
from hpacell.masks.rle import decode_rle, encode_rle

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 12))
LABELS = SIZES.flatmap(lambda size: arrays(np.int32, size, elements=st.sampled_from([0, 0, 1, 2, 5, 70_000])))
MASK = SIZES.flatmap(lambda size: arrays(bool, size))


@given(LABELS, LABELS)
@settings(max_examples=30, deadline=None)
def test_label_images_survive_every_form(tmp_path_factory, one, two):
    path = tmp_path_factory.getbasetemp() / "forms.json"
    for form in MASKS:
        n = len(label_ids(one)) + len(label_ids(two))
        assert write_coco(path, [("a.png", one), ("b.png", two)], masks=form) == (2, n)
        dataset = read_coco(path, strict=True)
        for image, labels in zip(dataset.images, (one, two), strict=True):
            painted = image.paint()
            np.testing.assert_array_equal(painted.labels, labels)
            assert painted.overlap_pixels == 0 and painted.hidden == ()


@given(LABELS)
@settings(max_examples=30, deadline=None)
def test_without_own_labels_the_order_is_kept(tmp_path_factory, labels):
    path = tmp_path_factory.getbasetemp() / "order.json"
    write_coco(path, [("a.png", labels)])
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["label"]
    path.write_text(json.dumps(content))
    np.testing.assert_array_equal(read_coco(path).images[0].paint().labels, relabel(labels))


@given(LABELS.filter(lambda labels: labels.any()))
@settings(max_examples=30, deadline=None)
def test_written_annotations_equal_pycocotools(tmp_path_factory, labels):
    path = tmp_path_factory.getbasetemp() / "parity.json"
    write_coco(path, [("a.png", labels)])
    for annotation, number in zip(json.loads(path.read_text())["annotations"], label_ids(labels), strict=True):
        theirs = reference.encode(np.asfortranarray(labels == number).astype(np.uint8))
        assert annotation["segmentation"]["counts"] == theirs["counts"].decode()
        assert annotation["area"] == reference.area(theirs)
        assert annotation["bbox"] == reference.toBbox(theirs).tolist()


@given(MASK)
@settings(max_examples=150, deadline=None)
def test_outlines_give_back_the_mask(mask):
    polygons = outline_polygons(mask)
    if not mask.any():
        assert polygons == []
        return
    theirs = reference.merge(reference.frPyObjects([list(map(float, one)) for one in polygons], *mask.shape))
    np.testing.assert_array_equal(reference.decode(theirs).astype(bool), mask)


def test_a_ring_around_a_cell():
    labels = np.full((7, 7), 2, np.int32)
    labels[1:-1, 1:-1], labels[2:5, 2:5] = 0, 9
    outlines = outline_polygons(labels == 2)
    assert len(outlines) > 1  # cut open at the hole
    np.testing.assert_array_equal(decode_rle({"size": [7, 7], "counts": encode_polygons(outlines, (7, 7))}), labels == 2)


@given(st.lists(MASK.map(lambda mask: np.resize(mask, (6, 7))), min_size=1, max_size=5), st.sampled_from(["smallest", "largest", "first", "last"]))
@settings(max_examples=100, deadline=None)
def test_overlaps_are_counted_and_resolved(masks, rule):
    painted = paint_masks([encode_rle(mask)["counts"] for mask in masks], (6, 7), rule)
    assert painted.overlap_pixels == int((np.sum(masks, axis=0) > 1).sum())
    np.testing.assert_array_equal(painted.labels, masks_to_labels(masks, rule))
    assert set(painted.hidden) == {i for i in range(len(masks)) if not (painted.labels == i + 1).any()}


def entry(number: int, **changes) -> dict:
    made = {
        "id": number, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 4, "bbox": [1, 1, 2, 2],
        "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]],
    }  # fmt: skip
    return {key: value for key, value in {**made, **changes}.items() if value is not Ellipsis}


def coco_of(*annotations: dict) -> dict:
    images = [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}]
    return {"images": images, "categories": [{"id": 3, "name": "cell"}], "annotations": list(annotations)}


def written(tmp_path, content) -> str:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    return str(path)


MISTAKES = {
    "no width": (entry(7, bbox=[1, 1, 0, 2]), "a box with an area"),
    "negative height": (entry(7, bbox=[1, 1, 2, -2]), "a box with an area"),
    "box of three": (entry(7, bbox=[1, 1, 2]), "x, y, width, height"),
    "box not finite": (entry(7, bbox=[1, 1, float("nan"), 2]), "x, y, width, height"),
    "box outside": (entry(7, bbox=[9, 1, 2, 2]), "lies outside"),
    "mask outside": (entry(7, bbox=..., segmentation=[[20, 1, 22, 1, 22, 3]]), "outside the image"),
    "mask far outside": (entry(7, segmentation=[[1e12, 1, 22, 1, 22, 3]]), "check the units"),
    "mask left of it": (entry(7, bbox=..., segmentation=[[-20, 1, -12, 1, -12, 3]]), "outside the image"),
    "no category": (entry(7, category_id=...), "category_id among 3, got none"),
    "unknown category": (entry(7, category_id=4), "category_id among 3, got 4"),
    "category true": (entry(7, category_id=True), "category_id among 3"),
    "no image": (entry(7, image_id=...), "image_id of an image of the file, got none"),
    "unknown image": (entry(7, image_id=99), "got 99"),
    "image as a list": (entry(7, image_id=[1]), "image_id"),
    "two points": (entry(7, segmentation=[[1, 1, 3, 3]]), "at least 3 points, got 2"),
    "odd": (entry(7, segmentation=[[1, 1, 3, 1, 3, 3, 1]]), "odd number of coordinates"),
    "not nested": (entry(7, segmentation=[1, 1, 3, 1, 3, 3]), "one list of numbers a polygon"),
    "words": (entry(7, segmentation=[["a", "b", "c", "d", "e", "f"]]), "one list of numbers a polygon"),
    "no mask": (entry(7, segmentation=...), "a mask in segmentation"),
    "empty list": (entry(7, segmentation=[]), "got nothing"),
    "a line": (entry(7, segmentation=[[1, 1, 1, 1, 1, 1]]), "got none"),
    "swapped size": (entry(7, segmentation={"size": [8, 6], "counts": [48]}), "height comes first"),
    "other size": (entry(7, segmentation={"size": [5, 5], "counts": [20, 5]}), "belongs to another image"),
    "runs too short": (entry(7, segmentation={"size": [6, 8], "counts": [1, 5]}), "runs that fill 6 x 8 = 48 pixels, got 6"),
    "negative runs": (entry(7, segmentation={"size": [6, 8], "counts": [60, -12]}), "whole numbers from 0"),
    "damaged text": (entry(7, segmentation={"size": [6, 8], "counts": "~~~"}), "COCO counts"),
    "huge numbers": (entry(7, segmentation=[[10**400, 1, 3, 1, 3, 3]]), "one list of numbers a polygon"),
    "huge box": (entry(7, bbox=[1, 1, 10**400, 2]), "x, y, width, height"),
    "empty runs": (entry(7, segmentation={"size": [6, 8], "counts": [48]}), "got none"),
    "crowd of 2": (entry(7, iscrowd=2), "iscrowd 0 or 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_with_the_annotation(tmp_path, name):
    bad, reason = MISTAKES[name]
    path = written(tmp_path, coco_of(entry(1), bad, entry(9)))
    dataset = read_coco(path)
    assert [(problem.annotation_id, problem.left_out) for problem in dataset.problems] == [(7, True)]
    assert reason in dataset.problems[0].reason
    assert [one.annotation_id for one in dataset.images[0].annotations] == [1, 9]
    assert dataset.n_left_out == 1
    with pytest.raises(ValueError, match="annotation 7"):
        read_coco(path, strict=True)


def test_all_mistakes_are_collected(tmp_path):
    bad = [{**one, "id": number} for number, (one, _) in enumerate(MISTAKES.values(), 100)]
    dataset = read_coco(written(tmp_path, coco_of(entry(1), *bad)))
    assert [problem.annotation_id for problem in dataset.problems] == [one["id"] for one in bad]


def test_an_id_given_twice(tmp_path):
    dataset = read_coco(written(tmp_path, coco_of(entry(5), entry(5, bbox=[4, 4, 1, 1]), entry(6, id=...))))
    assert [problem.annotation_id for problem in dataset.problems] == [5, None]
    assert "each annotation id once" in dataset.problems[0].reason and "place 2" in dataset.problems[1].reason
    assert [one.box for one in dataset.images[0].annotations] == [(1, 1, 3, 3)]


def test_images_with_mistakes(tmp_path):
    content = coco_of(entry(1), entry(2, image_id=4), entry(3, image_id=5))
    content["images"] += [{"id": 1, "height": 2, "width": 2}, {"id": 4, "file_name": "b.png", "height": 0, "width": 3}, {"height": 3, "width": 3}, 17]
    dataset = read_coco(written(tmp_path, content))
    assert [image.image_id for image in dataset.images] == [1] and dataset.images[0].height == 6
    assert [(problem.annotation_id, problem.image_id) for problem in dataset.problems] == [(None, 1), (None, 4), (None, None), (None, None), (2, 4), (3, 5)]


def test_a_polygon_over_the_edge_is_cut_and_reported(tmp_path):
    dataset = read_coco(written(tmp_path, coco_of(entry(7, bbox=[6, 1, 5, 2], segmentation=[[6, 1, 11, 1, 11, 3, 6, 3]]))))
    assert [(problem.annotation_id, problem.left_out) for problem in dataset.problems] == [(7, False)]
    expected = np.zeros((6, 8), np.int32)
    expected[1:3, 6:] = 1
    np.testing.assert_array_equal(dataset.images[0].paint().labels, expected)


def test_crowds_are_not_cells(tmp_path):
    crowd = entry(8, iscrowd=1, segmentation={"size": [6, 8], "counts": [0, 48]})
    (image,) = read_coco(written(tmp_path, coco_of(entry(1), crowd)), strict=True).images
    assert [one.is_crowd for one in image.annotations] == [False, True]
    assert image.paint().labels.sum() == 4


@pytest.mark.parametrize("content", [[], {}, {"images": []}, {"images": {}, "annotations": []}, {"images": [], "annotations": 3}, "text", 3])
def test_other_json_is_refused_by_name(tmp_path, content):
    with pytest.raises(ValueError, match=r"a\.json"):
        read_coco(written(tmp_path, content))


def test_nothing_is_written_after_an_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="twice"):
        write_coco(path, [("a", np.zeros((2, 2), int)), ("a", np.zeros((2, 2), int))])
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_detections_of_the_atlas(shared_data):
    folder = shared_data / "coco" / "hpa_cells"
    truth, found = read_coco(folder / "gt.json", strict=True), read_coco(folder / "dt.json", strict=True, images=folder / "gt.json")
    raw = json.loads((folder / "dt.json").read_text())
    cells = [one for image in found.images for one in image.annotations]
    assert len(cells) == len(raw) and len(truth.images) == len(found.images) == 12
    assert sorted(one.score for one in cells) == sorted(one["score"] for one in raw)
    with pytest.raises(ValueError, match="list of detections"):
        read_coco(folder / "dt.json")


def test_masks_of_the_atlas_equal_pycocotools(shared_data):
    content = json.loads((shared_data / "coco" / "hpa_cells" / "gt.json").read_text())
    image = read_coco(shared_data / "coco" / "hpa_cells" / "gt.json").images[1]
    theirs = [one for one in content["annotations"] if one["image_id"] == image.image_id]
    masks = reference.decode([one["segmentation"] for one in theirs]).astype(bool)  # (H, W, N)
    painted = image.paint()
    assert painted.overlap_pixels == int((masks.sum(axis=2) > 1).sum())
    np.testing.assert_array_equal(painted.labels, masks_to_labels(masks.transpose(2, 0, 1)))
    np.testing.assert_array_equal(boxes_of(painted.labels), [one.box for one in image.annotations])


@pytest.mark.parametrize("name", ["small/gt_dataset.json", "val2014_100/instances_val2014_100.json"])
def test_polygons_and_runs_of_coco_equal_pycocotools(shared_data, name):
    path = shared_data / "coco" / name
    content, dataset = json.loads(path.read_text()), read_coco(path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    ours = {one.annotation_id: one for image in dataset.images for one in image.annotations}
    assert len(ours) == len(content["annotations"]) and not dataset.n_left_out
    for raw in content["annotations"]:
        coded = reference.frPyObjects(raw["segmentation"], *sizes[raw["image_id"]]) if not isinstance(raw["segmentation"], dict) or isinstance(raw["segmentation"]["counts"], list) else raw["segmentation"]
        coded = reference.merge(coded) if isinstance(coded, list) else coded
        text = coded["counts"]
        assert ours[raw["id"]].counts == (text.decode() if isinstance(text, bytes) else text)
        assert ours[raw["id"]].is_crowd == bool(raw["iscrowd"])


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("images", {"height": 6.0, "width": 8.0}), ("images", {"id": 1.0}), ("images", {"id": "1"}), ("annotations", {"image_id": 1.0}),
        ("annotations", {"image_id": "1"}), ("annotations", {"id": 7.0}), ("annotations", {"category_id": 3.0}), ("annotations", {"category_id": "3"}),
        ("categories", {"id": 3.0}), ("categories", {"id": "3"}), ("annotations", {"iscrowd": 0.0}), ("annotations", {"bbox": [1.0, 1.0, 2.0, 2.0]}),
        ("annotations", {"segmentation": {"size": [6.0, 8.0], "counts": [7.0, 2.0, 4.0, 2.0, 33.0]}}), ("annotations", {"label": 9.0}),
    ],
)  # fmt: skip
def test_whole_numbers_may_be_written_as_reals(tmp_path, place, changes):
    content = coco_of(entry(7))
    content[place][0].update(changes)
    dataset = read_coco(written(tmp_path, content), strict=True)
    painted = dataset.images[0].paint().labels
    assert painted.shape == (6, 8) and painted.dtype == np.int32 and (painted > 0).sum() == 4 and dataset.categories == {3: "cell"}
    assert painted.max() == (9 if "label" in changes else 1)
    (image,) = dataset.images
    assert type(image.image_id) in (int, str) and type(image.height) is int and type(image.annotations[0].category_id) is int


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"height": 6.5}, "image 1: expected height and width in pixels, got 6.5 and 8"), ({"height": float("nan")}, "got nan"),
        ({"width": "8"}, "got 6 and '8'"), ({"width": True}, "True"), ({"height": 1e300}, "height and width"), ({"id": 1.5}, "expected an id, got 1.5"),
        ({"id": float("nan")}, "got nan"), ({"file_name": 5}, "file_name, got 5"),
    ],
)  # fmt: skip
def test_reasons_are_shown_where_no_image_is_left(tmp_path, changes, said):
    from hpacell.fields.image import FieldError
    from hpacell.masks.archives import find_coco

    content = coco_of(entry(7))
    content["images"][0].update(changes)
    with pytest.raises(FieldError) as caught:
        find_coco(Path(written(tmp_path, content)))
    assert said in str(caught.value) and len(str(caught.value)) < 400
    content["images"] *= 5
    with pytest.raises(FieldError, match="and 2 more"):
        find_coco(Path(written(tmp_path, content)))


def test_a_panoptic_file_is_named(tmp_path):
    content = coco_of({"image_id": 1, "file_name": "a.png", "segments_info": []})
    with pytest.raises(ValueError, match="got a panoptic file.*panoptic2detection_coco_format"):
        read_coco(written(tmp_path, content))


def test_labels_over_int32_are_numbered_anew_and_said(tmp_path):
    labels = np.zeros((4, 4), np.int64)
    labels[0], labels[2] = 2**40, 5
    write_coco(tmp_path / "a.json", [("a.png", labels)])
    dataset = read_coco(tmp_path / "a.json")
    assert np.unique(dataset.images[0].paint().labels).tolist() == [0, 1, 2]
    assert [problem.left_out for problem in dataset.problems] == [False] and "over 2147483647" in dataset.problems[0].reason
