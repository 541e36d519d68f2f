"""A connection that is kept from request to request."""

from __future__ import annotations

import contextlib
import http.client
import select
from typing import Any

from loadtest.endpoint import Endpoint

_LOST = (http.client.RemoteDisconnected, ConnectionError)


class Client:
    """One user's connection, kept from request to request."""

    def __init__(self, endpoint: Endpoint, timeout: float = 600.0) -> None:
        self.endpoint = endpoint
        self.timeout = timeout  # seconds that a request may take, all of it
        self._connection: http.client.HTTPConnection | None = None
        self._used = False

    def ready(self) -> None:
        """Open a connection now, unless one is open: the next request then has no handshake in it.

        A failure is left to the request.
        """
        if self._connection is not None and self._used and _dropped(self._connection):
            self.close()
        if self._connection is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._open()

    def send(
        self, path: str, body: bytes, patience: float
    ) -> tuple[http.client.HTTPResponse, Any, bool]:
        """Post ``body``; return the response, its socket and whether a connection was opened.

        :param patience: seconds to wait for the head of the answer
        :raises OSError: if nobody answers
        """
        opened = self._connection is None
        if opened:
            self._open()
        try:
            return (*self._post(path, body, patience), opened)
        except _LOST:
            # A server may close a connection that has been idle, just as it is used again.
            if opened or not self._used:
                raise
            self.close()
            self._open()
            return (*self._post(path, body, patience), True)

    def _open(self) -> None:
        self._connection = self.endpoint.connect(self.timeout)
        self._used = False

    def _post(
        self, path: str, body: bytes, patience: float
    ) -> tuple[http.client.HTTPResponse, Any]:
        assert self._connection is not None
        connection, stream = self._connection, self._connection.sock
        stream.settimeout(patience)
        headers = {"Content-Type": "application/json", **self.endpoint.headers()}
        connection.request("POST", self.endpoint.target(path), body=body, headers=headers)
        return connection.getresponse(), stream

    def keep(self) -> None:
        """The answer was read to its end: the connection serves again, if the server lets it."""
        self._used = True
        if self._connection is not None and self._connection.sock is None:
            self._connection = None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _dropped(connection: http.client.HTTPConnection) -> bool:
    """Whether the server closed an idle connection."""
    stream = connection.sock
    return stream is None or bool(select.select([stream], [], [], 0)[0])
