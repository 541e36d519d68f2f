"""Addresses, keys and certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.client import Exchange, Sampling, request_body
from loadtest.connection import Client
from loadtest.endpoint import Endpoint, ask_served, key_from
from loadtest.workload import Item
from tests.loadtest.scripted import Script, scripted
from vllm_moe_prune.errors import PruneError


def test_a_certificate_of_one_s_own_is_refused_trusted_or_ignored(certificate: Path) -> None:
    with scripted(Script(first=0.01, gap=0.001), str(certificate)) as server:
        with pytest.raises(PruneError, match=r"certificate.*--ca FILE.*--insecure") as caught:
            ask_served(Endpoint.of(server.url))
        assert "\n" not in str(caught.value)
        for endpoint in (
            Endpoint.of(server.url, ca=str(certificate)),
            Endpoint.of(server.url, insecure=True),
        ):
            assert ask_served(endpoint).version == "9.9"
            client = Client(endpoint)
            body = request_body("chat", "plain", Item(prompt="x"), 4, Sampling())
            opened = []
            for _ in range(3):
                exchange = Exchange(client, "chat", body)
                exchange.run()
                assert exchange.record.complete, exchange.record.error
                opened.append(exchange.record.opened)
            client.close()
            assert opened == [True, False, False]


def test_a_key_is_sent_and_shown_nowhere() -> None:
    with scripted(Script(first=0.01, key="secret")) as server:
        with pytest.raises(PruneError, match=r"HTTP 401.*OPENAI_API_KEY"):
            ask_served(Endpoint.of(server.url))
        endpoint = Endpoint.of(server.url, "secret")
        assert ask_served(endpoint).models
        assert "secret" not in repr(endpoint)


def test_the_key_is_in_the_variable_that_is_named_or_in_vllm_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "VLLM_API_KEY", "MINE"):
        monkeypatch.delenv(name, raising=False)
    assert key_from() is None
    monkeypatch.setenv("VLLM_API_KEY", "v")
    assert key_from() == key_from("MINE") == "v"
    monkeypatch.setenv("OPENAI_API_KEY", "o")
    monkeypatch.setenv("MINE", "m")
    assert (key_from(), key_from("MINE")) == ("o", "m")


@pytest.mark.parametrize(
    ("url", "prefix"),
    [("http://h:1", ""), ("http://h:1/", ""), ("http://h:1/v1/", ""), ("http://h/a/b/v1", "/a/b")],
)
def test_the_path_before_v1_is_kept(url: str, prefix: str) -> None:
    assert Endpoint.of(url).target("/v1/models") == f"{prefix}/v1/models"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no address is not an address"),
        ("localhost:8000", "is not an address"),
        ("http://h:port", "Port could not be cast"),
        ("http://me:pass@h", "must not hold a password"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(url: str, message: str) -> None:
    with pytest.raises(PruneError, match=message) as caught:
        Endpoint.of(url)
    assert "pass@" not in str(caught.value)


def test_a_proxy_serves_other_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "internal")
    outside = Endpoint.of("http://outside:8000")
    assert outside.proxy == ("proxy", 3128)
    assert outside.target("/v1/models") == "http://outside:8000/v1/models"
    assert Endpoint.of("http://127.0.0.1:8000").proxy is None
    assert Endpoint.of("http://internal").proxy is None


def test_a_server_without_models_is_one_line() -> None:
    with scripted(Script(models=())) as server, pytest.raises(PruneError, match="serves no model"):
        ask_served(Endpoint.of(server.url))
