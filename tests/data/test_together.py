"""An error on one rank is the same error on all, and nobody is left waiting."""

from __future__ import annotations

import numpy as np
import pytest

from hpcps.errors import ConfigError, DataError
from hpcps.together import Alone, agree


def fail(error):
    raise error


@pytest.mark.parametrize("size", [1, 2, 5])
def test_results_stay_on_their_rank(size, together):
    assert together(size, lambda rank: agree(rank, lambda: rank.rank * 10)) == [10 * n for n in range(size)]


@pytest.mark.parametrize("failing", [[0], [3], [1, 3]])
def test_lowest_failing_rank_is_raised_everywhere(failing, together):
    def work(rank):
        error = DataError(f"ä\0 of {rank.rank}")
        return agree(rank, lambda: fail(error) if rank.rank in failing else 1)

    with pytest.raises(DataError, match=rf"^ä\\0 of {failing[0]}$"):
        together(4, work)


def test_kind_of_error_is_kept(together):
    with pytest.raises(ConfigError, match=r"^x$"):
        together(3, lambda rank: agree(rank, lambda: fail(ConfigError("x")) if rank.rank == 1 else 1))


def test_alone():
    alone = Alone()
    assert (alone.rank, alone.size) == (0, 1)
    np.testing.assert_array_equal(alone.once(lambda: np.arange(3)), np.arange(3))
    np.testing.assert_array_equal(alone.gather(np.arange(3)), np.arange(3))
    with pytest.raises(DataError, match=r"^x$") as caught:
        agree(alone, lambda: fail(DataError("x")))
    assert caught.value.__cause__ is not None
