from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.testbed.model import make_testbed


@pytest.fixture(scope="session")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model without tasks: needs no download."""
    return make_testbed(tmp_path_factory.mktemp("testbed") / "model", tasks=False)
