"""What the users of one locust process share during one test."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest.centre import Centre
from loadtest.client import Exchange, Kind, Sampling, StreamError, request_body
from loadtest.connection import Client
from loadtest.endpoint import Endpoint, ask_served
from loadtest.flags import load_of, workload_of
from loadtest.metrics import Record
from loadtest.tickets import Numbered, RemoteTickets, Ticket, Tickets
from vllm_moe_prune.errors import PruneError

_BACK_OFF_SECONDS = 0.5  # a refused connection must not become a busy loop
_LONGEST_BACK_OFF = 60.0
_OPEN_LEAD_SECONDS = 0.05  # before a request is due, its connection is seen to
_CARRIER_SECONDS = 0.005


class Run:
    """What the users of one process share during one test."""

    def __init__(self, environment: Environment, endpoint: Endpoint, centre: Centre | None) -> None:
        options = environment.parsed_options
        assert options is not None
        workload = workload_of(options)
        self.load = load_of(options, workload)
        self.endpoint = endpoint
        self.timeout: float = options.request_timeout
        self._asks = Numbered(workload.asks(options.workload_seed, options.max_tokens))
        self._pause = workload.turn_pause
        self._model: str = options.model
        self._sampling = Sampling(
            options.temperature,
            options.workload_seed,
            options.ignore_eos,
            options.continuous_usage == "on",
        )
        self._environment = environment
        self._centre = centre
        self._outbox: deque[tuple[Record, bool]] = deque()
        self._carrier = gevent.spawn(self._carry)
        self.tickets: Tickets
        if centre is not None:
            self.tickets = centre.ledger
        else:
            runner = environment.runner
            assert isinstance(runner, WorkerRunner)
            ahead = 0 if self.load.open else 1
            self.tickets = RemoteTickets(lambda: runner.send_message("loadtest_ticket"), ahead)

    def client(self) -> Client:
        """A user's own connection."""
        return Client(self.endpoint, self.timeout)

    def serve(self, kind: Kind, client: Client, ticket: Ticket) -> None:
        """Send what a ticket stands for, and report it."""
        ask = self._asks.at(ticket.number)
        self._wait(client, ticket.due)
        answers: list[str] = []
        due = ticket.due
        while len(answers) < ask.item.num_turns:
            turn = len(answers)
            if turn:
                gevent.sleep(self._pause)
                due = None
            item = ask.item.turn(answers)
            body = request_body(kind, self._model, item, ask.max_tokens, self._sampling)
            exchange = Exchange(
                client,
                kind,
                body,
                index=ticket.number,
                turn=turn,
                intended=due,
                cancel_after=ask.cancel_after,
            )
            last = turn + 1 == ask.item.num_turns
            try:
                exchange.run()
            finally:
                record = exchange.record
                self._report(record, last or not record.complete)
            if not record.complete:
                self._back_off(record)
                return
            answers.append(exchange.text)

    def _wait(self, client: Client, due: float | None) -> None:
        if due is None:
            client.ready()
            return
        gevent.sleep(max(0.0, due - time.time() - _OPEN_LEAD_SECONDS))
        if due > time.time():
            client.ready()
        gevent.sleep(max(0.0, due - time.time()))

    def _back_off(self, record: Record) -> None:
        """Wait as the server asks. The arrivals of an open loop wait for nobody."""
        if record.error is not None and not self.load.open:
            seconds = _BACK_OFF_SECONDS if record.retry_after is None else record.retry_after
            gevent.sleep(min(seconds, _LONGEST_BACK_OFF))

    def _report(self, record: Record, done: bool) -> None:
        # Writing and counting takes longer than sending the next request: that goes first.
        self._outbox.append((record, done))

    def _carry(self) -> None:
        while True:
            gevent.sleep(_CARRIER_SECONDS)
            while self._outbox:
                self._deliver(*self._outbox.popleft())
                gevent.sleep(0)

    def flush(self) -> None:
        """Deliver what has not been."""
        while self._outbox:
            self._deliver(*self._outbox.popleft())

    def stop(self) -> None:
        """The test is over."""
        self.flush()
        self._carrier.kill()

    def _deliver(self, record: Record, done: bool) -> None:
        line = record.model_dump_json(exclude_defaults=True)
        if self._centre is not None:
            self._centre.take(line, record, done)
        else:
            assert self._environment.runner is not None
            self._environment.runner.send_message("loadtest_record", [line, done])
        if not (record.cut or record.cancelled):
            fire(self._environment, record)


def fire(environment: Environment, record: Record) -> None:
    """Tell locust of a request, as one."""
    environment.events.request.fire(  # type: ignore[no-untyped-call]
        request_type="POST",
        name=record.kind,
        response_time=record.e2e_ms,
        response_length=record.num_bytes,
        exception=StreamError(record.error) if record.error else None,
        start_time=record.started,
        context={},
    )


def discover(environment: Environment, endpoint: Endpoint) -> None:
    """Ask the endpoint what it serves and set what the options leave open.

    :raises PruneError: one line, if it is no such endpoint
    """
    options = environment.parsed_options
    assert options is not None
    served = ask_served(endpoint)
    if options.model and options.model not in served.models:
        known = ", ".join(served.models[:5])
        raise PruneError(f"{endpoint.url} serves no model {options.model}", hint=f"it has: {known}")
    options.model = options.model or served.models[0]
    if options.continuous_usage == "auto":
        options.continuous_usage = "on" if served.vllm else "off"


def listen(environment: Environment, centre_of: Any, run_of: Any) -> None:
    """Register the messages between the master and its workers, once in a process.

    :param centre_of: the present test's `Centre`, asked for when a message comes
    :param run_of: the present test's `Run`
    """
    runner = environment.runner

    def ticket_wanted(msg: Any, **_: Any) -> None:
        assert isinstance(runner, MasterRunner)
        runner.send_message("loadtest_given", centre_of().ledger.take(), client_id=msg.node_id)

    def given(msg: Any, **_: Any) -> None:
        tickets = run_of().tickets
        assert isinstance(tickets, RemoteTickets)
        tickets.receive(Ticket(*msg.data) if msg.data is not None else None)

    def record_sent(msg: Any, **_: Any) -> None:
        line, done = msg.data
        centre_of().take(line, Record.model_validate_json(line), done)

    if isinstance(runner, MasterRunner):
        runner.register_message("loadtest_ticket", ticket_wanted)
        runner.register_message("loadtest_record", record_sent)
    elif isinstance(runner, WorkerRunner):
        runner.register_message("loadtest_given", given)
