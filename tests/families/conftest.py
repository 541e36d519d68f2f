from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.families.matrix import Matrix

_FOUND: dict[tuple[str, str], str] = {}  # by all tests of this run


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """What tests find; written after each one, so that a run may be cut off."""
    matrix = Matrix(_FOUND)
    yield matrix
    if request.config.getoption("--matrix"):
        matrix.write()
