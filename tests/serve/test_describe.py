from __future__ import annotations

import pytest

from serve.describe import ServerInfo, describe
from serve.server import free_port
from tests.loadtest.fake_openai import fake_openai
from vllm_moe_prune.errors import PruneError


def test_a_server_says_what_it_is() -> None:
    with fake_openai() as server:
        found = describe(server.url + "/")
    assert found == ServerInfo(
        url=server.url,
        models=("fake-model",),
        max_model_len=512,
        version="9.9",
        routing_map=None,
    )


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(PruneError, match="no OpenAI-compatible server") as caught:
        describe(f"http://127.0.0.1:{free_port()}")
    assert "\n" not in str(caught.value)
