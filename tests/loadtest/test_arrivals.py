"""When bytes came is not when they were read."""

from __future__ import annotations

import itertools
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from loadtest import arrivals
from loadtest.arrivals import ArrivalSocket
from loadtest.client import Exchange, Sampling, request_body
from loadtest.connection import Client
from loadtest.endpoint import Endpoint
from loadtest.workload import Item
from tests.loadtest.scripted import Script, scripted

_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux stamps what comes")
_LATE = 0.2


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname(), timeout=20)
        far, _ = server.accept()
        with near, far:
            yield near, far


def read(own: ArrivalSocket) -> tuple[bytes, float]:
    """What comes with one call, and when that returned."""
    buffer = bytearray(100)
    count = own.recv_into(buffer)
    return bytes(buffer[:count]), time.perf_counter()


def warmed(own: ArrivalSocket, far: socket.socket) -> None:
    """The first stamp of a machine may come late: the system begins with it in its own time."""
    far.sendall(b".")
    read(own)
    time.sleep(0.05)


@_linux
def test_it_is_when_they_came(pair: tuple[socket.socket, socket.socket]) -> None:
    own, far = ArrivalSocket.of(pair[0]), pair[1]
    with own:
        warmed(own, far)
        for text in (b"one", b"two"):
            begun = time.perf_counter()
            far.sendall(text)
            ended = time.perf_counter()
            time.sleep(_LATE)
            came, read_at = read(own)
            assert came == text
            assert begun - 1e-3 < own.arrived < ended + _LATE / 2
            assert read_at - own.arrived > _LATE / 2


def test_without_a_stamp_it_is_when_they_were_read(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "elsewhere")
    own, far = ArrivalSocket.of(pair[0]), pair[1]
    with own:
        far.sendall(b"one")
        time.sleep(_LATE)
        begun = time.perf_counter()
        _, read_at = read(own)
        assert begun <= own.arrived <= read_at


@_linux
@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_clock_that_is_set_does_not_turn_time_back(
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    hours: int,
    fresh: bool,
) -> None:
    own, far = ArrivalSocket.of(pair[0]), pair[1]
    real = time.time_ns
    with own:
        first = own.arrived
        if not fresh:
            warmed(own, far)
            first = own.arrived
        monkeypatch.setattr(arrivals.time, "time_ns", lambda: real() + hours * 3600 * 10**9)
        far.sendall(b"two")
        _, read_at = read(own)
        assert first <= own.arrived <= read_at


def test_what_stays_of_the_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].settimeout(0.05)
    with ArrivalSocket.of(pair[0]) as own:
        assert own.gettimeout() == 0.05
        with pytest.raises(TimeoutError):
            read(own)
        buffer = bytearray(b"....")
        pair[1].sendall(b"abc")
        assert own.recv_into(buffer, 2) == 2
        assert bytes(buffer) == b"ab.."


@_linux
def test_a_client_that_is_late_measures_the_server_s_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second chunk is read late; by the time of reading, gaps would be off by as much."""
    late, real, reads = 0.04, ArrivalSocket.recv_into, itertools.count()

    def held(self: ArrivalSocket, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        select.select([self], [], [], 20)
        time.sleep(late * (next(reads) % 2))  # something else has the processor
        return real(self, buffer, nbytes, flags)

    monkeypatch.setattr(ArrivalSocket, "recv_into", held)
    with scripted(Script(first=0.1, gap=0.1)) as server:
        body = request_body("chat", "no role", Item(prompt="x"), 6, Sampling())
        client = Client(Endpoint.of(server.url), timeout=20)
        exchange = Exchange(client, "chat", body)
        exchange.run()
        client.close()
        sent = np.diff(server.truths[0].sent)
    gaps = np.diff(exchange.record.arrivals)
    assert len(gaps) == 5 and next(reads) > 5
    assert np.median(np.abs(gaps - sent)) < late / 4
