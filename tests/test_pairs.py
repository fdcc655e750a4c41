"""Two commands at once on shared folders: a part of what `tests/pairs.py` does, without trainings."""

import pytest
from pairs import Pairs, draw_pairs
from torture import DifferenceError, Runner


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    runner = Runner(folder)
    yield Pairs(folder, runner, n_fields=3)
    runner.close()


@pytest.mark.parametrize(("first", "second", "offset", "kill"), draw_pairs(4, seed=5, n_learned=0))
def test_pairs_end_as_one_after_the_other(pairs, first, second, offset, kill):
    pairs.pair(first, second, offset, kill)


@pytest.mark.parametrize(("first", "second"), [("extract", "extract zstd"), ("export tar", "export png")])
def test_pairs_that_begin_together(pairs, first, second):
    pairs.pair(first, second, 0.0, None)


def test_a_mixture_is_seen(pairs):
    """A comparison that finds the former state where a command has ended well must fail."""
    pairs.reset()
    pairs.work.joinpath("out").mkdir()
    with pytest.raises(DifferenceError, match="unlike"):
        pairs._compare(("export tar", "score"), [0, 0], [False, False], ["", ""])


@pytest.mark.slow
def test_fifty_pairs(pairs):
    for pair in draw_pairs(50, seed=1, n_learned=0):
        pairs.pair(*pair)
