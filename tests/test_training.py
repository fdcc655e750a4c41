"""Training: no leakage, the same result twice, weights that belong to their card."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hpacell.feed.writer import StoreWriter
from hpacell.models.evaluation import evaluate_classifier
from hpacell.models.training import TrainingSettings, load_classifier, split_store, train_classifier
from hpacell.models.zoo import ZOO, make_classifier

CHANNELS = ("microtubules", "protein", "nucleus", "er")
SETTINGS = TrainingSettings(
    model_parameters={"filters": (4, 8), "kernels": (3, 3), "units": 0, "dropout": 0.1}, epochs=8, batch_size=16, learning_rate=0.02
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """30 fields of 4 crops; nucleoli are bright in the middle, cytosol at the rim, negative is dark."""
    rng = np.random.default_rng(0)
    keys = [f"k{i}" for i in range(30)]
    with StoreWriter(tmp_path_factory.mktemp("training") / "store", (16, 16, 4), CHANNELS, {"size": 16}, keys) as writer:
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
    assert len(pd.read_csv(tmp_path / "a" / "log.csv")) <= SETTINGS.epochs


def test_loading_gives_the_same_probabilities(store, tmp_path):
    trained = train_classifier(store, tmp_path / "model", replace(SETTINGS, epochs=1))
    crops = store.crops(np.arange(7))
    for path in (tmp_path, tmp_path / "model", tmp_path / "model" / "model.weights.h5", tmp_path / "model" / "card.json"):
        np.testing.assert_array_equal(load_classifier(path).predict(crops), trained.predict(crops))
    assert trained.predict(crops[:0]).shape == (0, 3)


def test_a_remote_model(store, tmp_path):
    import fsspec

    trained = train_classifier(store, tmp_path / "model", replace(SETTINGS, epochs=1))
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path / "model"), "/models/one", recursive=True)
    crops = store.crops([0, 1])
    loaded = load_classifier("memory://models/one", cache=tmp_path / "cache")
    np.testing.assert_array_equal(loaded.predict(crops), trained.predict(crops))
    with pytest.raises(FileNotFoundError, match="expected card.json at"):
        load_classifier("memory://models/none", cache=tmp_path / "cache")


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
    [({"epochs": 0}, "epochs of at least 1"), ({"test_fold": 5}, "test_fold from 0 to 4"), ({"augment": ("flipp",)}, "did you mean 'flip'")],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)
