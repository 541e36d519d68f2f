"""Requests outside of a measurement: to warm a server up, and to see how long its answers are."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx

from loadtest.client import (
    Exchange,
    Sampling,
    StreamError,
    discover_model,
    open_client,
    request_body,
)
from loadtest.metrics import Record, summarise
from loadtest.results import Settings
from loadtest.workload import DEFAULT_WORKLOAD, Item, load_workload
from vllm_moe_prune.errors import PruneError

_WARM_UP_TOKENS = 8


def warm_up(url: str, users: int, settings: Settings) -> None:
    """Send each of ``users`` two short answers' worth of work, so that no compilation is measured.

    :raises PruneError: if no answer came: a measurement would only count errors
    """
    records = ask(url, users, 2 * users, settings, cap=_WARM_UP_TOKENS)
    if not any(record.complete for record in records):
        raise PruneError(
            f"{url} answered none of {len(records)} requests: {records[0].error}",
            hint="a model without chat template needs --endpoint completion",
        )


def natural_length(url: str, settings: Settings) -> float | None:
    """Mean length in tokens of the answers that the model ends by itself (or at max_tokens)."""
    natural = settings.model_copy(update={"ignore_eos": False})
    number = settings.natural_requests
    return summarise(
        ask(url, min(8, number), number, natural, settings.max_tokens), 8
    ).output_tokens_mean


def ask(url: str, users: int, number: int, settings: Settings, cap: int | None) -> list[Record]:
    """The first ``number`` requests of the workload, ``users`` at a time.

    :raises PruneError: if the server does not say what it serves
    """
    workload = load_workload(Path(settings.workload) if settings.workload else DEFAULT_WORKLOAD)
    sampling = Sampling(settings.temperature, settings.seed, settings.ignore_eos)
    with open_client(url, os.environ.get("OPENAI_API_KEY")) as client:
        try:
            model = discover_model(client)
        except (httpx.HTTPError, StreamError) as error:
            raise PruneError(f"{url}/v1/models: {error}") from error

        def one(request: tuple[Item, int]) -> Record:
            body = request_body(settings.endpoint, model, *request, sampling)
            exchange = Exchange(client, settings.endpoint, body)
            exchange.run()
            return exchange.record

        with ThreadPoolExecutor(users) as pool:
            return list(pool.map(one, islice(workload.requests(settings.seed, cap), number)))
