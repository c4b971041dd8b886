import ctypes

import pytest

from atlas.kernels.library import library, missing


@pytest.fixture
def kernel() -> ctypes.CDLL:
    """The compiled library; without a compiler there is nothing to compare."""
    found = library()
    if found is None:
        pytest.skip(missing())
    return found
