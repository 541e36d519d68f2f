"""Locust users that stream chat and text completions from an OpenAI-compatible endpoint.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000

Locust's own statistics are one entry for each kind of request, ``chat`` and ``completion``: latency
to the end of the answer, failures, rate. All that is about tokens stands beside them: in a table at
the end, on the tab Tokens of locust's page, in ``PREFIX_tokens.csv`` and in its HTML report.
The key is in OPENAI_API_KEY.
"""

from __future__ import annotations

# locust patches the standard library for gevent and must do so before anything opens a socket.
from locust import User, constant, events, task  # isort: split

import logging
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import gevent  # type: ignore[import-untyped]
import locust.runners
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

# locust puts the caller's folder first, where a user may have a `loadtest.py`.
sys.path.insert(0, str(Path(__file__).parents[1]))
from loadtest import custom_stats, flags, verdict
from loadtest.centre import Centre
from loadtest.client import Kind
from loadtest.endpoint import Endpoint
from loadtest.health import Health, Heartbeat
from loadtest.run import Run, discover, listen
from loadtest.workload import Workload
from vllm_moe_prune.errors import PruneError

del sys.path[0]


# Seconds between two reports of a worker's; at the end the last ones are waited for.
locust.runners.WORKER_REPORT_INTERVAL = 1.0


class _State:
    """What the listeners of this process share."""

    endpoint: Endpoint | None = None
    centre: Centre | None = None
    heartbeat: Heartbeat | None = None
    run: Run | None = None
    failed_to_start: str | None = None
    named: tuple[str, str] = ("", "auto")  # model and usage as they were asked for


class StreamingUser(User):
    """Sends the next request as soon as the last one is answered, or when the next is due."""

    abstract = True
    wait_time = constant(0)
    kind: Kind
    run_state: ClassVar[Run | None] = None  # set when a test starts

    def on_start(self) -> None:
        """Open this user's own connection, before anything is timed."""
        if self.run_state is None:  # nobody answers there: the test is being ended
            raise StopUser
        self.client = self.run_state.client()
        if not self.run_state.load.open:
            self.client.ready()

    def on_stop(self) -> None:
        """Close it."""
        if self.run_state is not None:
            self.client.close()

    @task
    def ask(self) -> None:
        """Send one request, or the turns of one conversation."""
        assert self.run_state is not None
        ticket = self.run_state.tickets.take()
        if ticket is None:
            raise StopUser
        self.run_state.serve(self.kind, self.client, ticket)


class ChatUser(StreamingUser):
    """Streams chat completions."""

    kind = "chat"


class CompletionUser(StreamingUser):
    """Streams text completions."""

    kind = "completion"


def _init(environment: Environment, **_: Any) -> None:
    # gevent's clock stands still while modules are imported; --run-time would be short by that.
    gevent.get_hub().loop.update_now()
    options = environment.parsed_options
    assert options is not None
    worker = isinstance(environment.runner, WorkerRunner)
    _State.named = options.model, options.continuous_usage
    options.begin_at = options.end_seconds = options.open_seconds = None
    try:
        workload = flags.workload_of(options)
        if not worker:
            _prepare(environment, workload)
    except PruneError as error:
        # An ordinary exception in a listener is logged with its traceback and then ignored.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    listen(environment, lambda: _State.centre, lambda: StreamingUser.run_state)
    custom_stats.register(environment, lambda: _State.centre)


def _prepare(environment: Environment, workload: Workload) -> None:
    """In the process that leads a test: set users and load, and see that somebody answers."""
    options = environment.parsed_options
    assert options is not None
    load = flags.check(options, workload)
    _set_weights(environment)
    if load.stages and not load.open:
        from loadtest.shape import StagesShape

        environment.shape_class = StagesShape(load)
        environment.shape_class.runner = environment.runner
    if options.headless and not load.open:
        # At locust's own end of time workers have half a second to say what they have.
        options.end_seconds, options.run_time = options.run_time, None
    if environment.host or options.headless or options.autostart:
        _State.endpoint = flags.endpoint_of(options, environment.host)
    if _State.endpoint is not None and (options.headless or options.autostart):
        discover(environment, _State.endpoint)


def _set_weights(environment: Environment) -> None:
    options = environment.parsed_options
    assert options is not None
    if len(environment.user_classes) < 2:  # named on the command line
        return
    ChatUser.weight, CompletionUser.weight = options.chat_weight, options.completion_weight
    chosen = [user for user in environment.user_classes if user.weight > 0]
    if not chosen:
        raise PruneError("no user has a weight above 0", hint="give --chat-weight 1")
    environment.user_classes[:] = chosen


def _address(environment: Environment) -> str:
    return (environment.host or "").rstrip("/")


def _start(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    _State.failed_to_start = StreamingUser.run_state = _State.centre = None
    try:
        elsewhere = _State.endpoint is None or _State.endpoint.url != _address(environment)
        if elsewhere:
            _State.endpoint = flags.endpoint_of(options, environment.host)
        assert _State.endpoint is not None
        if not isinstance(environment.runner, WorkerRunner):
            if elsewhere:  # another address was given on locust's page
                options.model, options.continuous_usage = _State.named
            if elsewhere or not options.model:
                discover(environment, _State.endpoint)
            options.begin_at = time.time() + 1.0
            _State.centre = Centre(environment)
            _State.centre.watch(_State.endpoint)
    except PruneError as error:
        _State.failed_to_start = str(error)
        logging.error("%s", error)
        if environment.runner:
            gevent.spawn_later(0.5, environment.runner.stop)
        return
    if not isinstance(environment.runner, MasterRunner):
        if _State.heartbeat is not None:
            _State.heartbeat.stop()
        if _State.run is not None:
            _State.run.stop()
        _State.heartbeat = Heartbeat()
        _State.run = StreamingUser.run_state = Run(environment, _State.endpoint, _State.centre)
        if _State.centre is not None:
            _State.centre.heartbeat = _State.heartbeat


def _report_to_master(data: dict[str, Any], **_: Any) -> None:
    if _State.run is not None:
        _State.run.flush()
    if _State.heartbeat is not None:
        data["loadtest_health"] = _State.heartbeat.health().model_dump()


def _worker_report(client_id: str, data: dict[str, Any], **_: Any) -> None:
    if _State.centre is not None:
        _State.centre.reported[client_id] = time.monotonic()
    if _State.centre is not None and "loadtest_health" in data:
        health = Health.model_validate(data["loadtest_health"])
        _State.centre.healths[client_id] = health


def _quitting(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    centre = _State.centre
    if _State.run is not None:
        _State.run.flush()
    if options is None or isinstance(environment.runner, WorkerRunner):
        return
    if _State.failed_to_start is not None:
        environment.process_exit_code = 1
    if centre is None:
        return
    centre.close()
    custom_stats.write(environment, centre)
    if verdict.say(centre, options) and options.exit_code_on_error:
        environment.process_exit_code = 1


for _hook, _listener in (
    (events.init_command_line_parser, flags.add_flags),
    (events.init, _init),
    (events.test_start, _start),
    (events.report_to_master, _report_to_master),
    (events.worker_report, _worker_report),
    (events.quitting, _quitting),
):
    _hook.add_listener(_listener)  # type: ignore[no-untyped-call]
