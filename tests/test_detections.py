"""The competition's score: cases by hand, another way of computing it, COCO's evaluator, and cells that people corrected."""

import contextlib
import io
import json
from itertools import permutations

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hpacell.masks.rle import encode_labels_rle, encode_rle
from hpacell.metrics.bootstrap import precision_areas
from hpacell.metrics.detections import match_detections, score_detections
from hpacell.vocabulary import LOCATIONS

NAMES = ("nucleoli", "cytosol", "vesicles")


def box(row0, row1, col0, col1, shape=(20, 30)):
    mask = np.zeros(shape, bool)
    mask[row0:row1, col0:col1] = True
    return encode_rle(mask)["counts"]


def fields_of(*names, shape=(20, 30)):
    return pd.DataFrame({"field_id": names, "height": shape[0], "width": shape[1]})


def true_cells(*rows):
    return pd.DataFrame(rows, columns=["field_id", "location", "rle"])


def predicted(*rows):
    return pd.DataFrame(rows, columns=["field_id", "location", "confidence", "rle"])


def precision_of(truth, pred, fields, location="nucleoli", **parameters):
    return score_detections(truth, pred, fields, **parameters).set_index("location").average_precision[location]


def label_images(rng, n_fields, n_cells, shape):
    """Pairs of label images: true cells that do not overlap, and the same moved, shrunk or lost."""
    pairs = []
    for _ in range(n_fields):
        truth, pred = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for k in range(int(rng.integers(0, n_cells + 1))):
            centre = rng.integers([0, 0], [shape[1], shape[0]])
            axes = rng.integers(2, 9, 2)
            cv2.ellipse(truth, centre.tolist(), axes.tolist(), 0, 0, 360, k + 1, -1)
            if rng.random() < 0.85:
                moved, sizes = centre + rng.integers(-2, 3, 2), np.maximum(axes + rng.integers(-2, 3, 2), 1)
                cv2.ellipse(pred, moved.tolist(), sizes.tolist(), 0, 0, 360, k + 1, -1)
        pairs.append((truth, pred))
    return pairs


def tables(rng, pairs, names=NAMES, levels=None):
    """Truth, predictions and fields of pairs of label images; each mask with several locations, some masks twice."""
    truth, pred = [], []
    for i, (true_image, pred_image) in enumerate(pairs):
        for rle in encode_labels_rle(true_image):
            truth += [(f"f{i}", name, rle) for name in names if rng.random() < 0.5]
        for rle in encode_labels_rle(pred_image):
            for name in names:
                for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
                    pred.append((f"f{i}", name, rng.random() if levels is None else rng.choice(levels), rle))
    fields = [(f"f{i}", *true_image.shape) for i, (true_image, _) in enumerate(pairs)]
    return true_cells(*truth), predicted(*pred), pd.DataFrame(fields, columns=["field_id", "height", "width"])


def slow_precision(truth, pred, masks, location, iou):
    """Average precision from boolean masks, one prediction after the other; precision where a run of equal ones ends."""
    truth, pred = truth[truth.location == location], pred[pred.location == location]
    hits, taken = [], set()
    pred = pred.sort_values("confidence", ascending=False, kind="stable")
    for row in pred.itertuples():
        best, nearest = 0.0, None
        for cell in truth[truth.field_id == row.field_id].itertuples():
            a, b = masks[row.field_id, row.rle], masks[row.field_id, cell.rle]
            overlap = (a & b).sum() / max((a | b).sum(), 1)
            if overlap > best:
                best, nearest = overlap, cell.Index
        hits.append(best >= iou and nearest not in taken)
        taken |= {nearest} if hits[-1] else set()
    sure, area = pred.confidence.tolist(), 0.0
    ends = [k for k in range(len(hits)) if k + 1 == len(hits) or sure[k + 1] != sure[k]]
    for k, hit in enumerate(hits):
        if hit:
            area += max(sum(hits[: j + 1]) / (j + 1) for j in ends if j >= k) / len(truth)
    return area


# ------------------------------------------------------------------------------------------------------------- by hand


A, B, C = box(0, 4, 0, 5), box(8, 12, 0, 5), box(3, 9, 20, 26)
THREE = true_cells(("f1", "nucleoli", A), ("f1", "nucleoli", B), ("f2", "nucleoli", C))


@pytest.mark.parametrize(
    ("pred", "expected"),
    [
        ([("f1", 0.9, A), ("f1", 0.8, B), ("f2", 0.7, C)], 1),
        ([], 0),
        ([("f1", 0.9, A)], 1 / 3),
        # A false alarm above all: precisions 0, 1/2, 2/3, 3/4; the best from each hit on is 3/4.
        ([("f1", 0.95, C), ("f1", 0.9, A), ("f1", 0.8, B), ("f2", 0.7, C)], 3 / 4),
        # The same below all: it comes after the last hit and costs nothing.
        ([("f1", 0.05, C), ("f1", 0.9, A), ("f1", 0.8, B), ("f2", 0.7, C)], 1),
        # A second mask on A between the hits: precisions 1, 1/2, 2/3, 3/4, so 1/3 (1 + 3/4 + 3/4).
        ([("f1", 0.9, A), ("f1", 0.85, box(0, 4, 0, 6)), ("f1", 0.8, B), ("f2", 0.7, C)], (1 + 3 / 4 + 3 / 4) / 3),
        # The worse mask on A comes first and takes it.
        ([("f1", 0.9, box(0, 4, 1, 6)), ("f1", 0.8, A)], 1 / 3),
        # 12 of 24 pixels, then 15 of 20.
        ([("f1", 0.9, box(0, 4, 2, 6))], 0),
        ([("f1", 0.9, box(1, 4, 0, 5))], 1 / 3),
        # The right mask in the wrong field.
        ([("f2", 0.9, A)], 0),
    ],
)
def test_cases_by_hand(pred, expected):
    pred = predicted(*[(field_id, "nucleoli", confidence, rle) for field_id, confidence, rle in pred])
    assert precision_of(THREE, pred, fields_of("f1", "f2")) == pytest.approx(expected)


def test_overlap_at_the_threshold_counts():
    truth = true_cells(("f1", "nucleoli", box(0, 3, 0, 5)))
    pred = predicted(("f1", "nucleoli", 0.9, box(0, 5, 0, 5)))  # 15 of 25 pixels: 0.6
    assert precision_of(truth, pred, fields_of("f1")) == 1
    assert precision_of(truth, pred, fields_of("f1"), iou=0.601) == 0


def test_a_prediction_looks_at_one_cell_only():
    # Two true cells that overlap: the mask lies best on the first, which is taken; that the second lies near is no help.
    truth = true_cells(("f1", "nucleoli", box(0, 10, 0, 10)), ("f1", "nucleoli", box(0, 10, 0, 8)))
    pred = predicted(("f1", "nucleoli", 0.9, box(0, 10, 0, 10)), ("f1", "nucleoli", 0.8, box(0, 10, 0, 10)))
    assert match_detections(truth, pred, fields_of("f1")).hit.tolist() == [True, False]


def test_the_order_of_equal_confidences_does_not_matter():
    rows = [("f1", "nucleoli", 0.5, C), ("f1", "nucleoli", 0.5, A), ("f1", "nucleoli", 0.5, B), ("f2", "nucleoli", 0.5, C)]
    fields = fields_of("f1", "f2")
    for order in permutations(rows):
        assert precision_of(THREE, predicted(*order), fields) == pytest.approx(3 / 4)
    assert precision_of(THREE, predicted(*rows), fields.iloc[::-1]) == pytest.approx(3 / 4)


def test_a_location_by_itself_and_the_mean_of_those_that_occur():
    truth = pd.concat([THREE, true_cells(("f2", "cytosol", C))])
    pred = predicted(("f1", "nucleoli", 0.9, A), ("f2", "vesicles", 0.8, C), ("f2", "cytosol", 0.1, C))
    table = score_detections(truth, pred, fields_of("f1", "f2"))
    assert table.location.tolist() == list(LOCATIONS)
    shown = table.set_index("location").loc[list(NAMES)]
    assert shown.n_truth.tolist() == [3, 1, 0] and shown.n_pred.tolist() == [1, 1, 1] and shown.n_hits.tolist() == [1, 1, 0]
    assert shown.average_precision.tolist()[:2] == [pytest.approx(1 / 3), 1] and np.isnan(shown.average_precision["vesicles"])
    mean = table.attrs["mean"]
    assert mean["average_precision"] == pytest.approx((1 / 3 + 1) / 2)
    assert (mean["n_fields"], mean["n_locations"], mean["n_missing"]) == (2, 2, 17)
    assert mean["average_precision_low"] is None
    json.dumps(mean, allow_nan=False)


def test_a_field_without_predictions_is_missed_and_one_without_cells_gives_false_alarms():
    pred = predicted(("f1", "nucleoli", 0.5, A), ("f1", "nucleoli", 0.4, B))
    assert precision_of(THREE, pred, fields_of("f1", "f2")) == pytest.approx(2 / 3)
    pred = pd.concat([predicted(("f3", "nucleoli", 0.9, A)), pred])
    assert precision_of(THREE, pred, fields_of("f1", "f2", "f3")) == pytest.approx(2 / 3 * 2 / 3)


def test_width_is_not_height():
    """A mask in a field of 40 x 60; the same runs in a field of 60 x 40 are another shape elsewhere."""
    labels = np.zeros((40, 60), np.int32)
    labels[5:25, 10:50] = 1
    (right,) = encode_labels_rle(labels)
    turned = np.zeros((60, 40), np.int32)
    turned[5:25, 10:40] = 1
    (wrong,) = encode_labels_rle(turned)
    truth, fields = true_cells(("f1", "nucleoli", right)), fields_of("f1", shape=(40, 60))
    assert precision_of(truth, predicted(("f1", "nucleoli", 1, right)), fields) == 1
    assert precision_of(truth, predicted(("f1", "nucleoli", 1, wrong)), fields) == 0
    with pytest.raises(ValueError, match="expected runs that fill 60 x 60 = 3600 pixels, got 2400"):
        score_detections(truth, predicted(("f1", "nucleoli", 1, right)), fields.assign(height=60))


# --------------------------------------------------------------------------------------------------- against other ways


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([(24, 40), (40, 24), (30, 30)]), st.sampled_from([0.3, 0.6, 0.75]))
def test_one_prediction_after_the_other(seed, shape, iou):
    rng = np.random.default_rng(seed)
    pairs = label_images(rng, 3, 5, shape)
    truth, pred, fields = tables(rng, pairs, levels=[0.1, 0.4, 0.5, 0.9])
    masks = {
        (f"f{i}", rle): image == label
        for i, pair in enumerate(pairs)
        for image in pair
        for label, rle in zip(np.unique(image[image > 0]), encode_labels_rle(image), strict=True)
    }
    table = score_detections(truth, pred, fields, iou, NAMES)
    for row in table.itertuples():
        if row.n_truth:
            assert row.average_precision == pytest.approx(slow_precision(truth, pred, masks, row.location, iou))
        else:
            assert np.isnan(row.average_precision)


def coco_evaluation(truth, pred, fields, names, iou):
    """COCO's evaluator on the same tables, at one threshold and with room for all predictions."""
    images = {row.field_id: {"id": i, "height": row.height, "width": row.width} for i, row in enumerate(fields.itertuples(), 1)}

    def annotation(number, row):
        image = images[row.field_id]
        rle = {"size": [int(image["height"]), int(image["width"])], "counts": row.rle}
        return {"id": number, "image_id": image["id"], "category_id": names.index(row.location) + 1, "segmentation": rle, "iscrowd": 0, "area": 1.0}

    gt = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        annotations = [annotation(i, row) for i, row in enumerate(truth.itertuples(), 1)]
        gt.dataset = {"images": list(images.values()), "categories": categories, "annotations": annotations}
        gt.createIndex()
        dt = gt.loadRes([{**annotation(i, row), "score": row.confidence} for i, row in enumerate(pred.itertuples(), 1)])
        evaluation = COCOeval(gt, dt, "segm")
        evaluation.params.iouThrs, evaluation.params.maxDets = np.array([iou]), [10**5]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def agree_with_coco(truth, pred, fields, names, iou):
    """Hits, recall and the curve are COCO's; read at its 101 points, so is the score."""
    evaluation = coco_evaluation(truth, pred, fields, names, iou)
    found = match_detections(truth, pred, fields, iou, names)
    table = score_detections(truth, pred, fields, iou, names)
    for k in range(len(names)):
        here, n_truth = found.location == k, found.n_truth[:, k].sum()
        if not n_truth:
            assert evaluation.eval["recall"][0, k, 0, 0] == -1 and np.isnan(table.average_precision[k])
            continue
        images = [image for image in evaluation.evalImgs if image is not None and image["category_id"] == k + 1]
        scores = np.concatenate([image["dtScores"] for image in images])
        matched = np.concatenate([image["dtMatches"][0] > 0 for image in images])
        assert len(np.unique(scores)) == len(scores)  # without ties the order is one
        np.testing.assert_array_equal(matched[np.argsort(-scores)], found.hit[here])
        assert evaluation.eval["recall"][0, k, 0, 0] == pytest.approx(found.hit[here].sum() / n_truth)
        hits = np.cumsum(found.hit[here])
        precision, recall = hits / np.arange(1, len(hits) + 1), hits / n_truth
        points = [max(precision[recall >= point], default=0) for point in np.linspace(0, 1, 101)]
        assert np.mean(points) == pytest.approx(evaluation.eval["precision"][0, :, k, 0, 0].mean(), abs=1e-9)
        # 101 points read each step of recall with an error of at most one point's width.
        assert table.average_precision[k] == pytest.approx(np.mean(points), abs=1.5 / 101)
    return table


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([(36, 60), (60, 36)]), st.sampled_from([0.55, 0.6, 0.8]))
def test_pycocotools_agrees(seed, shape, iou):
    rng = np.random.default_rng(seed)
    truth, pred, fields = tables(rng, label_images(rng, 4, 6, shape))
    if len(pred) and len(truth):
        agree_with_coco(truth, pred, fields, list(NAMES), iou)


def test_pycocotools_agrees_on_real_cells(shared_data):
    folder = shared_data / "coco/hpa_cells"
    gt, dt = json.loads((folder / "gt.json").read_text()), json.loads((folder / "dt.json").read_text())
    rng = np.random.default_rng(0)
    fields = pd.DataFrame([(str(i["id"]), i["height"], i["width"]) for i in gt["images"]], columns=["field_id", "height", "width"])
    truth = true_cells(*[(str(a["image_id"]), "cytosol", a["segmentation"]["counts"]) for a in gt["annotations"]])
    scores = rng.permutation(len(dt)) / len(dt)
    pred = predicted(*[(str(a["image_id"]), "cytosol", s, a["segmentation"]["counts"]) for a, s in zip(dt, scores, strict=True)])
    table = agree_with_coco(truth, pred, fields, ["cytosol"], 0.6)
    assert table.n_truth[0] == len(gt["annotations"]) > 100 and 0.8 < table.average_precision[0] <= 1


def manual_tables(shared_data, images, crop):
    """Corrected cells as the truth and the tool's as predictions, on crops that are not square."""
    folder = shared_data / "hpa/manual_cells"
    labels = {kind: pd.read_csv(folder / f"cells_{kind}.csv", dtype=str) for kind in ("manual", "auto")}
    rows, fields = {"manual": [], "auto": []}, []
    for field_id in sorted(labels["manual"].ID.unique())[:images]:
        for kind in rows:
            path = next((folder / f"masks_{kind}").glob(f"{field_id}_*"))
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[crop].astype(np.int32)
            here = labels[kind][labels[kind].ID == field_id].set_index("Cell_index").Cell_Label
            for label, rle in zip(np.unique(image[image > 0]), encode_labels_rle(image), strict=True):
                numbers = here.get(str(label), "")
                rows[kind] += [(field_id, LOCATIONS[int(number)], rle) for number in numbers.split(";") if number]
        fields.append((field_id, *image.shape))
    return true_cells(*rows["manual"]), true_cells(*rows["auto"]), pd.DataFrame(fields, columns=["field_id", "height", "width"])


@pytest.mark.parametrize("crop", [np.s_[:, :], np.s_[100:700, :], np.s_[:, 300:1200]])
def test_the_tool_against_people(shared_data, crop):
    truth, auto, fields = manual_tables(shared_data, 12, crop)
    pred = auto.assign(confidence=np.random.default_rng(0).permutation(len(auto)) / len(auto))
    table = agree_with_coco(truth, pred, fields, list(LOCATIONS), 0.6)
    scored = table[table.n_truth > 0]
    assert len(scored) >= 5
    # Three cells in four are as the tool drew them, and carry the same labels.
    assert 0.7 < table.attrs["mean"]["average_precision"] <= 1
    perfect = score_detections(truth, truth.assign(confidence=1.0), fields)
    assert (perfect.average_precision[perfect.n_truth > 0] == 1).all()


# ----------------------------------------------------------------------------------------------------------- intervals


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_weights_are_repeated_fields(data):
    """A field that counts three times is as good as three copies of it, and one that counts 0 times as its absence."""
    n, n_fields = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    hit = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    field = np.array(data.draw(st.lists(st.integers(0, n_fields - 1), min_size=n, max_size=n)))
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n_fields, max_size=n_fields)), float)
    n_truth = np.bincount(field, hit, n_fields).astype(int) + np.array(data.draw(st.lists(st.integers(0, 2), min_size=n_fields, max_size=n_fields)))
    (found,) = precision_areas(hit, field, n_truth, weights[None])
    copies = np.repeat(hit, weights[field].astype(int))
    total = int(weights @ n_truth)
    if not total:
        assert np.isnan(found)
        return
    precision = np.cumsum(copies) / np.arange(1, len(copies) + 1)
    expected = sum(precision[k:].max() for k in np.flatnonzero(copies)) / total
    assert found == pytest.approx(expected)


def many_fields(n_fields, rng, copies=1):
    truth, pred, names = [], [], []
    for i in range(n_fields):
        found = rng.random() < 0.6
        for j in range(copies):
            name = f"g{i}-{j}"
            names.append(name)
            truth.append((name, "nucleoli", A))
            pred.append((name, "nucleoli", 0.5 + 0.4 * rng.random(), A if found else C))
    return true_cells(*truth), predicted(*pred), fields_of(*names)


def test_intervals_hold_the_score_and_shrink_with_fields():
    rng, widths = np.random.default_rng(0), []
    for n_fields in (10, 90):
        table = score_detections(*many_fields(n_fields, rng), n_bootstrap=200)
        row, mean = table.set_index("location").loc["nucleoli"], table.attrs["mean"]
        assert row.average_precision_low < row.average_precision < row.average_precision_high
        assert mean["average_precision_low"] == row.average_precision_low  # the only location is the mean
        widths.append(row.average_precision_high - row.average_precision_low)
        assert table.average_precision_low[table.n_truth == 0].isna().all()
    assert widths[0] > 1.8 * widths[1] > 0


def test_intervals_are_seeded_and_one_field_has_none():
    tables_ = many_fields(15, np.random.default_rng(1))
    first, again, other = (score_detections(*tables_, n_bootstrap=30, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert first.attrs == again.attrs and not first.equals(other)
    truth, pred, fields = (table[table.field_id == "g0-0"] for table in tables_)
    alone = score_detections(truth, pred, fields, n_bootstrap=30)
    assert alone.average_precision_low.isna().all() and alone.attrs["mean"]["average_precision_low"] is None


def test_draws_of_guesses_do_not_lie_beside_the_score():
    """Among guesses, fields that are drawn twice lift the best precision; the interval must hold the score all the same."""
    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in range(50)]
    cells = [box(4 * k, 4 * k + 3, 2 + 10 * side, 10 + 10 * side) for k in range(5) for side in range(2)]
    truth = true_cells(*[(name, location, cells[k]) for name in names for location in LOCATIONS for k in rng.choice(10, 1)])
    pred = predicted(*[(name, location, rng.random(), cell) for name in names for location in LOCATIONS for cell in cells])
    mean = score_detections(truth, pred, fields_of(*names), n_bootstrap=60).attrs["mean"]
    assert mean["average_precision_low"] < mean["average_precision"] < mean["average_precision_high"]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, p, f: (t.drop(columns="rle"), p, f), "true cells, got none named 'rle'"),
        (lambda t, p, f: (t, p.drop(columns="confidence"), f), "got none named 'confidence'"),
        (lambda t, p, f: (t, p, f.drop(columns="width")), "got none named 'width'"),
        (lambda t, p, f: (t, p, f[:1]), "got a true cell on 'f2'"),
        (lambda t, p, f: (t[:2], p, f[:1]), "got a prediction on 'f2'"),
        (lambda t, p, f: (t, p, pd.concat([f, f])), "'f1' twice"),
        (lambda t, p, f: (pd.concat([t, t[:1]]), p, f), "got a mask of 'f1' twice"),
        (lambda t, p, f: (t, p.assign(confidence=np.nan), f), "finite confidences, got nan"),
        (lambda t, p, f: (t, p.assign(location="nucleolus"), f), "did you mean 'nucleoli'"),
        (lambda t, p, f: (t.assign(rle=None), p, f), "a true cell without"),
        (lambda t, p, f: (t, p.assign(rle="not counts"), f), "prediction on field 'f1': expected COCO counts"),
        (lambda t, p, f: (t, p, f.assign(width=31)), "truth of field 'f1': expected runs that fill 20 x 31"),
        (lambda t, p, f: (t[:0], p[:0], f[:0]), "expected one field or more"),
    ],
)
def test_tables_that_do_not_fit(change, said):
    pred = predicted(("f1", "nucleoli", 0.9, A), ("f2", "nucleoli", 0.8, C))
    with pytest.raises(ValueError, match="expected") as refused:
        score_detections(*change(THREE, pred, fields_of("f1", "f2")))
    assert said in str(refused.value)


@pytest.mark.parametrize("iou", [0, -1, 1.1, np.nan])
def test_thresholds_that_are_none(iou):
    with pytest.raises(ValueError, match="expected an IoU above 0"):
        score_detections(THREE, predicted(), fields_of("f1", "f2"), iou)


def test_truth_without_any_cell():
    table = score_detections(true_cells(), predicted(("f1", "nucleoli", 0.9, A)), fields_of("f1", "f2"), n_bootstrap=5)
    assert table.average_precision.isna().all() and table.attrs["mean"]["average_precision"] is None
