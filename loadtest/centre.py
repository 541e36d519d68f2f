"""The ledger of requests, the tally and the file of records of a test.

One process alone has them. With workers the master does: it hands out the requests and every worker
sends it what became of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import gevent  # type: ignore[import-untyped]
from locust.env import Environment
from locust.runners import MasterRunner

from loadtest.endpoint import Endpoint
from loadtest.flags import load_of, slo_of, workload_of
from loadtest.health import Health, Heartbeat
from loadtest.metrics import Record
from loadtest.records import PARQUET, to_parquet
from loadtest.server_metrics import SUFFIX, ServerWatch
from loadtest.tally import Tally
from loadtest.tickets import Ledger

_GRACE_SECONDS = 5.0


class Centre:
    """The ledger, the tally and the records of a test; in the master, or in the only process."""

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        assert options is not None
        workload = workload_of(options)
        load = load_of(options, workload)
        due: Iterator[float] | None = None
        if load.open:
            begin = options.begin_at
            due = (begin + offset for offset in load.due(options.workload_seed))
        self.tally = Tally(slo_of(options, workload))
        self.ledger = Ledger(options.requests or None, due, self._complete)
        self.healths: dict[str, Health] = {}
        self.reported: dict[str, float] = {}  # worker -> when it last did, monotonic
        self.heartbeat: Heartbeat | None = None
        self._server: ServerWatch | None = None
        self.lost = 0
        self._environment = environment
        self._path = Path(options.records) if options.records else None
        self._records = _open_records(self._path)
        self._patience = options.request_timeout + _GRACE_SECONDS
        self._heard = time.monotonic()
        if isinstance(environment.runner, MasterRunner) and self.ledger.counted:
            gevent.spawn(self._watch)
        if options.end_seconds:
            gevent.spawn_later(options.end_seconds, self._time_is_up)

    def watch(self, endpoint: Endpoint) -> None:
        """Note beside the records what the server says of itself, if it does."""
        if self._path:
            self._server = ServerWatch(endpoint, self._path.with_suffix(SUFFIX))

    def _time_is_up(self) -> None:
        options = self._environment.parsed_options
        if options is not None and options.drain:
            self.ledger.close()
        else:
            self._end()

    def take(self, line: str, record: Record, done: bool) -> None:
        """Take a request that has ended; ``done``: it was the last of its ticket."""
        self._heard = time.monotonic()
        if self._records and not self._records.closed:
            self._records.write(line + "\n")
            self._records.flush()
        self.tally.add(record)
        if done:
            self.ledger.finish()

    def health(self) -> Health:
        """How the client processes did."""
        parts = list(self.healths.values())
        if self.heartbeat is not None:
            parts.append(self.heartbeat.health())
        worst = Health.worst(parts)
        return worst.model_copy(update={"short_gaps": self.tally.short_gaps})

    def close(self) -> None:
        """End the file of records and say how the client did beside it."""
        if self._server is not None:
            self._server.stop()
        if self._records and self._path:
            self._records.close()
            health = self.health().model_dump_json(indent=2)
            self._path.with_suffix(".client.json").write_text(health)
            if self._path.suffix == PARQUET:
                to_parquet(Path(self._records.name), self._path)

    def _complete(self) -> None:
        # Not from a user's own greenlet: quitting waits for the users to end.
        gevent.spawn_later(0.01, self._end)

    def _end(self) -> None:
        runner = self._environment.runner
        options = self._environment.parsed_options
        if runner is None:
            return
        runner.stop()
        if isinstance(runner, MasterRunner):
            self._hear_all(runner)
        if options is not None and options.headless:
            runner.quit()

    def _hear_all(self, runner: MasterRunner) -> None:
        """Wait until every worker has told what it has: locust's own wait is half a second."""
        asked = time.monotonic()
        while time.monotonic() - asked < _GRACE_SECONDS:
            if all(self.reported.get(name, 0.0) > asked for name in runner.clients):
                return
            gevent.sleep(0.05)

    def _quiet(self) -> float:
        """Seconds without an answer where one could have been."""
        return min(time.monotonic() - self._heard, time.time() - self.ledger.last_due)

    def _watch(self) -> None:
        """A worker that is gone takes its requests with it: do not wait for them for ever."""
        while self._quiet() < self._patience or not self.ledger.left:
            gevent.sleep(1)
        self.lost = self.ledger.left
        self._end()


def _open_records(path: Path | None) -> TextIO | None:
    """A file of lines; what is to be Parquet is lines until the end: a kill leaves those whole."""
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.jsonl") if path.suffix == PARQUET else path
    return file.open("w", encoding="utf-8")
