"""Locust users that stream chat and text completions from an OpenAI-compatible endpoint.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000

Each answer fires these locust metrics, under the request type ``chat`` or ``completion``:
``ttft``, ``itl`` (one per gap between chunks), ``e2e`` (milliseconds; failures are counted here),
``tokens_per_second`` and ``output_tokens`` (plain numbers). The key is in OPENAI_API_KEY.
"""

from __future__ import annotations

# locust patches the standard library for gevent and must do so before anything opens a socket.
from locust import User, constant, events, task  # isort: split

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TextIO

import gevent  # type: ignore[import-untyped]
import httpx
from gevent.lock import Semaphore  # type: ignore[import-untyped]
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

# locust puts the caller's folder first, where a user may have a `loadtest.py`.
sys.path.insert(0, str(Path(__file__).parents[1]))
from loadtest.client import (
    Exchange,
    Kind,
    Sampling,
    StreamError,
    discover_model,
    open_client,
    request_body,
)
from loadtest.metrics import Record
from loadtest.workload import DEFAULT_WORKLOAD, Item, load_workload
from vllm_moe_prune.errors import PruneError

del sys.path[0]

_BACK_OFF_SECONDS = 0.5  # a refused connection must not become a busy loop


class Run:
    """What the users of one process share during one test."""

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        assert options is not None
        index = getattr(environment.runner, "worker_index", 0)
        workload = load_workload(Path(options.workload))
        # One sequence for all users: request number k is the same whichever user sends it.
        requests = workload.requests(options.workload_seed + max(index, 0), options.max_tokens)
        self._requests: Iterator[tuple[Item, int]] = islice(requests, options.requests or None)
        self._left = options.requests or None
        self._environment = environment
        self._model: str | None = options.model or None
        self._model_lock = Semaphore()
        self._records = _open_records(options.records, environment, index)
        self.sampling = Sampling(options.temperature, options.workload_seed, options.ignore_eos)
        self.timeout: float = options.request_timeout

    def next_request(self) -> tuple[Item, int]:
        """The next item and its max_tokens; ends the user when there is none."""
        try:
            return next(self._requests)
        except StopIteration:
            raise StopUser from None

    def model(self, client: httpx.Client) -> str:
        """The model's name, asked from the endpoint once."""
        with self._model_lock:
            if self._model is None:
                self._model = discover_model(client)
            return self._model

    def report(self, record: Record) -> None:
        """Write the record, fire its metrics, and end a test whose requests are all answered."""
        if self._records:
            self._records.write(record.model_dump_json() + "\n")
            self._records.flush()
        if not record.cut:
            fire(self._environment, record)
            if self._left is not None:
                self._left -= 1
        if self._left == 0 and self._environment.runner:
            # Not from a user's own greenlet: quitting waits for the users to end.
            gevent.spawn(self._environment.runner.quit)


def fire(environment: Environment, record: Record) -> None:
    """Hand one request's figures to locust."""

    def metric(name: str, value: float, length: int = 0, error: str | None = None) -> None:
        environment.events.request.fire(  # type: ignore[no-untyped-call]
            request_type=record.kind,
            name=name,
            response_time=value,
            response_length=length,
            exception=StreamError(error) if error else None,
            start_time=record.started,
            context={},
        )

    metric("e2e", record.e2e_ms, record.tokens, record.error)
    if not record.complete:
        return
    metric("ttft", record.ttft_ms or 0.0)
    for gap in record.itl_ms:
        metric("itl", gap)
    metric("tokens_per_second", record.tokens_per_second)
    metric("output_tokens", record.tokens)


class StreamingUser(User):
    """Sends the next request as soon as the last one is answered (a closed loop)."""

    abstract = True
    wait_time = constant(0)
    kind: Kind
    run_state: ClassVar[Run]  # set when a test starts

    def on_start(self) -> None:
        """Open this user's own connection."""
        api_key = os.environ.get("OPENAI_API_KEY")
        self.client = open_client(self.host or "", api_key, self.run_state.timeout)

    def on_stop(self) -> None:
        """Close it."""
        self.client.close()

    @task
    def ask(self) -> None:
        """Send one request and report it."""
        item, max_tokens = self.run_state.next_request()
        try:
            model = self.run_state.model(self.client)
        except (httpx.HTTPError, StreamError) as error:
            message = f"/v1/models: {error}"
            now = time.time()
            failed = Record(kind=self.kind, started=now, arrivals=(), ended=0, error=message)
            self.run_state.report(failed)
            gevent.sleep(_BACK_OFF_SECONDS)
            return
        body = request_body(self.kind, model, item, max_tokens, self.run_state.sampling)
        exchange = Exchange(self.client, self.kind, body)
        try:
            exchange.run()
        finally:
            self.run_state.report(exchange.record)
        if exchange.record.error:
            gevent.sleep(_BACK_OFF_SECONDS)


class ChatUser(StreamingUser):
    """Streams chat completions."""

    kind = "chat"


class CompletionUser(StreamingUser):
    """Streams text completions."""

    kind = "completion"


def _add_flags(parser: LocustArgumentParser) -> None:
    flag = parser.add_argument_group("language model").add_argument
    flag("--workload", default=str(DEFAULT_WORKLOAD), help="JSONL of prompts")
    flag("--workload-seed", type=int, default=0, help="order of prompts, lengths, sampling")
    flag("--model", default="", help="model name; default: the first that the endpoint names")
    flag("--max-tokens", type=int, default=None, help="upper bound of every answer's length")
    flag("--temperature", type=float, default=0.0)
    flag("--ignore-eos", action="store_true", help="vLLM only: every answer has max_tokens")
    flag("--chat-weight", type=int, default=1, help="share of ChatUser among the users")
    flag("--completion-weight", type=int, default=0, help="share of CompletionUser")
    flag("--requests", type=int, default=0, help="end after N requests (one process only)")
    flag("--request-timeout", type=float, default=600.0, help="seconds of silence allowed")
    flag("--records", default="", help="JSONL file for one record per request")
    flag("--slo-ttft-ms", type=float, default=0.0, help="exit 1 if p95 of ttft is above it")
    flag("--slo-itl-ms", type=float, default=0.0, help="exit 1 if p95 of itl is above it")


def _check(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    # gevent's clock stands still while modules are imported; --run-time would be short by that.
    gevent.get_hub().loop.update_now()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    distributed = isinstance(environment.runner, MasterRunner | WorkerRunner)
    try:
        load_workload(Path(options.workload))
        if options.requests and distributed:
            raise PruneError("--requests works in one process only", hint="use --run-time")
        if not distributed or isinstance(environment.runner, MasterRunner):
            _set_weights(environment, options)
    except PruneError as error:
        # An ordinary exception in a listener is logged with its traceback and then ignored.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _set_weights(environment: Environment, options: argparse.Namespace) -> None:
    if len(environment.user_classes) < 2:  # named on the command line
        return
    ChatUser.weight, CompletionUser.weight = options.chat_weight, options.completion_weight
    chosen = [user for user in environment.user_classes if user.weight > 0]
    if not chosen:
        raise PruneError("no user has a weight above 0", hint="give --chat-weight 1")
    environment.user_classes[:] = chosen


def _start(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        StreamingUser.run_state = Run(environment)


def _judge(environment: Environment, **__: Any) -> None:
    options = environment.parsed_options
    if options is None or isinstance(environment.runner, WorkerRunner):
        return
    for name, limit in (("ttft", options.slo_ttft_ms), ("itl", options.slo_itl_ms)):
        entries = {key: entry for key, entry in environment.stats.entries.items() if key[0] == name}
        if not limit:
            continue
        if not entries:
            print(f"SLO missed: no {name} was measured", file=sys.stderr)
            environment.process_exit_code = 1
        for (_, kind), entry in entries.items():
            p95 = entry.get_response_time_percentile(0.95)
            if p95 > limit:
                said = f"SLO missed: {kind} p95 {name} {p95:.0f} ms, limit {limit:.0f} ms"
                print(said, file=sys.stderr)
                environment.process_exit_code = 1


def _open_records(path: str, environment: Environment, index: int) -> TextIO | None:
    if not path:
        return None
    file = Path(path)
    if isinstance(environment.runner, WorkerRunner):  # several may share a folder
        file = file.with_name(f"{file.stem}.{index}{file.suffix}")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("w", encoding="utf-8")


for _hook, _listener in (
    (events.init_command_line_parser, _add_flags),
    (events.init, _check),
    (events.test_start, _start),
    (events.quitting, _judge),
):
    _hook.add_listener(_listener)  # type: ignore[no-untyped-call]
