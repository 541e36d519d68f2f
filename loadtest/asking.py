"""Requests outside of a measurement: to warm a server up, and to see what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

from loadtest.answers import Answer, is_right
from loadtest.client import Exchange, Sampling, request_body
from loadtest.connection import Client
from loadtest.endpoint import Endpoint, ask_served
from loadtest.results import Settings
from loadtest.workload import DEFAULT_WORKLOAD, Ask
from loadtest.workload_file import read_workload
from vllm_moe_prune.errors import PruneError

_WARM_UP_TOKENS = 8
_WARM_UP_SECONDS = 180.0  # for one short answer, however large the model


def warm_up(endpoint: Endpoint, users: int, settings: Settings) -> None:
    """Send each of ``users`` two short answers' worth of work, so that no compilation is measured.

    :raises PruneError: if no answer came: a measurement would only count errors
    """
    patience = min(settings.request_timeout, _WARM_UP_SECONDS)
    one, *more = 1, 2 * users - 1
    for number, together in ((one, 1), *((n, users) for n in more if n)):
        asked = ask(endpoint, together, number, settings, _WARM_UP_TOKENS, patience)
        records = [exchange.record for _, exchange in asked]
        if not any(record.complete for record in records):
            raise PruneError(
                f"{endpoint.url} answered none of {len(records)} requests: {records[0].error}",
                hint="a model without chat template needs --endpoint completion",
            )


def natural_answers(endpoint: Endpoint, settings: Settings) -> list[Answer]:
    """Answers that the model ends by itself (or at max_tokens)."""
    natural = settings.model_copy(update={"ignore_eos": False})
    number = settings.natural_requests
    found = ask(
        endpoint, min(8, number), number, natural, settings.max_tokens, settings.request_timeout
    )
    return [_answer(number, *one) for number, one in enumerate(found)]


def _answer(index: int, asked: Ask, exchange: Exchange) -> Answer:
    record, expected = exchange.record, asked.item.expected
    text = exchange.text if record.complete else None
    right = None if expected is None else text is not None and is_right(text, expected)
    return Answer(index=index, text=text, tokens=record.tokens, right=right)


def ask(
    endpoint: Endpoint,
    users: int,
    number: int,
    settings: Settings,
    cap: int | None,
    timeout: float,
) -> list[tuple[Ask, Exchange]]:
    """The first ``number`` requests of the workload, ``users`` at a time.

    :param timeout: seconds that each may take
    :raises PruneError: if the server does not say what it serves
    """
    workload = read_workload(Path(settings.workload) if settings.workload else DEFAULT_WORKLOAD)
    sampling = Sampling(settings.temperature, settings.seed, settings.ignore_eos)
    model = ask_served(endpoint).models[0]
    asks: Iterable[Ask] = islice(workload.asks(settings.seed, cap), number)
    with _clients(endpoint, users, timeout) as free:

        def one(asked: Ask) -> tuple[Ask, Exchange]:
            client = free.get()
            item = asked.item.turn(())
            body = request_body(settings.endpoint, model, item, asked.max_tokens, sampling)
            exchange = Exchange(client, settings.endpoint, body)
            exchange.run()
            free.put(client)
            return asked, exchange

        with ThreadPoolExecutor(users) as pool:
            return list(pool.map(one, asks))


@contextmanager
def _clients(endpoint: Endpoint, number: int, timeout: float) -> Iterator[SimpleQueue[Client]]:
    clients = [Client(endpoint, timeout) for _ in range(number)]
    free: SimpleQueue[Client] = SimpleQueue()
    for client in clients:
        free.put(client)
    try:
        yield free
    finally:
        for client in clients:
            client.close()
