from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from offline.engines.local.transformers import TransformersEngine
from tests.engines.served import Answers, serving
from tests.tiny import make_tiny_mixtral


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def session_engine(tiny: Path) -> TransformersEngine:
    return TransformersEngine(tiny, dtype="float32")


@pytest.fixture
def engine(session_engine: TransformersEngine) -> Iterator[TransformersEngine]:
    yield session_engine
    session_engine.apply(None)


@pytest.fixture(scope="session")
def input_ids() -> torch.Tensor:
    return torch.randint(5, 128, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def url(answers: Answers) -> Iterator[str]:
    with serving(answers) as address:
        yield address
