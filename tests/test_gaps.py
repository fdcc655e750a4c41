"""What a mean leaves out is named: locations, organs and kinds that one side of a split lacks."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict import write_model
from test_submission import GOOD
from test_training import CHANNELS, SETTINGS

import hpacell.models.training as training
from hpacell.feed.writer import StoreWriter
from hpacell.fields.simulate import simulate_fields
from hpacell.files import read_json, write_json
from hpacell.metrics.gaps import count_sides, describe_gaps, describe_kinds, find_gaps
from hpacell.metrics.submission import score_submission
from hpacell.models.evaluation import evaluate_classifier
from hpacell.models.recipe import split_store
from hpacell.pipeline.comparison import ComparedRun, compare_runs
from hpacell.pipeline.predict import predict_fields
from hpacell.vocabulary import LOCATIONS

ROWS = st.lists(st.tuples(st.integers(0, 9), st.sets(st.sampled_from("abcd"), max_size=3), st.sampled_from(["train", "valid", "test", "none"])), max_size=30)


@given(ROWS, st.sampled_from(["valid", "test"]), st.sets(st.sampled_from("abcd")))
@settings(max_examples=80, deadline=None)
def test_counts_and_gaps_are_their_definition(rows, scored, known):
    counts = count_sides([item for item, _, _ in rows], ["|".join(sorted(names)) for _, names, _ in rows], [side for _, _, side in rows])
    for name in "abcd":
        by_hand = {side: len({item for item, names, where in rows if name in names and where == side}) for side in ("train", "valid", "test")}
        assert counts.get(name, dict.fromkeys(by_hand, 0)) == by_hand
    gaps = find_gaps(counts, scored, known)
    assert [gap["name"] for gap in gaps] == sorted(name for name, n in counts.items() if not n["train"] or (not n[scored] and name in known))
    assert all(f"{gap['name']} (" in describe_gaps(gaps, scored=scored) for gap in gaps)


def test_the_sentence():
    counts = {"nucleoli": {"train": 0, "valid": 0, "test": 2}, "cytosol": {"train": 3, "valid": 1, "test": 0}, "golgi_apparatus": {"train": 1, "valid": 1, "test": 1}}
    assert describe_gaps(find_gaps(counts)) == (
        "left out of the mean: nucleoli (in 2 test fields, in no training field), cytosol (in 3 training fields, in 1 validation field, in no test field)"
    )
    many = [{"name": f"l{i}", "train": 0, "valid": 0, "test": 1} for i in range(14)]
    assert describe_gaps(many).endswith(" and 4 more") and describe_gaps([]) == ""
    organs = {"lung": {"train": 0, "valid": 0, "test": 2}, "spleen": {"train": 1, "valid": 0, "test": 0}, "colon": {"train": 0, "valid": 1, "test": 0}}
    assert describe_kinds(find_gaps(organs)) == [
        "in the mean, though not learned: lung (in 2 test images, in no training image)", "left out of the mean: spleen (in 1 training image, in no test image)",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """30 fields of 2 crops."""
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path_factory.mktemp("gaps") / "store", (16, 16, 4), CHANNELS, {"size": 16}) as writer:
        for i in range(30):
            label = ("cytosol", "golgi_apparatus")[i % 2]
            cells = pd.DataFrame({"field_id": [f"f{i}"] * 2, "labels": label})
            writer.add(f"k{i}", {"field_id": f"f{i}", "labels": label}, cells, rng.integers(0, 200, (2, 16, 16, 4)).astype(np.uint8))
        return writer.finish()


@pytest.mark.parametrize(("only", "words"), [("test", "in 2 test fields, in no training field"), ("valid", "in 2 validation fields, in no training field, in no test field"), ("train", "in 2 training fields, in no test field")])
def test_a_location_of_one_side_is_named_and_not_in_the_mean(store, tmp_path, monkeypatch, capsys, only, words):
    sides = dict(zip(store.index["field_id"], split_store(store, SETTINGS), strict=True))
    monkeypatch.setattr(training, "split_store", lambda store, settings: store.index["field_id"].map(sides))
    chosen = [field for field, side in sides.items() if side == only][:2]
    labels = store.index["labels"].mask(store.index["field_id"].isin(chosen), "nucleoli")
    changed = store.assign(labels=labels.astype("str"))
    trained = training.train_classifier(changed, tmp_path / "m", replace(SETTINGS, epochs=1))
    assert f"left out of the mean of the scores: nucleoli ({words})" in capsys.readouterr().err
    found = evaluate_classifier(trained, changed)
    assert f"left out of the mean: nucleoli ({words})" in str(found)
    learned = ["cytosol", "golgi_apparatus"]
    each = found.tables[found.headline].set_index("location").loc[learned, "average_precision"]
    assert found.summaries[found.headline]["macro_average_precision"] == pytest.approx(each.mean())
    card = read_json(tmp_path / "m" / "card.json")
    row = {"name": "nucleoli", "train": 0, "valid": 0, "test": 0} | {only: 2}
    assert card["data"]["left_out"]["test"] == [row] and card["scores"]["left_out"] == [row] and found.metrics()["left_out"] == [row]
    assert card["chosen_on"] == {"epoch": "valid", "field_model": "valid"} and card["scores_of"] == "test"
    if only == "train":  # what no validation field carries is no zero in the mean that chooses the epoch
        log = pd.read_csv(tmp_path / "m" / "log.csv")
        assert log["val_ap"].iloc[0] >= 0.4, "two locations of about half of the fields each"


def test_predictions_name_what_the_classifier_never_learned(tmp_path):
    simulate_fields(tmp_path / "fields", n_fields=1, seed=4, size=(128, 160), progress=False)
    model = write_model(tmp_path / "model")
    card = read_json(model / "card.json")
    rows = [{"name": "aggresome", "train": 0, "valid": 1, "test": 2}, {"name": card["locations"][0], "train": 3, "valid": 0, "test": 0}]
    write_json(model / "card.json", card | {"data": card["data"] | {"left_out": {"test": rows}}})
    report = predict_fields(tmp_path / "fields", model, tmp_path / "out", workers=1, overlays=0)
    assert "not learned, so never predicted: aggresome (in 1 validation field, in 2 test fields, in no training field)" in str(report)


def test_a_submission_names_what_the_truth_lacks(tmp_path):
    header = "ID,ImageWidth,ImageHeight,PredictionString\n"
    mask = GOOD
    (tmp_path / "t.csv").write_text(f"{header}f,60,40,0 1 {mask}\n")
    (tmp_path / "s.csv").write_text(f"{header}f,60,40,0 0.9 {mask} 5 0.8 {mask}\n")
    score = score_submission(tmp_path / "s.csv", tmp_path / "t.csv")
    assert f"left out of the mean: {LOCATIONS[5]} (1 prediction, no true cell)" in str(score) and score.summary["average_precision"] == 1


def test_runs_side_by_side_name_it(tmp_path):
    def run(name, **metrics):
        summaries = {"fields": {"macro_average_precision": 0.5, "macro_average_precision_low": 0.4, "macro_average_precision_high": 0.6}}
        return ComparedRun(name, tmp_path / name, "finished", metrics={"train_classifier": {"average_precision": 0.5, "scored": "Fields", "summaries": summaries, **metrics}}, kind="train_classifier")

    gaps = [{"name": "nucleoli", "train": 0, "valid": 0, "test": 2}]
    text = str(compare_runs([run("a"), run("b", left_out=gaps)]))
    assert "b: left out of the mean: nucleoli (in 2 test fields, in no training field)" in text and "a: left out" not in text
