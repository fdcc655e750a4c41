"""Scores of instances: parity with StarDist, COCO and Cell Tracking Challenge tools and plain loops, properties, faults."""

import copy
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hpacell.figures.instances import figure_iou_curves, figure_judged_cells, figure_kind_scores
from hpacell.metrics.agreement import aggregated_jaccard, ctc_det, ctc_seg, judge_cells, panoptic_quality
from hpacell.metrics.average_precision import score_average_precision, score_coco
from hpacell.metrics.bootstrap import bootstrap_counts, bootstrap_interval
from hpacell.metrics.instances import jaccard, score_instances
from hpacell.metrics.matching import iou_matrix, match_labels

GOLDEN = json.loads((Path(__file__).parent / "golden_instances.json").read_text())
CHANGES = {
    "": lambda labels: labels,
    "shift2": lambda labels: np.roll(labels, (2, -2), (0, 1)),
    "shift5": lambda labels: np.roll(labels, (5, -5), (0, 1)),
    "merge": lambda labels: (labels + 1) // 2,
    "coarse": lambda labels: np.kron(labels[::8, ::8], np.ones((8, 8), np.int32))[: labels.shape[0], : labels.shape[1]],
}
STATS = {"all": ("AP", "AP50", "AP75", "AR100"), "small": ("APs", None, None, "ARs"), "medium": ("APm", None, None, "ARm"), "large": ("APl", None, None, "ARl")}
COLUMNS = ("average_precision", "average_precision_50", "average_precision_75", "average_recall")
examples = settings(deadline=None, max_examples=60)  # the machine may be busy
levels = st.sampled_from([0.3, 0.5, 0.6, 0.75, 0.9])


@st.composite
def pairs(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=10))
    image = hnp.arrays(np.int64, shape, elements=st.integers(0, 5))
    return draw(image), draw(image)


def read(path: Path) -> np.ndarray:
    labels = tifffile.imread(path) if path.suffix == ".tif" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return labels.astype(np.int32)


def test_as_stardist(shared_data):
    """Numbers that StarDist's own matching gave once."""
    for golden in GOLDEN["stardist"]:
        truth, pred = read(shared_data / golden["truth"]), CHANGES[golden["change"]](read(shared_data / golden["pred"]))
        expected = np.array(golden["rows"])
        table = score_instances([(truth, pred)], ious=expected[:, 0]).query("level == 'pooled'")
        for place, column in enumerate(GOLDEN["columns"]):
            # StarDist divides in float32, and scores 0 where nothing was paired.
            np.testing.assert_allclose(table[column].fillna(0), expected[:, place], atol=1e-6, err_msg=f"{golden['truth']} {golden['change']} {column}")


def test_as_the_cell_tracking_challenge(shared_data):
    """SEG and DET over frames as py-ctcmetrics gave them once, of whole cells and of markers."""
    for golden in GOLDEN["ctc"]:
        frames = [(read(shared_data / a), CHANGES[golden["change"]](read(shared_data / b))) for a, b in zip(golden["truth"], golden["pred"], strict=True)]
        pooled = score_instances(frames, ious=(0.5,)).iloc[-1]
        assert pooled["seg"] == pytest.approx(golden["seg"], abs=1e-12)
        assert pooled["det"] == pytest.approx(golden["det"], abs=1e-12)
        assert ctc_seg(*frames[0]) == score_instances(frames[:1], ious=(0.5,))["seg"][0]
        assert ctc_det(*frames[0]) == score_instances(frames[:1], ious=(0.5,))["det"][0]


def coco_stats(truth, pred, kind: str, limits=(1, 10, 100)) -> dict[str, float]:
    """The twelve numbers of pycocotools."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = truth
        dataset.createIndex()
        judge = COCOeval(dataset, dataset.loadRes(copy.deepcopy(pred)), kind)
        judge.params.maxDets = list(limits)
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    mean = lambda values: values[values > -1].mean() if (values > -1).any() else -1.0  # noqa: E731
    found = {}
    for place, area in enumerate(("all", "small", "medium", "large")):
        names = STATS[area]
        found[names[0]], found[names[3]] = mean(precision[..., place, -1]), mean(recall[..., place, -1])
    found["AP50"], found["AP75"] = mean(precision[0, ..., 0, -1]), mean(precision[5, ..., 0, -1])
    return found | {f"AR{limit}": mean(recall[:, :, 0, place]) for place, limit in enumerate(limits)}


def check_coco(table, expected: dict[str, float], tolerance: float) -> None:
    for row in table.itertuples():
        for column, name in zip(COLUMNS, STATS[row.area], strict=True):
            if name:
                value = getattr(row, column)
                assert (-1 if math.isnan(value) else value) == pytest.approx(expected[name], abs=tolerance), (row.area, column)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools calls numpy 2 in numpy 1's way
@pytest.mark.parametrize("outline", ["mask", "box"])
@pytest.mark.parametrize(
    ("folder", "truth", "pred"),
    [
        ("val2014_100", "instances_val2014_100.json", "instances_val2014_fake{}100_results.json"),
        ("small", "gt_dataset.json", "dt_dataset.json"),
        ("hpa_cells", "gt.json", "dt.json"),
    ],
)
def test_as_pycocotools(shared_data, folder, truth, pred, outline):
    folder, kind = shared_data / "coco" / folder, {"mask": "segm", "box": "bbox"}[outline]
    golden = json.loads((folder / "golden_pycocotools.json").read_text())
    golden = dict(zip(golden["stats"], golden[kind], strict=True))
    truth, pred = folder / truth, folder / pred.format(kind)
    table = score_coco(str(truth), str(pred), outline, max_detections=100)
    check_coco(table, golden, 6e-7)  # the saved numbers have six digits
    for limit in (1, 10):
        few = score_coco(str(truth), str(pred), outline, max_detections=limit)["average_recall"][0]
        assert few == pytest.approx(golden[f"AR{limit}"], abs=6e-7)
    check_coco(table, coco_stats(json.loads(truth.read_text()), json.loads(pred.read_text()), kind), 1e-9)


def test_the_authors_expected_numbers(shared_data):
    """The table that COCO's authors publish beside their code, three digits."""
    folder = shared_data / "coco" / "val2014_100"
    lines = [line for line in (folder / "val2014_fake_eval_res.txt").read_text().splitlines() if "maxDets" in line]
    for outline, kind, first in (("mask", "segm", 0), ("box", "bbox", 12)):
        table = score_coco(str(folder / "instances_val2014_100.json"), str(folder / f"instances_val2014_fake{kind}100_results.json"), outline, max_detections=100)
        published = [float(line.split("=")[-1]) for line in lines[first : first + 12]]
        found = [table[name][0] for name in COLUMNS[:3]] + table["average_precision"][1:].tolist()
        np.testing.assert_allclose(found, published[:6], atol=5.1e-4)
        np.testing.assert_allclose([table["average_recall"][0], *table["average_recall"][1:]], published[8:], atol=5.1e-4)


def coco_of(images) -> tuple[dict, list]:
    """COCO content of (truth, pred, scores)."""
    from pycocotools import mask as coco

    dataset = {"images": [], "categories": [{"id": 1, "name": "cell"}], "annotations": []}
    results = []
    for number, (truth, pred, scores) in enumerate(images):
        height, width = truth.shape
        dataset["images"].append({"id": number, "height": height, "width": width})
        for label in np.setdiff1d(truth, [0]):
            code = coco.encode(np.asfortranarray((truth == label).astype(np.uint8)))
            one = {"id": len(dataset["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "segmentation": code}
            dataset["annotations"].append(one | {"area": float(coco.area(code)), "bbox": coco.toBbox(code).tolist()})
        for label, score in zip(np.setdiff1d(pred, [0]), scores, strict=True):
            code = coco.encode(np.asfortranarray((pred == label).astype(np.uint8)))
            results.append({"image_id": number, "category_id": 1, "segmentation": code, "score": float(score)})
    return dataset, results


def discs(rng: np.random.Generator, n: int, size: tuple[int, int]) -> np.ndarray:
    labels = np.zeros(size, np.int32)
    for label in range(1, n + 1):
        centre = int(rng.integers(0, size[1])), int(rng.integers(0, size[0]))
        cv2.ellipse(labels, centre, (int(rng.integers(4, 40)), int(rng.integers(4, 40))), int(rng.integers(0, 180)), 0, 360, label, -1)
    return labels


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
@pytest.mark.parametrize("limit", [5, 2000])
def test_label_images_as_pycocotools(limit):
    """Fields of overlapping cells, more than the usual limit, with ties among the scores."""
    rng, images = np.random.default_rng(5), []
    for _ in range(4):
        truth = discs(rng, 150, (300, 420))
        pred = np.where(rng.random((300, 420)) < 0.03, 0, np.roll(truth, tuple(rng.integers(-3, 4, 2)), (0, 1)))
        pred[rng.integers(0, 250) :, : rng.integers(1, 200)] += 1  # some cells lose parts to others
        images.append((truth, pred, rng.random(len(np.setdiff1d(pred, [0]))).round(1)))
    dataset, results = coco_of(images)
    for outline, kind in (("mask", "segm"), ("box", "bbox")):
        expected = coco_stats(dataset, results, kind, (1, 2, limit))
        expected["AR100"] = expected[f"AR{limit}"]
        # coco_stats evaluates boxes of areas as loadRes sets them: those of the mask, so boxes are compared for all sizes only.
        table = score_average_precision(images, outline, max_detections=limit)
        check_coco(table if kind == "segm" else table[:1], expected, 1e-9)


def slow_aji(truth, pred):
    """The paper's loop."""
    true, found = (np.setdiff1d(labels, [0]) for labels in (truth, pred))
    shared = held = 0
    used = set()
    for a in true:
        best, pick = 0, None
        for b in found:
            both, either = ((truth == a) & (pred == b)).sum(), ((truth == a) | (pred == b)).sum()
            if both / either > best:
                best, pick = both / either, b
        if pick is None:
            held += (truth == a).sum()
        else:
            used.add(pick)
            shared += ((truth == a) & (pred == pick)).sum()
            held += ((truth == a) | (pred == pick)).sum()
    held += sum((pred == b).sum() for b in found if b not in used)
    return shared / held if held else np.nan


@examples
@given(pairs())
def test_aggregated_jaccard_as_the_paper(pair):
    assert aggregated_jaccard(*pair) == pytest.approx(slow_aji(*pair), nan_ok=True)


@examples
@given(pairs(), levels)
def test_panoptic_quality_is_the_product(pair, iou):
    quality, segmentation, recognition = panoptic_quality(*pair, iou)
    back = panoptic_quality(*pair[::-1], iou)
    assert quality == pytest.approx(back.quality, nan_ok=True)
    if math.isnan(segmentation):
        assert quality == recognition == 0 or math.isnan(quality)
    else:
        assert quality == pytest.approx(segmentation * recognition) and segmentation >= iou


@examples
@given(pairs(), levels)
def test_split_is_merged_seen_from_the_other_side(pair, iou):
    there, back = judge_cells(*pair, iou), judge_cells(*pair[::-1], iou)
    swap = {"found": "found", "missed": "false", "false": "missed", "split": "merged", "merged": "split"}
    assert [swap[state] for state in there.truth_states] == back.pred_states.tolist()
    assert [swap[state] for state in there.pred_states] == back.truth_states.tolist()
    match = match_labels(*pair, iou)
    assert np.array_equal(there.truth_ids[there.truth_states == "found"], match.truth_ids)
    assert (there.pred_states == "found").sum() == match.tp


@examples
@given(pairs())
def test_above_one_half_nobody_has_a_choice(pair):
    truth, pred = pair
    match = match_labels(truth, pred, 0.500001)
    for a in np.setdiff1d(truth, [0]):
        partners = [b for b in np.setdiff1d(pred, [0]) if ((truth == a) & (pred == b)).sum() > 0.500001 * ((truth == a) | (pred == b)).sum()]
        assert partners == match.pred_ids[match.truth_ids == a].tolist()


def has_ties(truth, pred):
    """Whether some true object has two predictions that are equally good, and the best it has."""
    ious = iou_matrix(truth, pred)
    best = ious.max(axis=1, initial=0)
    return bool((((ious == best[:, None]).sum(axis=1) > 1) & (best > 0)).any())


@examples
@example((np.array([[0, 1, 2, 2, 2]]), np.array([[2, 1, 0, 2, 1]])), [2, 1, 3, 4, 5], 0.3)
@given(pairs(), st.permutations(range(1, 6)), levels)
def test_numbers_do_not_matter(pair, order, iou):
    """Not to any score; to AJI alone where a true object has the choice between equally good predictions."""
    truth, pred = pair
    names = np.array([0, *(100 * k for k in order)])
    first, second = (score_instances([(truth, labels)], ious=(iou,)).drop(columns=["level", "kind", "image"]) for labels in (pred, names[pred]))
    ties = ["aji"] if has_ties(truth, pred) else []
    np.testing.assert_allclose(first.drop(columns=ties).to_numpy(float), second.drop(columns=ties).to_numpy(float))


def test_of_equally_good_predictions_the_lower_number_counts():
    truth, pred = np.array([[0, 1, 2, 2, 2]]), np.array([[2, 1, 0, 2, 1]])
    other = np.array([0, 2, 1])[pred]
    assert has_ties(truth, pred) and has_ties(truth, other)
    assert aggregated_jaccard(truth, pred) == slow_aji(truth, pred) != slow_aji(truth, other) == aggregated_jaccard(truth, other)


@examples
@given(pairs())
def test_perfect_and_bounded(pair):
    truth, pred = pair
    score = score_instances([(truth, pred)], ious=(0.5,)).iloc[0]
    for name in ("jaccard", "precision", "recall", "f1", "pq", "aji", "seg", "det"):
        assert math.isnan(score[name]) or 0 <= score[name] <= 1
    if truth.any():
        perfect = score_instances([(truth, truth)], ious=(0.5,)).iloc[0]
        assert all(perfect[name] == 1 for name in ("jaccard", "precision", "recall", "f1", "mean_iou", "pq", "aji", "seg", "det"))
        assert perfect["count_error"] == perfect["n_split"] == perfect["n_merged"] == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(pairs(), st.sampled_from("ab")), min_size=1, max_size=5))
def test_a_kind_is_its_images_alone(images):
    pairs_, kinds = [pair for pair, _ in images], [kind for _, kind in images]
    table = score_instances(pairs_, ious=(0.5, 0.75), kinds=kinds)
    for kind in set(kinds):
        alone = score_instances([pair for pair, one in images if one == kind], ious=(0.5, 0.75)).query("level == 'pooled'")
        mine = table.query("level == 'kind' and kind == @kind")
        numbers = alone.columns.drop(["level", "kind", "image"])
        np.testing.assert_array_equal(mine[numbers].to_numpy(float), alone[numbers].to_numpy(float))


def test_intervals_as_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    images = []
    for _ in range(12):
        truth = discs(rng, 12, (120, 90))
        images.append((truth, np.roll(truth, tuple(rng.integers(-4, 5, 2)), (0, 1))))
    table = score_instances(images, ious=(0.6,), n_bootstrap=25, seed=3)
    assert table.loc[table["level"] == "image", "jaccard_low"].isna().all()
    pooled = table.iloc[-1]
    draws = bootstrap_counts(12, 25, 3)[1:].astype(int)
    for name in ("jaccard", "pq", "aji", "seg", "det", "count_error"):
        values = [score_instances([images[i] for i in np.repeat(np.arange(12), draw)], ious=(0.6,)).iloc[-1][name] for draw in draws]
        low, high = bootstrap_interval(np.array([pooled[name], *values]), 12, (0, np.inf) if name == "count_error" else (0, 1))
        assert (pooled[f"{name}_low"], pooled[f"{name}_high"]) == pytest.approx((low, min(high, 1) if name != "count_error" else high), nan_ok=True)
        assert low <= pooled[name] <= high or (name == "count_error" and np.isnan([low, high]).all())  # no image is off by any
    assert table.equals(score_instances(images, ious=(0.6,), n_bootstrap=25, seed=3))


def test_intervals_of_average_precision():
    rng, images = np.random.default_rng(4), []
    for _ in range(10):
        truth = discs(rng, 10, (90, 90))
        pred = np.roll(truth, tuple(rng.integers(-4, 5, 2)), (0, 1))
        images.append((truth, pred, rng.random(len(np.setdiff1d(pred, [0])))))
    table = score_average_precision(images, kinds=["a"] * 9 + ["b"], n_bootstrap=50)
    row = table.set_index(["kind", "area"]).loc[("pooled", "all")]
    assert row["average_precision_low"] < row["average_precision"] < row["average_precision_high"]
    alone = table.set_index(["kind", "area"]).loc[("b", "all")]
    assert math.isnan(alone["average_precision_low"])  # one image
    assert alone["average_precision"] == score_average_precision(images[9:])["average_precision"][0]


EMPTY, ONE = np.zeros((4, 6), int), np.ones((4, 6), int)


def test_empty_truth_or_prediction():
    table = score_instances([(EMPTY, EMPTY), (EMPTY, ONE), (ONE, EMPTY)], ious=(0.5,), n_bootstrap=20)
    blank, invented, missed = (table.iloc[place] for place in range(3))
    assert all(math.isnan(blank[name]) for name in ("jaccard", "precision", "recall", "f1", "pq", "aji", "seg", "det"))
    assert blank["count_error"] == 0
    assert all(invented[name] == 0 for name in ("jaccard", "precision", "f1", "pq", "aji", "det")) and math.isnan(invented["seg"])
    assert all(missed[name] == 0 for name in ("jaccard", "recall", "f1", "pq", "aji", "seg", "det")) and math.isnan(missed["precision"])
    assert score_instances([], ious=(0.5,), n_bootstrap=5).iloc[-1][["n_images", "n_truth"]].tolist() == [0, 0]
    assert ctc_det(EMPTY, ONE) == 0 and math.isnan(ctc_det(EMPTY, EMPTY))
    assert judge_cells(EMPTY, ONE).pred_states.tolist() == ["false"] and judge_cells(ONE, EMPTY).truth_states.tolist() == ["missed"]
    assert jaccard(np.zeros((0, 0), int), np.zeros((0, 0), int)) != 0


@pytest.mark.parametrize("outline", ["mask", "box"])
def test_empty_images_have_an_average_precision(outline):
    for images, expected in (
        ([(EMPTY, EMPTY, [])], np.nan),
        ([(EMPTY, ONE, [0.5])], np.nan),
        ([(ONE, EMPTY, [])], 0),
        ([(ONE, ONE, [0.5]), (EMPTY, ONE, [0.4])], 1),
        ([(ONE, ONE, [0.5]), (EMPTY, ONE, [0.6])], 0.5),
        ([], np.nan),
    ):
        assert score_average_precision(images, outline)["average_precision"][0] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([(ONE, ONE[1:], [0.5])], {}, "shape of truth"),
        ([(ONE, ONE, [0.5, 0.5])], {}, "one score for each of 1"),
        ([(ONE, ONE, [np.nan])], {}, "finite scores"),
        ([(ONE, ONE, [np.inf])], {}, "finite scores"),
        ([(ONE, ONE, [0.5])], {"kinds": ["a", "b"]}, "one kind for each"),
        ([(ONE, ONE, [0.5])], {"outline": "masks"}, "outline"),
        ([(ONE, ONE, [0.5])], {"ious": (0,)}, "IoUs above 0"),
        ([(ONE, ONE, [0.5])], {"ious": ()}, "IoUs above 0"),
        ([(ONE, ONE, [0.5])], {"max_detections": 0}, "one detection or more"),
        ([(ONE, ONE, [0.5])], {"n_bootstrap": -1}, "draws from 0"),
    ],
)
def test_faults_of_average_precision(images, options, message):
    with pytest.raises(ValueError, match=message):
        score_average_precision(images, **options)


def test_faults_of_scores():
    with pytest.raises(ValueError, match="one kind for each of 1 pairs, got 2"):
        score_instances([(ONE, ONE)], kinds=["a", "b"])
    with pytest.raises(ValueError, match="shape of truth"):
        score_instances([(ONE, ONE), (ONE, ONE.T)])
    with pytest.raises(ValueError, match="IoU above 0"):
        score_instances([(ONE, ONE)], ious=(0.5, 2))


def test_faults_of_coco_results():
    dataset, results = coco_of([(ONE, ONE, [0.5])])
    for change, message in (
        ({"score": math.nan}, "finite scores, got nan in result 0"),
        ({"image_id": 7}, "image 7 in result 0"),
        ({"score": None}, "score in each result"),
        ({"segmentation": None}, "segmentation or bbox"),
    ):
        one = {name: value for name, value in (results[0] | change).items() if value is not None}
        with pytest.raises(ValueError, match=message):
            score_coco(dataset, [one])
    stray = dataset | {"annotations": [dataset["annotations"][0] | {"id": 77, "image_id": 9}]}
    bare = dataset | {"annotations": [{name: value for name, value in dataset["annotations"][0].items() if name != "segmentation"}]}
    for truth, message in ((stray, "got annotation 77"), (bare, "got none in annotation 1"), (results, "got no images"), ({"images": []}, "no annotations")):
        with pytest.raises(ValueError, match=message):
            score_coco(truth, results)
    with pytest.raises(ValueError, match="list of results"):
        score_coco(dataset, dataset)
    assert score_coco(dataset, [])["average_precision"][0] == 0


def test_figure_of_judged_cells():
    """The legend counts as judge_cells does, each outline is where its cell is, and large fields stay small."""
    rng = np.random.default_rng(6)
    truth = discs(rng, 120, (900, 1500))
    pred = np.roll(truth, (9, -7), (0, 1))
    pred[:, 700:720] = 0
    judged = judge_cells(truth, pred, 0.6)
    figure = figure_judged_cells(rng.random(truth.shape), truth, pred, 0.6)
    shown = dict(trace.name.split(": ") for trace in figure.data if trace.showlegend)
    for state in ("found", "missed", "split", "merged"):
        assert int(shown[state]) == (judged.truth_states == state).sum()
    assert int(shown["false"]) == (judged.pred_states == "false").sum() > 0
    missed = next(trace for trace in figure.data if trace.name.startswith("missed"))
    on = [(x, y) for x, y in zip(missed.x, missed.y, strict=True) if x is not None]
    assert on and {int(truth[y, x]) for x, y in on} <= set(judged.truth_ids[judged.truth_states == "missed"].tolist())
    assert len(figure.to_json()) < 400_000
    full = figure_judged_cells(ONE, ONE, ONE)  # no background at all
    assert [trace.name for trace in full.data if trace.showlegend][0] == "found: 1"
    assert figure_judged_cells(ONE, EMPTY, EMPTY).data[0].name == "found: 0"


def test_figures_of_scores():
    images = [(ONE, ONE), (np.kron([[1, 0], [0, 2]], np.ones((2, 3), int)), ONE), (EMPTY, EMPTY)]
    scored = {name: score_instances(images[::step], kinds=["a", "b", "c"][::step], n_bootstrap=20) for name, step in (("first", 1), ("second", -1))}
    curves = figure_iou_curves(scored, "pq", kind="a")
    assert [trace.name for trace in curves.data if trace.showlegend is not False] == ["first", "second"]
    (heat,) = figure_kind_scores(scored).data
    assert list(heat.x) == ["first", "second"] and [name.split("<br>")[0] for name in heat.y] == ["a", "b", "c", "<b>all</b>"]
    np.testing.assert_allclose(np.array(heat.z, float), [[1, 1], [0, 0], [np.nan, np.nan], [1 / 4, 1 / 4]])
    assert heat.text[2][0] == "no cells" and heat.text[0][0] == "<b>1.000</b>"
    with pytest.raises(ValueError, match="without 'level'"):
        figure_kind_scores({"first": scored["first"].drop(columns="level")})
