"""Label tables, catalogs and splits."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from hpacell.fields.catalog import (
    CATALOG_COLUMNS,
    catalog_fields,
    read_labels,
    split_fields,
    split_folds,
)
from hpacell.fields.find import FieldSource
from hpacell.fields.stratify import count_labels, even_out, number_groups, stratify_groups
from hpacell.files import write_table
from hpacell.vocabulary import LOCATIONS, LOCATIONS_2018, encode_labels


def write(folder, text, name="labels.csv"):
    (folder / name).write_text(text)
    return folder / name


# ---- label tables


def test_scc(tmp_path):
    frame = read_labels(write(tmp_path, "ID,Label\na,8|5|0\nb,18\nc,\n"))
    assert frame.attrs["kind"] == "scc" and frame["n_labels"].tolist() == [3, 1, 0]
    assert frame["labels"].tolist() == ["nucleoplasm|nuclear_bodies|intermediate_filaments", "negative", ""]


def test_hpa2018_has_its_own_numbers(tmp_path):
    frame = read_labels(write(tmp_path, "Id,Target\na,16 0\nb,27\n"))
    assert frame.attrs["kind"] == "hpa2018" and frame["labels"].tolist() == [
        "nucleoplasm|cytokinetic_bridge",
        "rods_and_rings",
    ]


def test_hubmap(tmp_path):
    head = "id,organ,data_source,img_height,img_width,pixel_size,tissue_thickness,rle,age,sex\n"
    frame = read_labels(write(tmp_path, head + "10044,prostate,HPA,3000,2999,0.4,4,1 2 5 2,37.0,Male\n"))
    row = frame.iloc[0]
    assert (row["field_id"], row["organ"], row["sex"], row["age"]) == ("10044", "prostate", "Male", 37)
    assert (row["height"], row["width"], row["pixel_um"], row["rle"]) == (3000, 2999, 0.4, "1 2 5 2")
    with pytest.raises(ValueError, match="row 2: expected a known organ, got 'prostrate': did you mean 'prostate'"):
        read_labels(write(tmp_path, head + "1,prostrate,HPA,1,1,1,1,,1,Male\n"))


@pytest.mark.parametrize("head", ["ID,Label,sex\n", "Id,Target,Sex\n", "id,organ,sex\n", "field_id,labels,sex\n"])
def test_sex_is_one_of_two_words_or_not_known(tmp_path, head):
    blank = "lung" if "organ" in head else ""
    texts = ["Female", " male", "F", "M", "", "unknown", "NA"]
    rows = "".join(f"{number},{blank},{text}\n" for number, text in enumerate(texts))
    assert read_labels(write(tmp_path, head + rows))["sex"].tolist() == ["Female", "Male", "Female", "Male", "", "", ""]
    for word, hint in (("Femal", "did you mean 'Female'"), ("Robot", "leave it empty where it is not known")):
        with pytest.raises(ValueError, match=f"row 3 and 1 more rows: expected Female, Male or nothing as the sex, got '{word}': {hint}"):
            read_labels(write(tmp_path, head + f"1,{blank},Male\n2,{blank},{word}\n3,{blank},{word}\n"))


def test_ids_stay_text_and_gzip_is_unpacked(tmp_path):
    (tmp_path / "l.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfID,Label\n007, 3 | 4 \n"))
    frame = read_labels(tmp_path / "l.csv.gz")
    assert frame["field_id"].tolist() == ["007"] and frame["labels"].tolist() == [
        "nucleoli_fibrillar_center|nuclear_speckles"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,Label\na,0\nb,19\n", "row 3: expected a class number from 0 to 18, got 19"),
        ("ID,Label\na,0\nb,0\nc,Golgi aparatus\n", "row 4: .*did you mean 'golgi_apparatus'"),
        ("ID,Label\na,0 1\n", "row 2: expected a known location"),
        ("Id,Target\na,28\n", "row 2: expected a class number from 0 to 27, got 28"),
        ("ID,Label\na,0\nb,1\na,2\n", r"1 repeated \(a in rows 2, 4\): keep one row"),
        ("ID,Label\na,0\n,1\n", "got none in row 3: fill it in, or drop the row"),
        ("ID,Label\na,0\n../b,1\n", r"got '\.\./b' in row 3: name the field with"),
        ('ID,Label\n"a\nb",1\n', r"a field's id that can be a file's name, got 'a\\nb' in row 2"),
        ("name,class\na,0\n", "expected the columns ID,Label .* got name, class"),
        ("", "expected a CSV of labels"),
    ],
)
def test_refusals_name_the_row_and_the_remedy(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_labels(write(tmp_path, text))
    assert "labels.csv" in str(caught.value)


def test_real_tables(shared_data):
    folder = shared_data / "hpa_labels"
    scc = read_labels(folder / "scc_train.csv")
    assert len(scc) == 21_806 and scc["field_id"].is_unique
    assert encode_labels(scc["labels"].tolist()).sum(axis=0).min() > 0
    y2018 = read_labels(folder / "hpa2018_train.csv")
    assert len(y2018) == 31_072 and encode_labels(y2018["labels"].tolist(), LOCATIONS_2018).sum(axis=0).min() == 11
    parts = pd.concat([read_labels(folder / f"train_{kind}_bbox_meta.csv") for kind in ("single", "multi")])
    both = parts.merge(scc, on="field_id", suffixes=("", "_scc"))
    assert len(both) == 21_806 and (both["labels"] == both["labels_scc"]).all() and both["n_cells"].notna().any()
    hubmap = read_labels(shared_data / "hubmap" / "train_fold0_71rows.csv")
    assert len(hubmap) == 71 and hubmap["organ"].nunique() == 5
    with pytest.raises(ValueError, match="118 repeated"):
        read_labels(shared_data / "hpa" / "manual_cells" / "cells_manual.csv")


# ---- catalogs


def test_catalog_says_what_is_missing_on_either_side(tmp_path):
    for name in ("a", "b", "x"):
        Image.new("L", (7, 5)).save(tmp_path / f"{name}.png")
    catalog = catalog_fields(tmp_path, write(tmp_path, "ID,Label\nb,0|16\na,18\nz,1\n"), sizes=True)
    assert catalog.missing_files == ("z",) and catalog.missing_labels == ("x",)
    frame = catalog.frame
    assert tuple(frame.columns[: len(CATALOG_COLUMNS)]) == CATALOG_COLUMNS and frame["field_id"].tolist() == [
        "a",
        "b",
        "x",
    ]
    assert frame["labels"].tolist()[:2] == ["negative", "nucleoplasm|cytosol"] and pd.isna(frame["labels"][2])
    assert frame["height"].tolist() == [5] * 3 and frame["width"].tolist() == [7] * 3
    report = catalog.report()
    assert (
        "3 fields with files, 2 with labels" in report and "but no files: z" in report and "but no labels: x" in report
    )
    write_table(tmp_path / "catalog.parquet", frame)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "catalog.parquet"), frame)


def test_a_plain_folder_has_no_labels_and_nothing_missing(tmp_path):
    Image.new("L", (7, 5)).save(tmp_path / "a.png")
    catalog = catalog_fields(tmp_path)
    assert (catalog.missing_files, catalog.missing_labels) == ((), ()) and catalog.frame["labels"].isna().all()


def test_a_table_of_other_fields_is_refused(tmp_path):
    labels = read_labels(write(tmp_path, "ID,Label\nq,0\n"))
    with pytest.raises(ValueError, match="the files are named like 'a', the table like 'q'"):
        catalog_fields([FieldSource("a", ("a.png",))], labels)


def test_sizes_stated_by_the_table_fill_gaps(tmp_path):
    labels = read_labels(write(tmp_path, "id,organ,img_height,img_width\na,lung,30,20\n"))
    frame = catalog_fields([FieldSource("a", ("nowhere/a.png",))], labels, sizes=True).frame
    assert (frame["height"][0], frame["width"][0], frame["organ"][0]) == (30, 20, "lung")


def test_real_catalog(shared_data):
    catalog = catalog_fields(shared_data / "hpa" / "scc", shared_data / "hpa_labels" / "scc_train.csv", sizes=True)
    assert len(catalog.frame) == 4 and len(catalog.missing_files) == 21_802 and not catalog.missing_labels
    assert sorted(catalog.frame["height"]) == [2048, 2048, 2048, 3072]


# ---- splits


@st.composite
def tables(draw):
    n = draw(st.integers(12, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    common = rng.permutation(len(LOCATIONS))[: draw(st.integers(1, 6))]
    labels = ["|".join(LOCATIONS[i] for i in sorted(set(rng.choice(common, rng.integers(0, 4))))) for _ in range(n)]
    frame = pd.DataFrame(
        {"field_id": [f"f{i}" for i in rng.integers(0, n if draw(st.booleans()) else 10 * n, n)], "labels": labels}
    )
    if draw(st.booleans()):
        frame["group"] = [None if i == 0 else f"p{i}" for i in rng.integers(0, n, n)]
    assume(number_groups(frame).max() >= 2)
    return frame


@given(tables(), st.floats(0.05, 0.95), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_field_and_no_group_on_both_sides(frame, fraction, seed):
    split = split_fields(frame, fraction, seed)
    assert split.index.equals(frame.index) and set(split) == {"train", "valid"}
    for column in frame.columns.intersection(["field_id", "group"]):
        assert (frame.assign(split=split).dropna(subset=column).groupby(column)["split"].nunique() <= 1).all()


@given(tables(), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_does_not_matter(frame, seed):
    shuffled = frame.sample(frac=1, random_state=seed)
    assert split_fields(frame, 0.3, seed).equals(split_fields(shuffled, 0.3, seed).sort_index())
    assert split_folds(frame, 3, seed).equals(split_folds(shuffled, 3, seed).sort_index())


@given(st.integers(60, 300), st.floats(0.1, 0.5), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_sizes_and_label_shares_are_near_the_target(n, fraction, seed):
    rng = np.random.default_rng(seed)
    hot = rng.random((n, 8)) < np.linspace(0.03, 0.6, 8)
    labels = ["|".join(np.array(LOCATIONS[:8])[row]) for row in hot]
    split = split_fields(pd.DataFrame({"field_id": [f"f{i}" for i in range(n)], "labels": labels}), fraction, seed % 7)
    valid = (split == "valid").to_numpy()
    assert abs(valid.sum() - fraction * n) <= 1
    counts = hot.sum(axis=0)
    assert np.all(np.abs(hot[valid].sum(axis=0) - fraction * counts) <= 3 + 0.3 * fraction * counts)


def donors(seed, n_donors, n_organs, n_folds=5):
    """Donors with a geometric number of images of several organs each: organ and donor of each image."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), rng.geometric(0.15, n_donors))
    shares = rng.dirichlet(np.full(n_organs, 0.7), n_donors)
    return np.array([rng.choice(n_organs, p=shares[i]) for i in donor]), donor


def unevenness(organ, fold, n_folds=5):
    """How far the number of each organ in each fold is from its share, and the same of the sizes: (mean, share of those off by half, sizes)."""
    n = np.array([[((fold == i) & (organ == j)).sum() for j in np.unique(organ)] for i in range(n_folds)])
    off, sizes = np.abs(n / n.mean(axis=0) - 1), n.sum(axis=1)
    return off.mean(), (off > 0.5).mean(), np.abs(sizes / sizes.mean() - 1).mean()


@pytest.mark.parametrize(("n_donors", "n_organs"), [(40, 4), (60, 3), (25, 5)])
def test_folds_of_donors_are_as_even_as_those_of_scikit_learn(n_donors, n_organs):
    ours, theirs = [], []
    for seed in range(40):
        organ, donor = donors(seed, n_donors, n_organs)
        frame = pd.DataFrame({"field_id": [f"f{i}" for i in range(len(donor))], "labels": [f"organ{i}" for i in organ], "group": donor})
        fold = np.zeros(len(donor), int)
        for i, (_, test) in enumerate(StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(donor, organ, donor)):
            fold[test] = i
        ours.append(unevenness(organ, split_folds(frame, 5, seed).to_numpy()))
        theirs.append(unevenness(organ, fold))
    # measured: 0.070, 0.016, 0.231 against 0.096, 0.030, 0.254; sizes 0.020, 0.005, 0.061 against 0.049, 0.021, 0.099
    assert np.all(np.mean(ours, axis=0) <= np.mean(theirs, axis=0))


def chi_squared(counts, sizes, shares, sides):
    table = np.column_stack([sizes, counts])
    table = table[:, table.any(axis=0)]
    parts = np.zeros((len(shares), table.shape[1]))
    np.add.at(parts, sides, table)
    wanted = shares[:, None] * table.sum(axis=0)
    terms = ((parts - wanted) ** 2 / wanted).sum(axis=0)
    return terms[1:].sum() + terms[0] * max(counts.sum() / sizes.sum(), 1)


@given(tables(), st.integers(2, 5), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_folds_keep_fields_and_groups_whole_and_none_is_empty(frame, n_folds, seed):
    groups = number_groups(frame)
    assume(groups.max() + 1 >= n_folds)
    folds = split_folds(frame, n_folds, seed)
    assert folds.index.equals(frame.index) and set(folds) == set(range(n_folds))
    assert pd.Series(folds.to_numpy()).groupby(groups).nunique().eq(1).all()
    largest = np.bincount(groups).max()
    assert folds.value_counts().max() <= len(frame) / n_folds + largest


@given(tables(), st.integers(2, 5), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_moves_and_exchanges_make_no_division_less_even(frame, n_folds, seed):
    groups = number_groups(frame)
    assume(groups.max() + 1 >= n_folds)
    counts, sizes, shares = count_labels(frame, groups), np.bincount(groups).astype(float), np.full(n_folds, 1 / n_folds)
    first = stratify_groups(counts, sizes, shares, seed)
    second = even_out(counts, sizes, shares, first, seed)
    assert set(second) == set(range(n_folds))
    assert chi_squared(counts, sizes, shares, second) <= chi_squared(counts, sizes, shares, first) + 1e-9


def test_fields_of_many_labels_are_as_even_as_by_iterative_stratification():
    rng = np.random.default_rng(0)
    off = []
    for seed in range(10):
        hot = rng.random((200, 12)) < np.linspace(0.02, 0.7, 12)
        frame = pd.DataFrame({"field_id": [f"f{i:03}" for i in range(200)], "labels": ["|".join(np.array(LOCATIONS[:12])[row]) for row in hot]})
        counts, shares = hot.astype(float), np.full(5, 0.2)
        for kind, fold in (("one label after the other", stratify_groups(counts, np.ones(200), shares, seed)), ("all", split_folds(frame, 5, seed).to_numpy())):
            n = np.array([counts[fold == i].sum(axis=0) for i in range(5)])
            off.append({"kind": kind, "labels": np.abs(n - n.mean(axis=0)).mean(), "size": np.ptp(np.bincount(fold))})
    means = pd.DataFrame(off).groupby("kind").mean()
    assert means.loc["all", "labels"] <= means.loc["one label after the other", "labels"] and means.loc["all", "size"] == 0


def test_an_empty_cell_names_no_group(tmp_path):
    rows = "".join(f"f{i},cytosol,{'d1' if i < 2 else '' if i < 6 else ' '}\n" for i in range(10))
    frame = read_labels(write(tmp_path, "field_id,labels,group\n" + rows))
    folds = split_folds(frame, 5)
    assert folds[0] == folds[1] and folds.value_counts().tolist() == [2] * 5
    assert number_groups(frame).tolist() == number_groups(frame.assign(group=[1.5, 1.5] + [None] * 8)).tolist() == [0, 0, *range(1, 9)]


def test_seeds_differ_and_repeat():
    frame = pd.DataFrame({"field_id": [f"f{i}" for i in range(100)], "labels": [LOCATIONS[i % 5] for i in range(100)]})
    assert split_fields(frame, seed=1).equals(split_fields(frame, seed=1))
    assert not split_fields(frame, seed=1).equals(split_fields(frame, seed=2))


def test_cells_of_a_field_stay_together_and_sizes_count_cells():
    cells = pd.DataFrame(
        {"field_id": np.repeat([f"f{i}" for i in range(40)], 25), "labels": np.repeat(list(LOCATIONS[:4]) * 10, 25)}
    )
    folds = split_folds(cells, 4)
    assert cells.assign(fold=folds).groupby("field_id")["fold"].nunique().eq(1).all()
    assert folds.value_counts().eq(250).all()
    assert (pd.crosstab(cells["labels"], folds) >= 50).all().all()


def test_organs_are_balanced(shared_data):
    frame = read_labels(shared_data / "hubmap" / "train_fold0_71rows.csv")
    table = pd.crosstab(frame["organ"], split_folds(frame, 5))
    assert (table.max(axis=1) - table.min(axis=1) <= 1).all()


def test_a_handful_of_fields_still_has_two_sides():
    frame = pd.DataFrame({"field_id": list("abcd"), "labels": list(LOCATIONS[:4])})
    assert split_fields(frame, 0.2)[lambda s: s == "valid"].size == 1
    assert sorted(split_folds(frame, 4)) == [0, 1, 2, 3]


def test_frames_without_labels_and_with_odd_indices():
    frame = pd.DataFrame({"field_id": list("abcdefghij")}, index=[7] * 10)
    assert split_fields(frame, 0.3).tolist().count("valid") == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda frame: split_fields(frame, 0), "a fraction between 0 and 1"),
        (lambda frame: split_fields(frame, 1.0), "a fraction between 0 and 1"),
        (lambda frame: split_folds(frame, 1), "2 folds or more"),
        (lambda frame: split_folds(frame, 4), "at least 4 groups of fields, got 3"),
        (lambda frame: split_fields(frame.rename(columns={"field_id": "name"})), "a column field_id"),
    ],
)
def test_split_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(pd.DataFrame({"field_id": list("abc"), "labels": ["cytosol"] * 3}))


def test_real_splits_are_stratified(shared_data):
    frame = read_labels(shared_data / "hpa_labels" / "scc_train.csv")
    hot = encode_labels(frame["labels"].tolist())
    valid = (split_fields(frame, 0.2, seed=0) == "valid").to_numpy()
    assert abs(valid.mean() - 0.2) < 1e-3
    assert np.all(np.abs(hot[valid].sum(axis=0) / hot.sum(axis=0) - 0.2) < 0.02)
    folds = split_folds(frame, 5, seed=0).to_numpy()
    shares = np.stack([hot[folds == k].sum(axis=0) for k in range(5)]) / hot.sum(axis=0)
    assert np.all(np.abs(shares - 0.2) < 0.03)
