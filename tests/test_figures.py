"""Figures show the numbers that pandas counts, and the explore workflow runs on what people have."""

import base64
import json
import os
from collections import Counter
from itertools import combinations

import cv2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotted import bars

from hpacell.fields.catalog import read_labels
from hpacell.fields.read import Field
from hpacell.fields.simulate import simulate_field, simulate_fields
from hpacell.figures.cells import figure_crops, figure_examples, figure_field, figure_outlines
from hpacell.figures.curves import figure_confusion, figure_location_scores, figure_training
from hpacell.figures.donors import figure_ages, figure_field_sizes, figure_group_counts
from hpacell.figures.eda import figure_cooccurrence, figure_label_counts, figure_locations
from hpacell.figures.style import (
    COLOURS,
    HpacellRenderer,
    count_things,
    percent,
    title_locations,
    use_hpacell_style,
    write_figure,
)
from hpacell.figures.words import organ_title
from hpacell.vocabulary import CHANNELS, LOCATIONS, LOCATIONS_2018, location_title

pytestmark = pytest.mark.usefixtures("notebook_style")


def check_label_figures(frame, raw, vocabulary):
    """All figures of labels against counts made from the raw texts; `raw` is a list of lists of class numbers."""
    counts = Counter(number for own in raw for number in own)
    alone = Counter(own[0] for own in raw if len(own) == 1)
    figure = figure_locations(frame)
    assert bars(figure) == {location_title(name): counts[number] for number, name in enumerate(vocabulary)}
    assert bars(figure, "alone") == {location_title(name): alone[number] for number, name in enumerate(vocabulary)}
    assert figure.layout.title.text == f"Locations of {count_things(len(raw), 'field')}"
    assert count_things(sum(counts.values()), "label") in figure.layout.title.subtitle.text
    lengths = [bars(figure)[name] for name in figure.data[0].y]
    assert lengths == sorted(lengths), "the most common location stands on top"

    (trace,) = figure_label_counts(frame).data
    numbers = Counter(map(len, raw))
    assert {x: y for x, y in zip(trace.x, trace.y, strict=True) if y} == numbers

    (heat,) = figure_cooccurrence(frame).data
    pairs = Counter(pair for own in raw for pair in combinations(sorted(own), 2))
    titles = {location_title(name): number for number, name in enumerate(vocabulary)}
    place = [titles[name] for name in heat.x]
    assert place == sorted(counts)
    for row, first in enumerate(place):
        for column, second in enumerate(place):
            both = counts[first] if first == second else pairs[tuple(sorted((first, second)))]
            assert heat.customdata[row][column] == both
            if first != second:
                assert heat.z[row][column] == pytest.approx(100 * both / counts[first])
        assert np.isnan(heat.z[row][row]) and heat.y[row].endswith(f"({counts[first]:,})")


@pytest.mark.parametrize(
    "name, column, separator, vocabulary",
    [("scc_train.csv", "Label", "|", LOCATIONS), ("hpa2018_train.csv", "Target", " ", LOCATIONS_2018)],
)
def test_label_figures_agree_with_the_full_tables(shared_data, name, column, separator, vocabulary):
    path = shared_data / "hpa_labels" / name
    texts = pd.read_csv(path, dtype=str)[column]
    raw = [sorted({int(number) for number in text.split(separator)}) for text in texts]  # some rows repeat a label
    check_label_figures(read_labels(path), raw, vocabulary)


label_sets = st.lists(st.sets(st.integers(0, 18), min_size=1, max_size=5).map(sorted), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(raw=label_sets)
def test_label_figures_agree_with_any_labels(raw):
    use_hpacell_style()
    frame = pd.DataFrame({"labels": ["|".join(LOCATIONS[number] for number in own) for own in raw]})
    check_label_figures(frame, raw, LOCATIONS)


def test_fields_without_labels_are_left_out_and_named():
    frame = pd.DataFrame({"labels": ["cytosol", None, "", "cytosol|nucleoli", np.nan]})
    assert figure_locations(frame).layout.title.text == "Locations of 2 fields (3 more without labels)"
    assert bars(figure_locations(frame))["Cytosol"] == 2


def test_locations_outside_the_vocabularies_can_be_named():
    frame = pd.DataFrame({"labels": ["left|right", "left"]})
    assert bars(figure_locations(frame)) == {"Left": 2, "Right": 1}
    assert bars(figure_locations(frame, ("right", "left", "up"))) == {"Left": 2, "Right": 1, "Up": 0}


def test_hubmap_figures_agree_with_the_table(shared_data):
    path = shared_data / "hubmap" / "train_fold0_71rows.csv"
    raw, frame = pd.read_csv(path), read_labels(path)
    raw["organ"] = raw["organ"].map(organ_title)
    assert bars(figure_group_counts(frame, "organ")) == raw["organ"].value_counts().to_dict()
    figure = figure_group_counts(frame, "organ", by="sex")
    for sex, rows in raw.groupby("sex"):
        assert {name: n for name, n in bars(figure, sex).items() if n} == rows["organ"].value_counts().to_dict()
    assert bars(figure_group_counts(frame, "data_source")) == raw["data_source"].value_counts().to_dict()
    sizes = (raw["img_height"].astype(str) + " × " + raw["img_width"].astype(str)).value_counts()
    assert bars(figure_field_sizes(frame)) == sizes.to_dict()
    boxes = {trace.name.split("<br>n")[0].replace("<br>", " "): trace for trace in figure_ages(frame).data}
    assert set(boxes) == set(raw["organ"])
    for organ, rows in raw.groupby("organ"):
        assert sorted(boxes[organ].y) == sorted(rows["age"])
        assert sorted(boxes[organ].text) == sorted(rows["id"].astype(str))


def test_rare_sizes_become_one_bar_and_unknown_ones_are_named():
    frame = pd.DataFrame({"height": [64] * 5 + [32, 16, 8, None], "width": [64] * 5 + [48, 16, 8, None]}, dtype="Int64")
    figure = figure_field_sizes(frame, most=1)
    assert bars(figure) == {"64 × 64": 5, "3 other sizes": 3}
    assert "8 fields" in figure.layout.title.text and "1 more of unknown size" in figure.layout.title.subtitle.text


def test_missing_groups_are_unknown():
    frame = pd.DataFrame({"organ": ["lung", None, "lung", ""], "sex": ["Male", "Male", None, None]})
    assert bars(figure_group_counts(frame, "organ")) == {"Lung": 2, "unknown": 2}
    assert bars(figure_group_counts(frame, "organ", by="sex"), "unknown") == {"Lung": 1, "unknown": 1}


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: figure_locations(pd.DataFrame({"Label": ["0"]})), "column 'labels', got \\['Label'\\]"),
        (lambda: figure_cooccurrence(pd.DataFrame({"labels": [None]})), "without labels"),
        (lambda: figure_field_sizes(pd.DataFrame({"height": [1]})), "known 'height' and 'width'"),
        (lambda: figure_group_counts(pd.DataFrame({"sex": ["Male"]}), "organ"), "column 'organ', got sex: choose"),
        (lambda: figure_ages(pd.DataFrame({"organ": ["lung"], "age": [None]})), "column 'age'"),
        (lambda: figure_training(pd.DataFrame({"epoch": [0]})), "'epoch' and 'loss'"),
        (lambda: figure_location_scores(pd.DataFrame({"n_pos": []})), "score_locations"),
        (lambda: figure_confusion(np.zeros((2, 3)), np.zeros((2, 3))), "\\(N, 19\\)"),
        (lambda: figure_crops(np.zeros((0, 8, 8, 4), np.uint8)), "N > 0"),
        (lambda: figure_crops(np.zeros((2, 8, 8, 4), np.uint8), ["a"]), "one per crop"),
        (lambda: use_hpacell_style("plotly"), "ends in .js"),
        (lambda: write_figure("figure.png", go.Figure()), "ends in .html"),
    ],
)
def test_wrong_input_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def picture(trace):
    """Pixels of a picture trace, RGB."""
    content = base64.b64decode(trace.source.split(",", 1)[1])
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def square_field(shape, channels):
    """A field that is black but for a bright square in the upper left quarter of its first channel."""
    image = np.zeros((*shape, len(channels)), np.uint8)
    image[: shape[0] // 4, : shape[1] // 4, 0] = 200
    return Field("square", image, channels, None, ())


@pytest.mark.parametrize("channels", [CHANNELS, ("nucleus",), ("nucleus", "protein")])
def test_field_shows_each_channel_and_the_composite(channels):
    figure = figure_field(square_field((120, 200), channels), "cytosol", width=100)
    assert len(figure.data) == len(channels) + (len(channels) > 1)
    titles = [note.text for note in figure.layout.annotations]
    assert titles[0] == location_title(channels[0])
    first = picture(figure.data[0])
    assert first.shape == (60, 100, 3) and figure.data[0].dx == 2
    assert first[5, 5].min() > 200 and first[40, 60].max() < 20
    assert figure.layout.title.text == "Field square" and "Cytosol" in figure.layout.title.subtitle.text


def test_examples_have_their_captions_and_ids():
    fields = [simulate_field(seed, (48, 64), cell_diameter=24, field_id=f"f{seed}").field for seed in range(5)]
    labels = ["cytosol", ("nucleoli", "cytosol"), "", "negative", "endoplasmic_reticulum|golgi_apparatus"]
    figure = figure_examples(fields, labels, "Mixed", columns=3, tile=64)
    notes = [note.text.replace("<br>", " ") for note in figure.layout.annotations]
    assert notes[0] == "Cytosol" and notes[1] == "Nucleoli, Cytosol" and notes[2] == "f2"
    assert len(notes) == 5 and [text.split("<br>")[0] for text in figure.data[1].text] == [
        f"f{seed}" for seed in range(5)
    ]
    assert figure.layout.title.text == "Mixed: 5 fields"
    with pytest.raises(ValueError, match="5 fields and 1 labels"):
        figure_examples(fields, labels[:1])


def test_crops_lie_where_their_captions_are():
    crops = np.zeros((7, 16, 16, 4), np.uint8)
    crops[1::2, 4:12, 4:12, 1] = crops[::2, :3, :3, 1] = 250
    figure = figure_crops(crops, columns=3, tile=40)
    sheet = picture(figure.data[0])
    for number, (x, y) in enumerate(zip(figure.data[1].x, figure.data[1].y, strict=True)):
        assert (sheet[int(y), int(x), 1] > 128) == bool(number % 2)
    assert figure.layout.title.text == "Crops: 7 cells"


def test_outlines_name_every_cell_at_its_centre():
    one = simulate_field(3, (200, 300), cell_diameter=60)
    figure = figure_outlines(
        one.field, one.cells, one.nuclei, [title_locations(own) for own in one.locations], width=150
    )
    points = figure.data[1]
    assert len(points.x) == len(one.locations)
    areas = np.bincount(one.cells.ravel())
    for number, (x, y, text, own) in enumerate(zip(points.x, points.y, points.text, one.locations, strict=True), 1):
        rows, columns = np.nonzero(one.cells == number)
        assert (y, x) == pytest.approx((rows.mean(), columns.mean()))
        assert text == f"cell {number}<br>{areas[number]:,} pixels<br>{title_locations(own)}"
    assert picture(figure.data[0]).shape == (100, 150, 3)
    assert figure_outlines(one.field, nuclei=one.nuclei).data[1].text[0].startswith("nucleus 1<br>")
    with pytest.raises(ValueError, match="field's size"):
        figure_outlines(one.field, one.cells[:-1])
    with pytest.raises(ValueError, match="captions"):
        figure_outlines(one.field, one.cells, captions=["x"])


def test_outlines_of_an_empty_segmentation():
    field = square_field((40, 50), CHANNELS)
    figure = figure_outlines(field, np.zeros((40, 50), np.int32))
    assert figure.layout.title.text == "0 cells in field square" and len(figure.data[1].x) == 0


def test_training_marks_the_best_epoch():
    log = pd.DataFrame(
        {
            "epoch": [0, 1, 2],
            "loss": [3, 2, 1.0],
            "val_loss": [3, 1.5, 2],
            "pr_auc": [0.1, 0.2, 0.3],
            "val_pr_auc": [0.1, 0.3, 0.2],
        }
    )
    log["learning_rate"] = 0.001
    figure = figure_training(log)
    assert [list(trace.y) for trace in figure.data] == [
        log[name].tolist() for name in ("loss", "val_loss", "pr_auc", "val_pr_auc")
    ]
    assert {shape.x0 for shape in figure.layout.shapes} == {1}
    assert "best epoch 1" in figure.layout.title.subtitle.text
    assert {
        shape.x0 for shape in figure_training(log.assign(val_pr_auc=[0.1, 0.2, 0.9]), best="val_pr_auc").layout.shapes
    } == {2}
    assert not figure_training(log[["epoch", "loss"]]).layout.shapes


def test_location_scores_leave_out_what_has_no_case():
    scores = pd.DataFrame(
        {
            "location": ["cytosol", "vesicles", "aggresome"],
            "n_pos": [5, 2, 0],
            "average_precision": [0.5, 0.9, np.nan],
            "chance": [0.25, 0.1, 0.0],
        }
    )
    for table in (scores, scores.set_index("location")):
        figure = figure_location_scores(table)
        assert list(figure.data[0].y) == ["Aggresome (0)", "Cytosol (5)", "Vesicles (2)"]
        assert list(figure.data[0].x) == [0, 0.5, 0.9] and figure.data[0].text[0].strip() == "no true case"
        assert list(figure.data[1].x)[1:] == [0.25, 0.1] and np.isnan(figure.data[1].x[0])
        assert (
            figure.layout.title.subtitle.text
            == "mean over 2 locations: 0.700 (chance 0.175); 1 without a true case left out"
        )


def test_confusion_uses_cells_with_one_location():
    truth = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    pred = np.array([[0.9, 0.1, 0], [0.7, 0.3, 0], [0.2, 0.8, 0], [0, 0, 1]])
    (heat,) = figure_confusion(truth, pred, ("cytosol", "nucleoli", "vesicles")).data
    assert np.allclose(heat.z, [[0.8, 0.2, 0], [0.2, 0.8, 0]]) and list(heat.y) == ["Cytosol (2)", "Nucleoli (1)"]


def test_renderer_gives_both_types_and_repeats_itself(monkeypatch):
    figure = figure_label_counts(pd.DataFrame({"labels": ["cytosol", "cytosol|nucleoli"]}))
    bundle = HpacellRenderer("plotly.min.js").to_mimebundle(figure.to_dict())
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/html"}
    assert (
        'src="plotly.min.js"' in bundle["text/html"]
        and "cdn" not in bundle["text/html"]
        and "http" not in bundle["text/html"].lower().split("<script")[0]
    )
    assert bundle == HpacellRenderer("plotly.min.js").to_mimebundle(figure.to_dict())
    json.dumps(bundle)
    assert len(json.dumps(bundle)) < 20_000
    monkeypatch.setenv("HPACELL_PLOTLYJS", "elsewhere/plotly.min.js")
    use_hpacell_style()
    assert pio.renderers["hpacell"].plotlyjs == "elsewhere/plotly.min.js"


def test_written_figure_needs_no_network(tmp_path):
    write_figure(tmp_path / "a" / "one.html", go.Figure(go.Bar(y=[1])))
    write_figure(tmp_path / "a" / "two.html", go.Figure(go.Bar(y=[2])))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["one.html", "plotly.min.js", "two.html"]
    text = (tmp_path / "a" / "one.html").read_text()
    assert 'src="plotly.min.js"' in text and "https://cdn" not in text
    assert (tmp_path / "a" / "plotly.min.js").stat().st_size > 1_000_000


def test_words():
    assert (
        count_things(1, "cell") == "1 cell"
        and count_things(0, "cell") == "0 cells"
        and count_things(1200, "cell") == "1,200 cells"
    )
    assert percent(1, 3) == "33.3%" and percent(0, 0) == "0.0%" and percent(1, 10_000) == "<0.1%"
    assert title_locations(("nuclear_membrane", "er")) == "Nuclear membrane, Er" and title_locations([]) == "no label"
    assert len(set(COLOURS.values())) == len(COLOURS)


def explore(root, folder, **parameters):
    """Run the workflow; its summary and the text of its outputs."""
    import papermill

    source = root / "nbs" / "workflows" / "explore.ipynb"
    done = papermill.execute_notebook(
        str(source),
        str(folder / "explore.ipynb"),
        {"out": str(folder), **parameters},
        progress_bar=False,
        cwd=str(folder),
    )
    streams = [
        output.text for cell in done.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    return json.loads((folder / "metrics_explore.json").read_text()), "".join(streams)


def test_explore_with_images_and_labels(root, tmp_path):
    simulate_fields(tmp_path / "fields", 6, seed=3, size=96)
    bad = tmp_path / "fields" / "sim_3_00002_blue.png"
    bad.write_bytes(bad.read_bytes()[:200])
    summary, text = explore(root, tmp_path, fields=str(tmp_path / "fields"), labels=str(tmp_path / "fields" / "labels.csv"), n_examples=6, changes=["flip", "mosaic"])
    labels = pd.read_csv(tmp_path / "fields" / "labels.csv", dtype=str)["Label"].str.split("|")
    assert summary["n_fields"] == summary["n_labelled"] == summary["n_files"] == 6
    assert summary["fields_per_location"] == {
        LOCATIONS[int(number)]: n for number, n in Counter(labels.explode()).items()
    }
    assert summary["fields_per_label_count"] == {str(n): count for n, count in Counter(labels.str.len()).items()}
    assert summary["n_unreadable_examples"] == 1 and "not readable: sim_3_00002" in text
    assert {"locations", "label_counts", "cooccurrence", "field_sizes", "single", "multiple", "channels_1", "outlines_1", "changes"} <= set(
        summary["figures"]
    )
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {f"{name}.html" for name in summary["figures"]} | {"plotly.min.js", ".results.json"}


def test_explore_with_labels_alone(root, tmp_path):
    table = "field_id,labels,organ,sex,age\na,cytosol,lung,Male,60\nb,cytosol|nucleoli,lung,Female,\nc,,spleen,,51\n"
    (tmp_path / "table.csv").write_text(table)
    summary, text = explore(root, tmp_path, fields="", labels=str(tmp_path / "table.csv"))
    assert summary["n_fields"] == 3 and summary["n_labelled"] == 2 and summary["n_files"] == 0
    drawn = ["locations", "rarity", "label_counts", "cooccurrence", "combinations", "organs", "sexes", "ages", "missing", "sampling", "split_balance"]
    assert summary["figures"] == drawn and (tmp_path / "explore.html").exists()
    assert summary["absent"]["field_sizes"] == "Sizes of images: the table has no column width."
    assert "no images" in text


def test_explore_without_labels(root, tmp_path):
    (tmp_path / "fields").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(os.fspath(tmp_path / "fields" / f"{name}.png"), simulate_field(1, 64).field.channel("nucleus"))
    summary, text = explore(root, tmp_path, fields=str(tmp_path / "fields"), channels=["nucleus"])
    assert summary["n_labelled"] == 0 and summary["fields_per_location"] == {} and "Locations: no row of the table has a value for labels." in text
    assert summary["figures"] == ["field_sizes", "missing", "examples", "channels_1", "channels_2", "outlines_1", "changes"]
