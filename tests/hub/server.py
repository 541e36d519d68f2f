"""A hub on this machine: the real clients of huggingface_hub and datasets are pointed at it.

It speaks the hub's HTTP interface as far as reading goes. Large files are redirected to another
host name, as the hub's CDN is, which refuses requests that carry the user's token.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.hub.handler import Handler, Request
from tests.hub.repository import Repository


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go when they have what they wanted."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass(slots=True)
class Break:
    """The connection is closed after ``after`` bytes of a body, ``times`` times."""

    after: int
    times: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets whatever is there; the connection is closed afterwards."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(slots=True)
class Hub:
    """A server with its repositories, of which it counts what it sends.

    :ivar store: the folder that copies of published files are kept in
    :ivar member: a token that reads everything
    :ivar stranger: a token of somebody who was not let in by gated repositories
    """

    store: Path = Path()
    member: str = "hf_member"
    stranger: str = "hf_stranger"
    page: int = 1000
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    breaks: dict[str, Break] = field(default_factory=dict)
    is_down: bool = False
    instead: dict[str, Answer] = field(default_factory=dict)  # pattern of a path -> what it gets
    server: ThreadingHTTPServer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> str:
        """Serve on a free port, until the process ends, and return the address."""
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self.address

    @property
    def port(self) -> int:
        assert self.server is not None
        return int(self.server.server_address[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        """The address of large files: another host name, so that clients leave the token out."""
        return f"http://localhost:{self.port}/cdn"

    def clear(self, store: Path) -> None:
        """Forget everything but the address; what is published from now on is kept in a folder."""
        self.store = store
        self.repositories.clear()
        self.requests.clear()
        self.breaks.clear()
        self.instead.clear()
        self.is_down = False

    def publish(
        self,
        name: str,
        folder: Path,
        *,
        kind: str = "model",
        branch: str = "main",
        tag: str | None = None,
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Make a folder the newest commit of a repository and return the commit's hash."""
        key = (kind, name)
        place = self.store / kind / name
        repository = self.repositories.setdefault(key, Repository(name, kind, place))
        repository.gated, repository.private = gated, private
        return repository.commit(folder, branch=branch, tag=tag)

    def break_off(self, file: str, *, after: int, times: int = 1) -> None:
        """Close the connection in the middle of a file's body, the next ``times`` times.

        :param file: the path inside its repository
        :param after: bytes of the body that still go out; shorter bodies are left alone
        """
        self.breaks[file] = Break(after, times)

    def take_break(self, file: str, length: int) -> int | None:
        """Return after how many bytes this body ends too early; None where it does not."""
        with self.lock:
            found = self.breaks.get(file)
            if found is None or not found.times or found.after >= length:
                return None
            found.times -= 1
            return found.after

    def answer(self, path: str) -> Answer | None:
        """Return what a path gets instead of what is there, if it does."""
        return next((a for pattern, a in self.instead.items() if re.search(pattern, path)), None)

    @property
    def sent(self) -> int:
        """Bytes of bodies that were sent since the beginning, or `clear`."""
        return sum(request.sent for request in self.requests)

    def asked(self, pattern: str) -> Iterator[Request]:
        """Yield the requests whose path, percent signs decoded, contains a regular expression."""
        return (request for request in list(self.requests) if re.search(pattern, request.path))
