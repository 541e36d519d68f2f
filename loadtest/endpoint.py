"""An OpenAI-compatible endpoint: its address, its key and certificates, connections to it."""

from __future__ import annotations

import http.client
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic_core import from_json

from loadtest.arrivals import ArrivalSocket
from vllm_moe_prune.errors import PruneError

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_HINT = "give the address without /v1, for example http://127.0.0.1:8000"
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go. Make it with `of`, once in a process: reading certificates takes 100 ms.

    ``prefix`` is the path before ``/v1``, without a slash at its end.
    """

    url: str
    host: str
    port: int
    prefix: str
    key: str | None = field(default=None, repr=False)
    context: ssl.SSLContext | None = field(default=None, repr=False)
    proxy: tuple[str, int] | None = None

    @classmethod
    def of(
        cls, url: str, key: str | None = None, *, insecure: bool = False, ca: str | None = None
    ) -> Endpoint:
        """The endpoint at ``url``; ``ca`` is a file of certificates to trust, ``insecure`` trusts
        any.

        :raises PruneError: if the address or the file of certificates is none
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise PruneError(f"{url}: {error}", hint=_HINT) from error
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise PruneError(f"{url or 'no address'} is not an address of a server", hint=_HINT)
        if parts.username or parts.password:
            raise PruneError(
                "an address must not hold a password", hint=f"give the key in {KEY_VARIABLE}"
            )
        tls = parts.scheme == "https"
        return cls(
            url=url.rstrip("/"),
            host=parts.hostname,
            port=port or (443 if tls else 80),
            prefix=parts.path.rstrip("/").removesuffix("/v1"),
            key=key,
            context=_context(insecure, ca) if tls else None,
            proxy=_proxy(parts.scheme, parts.hostname),
        )

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """An open connection.

        :raises OSError: if nobody answers, or not with a certificate that is trusted
        """
        host, port = self.proxy or (self.host, self.port)
        connection: http.client.HTTPConnection
        if self.context:
            connection = http.client.HTTPSConnection(
                host, port, timeout=timeout, context=self.context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        if self.proxy and self.context:
            connection.set_tunnel(self.host, self.port)
        connection.connect()
        if not self.context:
            connection.sock = ArrivalSocket.of(connection.sock)
        return connection

    def target(self, path: str) -> str:
        """What the request line names: a path, or all of the address for a proxy."""
        whole = self.prefix + path
        if self.proxy and not self.context:
            return f"http://{self.host}:{self.port}{whole}"
        return whole

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "vllm-moe-prune"}
        if self.proxy and not self.context:
            headers["Host"] = f"{self.host}:{self.port}"
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return headers

    def get_json(self, path: str, timeout: float = 10.0) -> Any:
        """What ``path`` answers with.

        :raises OSError: if nobody answers
        :raises ValueError: if the status is not 200, or the answer is not JSON
        """
        return from_json(self.get_text(path, timeout))

    def get_text(self, path: str, timeout: float = 10.0) -> str:
        """What ``path`` answers with, as it is.

        :raises OSError: if nobody answers
        :raises ValueError: if the status is not 200, or the answer is no text
        """
        connection = self.connect(timeout)
        try:
            connection.request("GET", self.target(path), headers=self.headers())
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise ValueError(f"no HTTP: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {body[:200].decode(errors='replace')}")
        return body.decode()


@dataclass(frozen=True, slots=True)
class Served:
    """What an endpoint says about itself. ``vllm``: it is vLLM's; ``version`` only vLLM tells."""

    models: tuple[str, ...]
    vllm: bool
    version: str | None


def ask_served(endpoint: Endpoint) -> Served:
    """Ask an endpoint what it serves.

    :raises PruneError: one line, if it does not answer as such an endpoint does, or names no model
    """
    try:
        cards = endpoint.get_json("/v1/models")["data"]
        models = tuple(str(card["id"]) for card in cards)
        vllm = any(card.get("owned_by") == "vllm" for card in cards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise PruneError(
            f"no OpenAI-compatible server at {endpoint.url}: {told}", hint=_hint(error, endpoint)
        ) from error
    if not models:
        raise PruneError(f"{endpoint.url} serves no model", hint="its /v1/models is empty")
    try:
        version = str(endpoint.get_json("/version")["version"])
    except (OSError, ValueError, KeyError, TypeError):
        version = None
    return Served(models, vllm, version)


def _hint(error: Exception, endpoint: Endpoint) -> str:
    if isinstance(error, ssl.SSLError):
        return "trust its certificate with --ca FILE, or any with --insecure"
    if "HTTP 401" in str(error) or "HTTP 403" in str(error):
        return f"its key is read from {KEY_VARIABLE}"
    return _HINT


def key_from(variable: str | None = None) -> str | None:
    """The API key in an environment variable, else in vLLM's own."""
    return os.environ.get(variable or KEY_VARIABLE) or os.environ.get("VLLM_API_KEY") or None


def _context(insecure: bool, ca: str | None) -> ssl.SSLContext:
    if ca is not None and not Path(ca).is_file():
        raise PruneError(f"no file of certificates {ca}")
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise PruneError(f"{ca} holds no certificates: {error}") from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _proxy(scheme: str, host: str) -> tuple[str, int] | None:
    """The environment's proxy; none reaches this machine's loopback."""
    found = getproxies().get(scheme)
    if not found or host in _LOOPBACK or proxy_bypass(host):
        return None
    parts = urlsplit(found if "//" in found else f"http://{found}")
    return (parts.hostname, parts.port or 80) if parts.hostname else None
