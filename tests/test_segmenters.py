"""Segmenters by name: what auto means, what a network is shown, and that nuclei and cells keep their numbers."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import hpacell.pipeline.field as pipeline_field
import hpacell.pipeline.learned as learned
import hpacell.pipeline.segment as segment
import hpacell.pipeline.segmenters as segmenters
import hpacell.pipeline.signatures as signatures
from hpacell.cells.segmentation import segment_cells, segment_nuclei
from hpacell.cli import main
from hpacell.fields.find import FieldSource
from hpacell.fields.simulate import simulate_field
from hpacell.metrics.instances import jaccard
from hpacell.models.segmenter_card import shipped_segmenters
from hpacell.pipeline.extract import ExtractSettings, extract_fields
from hpacell.pipeline.learned import nuclear_picture
from hpacell.pipeline.segment import segment_fields
from hpacell.pipeline.segmenters import (
    check_method,
    method_for,
    method_signature,
    processes_for,
    segmenter_of,
)
from hpacell.vocabulary import CHANNELS


class Threshold:
    """A segmenter that takes connected bright pixels for nuclei or cells, and keeps what it was shown."""

    def __init__(self, channels=("nucleus",)):
        self.channels, self.target, self.shown = channels, "nuclei" if channels == ("nucleus",) else "cells", []

    def segment(self, image):
        self.shown.append(image)
        bright = image.max(axis=2) > 40
        labels, n = ndimage.label(ndimage.binary_opening(bright, iterations=2))
        return labels.astype(np.int32), np.ones(n, np.float32)


def write_card(folder, **entries):
    (folder / "card.json").write_text(json.dumps({"kind": "segmenter", **entries}))
    (folder / "model.weights.h5").write_bytes(b"")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a segmenter of nuclei; what it is shown is kept."""
    (tmp_path / "own").mkdir()
    write_card(tmp_path / "own")
    made = Threshold()
    monkeypatch.setattr(learned, "_load", lambda method, signature: made)
    return str(tmp_path / "own")


@pytest.fixture(scope="module")
def field():
    return simulate_field(seed=1, size=(256, 256)).field


def test_a_whole_cell_is_for_the_classical_method_and_nuclei_alone_for_the_learned(monkeypatch, tmp_path):
    assert method_for("auto", CHANNELS) == "classical" and method_for("maskrcnn", CHANNELS) == "maskrcnn"
    (tmp_path / f"{segmenters.AUTO}_nuclei").mkdir()
    monkeypatch.setattr(learned, "SHIPPED", tmp_path)
    assert method_for("auto", ("nucleus",)) == "classical"  # nothing lies there
    (tmp_path / f"{segmenters.AUTO}_nuclei" / "card.json").write_text("{}")
    assert method_for("auto", ("nucleus",)) == segmenters.AUTO


def test_what_comes_with_the_package_is_what_can_be_named():
    assert {f"{method}_nuclei" for method in learned.LEARNED} == set(shipped_segmenters())


@pytest.mark.parametrize("name", ["magic", "", "unett"])
def test_an_unknown_method_is_refused_everywhere(name, tmp_path):
    for refuse in (check_method, segmenter_of, ExtractSettings().__class__):
        with pytest.raises(ValueError, match="expected a method among auto, classical, unet, maskrcnn, .*the folder of a trained segmenter, or module:function of your own"):
            refuse(**{"method": name})


def test_other_weights_are_another_method(own, tmp_path):
    before = method_signature(own)
    write_card(tmp_path / "own", scores={"jaccard_50": 0.9})
    assert method_signature(own) == before, "what a model scores changes no cell"
    (tmp_path / "own").rename(tmp_path / "moved")
    assert method_signature(str(tmp_path / "moved")) == before, "nor does where it lies"
    write_card(tmp_path / "moved", config={"foreground": 0.7})
    card = method_signature(str(tmp_path / "moved"))
    (tmp_path / "moved" / "model.weights.h5").write_bytes(b"other")
    assert len({before, card, method_signature(str(tmp_path / "moved"))}) == 3


def test_other_weights_leave_alone_what_auto_gives_to_the_classical_method(monkeypatch, tmp_path):
    assert method_signature("auto", CHANNELS) == method_signature("classical", CHANNELS)
    alone = method_signature("auto", ["nucleus"])
    assert alone == method_signature(segmenters.AUTO) and alone in method_signature("auto"), "whoever does not know the channels counts with the weights"

    def keys(channels, shown=()):
        source, row = FieldSource("f", ("f.png",), channels), {"channels": "|".join(shown or channels), "formats": "PNG"}
        return pipeline_field.field_key(source, "PNG:0a", ExtractSettings(), shown), segment._key(source, "the same files", row, "auto", "keep")

    cases = [(("nucleus",), ()), ((), ("nucleus",)), (CHANNELS, ()), ((), CHANNELS)]
    before = [keys(*case) for case in cases]
    place = tmp_path / f"{segmenters.AUTO}_nuclei"
    place.mkdir()
    write_card(place, method="maskrcnn")
    monkeypatch.setattr(learned, "SHIPPED", tmp_path)
    for case, former in zip(cases, before, strict=True):
        assert [now == then for now, then in zip(keys(*case), former, strict=True)] == [CHANNELS in case] * 2, case


@pytest.mark.parametrize("spoilt", ["kind", "unfinished", "weights"])
def test_a_folder_without_a_whole_segmenter_is_refused_once_and_before_any_field(own, tmp_path, spoilt, capsys):
    if spoilt == "kind":
        write_card(tmp_path / "own", kind="classifier")
    elif spoilt == "unfinished":
        (tmp_path / "own" / "unfinished.json").write_text("{}")
    else:
        (tmp_path / "own" / "model.weights.h5").unlink()
    cv2.imwrite(str(tmp_path / "f.png"), np.zeros((32, 32), np.uint8))
    assert main(["segment", str(tmp_path / "f.png"), "--out", str(tmp_path / "out"), "--method", own]) == 2
    assert "expected a trained segmenter, got something else" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_retrained_segmenter_is_loaded_anew(tmp_path, monkeypatch):
    write_card(tmp_path, weights_blake2b="one")
    loaded = []
    monkeypatch.setattr("hpacell.models.segmenter_card.load_segmenter", lambda folder: loaded.append(folder) or Threshold())
    grey, method = np.zeros((40, 40, 1), np.uint8), str(tmp_path)
    for signature in ("one", "one", "other"):
        write_card(tmp_path)
        (tmp_path / "model.weights.h5").write_text(signature)
        segmenter_of(method)(grey, channels=["nucleus"])
    assert len(loaded) == 2


def test_large_nuclei_are_looked_at_in_a_smaller_picture(own, field):
    large = cv2.resize(field.image, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    found = segmenter_of(own)(large, channels=field.channels).nuclei
    shown = learned._load(own, "").shown[-1]
    assert shown.shape[0] < 512 and found.shape == large.shape[:2]
    plain = segmenter_of(own)(field.image, channels=field.channels).nuclei
    assert abs(found.max() - plain.max()) <= 2 and jaccard(cv2.resize(plain.astype(np.float32), found.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(int), found, 0.5) > 0.8


def test_a_network_works_in_one_process_unless_more_are_asked_for():
    nuclei, whole = SimpleNamespace(channels=("nucleus",)), SimpleNamespace(channels=CHANNELS)
    assert processes_for("classical", [nuclei], 0) == 0 and processes_for("auto", [whole], 0) == 0
    assert processes_for("maskrcnn", [whole], 0) == 1 and processes_for("maskrcnn", [whole], 3) == 3


def test_nuclei_of_a_network_get_their_cells_and_both_the_same_numbers(own, field):
    found = segmenter_of(own)(field.image, channels=field.channels)
    nuclei, _ = Threshold().segment(field.image[..., [2]])
    np.testing.assert_array_equal(found.nuclei > 0, nuclei > 0)
    np.testing.assert_array_equal(found.cells, segment_cells(field.image, found.nuclei, field.channels))
    assert found.nuclei.max() == found.cells.max() > 5
    assert segmenter_of(own)(field.image[..., [2]], channels=["nucleus"]).cells is None


@pytest.mark.parametrize("border", ["nuclei", "cells"])
def test_the_border_rule_holds_for_networks_too(own, field, border):
    kept, found = (segmenter_of(own)(field.image, channels=field.channels, border=rule) for rule in ("keep", border))
    edge = found.nuclei if border == "nuclei" else found.cells
    assert not np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]]).any()
    assert 0 < found.nuclei.max() < kept.nuclei.max()
    assert sorted(np.unique(found.nuclei)) == list(range(found.nuclei.max() + 1))


def test_cells_of_a_network_get_what_lies_in_them_of_the_nuclei(tmp_path, monkeypatch, field):
    write_card(tmp_path)
    network = Threshold(CHANNELS)
    monkeypatch.setattr(learned, "_load", lambda method, signature: network)
    found = segmenter_of(str(tmp_path))(field.image[..., ::-1], channels=field.channels[::-1])
    np.testing.assert_array_equal(network.shown[0], field.image)  # in the order that the network knows
    nuclei = segment_nuclei(field.image, field.channels)
    inside = (found.nuclei > 0) & (found.cells > 0)
    np.testing.assert_array_equal(found.nuclei[inside], found.cells[inside])
    assert not (found.nuclei > 0)[nuclei == 0].any() and found.cells.max() > 0
    with pytest.raises(ValueError, match="expected the channels microtubules, protein, nucleus, er.*got no microtubules"):
        segmenter_of(str(tmp_path))(field.image[..., 1:], channels=field.channels[1:])


def test_a_stained_section_is_shown_in_all_its_colours(own, field):
    stained = 255 - field.image[..., [2, 2, 2]] // 2
    channels = ("microtubules", "protein", "nucleus")
    assert nuclear_picture(stained, channels).shape[-1] == 3
    np.testing.assert_array_equal(nuclear_picture(field.image, field.channels)[..., 0], field.image[..., 2])
    found = segmenter_of(own)(stained, channels=channels)
    assert found.cells is None and learned._load(own, "").shown[-1].shape[-1] == 3


def test_fields_are_segmented_and_extracted_by_a_segmenter_of_ones_own(own, field, tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "_TICK_NS", 0)  # files that were written a moment ago count as settled
    (tmp_path / "fields").mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / "fields" / f"f{i}.png"), np.roll(field.image[..., 2], 40 * i, axis=0))
    report = segment_fields(tmp_path / "fields", tmp_path / "out", method=own)
    assert report.n_made == 2 and (report.fields["n_nuclei"] > 5).all()
    assert segment_fields(tmp_path / "fields", tmp_path / "out", method=own).n_made == 0
    store = extract_fields(tmp_path / "fields", tmp_path / "store", settings=ExtractSettings(32, method=own)).store
    assert len(store) == report.fields["n_nuclei"].sum() and store.manifest["parameters"]["method"] == own


@pytest.mark.parametrize("method", learned.LEARNED)
def test_what_is_shipped_finds_nuclei_of_any_kind_of_field(method, shared_data, tmp_path, capsys):
    """One image of each kind, an empty one and one that is no image: the batch goes on, and nothing comes back empty without a word."""
    import pandas as pd

    index = pd.read_csv(shared_data / "dsb2018" / "index.csv")
    (tmp_path / "fields").mkdir()
    for kind, images in index[index["height"] <= 400].groupby("kind"):
        name = images["image_id"].iloc[0]
        (tmp_path / "fields" / f"{kind}.png").symlink_to(shared_data / "dsb2018" / "images" / f"{name}.png")
    cv2.imwrite(str(tmp_path / "fields" / "empty.png"), np.zeros((70, 90), np.uint8))
    (tmp_path / "fields" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    assert main(["segment", str(tmp_path / "fields"), "--out", str(tmp_path / "out"), "--method", method]) == 1
    found = pd.read_csv(tmp_path / "out" / "segmentation.csv").set_index("field_id")
    assert found.loc["empty", "n_nuclei"] == 0
    assert (found.drop("empty")["n_nuclei"] >= 5).all(), found
    assert pd.read_csv(tmp_path / "out" / "quarantine.csv")["field_id"].tolist() == ["damaged"]


def test_on_bright_ground_a_picture_keeps_its_size(own):
    bright = np.full((300, 400, 1), 180, np.uint8)
    cv2.circle(bright, (200, 150), 20, (90,), -1)
    segmenter_of(own)(bright, channels=["nucleus"])
    assert learned._load(own, "").shown[-1].shape == (300, 400, 1)


def large_and_small():
    """A picture of 9 discs of 120 pixels across and 60 of 12, and how many there are."""
    picture = np.full((1200, 1200), 10, np.float32)
    for row, col in (np.argwhere(np.ones((3, 3))) * 400 + 150).tolist():
        cv2.circle(picture, (col, row), 60, 150, -1)
    for row, col in (np.argwhere(np.ones((3, 20))) * [400, 60] + [340, 20]).tolist():
        cv2.circle(picture, (col, row), 6, 150, -1)
    noise = np.random.default_rng(0).normal(0, 3, picture.shape)
    return (cv2.GaussianBlur(picture, (0, 0), 1) + noise).clip(0, 255).astype(np.uint8), 69


def test_large_nuclei_and_small_ones_are_looked_at_in_two_sizes(own):
    picture, n = large_and_small()
    found = segmenter_of(own)(picture, ["nucleus"])
    sides = [image.shape[0] for image in learned._load("", "").shown]
    assert len(sides) == 2 and sides[0] == 1200 and sides[1] == pytest.approx(400, abs=20)
    assert int(found.nuclei.max()) == n and found.smallest_px == 8


@pytest.mark.parametrize(("diameter", "side"), [(4, 512), (8, 256), (40, 256), (128, 80)])
def test_a_given_diameter_says_in_which_size_a_network_looks(own, field, diameter, side):
    found = segmenter_of(own)(field.image[..., 2], ["nucleus"], diameter=diameter)
    assert [image.shape[0] for image in learned._load("", "").shown] == [side]
    assert found.nuclei.shape == (256, 256) and found.smallest_px == pytest.approx(8 * 256 / side)


@pytest.mark.parametrize("shift", [0, 15, 70000])
def test_cells_of_a_network_without_a_nucleus_are_dropped_whatever_their_numbers(tmp_path, monkeypatch, shift):
    (tmp_path / "own").mkdir()
    write_card(tmp_path / "own")
    image = np.full((120, 240, 2), 10, np.uint8)
    cells = np.zeros((120, 240), np.int32)
    for k, col in enumerate((40, 110, 190), 1):
        cv2.circle(cells, (col, 60), 28, k + shift, -1)
    image[..., 0][cells > 0] = 90
    nuclei = np.zeros((120, 240), np.uint8)
    for col in (40, 110):  # the cell with the highest number has none
        cv2.circle(nuclei, (col, 60), 12, 160, -1)
    image[..., 1] = cv2.GaussianBlur(nuclei, (0, 0), 1) + 10
    made = SimpleNamespace(channels=(), target="cells", segment=lambda image: (cells, None))
    monkeypatch.setattr(learned, "_load", lambda method, signature: made)
    found = segmenter_of(str(tmp_path / "own"))(image, ["er", "nucleus"])
    assert np.unique(found.cells).tolist() == np.unique(found.nuclei).tolist() == [0, 1, 2]


def test_the_command_says_how_small_nuclei_may_be_and_takes_a_diameter(tmp_path, capsys):
    (tmp_path / "blank").mkdir()
    (tmp_path / "small").mkdir()
    cv2.imwrite(str(tmp_path / "blank" / "a.png"), np.full((1000, 1000), 20, np.uint8))
    cv2.imwrite(str(tmp_path / "small" / "b.png"), large_and_small()[0][300:380])
    common = ["--channels", "nucleus", "--method", "classical", "--workers", "1", "--out"]
    assert main(["segment", str(tmp_path / "blank"), *common, str(tmp_path / "one")]) == 0
    error = capsys.readouterr().err
    assert "no nuclei of 4 pixels or more across in 1 field: a" in error and "--diameter" in error
    assert main(["segment", str(tmp_path / "small"), *common, str(tmp_path / "two"), "--diameter", "12"]) == 0
    row = pd.read_csv(tmp_path / "two" / "segmentation.csv").iloc[0]
    assert row["n_nuclei"] == 20 and np.isnan(row["n_cells"]) and row["smallest_px"] == 4.0
    assert main(["segment", str(tmp_path / "small"), *common, str(tmp_path / "three"), "--diameter", "1"]) != 0
    assert "diameter of nuclei from 3 pixels" in capsys.readouterr().err


def test_another_diameter_is_another_field():
    source = FieldSource("f", ("f.png",), ("nucleus",))
    keys = {pipeline_field.field_key(source, "the same pixels", ExtractSettings(diameter=diameter)) for diameter in (0, 12, 20)}
    assert len(keys) == 3
    with pytest.raises(ValueError, match="from 3 pixels"):
        ExtractSettings(diameter=2)
