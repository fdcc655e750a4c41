"""Near-duplicates: whatever pairs are listed, no pair and no chain of pairs is ever parted by a split."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpacell.fields.catalog import read_labels, split_fields, split_folds
from hpacell.fields.duplicates import group_duplicates, read_duplicates

PAIRS = ["field_id_a", "field_id_b"]


def as_pairs(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=PAIRS, dtype=object)


def reached(start, rows) -> set:
    """All ids that a chain of pairs joins to one, found step by step."""
    found, new = {start}, {start}
    while new:
        new = {other for pair in rows for one, other in (pair, pair[::-1]) if one in new} - found
        found |= new
    return found


def parted(fields: pd.Series, sides: pd.Series, pairs: pd.DataFrame) -> int:
    """Pairs, both of whose fields are in the table, that stand on two sides."""
    of = dict(zip(fields, sides, strict=True))
    both = pairs[pairs.isin(set(fields)).all(axis=1)]
    return int((both["field_id_a"].map(of) != both["field_id_b"].map(of)).sum())


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "pairs.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


NODES = st.integers(0, 14).map("f{}".format)


@settings(max_examples=200, deadline=None)
@given(st.lists(NODES, max_size=20), st.lists(st.tuples(NODES, NODES), max_size=15))
def test_a_group_is_what_chains_of_pairs_join(field_ids, rows):
    groups = group_duplicates(field_ids, as_pairs(rows))
    assert groups.dtype == np.int64 and groups.shape == (len(field_ids),)
    chains = {name: reached(name, rows) for name in field_ids}
    for i, one in enumerate(field_ids):
        for j, other in enumerate(field_ids):
            assert (groups[i] == groups[j]) == (other in chains[one])
    firsts = list(dict.fromkeys(groups.tolist()))
    assert firsts == list(range(len(firsts)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=40), st.integers(0, 5), st.randoms(use_true_random=False))
def test_no_split_parts_a_pair(rows, seed, random):
    names = [f"f{i:02}" for i in range(60)]
    random.shuffle(names)
    fields = pd.DataFrame({"field_id": names, "labels": [("cytosol", "nucleoli|cytosol", "")[int(name[1:]) % 3] for name in names]})
    pairs = as_pairs([(f"f{a:02}", f"f{b:02}") for a, b in rows])
    fields["group"] = group_duplicates(fields["field_id"], pairs)
    assert parted(fields["field_id"], split_folds(fields, 5, seed), pairs) == 0
    assert parted(fields["field_id"], split_fields(fields, 0.3, seed), pairs) == 0


def test_rows_of_cells_keep_the_group_of_their_field():
    groups = group_duplicates(["a", "a", "b", "c", "b"], as_pairs([("c", "a")]))
    assert groups.tolist() == [0, 0, 1, 0, 1]


def test_numbers_of_groups_do_not_matter_to_the_split():
    names = [f"f{i:02}" for i in range(40)]
    fields = pd.DataFrame({"field_id": names, "labels": ["cytosol", "nucleoli"] * 20})
    pairs = as_pairs(list(zip(names[:15], names[20:35], strict=True)))
    fields["group"] = group_duplicates(names, pairs)
    shuffled = fields.sample(frac=1, random_state=1)
    shuffled["group"] = group_duplicates(shuffled["field_id"], pairs)
    assert (fields["group"] != shuffled["group"].sort_index()).any()
    pd.testing.assert_series_equal(split_folds(fields), split_folds(shuffled).sort_index())


def test_ids_and_paths_of_every_kind(write):
    text = "one,other,alike\ndata/a/f1,data/b/f2,3\nC:\\train\\f3,f4.PNG,\n f5 ,./train/v1.2/,1\n"
    expected = [["f1", "f2"], ["f3", "f4"], ["f5", "v1.2"]]
    assert read_duplicates(write(text)).to_numpy().tolist() == expected
    packed = read_duplicates(write(gzip.compress(text.encode()), "pairs.csv.gz"))
    assert packed.columns.tolist() == PAIRS and packed.to_numpy().tolist() == expected
    assert read_duplicates(write("\ufeffone,other\n007,NA\n")).to_numpy().tolist() == [["007", "NA"]]
    assert read_duplicates(write("one,other\n")).shape == (0, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a CSV of pairs, got no row"),
        (b"\x1f\x8bnot gzip at all", "expected a CSV of pairs"),
        (gzip.compress(b"one,other\na,b\n" * 50, mtime=0)[:-12], "expected a CSV of pairs"),
        (b"one,other\n\xff\xfe,b\n", "expected a CSV of pairs"),
        ("field_id\na\n", "expected two columns of ids, got field_id"),
        ("one,other\na,b\n ,d\n", r"expected two ids in each row, got \['', 'd'\] in row 3"),
        ("one,other\na,b\ndata/\n", "in row 3"),
        ("train/a,train/b\ntrain/c,train/d\n", "got the id 'train/a'"),
        ("6d856b08-bb99,b770e17c-bba6\nx,y\n", "got the id '6d856b08-bb99'"),
        ("a,b\nb,c\n", "got the id 'b'"),
    ],
)
def test_lists_that_are_refused(write, content, message):
    path = write(content)
    with pytest.raises(ValueError, match=message) as error:
        read_duplicates(path)
    assert str(error.value).startswith(f"{path}: ")


def test_no_such_list(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_duplicates(tmp_path / "none.csv")


def test_a_list_of_other_data_is_told(capsys):
    assert group_duplicates(["a", "b"], as_pairs([("x", "y")])).tolist() == [0, 1]
    assert capsys.readouterr().err == "duplicates: expected some of the fields, such as a, in 1 pairs, got none, such as x\n"
    group_duplicates(["a", "b"], as_pairs([("x", "b")]))
    group_duplicates(["a", "b"], as_pairs([]))
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def atlas(shared_data):
    fields = read_labels(shared_data / "hpa_labels" / "scc_train.csv")
    pairs = read_duplicates(shared_data / "hpa_labels" / "duplicates.csv.gz")
    return fields.assign(group=group_duplicates(fields["field_id"], pairs)), pairs


def counted(fields: pd.DataFrame, sides: pd.Series) -> pd.DataFrame:
    """Fields of each label on each side."""
    return fields["labels"].str.get_dummies("|").groupby(sides).sum().T


def test_the_full_atlas_list(atlas):
    fields, pairs = atlas
    assert len(fields) == 21_806 and len(pairs) == 1414
    assert pairs.isin(set(fields["field_id"])).all(axis=1).sum() == 1080  # the others are public images outside of the competition
    assert fields["group"].nunique() == 21_284
    assert fields["group"].value_counts().value_counts().to_dict() == {1: 20_815, 2: 422, 3: 42, 4: 4, 5: 1}


@pytest.mark.parametrize("seed", range(4))
def test_no_near_duplicate_of_the_atlas_on_two_sides(atlas, seed):
    fields, pairs = atlas
    assert parted(fields["field_id"], split_folds(fields.drop(columns="group"), 5, seed), pairs) > 400  # the leak that is closed
    folds, halves = split_folds(fields, 5, seed), split_fields(fields, 0.2, seed)
    for sides, shares in ((folds, [0.2] * 5), (halves, [0.8, 0.2])):
        assert parted(fields["field_id"], sides, pairs) == 0
        assert sides.groupby(fields["group"]).nunique().max() == 1  # chains, also through fields that are not here
        sizes = sides.value_counts().sort_index().to_numpy()
        np.testing.assert_allclose(sizes / len(fields), shares, atol=0.001)
        counts = counted(fields, sides)
        wanted = np.outer(counts.sum(axis=1), shares)
        # Each label within 5 % of its share, or 1.5 fields where it is rare; without groups it is no nearer.
        assert (np.abs(counts - wanted) <= np.maximum(1.5, 0.05 * wanted)).all(axis=None)
