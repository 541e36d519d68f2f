from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.families.matrix import Matrix


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    matrix = Matrix()
    yield matrix
    if request.config.getoption("--matrix"):
        matrix.write()
