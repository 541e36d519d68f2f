from __future__ import annotations

import pytest

from serve.describe import ServerInfo, describe
from serve.server import free_port
from tests.loadtest.fake_openai import fake_openai
from tests.serve.keyed import KEY, keyed_server
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


def test_a_server_with_a_key_is_described_and_says_that_it_is_pruned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with keyed_server() as url:
        with pytest.raises(PruneError, match=r"401.*read from VLLM_API_KEY"):
            describe(url)
        assert describe(url, KEY).models == ("m",)
        monkeypatch.setenv("VLLM_API_KEY", KEY)
        assert describe(url).routing_map == "12 of 32 experts, map-only, sha256:1"


def test_a_key_is_not_told_to_the_address_that_a_server_sends_us_to() -> None:
    with (
        keyed_server() as other,
        keyed_server(moved_to=other) as url,
        pytest.raises(PruneError, match="401"),
    ):
        describe(url, KEY)
