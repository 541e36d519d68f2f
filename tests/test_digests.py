"""The same seed gives the same map, scores, weights and numbers as before, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.digest_contents import Digests
from tests.digests import differences, digests, digests_in_vllm, key, known


def _expected(*, vllm: bool = False) -> Digests:
    here, expectations = key(vllm=vllm), known()
    if here not in expectations:
        pytest.skip(
            f"no digests are known of {here}: numbers differ in their last bits by processor and "
            "version; the head of tests/digests.py says how to take them"
        )
    return expectations[here]


def test_commands_make_the_same_as_before(tmp_path: Path) -> None:
    wanted = _expected()
    assert differences(digests(tmp_path), wanted) == []


@pytest.mark.vllm
def test_a_search_in_vllm_makes_the_same_as_before(tmp_path: Path) -> None:
    wanted = _expected(vllm=True)
    assert differences(digests_in_vllm(tmp_path), wanted) == []
