from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import word_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Whole words, with special tokens and a chat template."""
    return word_tokenizer(128)
