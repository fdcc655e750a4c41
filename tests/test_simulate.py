"""Simulated fields: exact truth, seeded bytes, fair to segment, and written as promised."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import threshold_otsu

from hpacell.fields.find import find_fields
from hpacell.fields.read import read_field
from hpacell.fields.simulate import SIMULATED_LOCATIONS, Optics, simulate_field, simulate_fields
from hpacell.vocabulary import CHANNELS, LOCATIONS, parse_labels

CLEAR = Optics(psf=0, haze=0, shading=0, photons=np.inf, read_noise=0, background=0)


def check_truth(simulated, size):
    """Everything that must hold of a simulated field, whatever its settings."""
    nuclei, cells = simulated.nuclei, simulated.cells
    assert simulated.field.image.shape == (*size, 4) and simulated.field.channels == CHANNELS
    assert nuclei.shape == cells.shape == size and nuclei.dtype == cells.dtype == np.int32
    ids = np.arange(1, len(simulated.locations) + 1)
    assert np.array_equal(np.unique(cells[cells > 0]), ids) and np.array_equal(np.unique(nuclei[nuclei > 0]), ids)
    assert np.array_equal(cells[nuclei > 0], nuclei[nuclei > 0])
    for number in ids:
        assert ndimage.label(cells == number)[1] == 1
        assert ndimage.label(nuclei == number)[1] == 1
    for own in simulated.locations:
        assert 1 <= len(own) <= 2 and set(own) <= set(SIMULATED_LOCATIONS)
        assert own == ("negative",) or "negative" not in own
    union = set().union(*simulated.locations)
    assert simulated.labels == tuple(name for name in LOCATIONS if name in union)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(40, 160),
    width=st.integers(40, 160),
    share=st.floats(0.12, 1.2),
    n_cells=st.one_of(st.none(), st.integers(1, 30)),
)
def test_truth_holds_for_any_size_and_crowd(seed, height, width, share, n_cells):
    diameter = max(12, share * min(height, width))
    simulated = simulate_field(seed, (height, width), n_cells, diameter)
    check_truth(simulated, (height, width))
    if n_cells:
        assert len(simulated.locations) <= n_cells


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), location=st.sampled_from(SIMULATED_LOCATIONS))
def test_light_comes_from_the_cells_alone(seed, location):
    simulated = simulate_field(seed, (96, 128), cell_diameter=50, locations=(location,), optics=CLEAR)
    image, cells, nuclei = simulated.field.image, simulated.cells, simulated.nuclei
    assert not image[cells == 0].any()
    assert np.array_equal(simulated.field.channel("nucleus") > 0, nuclei > 0)
    assert np.array_equal(simulated.field.channel("microtubules") > 0, cells > 0)


@pytest.mark.parametrize(
    "location", ["nucleoplasm", "nuclear_membrane", "nucleoli", "cytosol", "plasma_membrane", "endoplasmic_reticulum"]
)
def test_protein_is_where_its_location_says(location):
    simulated = simulate_field(3, (256, 256), cell_diameter=100, locations=(location,), optics=CLEAR)
    protein = simulated.field.channel("protein").astype(float)
    inside = simulated.nuclei > 0
    outside = (simulated.cells > 0) & ~inside
    nuclear = location.startswith("nucle") or location == "nuclear_membrane"
    assert (protein[inside].mean() > 2 * protein[outside].mean()) == nuclear
    depth = ndimage.distance_transform_edt(np.pad(inside if nuclear else simulated.cells > 0, 1, mode="edge"))[
        1:-1, 1:-1
    ]
    if location.endswith("membrane"):
        assert protein[(depth > 0) & (depth <= 2)].mean() > 3 * protein[depth > 8].mean()


def test_locations_look_different():
    """No two locations give the same protein channel, and negative is dark."""
    pictures = {}
    for location in SIMULATED_LOCATIONS:
        field = simulate_field(5, (128, 128), cell_diameter=70, locations=(location,), optics=CLEAR).field
        pictures[location] = field.channel("protein").astype(float)
    brightest = {name: np.percentile(picture, 99.9) for name, picture in pictures.items()}
    assert brightest.pop("negative") * 4 < min(brightest.values())
    names = list(brightest)
    correlations = np.corrcoef([pictures[name].ravel() for name in names]) - np.eye(len(names))
    assert correlations.max() < 0.9


def test_same_seed_same_bytes_other_seed_other_field():
    first, again, other = (simulate_field(seed, 128) for seed in (7, 7, 8))
    assert first.field.image.tobytes() == again.field.image.tobytes()
    assert first.cells.tobytes() == again.cells.tobytes() and first.locations == again.locations
    assert first.field.image.tobytes() != other.field.image.tobytes()


def test_sixteen_bits_show_the_same_field_finer():
    narrow, wide = simulate_field(2, 128), simulate_field(2, 128, bits=16)
    assert wide.field.image.dtype == np.uint16 and np.array_equal(narrow.cells, wide.cells)
    assert np.abs(wide.field.image / 257 - narrow.field.image.astype(float)).max() <= 1
    assert len(np.unique(wide.field.image)) > 256


def test_fields_have_what_makes_them_hard():
    """Cells touch, some lie on the frame, cells of one field differ, and there is noise where there is no cell."""
    fields = [simulate_field((1, index), 256) for index in range(12)]
    right = [
        (one.cells[:, 1:] != one.cells[:, :-1]) & (one.cells[:, 1:] > 0) & (one.cells[:, :-1] > 0) for one in fields
    ]
    assert sum(touch.any() for touch in right) >= 10
    assert sum(bool(one.cells[0].any() or one.cells[-1].any()) for one in fields) >= 10
    assert sum(len(set(one.locations)) > 1 for one in fields) >= 4
    assert sum(any(set(own) < set(one.labels) for own in one.locations) for one in fields) >= 4
    for one in fields:
        assert one.field.channel("nucleus")[one.cells == 0].std() > 1
        assert 0.2 < (one.cells > 0).mean() < 0.9


def test_nuclei_are_found_by_a_plain_threshold():
    overlaps = []
    for index in range(6):
        one = simulate_field((2, index), 256)
        smooth = ndimage.gaussian_filter(one.field.channel("nucleus").astype(float), 1)
        found = smooth > threshold_otsu(smooth)
        overlaps.append((found & (one.nuclei > 0)).sum() / (found | (one.nuclei > 0)).sum())
    assert min(overlaps) > 0.7 and np.mean(overlaps) > 0.8


def test_every_location_is_drawn_and_labels_are_weak():
    drawn = [simulate_field((3, index), 64, cell_diameter=30).locations for index in range(80)]
    counts = pd.Series([name for cells in drawn for own in cells for name in own]).value_counts()
    assert set(counts.index) == set(SIMULATED_LOCATIONS)
    assert counts.min() > 0.02 * counts.sum()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": (10, 512)}, "at least 32 x 32"),
        ({"size": (512, 512, 4)}, "height, width"),
        ({"n_cells": 0}, "at least 1 cell"),
        ({"cell_diameter": 4}, "between 12 and"),
        ({"cell_diameter": float("nan")}, "between 12 and"),
        ({"locations": ("cytosol", "aggresome")}, "aggresome.*choose from nucleoplasm"),
        ({"locations": ()}, "choose from"),
        ({"bits": 12}, "bits=8 or bits=16"),
    ],
)
def test_wrong_requests_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate_field(**wrong)


def test_written_folder_reads_back_as_the_same_fields(tmp_path):
    table = simulate_fields(tmp_path, 3, seed=4, size=(96, 128), cell_diameter=40)
    sources = find_fields(tmp_path)
    assert [source.field_id for source in sources] == [f"sim_4_{index:05d}" for index in range(3)]
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    cells = pd.read_csv(tmp_path / "truth" / "cells.csv")
    pd.testing.assert_frame_equal(cells, table, check_dtype=False)
    for index, source in enumerate(sources):
        one = simulate_field((4, index), (96, 128), cell_diameter=40)
        field = read_field(source)
        assert field.channels == CHANNELS and np.array_equal(field.image, one.field.image)
        own = cells[cells["field_id"] == source.field_id]
        assert own["cell_id"].tolist() == list(range(1, len(one.locations) + 1))
        assert own["labels"].tolist() == ["|".join(names) for names in one.locations]
        assert parse_labels(labels["Label"][index]) == one.labels
        for kind in ("cells", "nuclei"):
            (truth,) = find_fields(tmp_path / "truth" / f"{source.field_id}_{kind}.png")
            image = read_field(truth).image[..., 0]
            assert image.dtype == np.uint16 and np.array_equal(image, getattr(one, kind))


def test_fewer_fields_are_a_prefix_of_more(tmp_path):
    simulate_fields(tmp_path / "few", 2, seed=1, size=64)
    simulate_fields(tmp_path / "many", 3, seed=1, size=64)
    few = sorted((tmp_path / "few").glob("*.png"))
    assert len(few) == 8
    for path in few:
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes()
    assert (tmp_path / "many" / "labels.csv").read_text().startswith((tmp_path / "few" / "labels.csv").read_text())


def test_two_processes_write_the_same(tmp_path):
    simulate_fields(tmp_path / "one", 3, seed=6, size=64)
    simulate_fields(tmp_path / "two", 3, seed=6, size=64, workers=2)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(names) == 3 * 6 + 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_folder_is_kept_grown_mended_or_refused(tmp_path):
    table = simulate_fields(tmp_path, 2, seed=1, size=64)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    pd.testing.assert_frame_equal(simulate_fields(tmp_path, 2, seed=1, size=64), table, check_dtype=False)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    lost = sorted(before)[0]
    content = lost.read_bytes()
    lost.unlink()
    simulate_fields(tmp_path, 2, seed=1, size=64)
    assert lost.read_bytes() == content
    assert simulate_fields(tmp_path, 3, seed=1, size=64)["field_id"].nunique() == 3
    for other in ({"n_fields": 3, "seed": 2}, {"n_fields": 2, "seed": 1}):
        with pytest.raises(ValueError, match="choose another folder"):
            simulate_fields(tmp_path, size=64, **other)


def test_truth_in_files_is_that_of_the_field(tmp_path):
    from hpacell.masks.read import read_label_image

    simulate_fields(tmp_path, n_fields=2, seed=3, size=(96, 128))
    for index in range(2):
        simulated = simulate_field((3, index), size=(96, 128))
        for kind in ("nuclei", "cells"):
            np.testing.assert_array_equal(read_label_image(tmp_path / "truth" / f"sim_3_{index:05d}_{kind}.png"), getattr(simulated, kind))


def test_more_cells_than_16_bits_number_are_refused(tmp_path, monkeypatch):
    from dataclasses import replace

    import hpacell.fields.simulate as module

    many = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    simulated = replace(simulate_field(0, (300, 300)), cells=many, nuclei=many)
    monkeypatch.setattr(module, "simulate_field", lambda *arguments, **options: simulated)
    with pytest.raises(ValueError, match="at most 65535 cells in a field, got 89999: ask for fewer cells"):
        simulate_fields(tmp_path / "many", n_fields=1, size=(300, 300))
