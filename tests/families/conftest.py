from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.families.matrix import Matrix


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """What a test finds; written after each one, so that a run may be cut off."""
    matrix = Matrix()
    yield matrix
    if request.config.getoption("--matrix"):
        matrix.write()
