"""Every way to answer that the scripted server knows, read by the client: exact counts and the
right class of outcome. Delays can only grow on a busy machine: bounds are exact below."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from loadtest.client import Exchange, Kind, Sampling, request_body
from loadtest.connection import Client
from loadtest.endpoint import Endpoint
from loadtest.metrics import Record
from loadtest.workload import Item
from tests.loadtest.modes import MODES, Mode
from tests.loadtest.scripted import Script, ScriptedServer, scripted
from tests.loadtest.scripted_answer import Truth

_TOKENS = 8
_SCRIPT = Script(first=0.02, gap=0.003)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted(_SCRIPT) as running:
        yield running


def ask(
    server: ScriptedServer, mode: str, kind: Kind = "chat", client: Client | None = None
) -> tuple[Record, Truth]:
    hangs = "hang" in (MODES[mode].fault or "")
    client = client or Client(Endpoint.of(server.url), timeout=0.3 if hangs else 20)
    body = request_body(kind, mode, Item(prompt="hello"), _TOKENS, Sampling())
    exchange = Exchange(client, kind, body)
    exchange.run()
    client.close()
    return exchange.record, server.truths[-1]


def kind_of(name: str) -> Kind:
    return "completion" if name == "completion text" else "chat"


@pytest.mark.parametrize("name", MODES)
def test_outcome_and_counts(server: ScriptedServer, name: str) -> None:
    mode = MODES[name]
    record, truth = ask(server, name, kind_of(name))
    assert record.complete == (mode.outcome == "ok"), record.error
    if mode.outcome == "failed":
        assert mode.error in (record.error or "").lower() or mode.error in (record.error or "")
        return
    if mode.counts:
        assert record.tokens == record.output_tokens == truth.tokens
        assert record.prompt_tokens == 5
    else:
        assert record.output_tokens is None
    assert len(record.arrivals) == chunks_of(mode, truth)
    if record.counts:
        assert record.counts[-1] == truth.tokens and record.counts == tuple(sorted(record.counts))
    assert record.finish_reason == mode.reason
    first = truth.sent[mode.per_chunk - 1 if truth.tokens > 1 else 0] - truth.received
    assert record.ttft_ms is not None
    assert record.ttft_ms >= 1000 * first - 0.5
    assert record.e2e_ms >= 1000 * (truth.ended - truth.received) - 0.5
    assert record.e2e_ms >= record.ttft_ms


def chunks_of(mode: Mode, truth: Truth) -> int:
    chunks = -(-truth.tokens // mode.per_chunk)
    if mode.invisible < 0:  # tokens without an event; the count of the last shows at the end
        return chunks - chunks // -mode.invisible + int(chunks % -mode.invisible == 0)
    return chunks


def test_thinking_has_a_time_to_the_first_word_of_the_answer(server: ScriptedServer) -> None:
    record, truth = ask(server, "thinks, then answers")
    assert record.ttft_ms is not None and record.answer_ms is not None
    assert record.answer_ms > record.ttft_ms
    assert record.answer_ms >= 1000 * (truth.sent[4] - truth.received) - 0.5
    only, _ = ask(server, "reasoning")
    assert only.answer_ms is None and only.ttft_ms is not None


def test_time_per_token_is_of_tokens_where_chunks_hold_two() -> None:
    with scripted(Script(first=0.02, gap=0.02)) as slow:
        two, truth = ask(slow, "two a chunk, continuous")
        hidden, _ = ask(slow, "invisible, none sent")
    assert truth.tokens == 8 and len(two.arrivals) == 4
    for record in (two, hidden):  # a chunk is 40 ms
        assert record.tpot_ms is not None and 15 < record.tpot_ms < 32
    assert two.counts == (2, 4, 6, 8)


def test_the_connection_serves_again(server: ScriptedServer) -> None:
    client = Client(Endpoint.of(server.url))
    body = request_body("chat", "plain", Item(prompt="hello"), 4, Sampling())
    before = server.connections
    opened = []
    for _ in range(5):
        exchange = Exchange(client, "chat", body)
        exchange.run()
        assert exchange.record.complete
        opened.append(exchange.record.opened)
    client.close()
    assert server.connections == before + 1
    assert opened == [True, False, False, False, False]


def test_a_connection_that_was_opened_ahead_is_none_of_the_request_s(
    server: ScriptedServer,
) -> None:
    client = Client(Endpoint.of(server.url))
    client.ready()
    exchange = Exchange(
        client, "chat", request_body("chat", "plain", Item(prompt="x"), 4, Sampling())
    )
    exchange.run()
    client.close()
    assert exchange.record.complete and not exchange.record.opened


def test_a_connection_that_the_server_closed_is_opened_again(server: ScriptedServer) -> None:
    client = Client(Endpoint.of(server.url))
    for mode in ("503", "plain", "until close", "plain"):
        exchange = Exchange(
            client, "chat", request_body("chat", mode, Item(prompt="x"), 4, Sampling())
        )
        exchange.run()
        assert exchange.record.complete == (mode != "503"), exchange.record.error
    client.close()


def test_what_a_server_asks_to_wait_is_read(server: ScriptedServer) -> None:
    assert ask(server, "429 in 1 s")[0].retry_after == 1
    assert (ask(server, "429 by date")[0].retry_after or 0) > 1e9
    assert ask(server, "429")[0].retry_after is None


def test_a_user_who_goes_away_is_neither_answered_nor_failed(server: ScriptedServer) -> None:
    for mode in ("plain", "hangs", "hangs within"):
        client = Client(Endpoint.of(server.url))
        body = request_body("chat", mode, Item(prompt="x"), 10_000, Sampling())
        exchange = Exchange(client, "chat", body, cancel_after=0.1)
        began = time.perf_counter()
        exchange.run()
        record = exchange.record
        assert record.cancelled and not record.complete and record.error is None, mode
        assert 0.09 < time.perf_counter() - began < 5
        assert not record.cut


def test_latency_counts_from_when_a_request_was_due(server: ScriptedServer) -> None:
    client = Client(Endpoint.of(server.url))
    body = request_body("chat", "plain", Item(prompt="x"), 4, Sampling())
    exchange = Exchange(client, "chat", body, intended=time.time() - 5)
    exchange.run()
    client.close()
    assert 5000 < (exchange.record.ttft_ms or 0) < 9000 and 5 <= exchange.record.sent < 9


def test_nobody_there_is_a_failure() -> None:
    exchange = Exchange(
        Client(Endpoint.of("http://127.0.0.1:9")),
        "chat",
        request_body("chat", "m", Item(prompt="x"), 4, Sampling()),
    )
    exchange.run()
    assert "refused" in (exchange.record.error or "")
