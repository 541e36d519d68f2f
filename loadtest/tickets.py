"""Who sends which request: one ledger gives out numbers, also to the users of other processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from gevent.event import AsyncResult  # type: ignore[import-untyped]

ThingT = TypeVar("ThingT")


class Ticket(NamedTuple):
    """The number of a request, and in an open loop the Unix time at which it is due."""

    number: int
    due: float | None


class Ledger:
    """Gives out each request once and calls ``complete`` when all that it gave out are done.

    :param total: how many there are; None for as many as are asked for before `close`
    :param due: Unix times of an open loop, in order; its end is the end of the requests
    """

    def __init__(
        self, total: int | None, due: Iterator[float] | None, complete: Callable[[], None]
    ) -> None:
        self._total = total
        self._due = due
        self._complete = complete
        self._closed = False
        self._said = False
        self.given = 0
        self.done = 0
        self.last_due = 0.0  # Unix time

    @property
    def left(self) -> int:
        """Requests that were given out and are not done."""
        return self.given - self.done

    @property
    def counted(self) -> bool:
        """Whether the requests come to an end by themselves."""
        return self._total is not None or self._due is not None

    def take(self) -> Ticket | None:
        """The next request; None if there is none."""
        if self._closed or (self._total is not None and self.given >= self._total):
            self.close()
            return None
        due = None
        if self._due is not None:
            due = next(self._due, None)
            if due is None:
                self.close()
                return None
            self.last_due = due
        self.given += 1
        return Ticket(self.given - 1, due)

    def close(self) -> None:
        """Give out no more."""
        self._closed = True
        self._check()

    def finish(self) -> None:
        """A request that was given out is done, however it ended."""
        self.done += 1
        self._check()

    def _check(self) -> None:
        none_left = self._closed or (self._total is not None and self.given >= self._total)
        if none_left and self.done >= self.given and not self._said:
            self._said = True
            self._complete()


_KEPT = 4096  # numbers further back than this belong to other processes


class Numbered(Generic[ThingT]):
    """The things of an endless iterator by their number, each asked for once at most.

    Tickets reach the users of a process nearly in order; what lies between belongs to others.
    """

    def __init__(self, things: Iterator[ThingT]) -> None:
        self._things = things
        self._passed: dict[int, ThingT] = {}
        self._position = 0

    def at(self, number: int) -> ThingT:
        """Thing ``number``."""
        while self._position <= number:
            self._passed[self._position] = next(self._things)
            self._position += 1
        found = self._passed.pop(number)
        if len(self._passed) > 2 * _KEPT:
            latest = self._position - _KEPT
            self._passed = {n: thing for n, thing in self._passed.items() if n >= latest}
        return found


class Tickets(Protocol):
    """Where a process's users get their requests."""

    def take(self) -> Ticket | None:
        """The next request, waited for; None if there is none."""


class RemoteTickets:
    """Asks the ledger of another process, some requests ahead so that users need not wait.

    :param ask: sends one question; the answer comes to `receive`
    :param ahead: how many to keep ready
    """

    def __init__(self, ask: Callable[[], Any], ahead: int) -> None:
        self._ask = ask
        self._ahead = ahead
        self._asked = 0  # without an answer yet
        self._ready: deque[Ticket | None] = deque()
        self._waiting: deque[AsyncResult] = deque()

    def take(self) -> Ticket | None:
        """The next request; waits for the ledger if none is ready."""
        while self._asked + len(self._ready) < len(self._waiting) + 1 + self._ahead:
            self._asked += 1
            self._ask()
        if self._ready:
            return self._ready.popleft()
        waiting = AsyncResult()
        self._waiting.append(waiting)
        found: Ticket | None = waiting.get()
        return found

    def receive(self, ticket: Ticket | None) -> None:
        """Take an answer of the ledger's."""
        self._asked -= 1
        if self._waiting:
            self._waiting.popleft().set(ticket)
        else:
            self._ready.append(ticket)
