"""Figures and pages of whole tables: the numbers are those of pandas, and what a table cannot show is said."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from plotted import bars

from hpacell.fields.catalog import read_labels
from hpacell.fields.duplicates import read_duplicates
from hpacell.fields.intensity import normalise_intensity
from hpacell.fields.simulate import simulate_field
from hpacell.figures.cells import figure_crops, figure_field
from hpacell.figures.collection import explore_tables
from hpacell.figures.donors import figure_ages, figure_field_sizes, figure_group_counts, figure_missing, figure_values
from hpacell.figures.eda import figure_combinations, figure_rarity, label_array
from hpacell.figures.page import write_page
from hpacell.figures.pictures import change_patches, draw_mask, figure_changes, figure_masks, figure_tiles
from hpacell.figures.shapes import figure_cell_ratios, figure_cells_per_field, figure_crop_sizes, size_quartiles
from hpacell.figures.splits import class_array, figure_leakage, figure_sampling, figure_split_balance, leaking_groups
from hpacell.figures.units import figure_mask_areas, figure_unit_shapes, measure_units
from hpacell.figures.words import column_texts, told
from hpacell.masks.rle import decode_kaggle, encode_kaggle

ORGANS_OF_351 = {"kidney": 99, "prostate": 93, "largeintestine": 58, "spleen": 53, "lung": 48}

pytestmark = pytest.mark.usefixtures("notebook_style")


@pytest.fixture(scope="module")
def hubmap(shared_data):
    path = shared_data / "hubmap" / "train_fold0_71rows.csv"
    return pd.read_csv(path), read_labels(path)


@pytest.fixture(scope="module")
def measured(hubmap):
    return measure_units(hubmap[1])


# ---- organs and donors


def test_organs_of_the_whole_competition():
    frame = pd.DataFrame({"organ": [organ for organ, n in ORGANS_OF_351.items() for _ in range(n)]})
    figure = figure_group_counts(frame, "organ")
    names = {"Kidney": "99 (28.2%)", "Prostate": "93 (26.5%)", "Large intestine": "58 (16.5%)", "Spleen": "53 (15.1%)", "Lung": "48 (13.7%)"}
    assert dict(zip(figure.data[1].y, (text.strip() for text in figure.data[1].text), strict=True)) == names
    assert told(figure) == "Kidney is the commonest organ with 28.2%, Lung the rarest with 13.7%."


def test_every_figure_of_the_tissue_rows(hubmap, measured):
    raw, frame = hubmap
    shown = explore_tables(frame)
    assert list(shown.sections) == ["Organs and donors", "What is outlined", "Images", "Training on it"]
    assert {name for name in ("locations", "cells_per_field", "crop_sizes", "leakage")} <= set(shown.absent)
    assert shown.absent["locations"] == "Locations: no row of the table has a value for labels."
    own = {name: figure for figures in shown.sections.values() for name, figure in figures.items()}
    assert bars(own["sexes"]) == raw["sex"].value_counts().to_dict()
    assert bars(own["pixel_sizes"]) == {f"{value:g}": n for value, n in raw["pixel_size"].value_counts().items()}
    assert bars(own["thickness"]) == {f"{value:g}": n for value, n in raw["tissue_thickness"].value_counts().items()}
    shares = dict(zip(own["split_balance"].data[0].y, zip(*(trace.customdata for trace in own["split_balance"].data), strict=True), strict=True))
    assert {organ: sum(parts) for organ, parts in shares.items()} == column_texts(frame, "organ").value_counts().to_dict()
    assert dict((words, number) for number, words in shown.numbers)["female"] == f"{(raw['sex'] == 'Female').mean():.1%}"
    assert all(told(figure) for figure in own.values())
    median = raw.groupby("organ")["age"].median()
    assert f"{median.max():g}" in told(own["ages"]) and f"{raw['age'].min():g} to {raw['age'].max():g}" in told(own["ages"])


def test_units_are_what_the_runs_say(hubmap, measured):
    raw, _ = hubmap
    areas = {str(row.id): sum(map(int, row.rle.split()[1::2])) for row in raw.itertuples()}
    assert not measured.refused and dict(zip(measured.images["field_id"], measured.images["mask_area"], strict=True)) == areas
    shares = raw.set_index(raw["id"].astype(str)).pipe(lambda table: pd.Series(areas) / (table["img_height"] * table["img_width"]))
    assert np.allclose(measured.images.set_index("field_id")["share"], shares[measured.images["field_id"]])
    medians = shares.groupby(raw.set_index(raw["id"].astype(str))["organ"]).median()
    assert f"{medians.min():.1%}" in told(figure_mask_areas(measured)) and f"{medians.max():.1%}" in told(figure_mask_areas(measured))
    assert sum(len(trace.y) for trace in figure_mask_areas(measured).data) == 2 * 71
    assert sum(len(trace.y) for trace in figure_unit_shapes(measured).data) == 3 * len(measured.units)


def test_shapes_of_units_agree_with_skimage(hubmap, measured):
    from skimage.measure import label, regionprops

    raw, _ = hubmap
    row = raw.loc[raw["organ"] == "kidney"].iloc[0]
    mask = decode_kaggle(row["rle"], (row["img_height"], row["img_width"]))
    theirs = [region for region in regionprops(label(mask, connectivity=2)) if region.area >= 16]
    ours = measured.units[measured.units["field_id"] == str(row["id"])]
    assert sorted(ours["area"]) == sorted(int(region.area) for region in theirs)
    by_area = {int(region.area): region for region in theirs}
    for unit in ours.itertuples():
        region = by_area[unit.area]
        assert (unit.row0, unit.col0, unit.row1, unit.col1) == region.bbox
        assert unit.eccentricity == pytest.approx(region.eccentricity, abs=0.01) and unit.solidity == pytest.approx(region.solidity, abs=0.02)


def test_a_mask_that_does_not_fit_is_named_and_the_rest_goes_on():
    rng = np.random.default_rng(0)
    mask = cv2.circle(np.zeros((80, 120), np.uint8), (60, 40), 25, 1, -1)
    rle = encode_kaggle(mask)
    rows = [("good", 80, 120, rle), ("cut", 80, 120, rle + " 7"), ("small", 20, 20, rle), ("none", 80, 120, ""), ("sizeless", np.nan, 120, rle)]
    frame = pd.DataFrame(rows, columns=["field_id", "height", "width", "rle"]).sample(frac=1, random_state=int(rng.integers(99)))
    measured = measure_units(frame)
    assert measured.images["field_id"].tolist() == ["good"] and set(measured.refused) == {"cut", "small", "sizeless"}
    assert measured.units["area"].tolist() == [mask.sum()] and measured.units["area_um2"].isna().all() and measured.units["organ"].tolist() == ["unknown"]
    assert measured.units["solidity"].iloc[0] > 0.95 and measured.units["eccentricity"].iloc[0] < 0.1
    shown = explore_tables(frame)
    assert "Mask of cut" in shown.absent["mask cut"] and "pairs" in shown.absent["mask cut"]


# ---- locations of the full tables


@pytest.mark.parametrize(("name", "column", "separator", "n"), [("scc_train.csv", "Label", "|", 19), ("hpa2018_train.csv", "Target", " ", 28)])
def test_combinations_and_rarity_of_the_full_tables(shared_data, name, column, separator, n):
    path = shared_data / "hpa_labels" / name
    raw = pd.read_csv(path, dtype=str)[column].map(lambda text: frozenset(text.split(separator)))
    frame, kinds = read_labels(path), Counter(raw)
    figure = figure_combinations(frame, most=25)
    assert list(figure.data[0].y) == sorted(kinds.values(), reverse=True)[:25]
    assert f"of {len(kinds):,};" in figure.layout.title.subtitle.text
    assert f"{sum(count == 1 for count in kinds.values()):,} combinations occur once" in told(figure)
    totals = Counter(label for labels in raw for label in labels)
    rarity = figure_rarity(frame)
    shown = sorted(int(x) for trace in rarity.data[:2] for x in trace.x)
    assert shown == sorted(totals.values()) and len(shown) == n
    assert told(rarity).startswith(f"{sum(count < 0.01 * len(raw) for count in totals.values())} of {n} locations")


def test_few_fields_are_counted_in_whole_numbers():
    few = figure_combinations(pd.DataFrame({"field_id": list("abc"), "labels": ["cytosol", "cytosol", "cytosol|nucleoli"]}))
    assert few.layout.yaxis.dtick == 1 and few.data[0].textangle == 0 and list(few.data[0].y) == [2, 1]
    many = figure_combinations(pd.DataFrame({"field_id": list("abcdefgh"), "labels": "cytosol"}))
    assert many.layout.yaxis.dtick is None


def test_cells_per_field_of_the_real_counts(shared_data):
    path = shared_data / "hpa_labels" / "train_multi_bbox_meta.csv"
    raw, frame = pd.read_csv(path), read_labels(path)
    figure = figure_cells_per_field(frame)
    counts = raw["Cell Counts"].dropna()
    assert sum(figure.data[0].y) == len(counts) and f"{counts.sum():,.0f} cells in all" in told(figure)
    assert "quartiles {:g}, {:g}, {:g}".format(*counts.quantile([0.25, 0.5, 0.75])) in figure.layout.title.subtitle.text
    widths = raw["ImageWidth"].dropna().astype(int)
    assert bars(figure_field_sizes(frame)) == {f"{width} wide": n for width, n in widths.value_counts().items()}


def test_near_duplicates_of_the_real_table_leak_at_random_and_not_by_group(shared_data):
    frame = read_labels(shared_data / "hpa_labels" / "scc_train.csv")
    pairs = read_duplicates(shared_data / "hpa_labels" / "duplicates.csv.gz")
    frame["split"] = np.where(np.random.default_rng(0).random(len(frame)) < 0.5, "train", "valid")
    leaks = leaking_groups(frame, pairs=pairs)
    sides = dict(zip(frame["field_id"], frame["split"], strict=True))
    known = pairs[pairs["field_id_a"].isin(sides) & pairs["field_id_b"].isin(sides)]
    crossing = sum(sides[a] != sides[b] for a, b in known.itertuples(index=False))
    figure = figure_leakage(frame, pairs=pairs)
    assert figure.data[1].z[0][1] == figure.data[1].z[1][0] == len(leaks) > 100
    assert crossing == 0 or len(leaks) >= 1
    assert f"{len(leaks):,} of" in told(figure)


# ---- sampling and splits of made tables


def test_sampling_shares_are_those_of_draws():
    labels = ["cytosol"] * 90 + ["nucleoli"] * 9 + ["aggresome|cytosol"]
    frame = pd.DataFrame({"field_id": [f"f{i}" for i in range(100)], "labels": labels})
    lines, before, after = figure_sampling(frame).data
    shares = dict(zip(after.y, after.x, strict=True))
    weights = np.array([1 / 91] * 90 + [1 / 9] * 9 + [1.0])
    assert shares["Aggresome"] == pytest.approx(100 / weights.sum()) and shares["Nucleoli"] == pytest.approx(100 / weights.sum())
    assert dict(zip(before.y, before.x, strict=True)) == pytest.approx({"Cytosol": 91, "Nucleoli": 9, "Aggresome": 1})
    even = figure_sampling(frame, weights=np.ones(100))
    assert np.allclose(even.data[1].x, even.data[2].x)


def test_groups_on_both_sides_are_found():
    frame = pd.DataFrame({"field_id": list("abcdef"), "group": [1, 1, 2, 2, None, None], "split": ["train", "valid", "train", "train", "valid", "train"]})
    leaks = leaking_groups(frame)
    assert len(leaks) == 1 and leaks.iloc[0].to_dict() == {"group": leaks.iloc[0]["group"], "sides": "train|valid", "n_rows": 2, "fields": "a, b"}
    (own, shared) = figure_leakage(frame).data
    assert shared.z[0][1] == 1 and (own.z[0][0], own.z[1][1]) == (3, 2) and "1 of 4 groups stands" in told(figure_leakage(frame))
    assert "No group stands on two sides" in told(figure_leakage(frame.drop(index=1)))


def test_a_class_that_a_side_lacks_is_named():
    frame = pd.DataFrame({"organ": ["kidney"] * 6 + ["lung", None], "split": ["train", "valid"] * 3 + ["train", "valid"]})
    figure = figure_split_balance(frame, "organ")
    assert "Lung is not on every side" in told(figure) and [trace.name for trace in figure.data] == ["train (4)", "valid (3)"]
    assert class_array(frame, "organ")[1] == ["Kidney", "Lung"]


# ---- cells


def test_quartiles_are_those_of_pandas():
    rng = np.random.default_rng(1)
    cells = pd.DataFrame({"field_id": rng.choice(list("abc"), 300), "cell_id": range(300), "height": rng.integers(20, 300, 300), "width": rng.integers(20, 300, 300)})
    cells["cell_ratio"], cells["split"] = rng.uniform(0.2, 1, 300), rng.choice(["train", "valid"], 300)
    table, theirs = size_quartiles(cells), cells[["height", "width"]].describe()
    for ours, name in {"cells": "count", "mean": "mean", "std": "std", "min": "min", "25 %": "25%", "50 %": "50%", "75 %": "75%", "max": "max"}.items():
        assert np.allclose(table.loc[ours], theirs.loc[name])
    figure = figure_crop_sizes(cells)
    assert sum(figure.data[0].y) == sum(figure.data[1].y) == 300 and figure.data[2].cells["values"][1][5] == f"{theirs.loc['50%', 'height']:,.1f}"
    assert sum(figure_cells_per_field(cells).data[0].y) == 3
    assert {trace.name.split("<br>")[0]: len(trace.y) for trace in figure_cell_ratios(cells).data} == cells["split"].value_counts().to_dict()
    shown = explore_tables(pd.DataFrame({"field_id": list("abc")}), cells)
    assert list(shown.sections["Cells"]) == ["cells_per_field", "crop_sizes", "cell_ratios"]


# ---- what is wrong or missing


FRAME = pd.DataFrame({"field_id": ["a", "b"], "labels": ["cytosol", ""], "organ": ["lung", None], "sex": ["", "Male"], "age": [np.nan, 40], "split": ["train", "valid"]})


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: label_array(FRAME.drop(columns="labels")), "catalog_fields"),
        (lambda: figure_combinations(FRAME, most=0), "at least one combination"),
        (lambda: figure_group_counts(FRAME, "tissue"), "choose one of these"),
        (lambda: figure_group_counts(FRAME[:0], "organ"), "not empty"),
        (lambda: figure_ages(FRAME.assign(age=[300, 1])), "0 to 130 years, got 300 for a"),
        (lambda: figure_ages(FRAME.assign(age=np.nan)), "only some catalogs know ages"),
        (lambda: figure_values(FRAME.assign(pixel_um=["x", "1"]), "pixel_um"), "correct them"),
        (lambda: figure_values(FRAME.assign(pixel_um=np.nan), "pixel_um"), "only some tables know them"),
        (lambda: figure_missing(FRAME[:0]), "not empty"),
        (lambda: figure_cells_per_field(FRAME), "table of cells"),
        (lambda: figure_crop_sizes(FRAME), "measure_cells"),
        (lambda: figure_cell_ratios(FRAME.assign(cell_ratio=1.5)), "cell_area / total_area"),
        (lambda: figure_sampling(FRAME.assign(labels="")), "without labels"),
        (lambda: figure_sampling(FRAME, weights=[1]), "one for each row"),
        (lambda: figure_split_balance(FRAME, "organ", "fold"), "choose one of these"),
        (lambda: figure_leakage(FRAME, "donor"), "choose one of these"),
        (lambda: measure_units(FRAME), "got no height"),
        (lambda: measure_units(FRAME.assign(height=1, width=1, rle="")), "only tables for training"),
        (lambda: explore_tables(FRAME[:0]), "at least one row"),
        (lambda: draw_mask(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5))), "mask of this picture"),
        (lambda: figure_masks([], [], []), "pass one each"),
        (lambda: figure_tiles(np.zeros((9, 9, 3), np.uint8), []), "they were cut from"),
        (lambda: change_patches([], [], ["flip"]), "pass one each"),
        (lambda: figure_changes({}), "change_patches"),
        (lambda: write_page("page.htm", "", "", [], {}), "ends in .html"),
    ],
)
def test_wrong_input_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_what_is_not_known_is_counted():
    assert bars(figure_group_counts(FRAME, "organ", by="sex")) == {"Lung": 1, "unknown": 1}
    assert "1 more of unknown age" in figure_ages(FRAME).layout.title.subtitle.text
    missing = figure_missing(FRAME)
    assert bars(missing, "missing") == {"labels": 1, "organ": 1, "sex": 1, "age": 1, "split": 0}
    with pytest.raises(ValueError, match="did you mean 'flip'"):
        change_patches([np.zeros((64, 64, 1), np.float32)], [np.zeros((64, 64), np.int32)], ["flipp"])


# ---- pictures and pages


def test_masks_lie_where_they_belong():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 30:50] = 1
    mask[30:, :10] = 255
    plain, on = draw_mask(None, mask), draw_mask(np.full((40, 60, 3), 200, np.uint8), mask)
    assert (plain[12, 40] != plain[25, 5]).any() and tuple(plain[1, 1]) == (244, 244, 244)
    assert tuple(on[25, 40]) == (200, 200, 200) and on[12, 40, 2] < 200 and (on[30:, :10] == 128).any()


def test_grey_and_colour_images_are_changed_side_by_side():
    rng = np.random.default_rng(0)
    images = [rng.random((80, 80, n)).astype(np.float32) for n in (3, 1, 3)]
    made = change_patches(images, [np.ones((80, 80), np.int32)] * 3, ["mosaic", "copy_paste", "hue_saturation"], 64, 0, regions=True)
    assert {patch.shape for row in made.values() for patch, _ in row} == {(64, 64, 3)}
    grey = made["as it is"][1][0]
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    with pytest.raises(ValueError, match="channel"):
        change_patches([images[0], np.zeros((80, 80, 4), np.float32)], [np.zeros((80, 80), np.int32)] * 2, ["flip"])


def test_changes_keep_image_and_mask_together():
    mask = cv2.circle(np.zeros((90, 90), np.int32), (45, 30), 12, 1, -1)
    image = np.repeat(mask[..., None], 3, 2).astype(np.float32)
    made = change_patches([image, image], [mask, mask], ["flip", "rotate90", "scale", "shift"], 90, 1, regions=True)
    for name, row in made.items():
        for patch, labels in row:
            assert (patch[..., 0] > 0.5).sum() == pytest.approx((labels > 0).sum(), rel=0.15), name
            assert ((patch[..., 0] > 0.5) & (labels > 0)).sum() >= 0.85 * (labels > 0).sum()
    figure = figure_changes(made)
    assert len(figure.layout.annotations) == 10 and figure.layout.title.subtitle.text == "4 changes, each by itself"


def test_page_is_one_file_with_one_library(tmp_path):
    field = simulate_field(1, (64, 80), cell_diameter=30).field
    crops = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 4)).astype(np.uint8)
    sections = {"Organs": [figure_group_counts(FRAME, "organ"), FRAME, "A <b>sentence</b>."], "None": [], "Pictures": [figure_field(field), figure_crops(crops, columns=3, tile=40)]}
    write_page(tmp_path / "page.html", "Two <fields>", "lead", [("2", "fields")], sections, ["Ages: none."])
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    text = (tmp_path / "page.html").read_text()
    assert text.count("plotly.js v") <= 2 and not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//", text)
    assert "Two &lt;fields&gt;" in text and "A &lt;b&gt;sentence" in text and "<h2 id=\"section-2\"" not in text and "Ages: none." in text
    assert told(sections["Organs"][0]) in text and text.count('class="tile item-') == 5 and text.count("<img ") == 5


@pytest.mark.parametrize(("depths", "kept"), [((4, 3, 4), [4, 4]), ((3, 1, 3), [3, 3, 3]), ((2, 4), [2]), ((), [])])
def test_explore_does_not_fail_over_fields_with_other_channels(root, depths, kept):
    """The cell of the workflow that draws the changes."""
    cells = nbformat.read(root / "nbs" / "workflows" / "explore.ipynb", 4).cells
    source = next(cell.source for cell in cells if "change_patches(" in cell.source and "segmented" in cell.source)
    labels = np.ones((80, 80), np.int32)
    images = [np.random.default_rng(depth).integers(0, 255, (80, 80, depth)).astype(np.uint8) for depth in depths]
    names = {
        "np": np, "changes": ["flip"], "masks": [], "seed": 0, "absent": {}, "show": lambda heading, name, figure: None, "figure_changes": lambda made: made,
        "change_patches": change_patches, "normalise_intensity": normalise_intensity,
        "segmented": [(SimpleNamespace(image=image), SimpleNamespace(nuclei=labels, cells=None)) for image in images],
    }  # fmt: skip
    exec(source, names)
    assert [patch.shape[2] for patch, _ in names.get("made", {}).get("as it is", [])] == kept and bool(names["absent"]) == (not depths)


def test_explore_writes_a_page_for_a_table_of_tissue(root, tmp_path):
    import papermill

    rng, rows = np.random.default_rng(0), []
    for number, organ in enumerate(["kidney", "lung", "spleen", "kidney", "prostate", "largeintestine"] * 2):
        mask = cv2.circle(np.zeros((120, 120), np.uint8), tuple(map(int, rng.integers(30, 90, 2))), 20, 1, -1)
        rows.append([number, organ, "HPA", 120, 120, 0.4, 4, encode_kaggle(mask), ("", "Male", "Female")[number % 3], "" if number % 4 else 60])
    columns = ["id", "organ", "data_source", "img_height", "img_width", "pixel_size", "tissue_thickness", "rle", "sex", "age"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train.csv", index=False)
    parameters = {"fields": "", "labels": str(tmp_path / "train.csv"), "out": str(tmp_path), "n_masks": 3}
    papermill.execute_notebook(str(root / "nbs" / "workflows" / "explore.ipynb"), str(tmp_path / "done.ipynb"), parameters, progress_bar=False, cwd=str(tmp_path))
    summary = json.loads((tmp_path / "metrics_explore.json").read_text())
    assert {"organs", "sexes", "ages", "sources", "mask_areas", "unit_shapes", "masks", "field_sizes", "pixel_sizes", "thickness", "missing", "sampling", "split_balance"} == set(summary["figures"])
    assert {"locations", "cells_per_field", "changes"} <= set(summary["absent"]) and "9 of unknown age" in summary["seen"]["ages"]
    assert summary["absent"]["tiles"] == "Tiles: no picture of tissue with a mask was read."
    text = (tmp_path / "explore.html").read_text()
    assert all(sentence.split("'")[0] in text for sentence in summary["seen"].values())
