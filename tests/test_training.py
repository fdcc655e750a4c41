"""Training: no leakage, the same result twice, weights that belong to their card."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpacell.feed.writer import StoreWriter
from hpacell.models import training
from hpacell.models.card import CARD_KEYS, find_classifier, load_classifier, save_classifier
from hpacell.models.evaluation import evaluate_classifier
from hpacell.models.training import TrainingSettings, split_store, train_classifier
from hpacell.models.zoo import ZOO, make_classifier
from hpacell.pipeline.predict import predict_store

CHANNELS = ("microtubules", "protein", "nucleus", "er")
SETTINGS = TrainingSettings(
    model_parameters={"filters": (4, 8), "kernels": (3, 3), "units": 0, "dropout": 0.1}, epochs=8, batch_size=16, learning_rate=0.02
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """30 fields of 4 crops; nucleoli are bright in the middle, cytosol at the rim, negative is dark."""
    rng = np.random.default_rng(0)
    keys = [f"k{i}" for i in range(30)]
    with StoreWriter(tmp_path_factory.mktemp("training") / "store", (16, 16, 4), CHANNELS, {"size": 16}) as writer:
        for i, key in enumerate(keys):
            crops = rng.integers(0, 40, (4, 16, 16, 4))
            if i % 3 == 0:
                crops[:, 5:11, 5:11, 1] += 150
            if i % 3 == 1:
                crops[:, :, :, 1] += 100
                crops[:, 5:11, 5:11, 1] -= 100
            label = ("nucleoli", "cytosol", "negative")[i % 3]
            cells = pd.DataFrame({"field_id": [f"f{i}"] * 4, "labels": label})
            writer.add(key, {"field_id": f"f{i}", "labels": label}, cells, crops.astype(np.uint8))
        return writer.finish()


def test_no_field_on_two_sides(store):
    sides = split_store(store, SETTINGS)
    by_field = store.index.assign(side=sides).groupby("field_id")["side"].nunique()
    assert (by_field == 1).all() and set(sides) == {"train", "valid", "test"}
    assert [sides.tolist() == split_store(store, replace(SETTINGS, seed=seed)).tolist() for seed in (0, 1)] == [True, False]


def test_too_few_fields_are_refused(store):
    with pytest.raises(ValueError, match="expected at least 40 labelled fields"):
        split_store(store, replace(SETTINGS, n_folds=40))


def test_it_learns_and_repeats(store, tmp_path):
    first = train_classifier(store, tmp_path / "a", SETTINGS)
    second = train_classifier(store, tmp_path / "b", SETTINGS)
    for one, other in zip(first.model.get_weights(), second.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    found = evaluate_classifier(first, store)
    best = found.summaries["fields"]
    assert best["macro_average_precision"] > best["macro_chance"] + 0.3
    assert found.n_fields == 6 and found.n_cells == 24
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    fields = card["data"]["fields"]
    assert not set(fields["test"]) & (set(fields["train"]) | set(fields["valid"]))
    assert card["scores"]["average_precision"] == pytest.approx(best["macro_average_precision"])
    assert load_classifier(tmp_path / "a").card == card  # noting the scores left the weights alone
    assert card["computed_on"]["cores"] >= 1 and card["computed_on"]["processor"] and card["computed_on"]["devices"]
    assert sorted(os.listdir(tmp_path / "a")) == [".lock", "card.json", "log.csv", "model.weights.h5", "tensorboard", "test_cells.parquet"]
    assert str(found).endswith("6 fields are too few for intervals: label more, so that 8 or more are kept for the scores.")
    assert len(pd.read_csv(tmp_path / "a" / "log.csv")) <= SETTINGS.epochs


def of_fields(store, n, folder):
    """A store of the first n fields."""
    fields, index = store.fields.head(n), store.index[store.index["field_id"].isin(store.fields["field_id"].head(n))]
    with StoreWriter(folder, store.shape, CHANNELS, {"size": 16}) as writer:
        for field in fields.to_dict("records"):
            rows = np.flatnonzero(index["field_id"] == field["field_id"])
            cells = index.iloc[rows].reset_index(drop=True)
            writer.add(field["key"], {name: field[name] for name in ("field_id", "labels")}, cells, store.crops(rows))
        return writer.finish()


def test_one_test_field_gives_no_interval(store, tmp_path):
    three = of_fields(store, 3, tmp_path / "store")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "unfinished.json").write_text("{}")  # as a kill leaves it; training again makes the folder whole
    found = evaluate_classifier(train_classifier(three, tmp_path / "model", replace(SETTINGS, epochs=1, n_folds=3)), three)
    assert found.n_fields == 1 and find_classifier(tmp_path) == tmp_path / "model"
    for kind, table in found.tables.items():
        assert table[[name for name in table if name.endswith(("_low", "_high"))]].isna().all(axis=None)
        assert all(value is None for name, value in found.summaries[kind].items() if name.endswith(("_low", "_high")))
    shown = str(found)
    assert shown.startswith("Scores on 1 field (4 cells)")
    assert shown.endswith("1 field is too few for intervals: label more, so that 8 or more are kept for the scores.")
    if found.summaries[found.headline]["macro_average_precision"] is not None:
        n = found.summaries[found.headline]["n_locations"]
        assert f" over {n} location{'s' * (n != 1)} (no interval: 1 field is too few, 8 are needed)" in shown and found.metrics()["interval"] == "no interval: 1 field is too few, 8 are needed"
    else:
        assert "nothing to score, since none of them shows a location that was learned" in shown
    json.dumps(found.metrics(), allow_nan=False)


def saved(folder, **change):
    """A classifier that has learned nothing; its folder."""
    parameters = {"filters": [4], "kernels": [3], "units": 0}
    card = dict.fromkeys(CARD_KEYS, {}) | {
        "kind": "classifier", "model": "batch_norm", "model_parameters": parameters, "crop_shape": [16, 16, 4],
        "channels": list(CHANNELS), "locations": ["cytosol", "nucleoli"],
    }  # fmt: skip
    save_classifier(make_classifier("batch_norm", (16, 16, 4), 2, **parameters), card | change, folder)
    return folder


KILLED = """
import os, signal, sys
from hpacell.feed.store import read_store
from hpacell.models import training

usual = training._EpochEnd.keep
def keep(self, name):
    usual(self, name)
    os.kill(os.getpid(), signal.SIGKILL)
training._EpochEnd.keep = keep
small = {"filters": (4,), "kernels": (3,), "units": 0}
training.train_classifier(read_store(sys.argv[1]), sys.argv[2], training.TrainingSettings(model_parameters=small, epochs=2, augment=()))
"""


def test_a_killed_training_is_no_classifier(store, tmp_path):
    former = load_classifier(saved(tmp_path / "again"))
    assert subprocess.run([sys.executable, "-c", KILLED, store.folder, str(tmp_path / "again")], capture_output=True).returncode == -signal.SIGKILL
    left = sorted(os.listdir(tmp_path / "again"))
    assert left == [".lock", "best.weights.h5", "card.json", "log.csv", "model.weights.h5", "state-1.weights.h5", "state.json", "tensorboard", "unfinished.json"]
    with pytest.raises(FileNotFoundError, match="a training that was stopped before its end: train again .* or delete unfinished.json"):
        load_classifier(tmp_path / "again")
    fresh = tmp_path / "run" / "model"  # the same kill where nothing lay before
    fresh.mkdir(parents=True)
    for name in ("best.weights.h5", "log.csv", "unfinished.json"):
        shutil.copy(tmp_path / "again" / name, fresh)
    for path in (fresh, fresh.parent, fresh / "card.json", fresh / "best.weights.h5"):
        with pytest.raises(FileNotFoundError, match="expected a classifier"):
            find_classifier(path)
    with pytest.raises(FileNotFoundError, match="stopped before its end: train again into the same folder$"):
        find_classifier(fresh.parent)
    # The former one was not touched.
    (tmp_path / "again" / "unfinished.json").unlink()
    np.testing.assert_array_equal(load_classifier(tmp_path / "again").predict(store.crops([0])), former.predict(store.crops([0])))


class Stopped(BaseException):
    """As sudden as a kill, but for this process."""


def stopping_at(monkeypatch, epoch, before):
    """Training stops when the state of an epoch is to be written: before that, or after."""
    usual = training._EpochEnd.keep

    def keep(self, name):
        if before and name == f"state-{epoch}.weights.h5":
            raise Stopped
        usual(self, name)
        if name == f"state-{epoch}.weights.h5":
            raise Stopped

    monkeypatch.setattr(training._EpochEnd, "keep", keep)


SMALL = replace(SETTINGS, epochs=4, augment=("flip", "noise", {"blur": {"probability": 0.5}}))


@pytest.mark.parametrize(
    ("change", "stops"),
    [
        ({"ema": 0.9, "warmup": 0.2, "balance": "sampling"}, [(1, False), (3, True)]),
        ({"weak": "em"}, [(1, False), (2, False), (3, True)]),
        ({"weak": "attention", "ema": 0.9}, [(2, False), (3, False)]),
        ({"head": "softmax", "loss": "softmax", "optimizer": "sgd", "schedule": "one_cycle", "patience": 1}, [(2, False)]),
        ({"model": "resnet18", "model_parameters": {"filters": (64,), "blocks": (1,), "weights": "none"}, "frozen_epochs": 2}, [(1, False), (2, False)]),
    ],
    ids=["average", "em", "attention", "softmax", "frozen"],
)
def test_a_training_goes_on_as_if_nothing_had_happened(store, tmp_path, monkeypatch, capsys, change, stops):
    settings = replace(SMALL, **change)
    unbroken = train_classifier(store, tmp_path / "unbroken", settings)
    for epoch, before in stops:
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stopping_at(patch, epoch, before)
            train_classifier(store, tmp_path / "stopped", settings)
    capsys.readouterr()
    resumed = train_classifier(store, tmp_path / "stopped", settings)
    assert f"goes on after epoch {stops[-1][0] - stops[-1][1]} of 4" in capsys.readouterr().err
    for one, other in zip(unbroken.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    logs = [pd.read_csv(tmp_path / name / "log.csv").drop(columns="seconds") for name in ("unbroken", "stopped")]
    pd.testing.assert_frame_equal(*logs)
    cards = [{name: value for name, value in trained.card.items() if name not in ("seconds", "weights_blake2b")} for trained in (unbroken, resumed)]
    assert cards[0] == cards[1]  # a file of weights also holds when it was written
    assert sorted(os.listdir(tmp_path / "stopped")) == [".lock", "card.json", "log.csv", "model.weights.h5", "tensorboard"]


def test_predictions_are_the_answers_that_were_scored(store, tmp_path):
    trained = train_classifier(store, tmp_path / "a", replace(SMALL, weak="em"))
    evaluate_classifier(trained, store)
    scored = pd.read_parquet(tmp_path / "a" / "test_cells.parquet")
    answers = predict_store(load_classifier(tmp_path / "a"), store)
    answers = answers[answers["field_id"].isin(trained.card["data"]["fields"]["test"])].reset_index(drop=True)
    columns = [name for name in scored if name.startswith("p_")]
    np.testing.assert_allclose(answers[columns], scored[columns], atol=1e-6)
    others = answers[["p_cytosol", "p_nucleoli"]].to_numpy()
    np.testing.assert_allclose(answers["p_negative"], np.prod(1 - others, axis=1), atol=1e-6)


def test_a_changed_split_is_another_training(store, tmp_path, monkeypatch, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b\nf0,f1\n")
    settings = replace(SMALL, epochs=2, duplicates=str(pairs))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stopping_at(patch, 1, False)
        train_classifier(store, tmp_path / "a", settings)
    pairs.write_text("a,b\n" + "".join(f"f{i},f{i + 1}\n" for i in range(0, 28, 2)))
    fields = train_classifier(store, tmp_path / "a", settings).card["data"]["fields"]
    assert "goes on" not in capsys.readouterr().err
    for i in range(0, 28, 2):
        assert sum({f"f{i}", f"f{i + 1}"} <= set(ids) for ids in fields.values()) == 1


def test_what_cannot_be_trained_leaves_the_folder_as_it_is(store, tmp_path, monkeypatch, capsys):
    settings = replace(SMALL, epochs=1)
    first = train_classifier(store, tmp_path / "a", settings)
    before = sorted(os.listdir(tmp_path / "a"))
    with pytest.raises(ValueError, match="expected at least one, got|as many kernels as filters"):
        train_classifier(store, tmp_path / "a", replace(settings, model_parameters={"filters": (4, 8), "kernels": (3,)}))
    assert sorted(os.listdir(tmp_path / "a")) == before and load_classifier(tmp_path / "a").card["weights_blake2b"] == first.card["weights_blake2b"]
    capsys.readouterr()
    again = train_classifier(store, tmp_path / "a", settings)  # stopped before it was scored
    assert "was trained before, but not scored" in capsys.readouterr().err and again.card["weights_blake2b"] == first.card["weights_blake2b"]
    evaluate_classifier(again, store)
    train_classifier(store, tmp_path / "a", settings)  # asked for once more
    assert "was trained before" not in capsys.readouterr().err


def test_another_training_begins_anew(store, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stopping_at(patch, 2, False)
        train_classifier(store, tmp_path / "a", SMALL)
    fresh = train_classifier(store, tmp_path / "a", replace(SMALL, seed=1, epochs=2))
    assert "goes on" not in capsys.readouterr().err
    np.testing.assert_array_equal(fresh.model.get_weights()[0], train_classifier(store, tmp_path / "b", replace(SMALL, seed=1, epochs=2)).model.get_weights()[0])
    assert len(pd.read_csv(tmp_path / "a" / "log.csv")) == 2


def test_a_store_that_changed_is_refused(store, trained, tmp_path):
    with pytest.raises(ValueError, match="the store that the classifier was trained on .* changed since"):
        evaluate_classifier(trained, of_fields(store, 29, tmp_path / "store"))


def test_bad_labels_and_crops_are_told(store, tmp_path, capsys):
    slips = store.assign(labels=store.index["labels"].replace("cytosol", "cytosool"))
    with pytest.raises(ValueError, match="did you mean 'cytosol'"):
        train_classifier(slips, tmp_path / "a", SMALL)
    with pytest.raises(ValueError, match="location with an example in the training fields"):
        train_classifier(store, tmp_path / "a", SMALL, locations=["vesicles"])
    each_its_own = store.assign(labels=["cytosol", "nucleoli"] * 60)
    with pytest.raises(ValueError, match="expected labels of fields for weak='em'"):
        train_classifier(each_its_own, tmp_path / "a", replace(SMALL, weak="em"))
    assert not (tmp_path / "a").exists()
    assert train_classifier(each_its_own, tmp_path / "b", replace(SMALL, epochs=1)).card["field_model"] is None
    crops = np.zeros((12, 16, 16, 4), np.uint8)
    for n_seen, name in ((0, "dark"), (11, "light")):
        crops[:n_seen] = 7
        with StoreWriter(tmp_path / name, (16, 16, 4), CHANNELS, {"size": 16}) as writer:
            for i in range(6):
                cells = pd.DataFrame({"field_id": [f"f{i}"] * 2, "labels": "cytosol"})
                writer.add(f"k{i}", {"field_id": f"f{i}", "labels": "cytosol"}, cells, crops[2 * i : 2 * i + 2])
            made = writer.finish()
        if not n_seen:
            with pytest.raises(ValueError, match="expected crops that show something, got 12 that are black"):
                train_classifier(made, tmp_path / "c", SMALL)
    trained = train_classifier(made, tmp_path / "c", replace(SMALL, epochs=1))
    assert "1 of 12 crops are black and left out, the first of field f5" in capsys.readouterr().err
    assert trained.card["data"]["n_crops"]["none"] == 1


def test_typos_and_other_files_are_no_classifier(tmp_path):
    model = saved(tmp_path / "run" / "model")
    (model / "best.weights.h5").write_bytes(b"")
    for wrong, message in (
        (model / "modle.weights.h5", "no such file or folder: check the path"),
        (model / "best.weights.h5", "another file: give a run, a model's folder or its model.weights.h5"),
        (tmp_path / "rum", "no such file or folder"),
        (model / "deeper", "no such file or folder"),
        (model.parent / "card.json", "no such file or folder"),
        (tmp_path, "a folder without them: give a run"),
    ):
        with pytest.raises(FileNotFoundError, match=message) as caught:
            load_classifier(wrong)
        assert str(wrong) in str(caught.value) and "card.json" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    for path in (model.parent, model, model / "card.json", model / "model.weights.h5"):
        assert find_classifier(path) == model
    (model / "card.json").unlink()
    with pytest.raises(FileNotFoundError, match="got model.weights.h5 alone: copy both"):
        find_classifier(model.parent)


@pytest.mark.parametrize("name", CARD_KEYS)
def test_a_card_that_lacks_something_names_it(tmp_path, name):
    card = json.loads((saved(tmp_path) / "card.json").read_text())
    del card[name]
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=f"card.json: expected the card of a classifier, got none of {name}: copy it again"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "got none of kind, model, model_parameters, crop_shape"),
        ("[]", "got none of kind"),
        ("", "expected JSON"),
        ("null", "got none of kind"),
        (None, "got a card of kind 'detector'"),
    ],
)
def test_other_cards_are_refused(tmp_path, text, message):
    saved(tmp_path, kind="detector")
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_classifier(tmp_path)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    return train_classifier(store, tmp_path_factory.mktemp("run") / "model", replace(SETTINGS, epochs=1))


def test_truth_of_other_fields_is_told_and_left_out(store, trained, tmp_path):
    (tmp_path / "cells.csv").write_text("field_id,cell_id,labels\nother,1,cytosol\n")
    found = evaluate_classifier(replace(trained, folder=shutil.copytree(trained.folder, tmp_path / "model")), store, truth=tmp_path)
    assert found.headline == "fields" and "cells_true" not in found.tables
    assert "knows none of the 24 test cells; give the folder truth/ of these fields" in str(found)
    (tmp_path / "cells.csv").write_text("field_id,labels\nother,cytosol\n")
    with pytest.raises(ValueError, match="cells.csv: expected the columns field_id, cell_id and labels, got field_id, labels, none named cell_id"):
        evaluate_classifier(trained, store, truth=tmp_path)


def test_loading_gives_the_same_probabilities(store, trained):
    folder = Path(trained.folder)
    crops = store.crops(np.arange(7))
    for path in (folder.parent, folder, folder / "model.weights.h5", folder / "card.json"):
        np.testing.assert_array_equal(load_classifier(path).predict(crops), trained.predict(crops))
    assert trained.predict(crops[:0]).shape == (0, 3)


def test_a_remote_model(store, trained, tmp_path, monkeypatch):
    import fsspec

    system = fsspec.filesystem("memory")
    system.put(trained.folder, "/models/one", recursive=True)
    crops = store.crops([0, 1])
    loaded = load_classifier("memory://models/one", cache=tmp_path / "cache")
    np.testing.assert_array_equal(loaded.predict(crops), trained.predict(crops))
    with pytest.raises(FileNotFoundError, match="expected card.json at memory://models/none, got none: give the address"):
        load_classifier("memory://models/none", cache=tmp_path / "cache")
    # Without a word the cache is where the settings say; a run, weights or card may be named, too.
    monkeypatch.setenv("HPACELL_PATHS_CACHE", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    system.put(trained.folder, "/models/run/model", recursive=True)
    for address in ("models/one", "models/run", "models/run/model/card.json", "models/one/model.weights.h5"):
        np.testing.assert_array_equal(load_classifier(f"memory://{address}").predict(crops), trained.predict(crops))
    assert len(list((tmp_path / "mine").iterdir())) == 1 and not (tmp_path / "data").exists()
    system.pipe("/models/one/unfinished.json", b"{}")
    with pytest.raises(FileNotFoundError, match="stopped before its end"):
        load_classifier("memory://models/one")


@pytest.mark.parametrize("name", ZOO)
def test_models_are_whole(name, tmp_path):
    model = make_classifier(name, (32, 24, 3), 5)
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3), np.uint8)
    out = np.asarray(model(crops))
    assert out.shape == (2, 5) and out.dtype == np.float32 and ((out >= 0) & (out <= 1)).all()
    model.save_weights(tmp_path / "x.weights.h5")
    again = make_classifier(name, (32, 24, 3), 5)
    again.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(np.asarray(again(crops)), out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs of at least 1"), ({"epochs": 2.5}, "epochs of at least 1, a whole number, got 2.5"), ({"test_fold": 5}, "test_fold from 0 to 4"),
        ({"augment": ("flipp",)}, "did you mean 'flip'"), ({"model": "batch_nrm"}, "did you mean 'batch_norm'"), ({"model_parameters": {"filter": 3}}, "did you mean 'filters'"),
        ({"learning_rate": -1.0}, "learning_rate of at least 0"), ({"ema": 1.0}, "ema of at least 0"), ({"seed": -1}, "seed of at least 0"),
        ({"frozen_epochs": 1}, "which has no backbone"), ({"weak": "max", "balance": "weights"}, "expected balance 'none'"),
        ({"weak": "em", "inherit_epochs": 1.0}, "expected epochs left for weak='em'"), ({"weak": "lse", "augment": ("mixup",)}, "which mixes cells of several fields"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


REPEATED = """
import sys
from dataclasses import replace
import numpy as np
sys.path.insert(0, sys.argv[3])
from hpacell.feed.store import read_store
from test_training import SETTINGS, train_classifier
from test_segmenter import IMAGES, SIDES, train_segmenter
from test_segmenter import SETTINGS as SEGMENTER
cells = train_classifier(read_store(sys.argv[1]), sys.argv[2] + "/cells", replace(SETTINGS, epochs=2)).model.get_weights()
unet = train_segmenter(IMAGES, sys.argv[2] + "/unet", replace(SEGMENTER, epochs=1, steps_per_epoch=10), SIDES).network.get_weights()
np.savez(sys.argv[2] + "/weights.npz", *cells, *unet)
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_with_the_same_threads(store, tmp_path, root):
    """What the docstring of `seed` promises, in processes of their own: threads are chosen when TensorFlow begins."""
    found = []
    for name, threads in (("one", "1"), ("again", "1"), ("two", "2")):
        (tmp_path / name).mkdir()
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), threads) | {"PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-c", REPEATED, store.folder, tmp_path / name, root / "tests"], env=environment, check=True, capture_output=True)
        card = json.loads((tmp_path / name / "unet" / "card.json").read_text())
        assert card["computed_on"]["variables"]["TF_NUM_INTRAOP_THREADS"] == threads
        with np.load(tmp_path / name / "weights.npz") as arrays:
            found.append([arrays[key] for key in arrays.files])
    for one, again, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, again)
        np.testing.assert_allclose(one, two, atol=1e-4)  # 8e-6 at the worst; another seed gives other weights altogether
