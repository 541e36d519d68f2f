"""How the hub answers: addresses, headers, errors, ranges and redirects."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub.repository import Repository, StoredFile

if TYPE_CHECKING:
    from tests.hub.server import Answer, Hub

_CHUNK = 64 * 1024
_KINDS = {"models": "model", "datasets": "dataset"}


@dataclass(frozen=True, slots=True)
class Request:
    """One answered request: ``sent`` are the bytes of the answer's body that went out."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int


class Refusal(Exception):
    """An answer that is an error, with the hub's code for it."""

    def __init__(self, status: int, code: str | None, message: str, commit: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.commit = status, code, message, commit


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests for the class's hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    sent = 0

    def log_message(self, format: str, *args: object) -> None:
        """Requests are kept, not printed."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.sent = self.status = 0
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            if self.hub.is_down:
                raise Refusal(503, None, "Service Unavailable")
            if (answer := self.hub.answer(unquote(self.path))) is not None:
                self._give(answer)
            else:
                self._route(body)
        except Refusal as refusal:
            self._refuse(refusal)
        except (BrokenPipeError, ConnectionResetError):  # the client has what it wanted
            self.close_connection = True
        finally:
            self._record()

    def _record(self) -> None:
        path = unquote(self.path)
        asked = self.headers.get("Range")
        request = Request(self.command, path, asked, self.status, self.sent)
        with self.hub.lock:
            self.hub.requests.append(request)

    # Addresses

    def _route(self, body: str) -> None:
        url = urlsplit(self.path)
        parts = [part for part in url.path.split("/") if part]
        match parts:
            case ["cdn", kind, org, name, commit, *path]:
                self._cdn(kind, f"{org}/{name}", commit, unquote("/".join(path)))
            case ["api", "resolve-cache", kind, org, name, commit, *path]:
                repository = self._repository(_KINDS[kind], f"{org}/{name}")
                file = self._file(repository, commit, unquote("/".join(path)))
                self._send_file(file, unquote("/".join(path)), commit)
            case ["api", ("models" | "datasets") as kind, org, name, *rest]:
                repository = self._repository(_KINDS[kind], f"{org}/{name}")
                self._api(repository, [unquote(p) for p in rest], parse_qs(url.query), body)
            case ["datasets", org, name, "resolve", revision, *path]:
                repository = self._repository("dataset", f"{org}/{name}")
                self._resolve(repository, unquote(revision), unquote("/".join(path)))
            case [org, name, "resolve", revision, *path]:
                repository = self._repository("model", f"{org}/{name}")
                self._resolve(repository, unquote(revision), unquote("/".join(path)))
            case _:
                raise Refusal(404, None, "Sorry, we can't find the page you are looking for.")

    def _api(
        self, repository: Repository, rest: list[str], query: dict[str, list[str]], body: str
    ) -> None:
        match rest:
            case []:
                self._send_json(repository.info(self._commit(repository, "main")))
            case ["revision", revision]:
                self._send_json(repository.info(self._commit(repository, revision)))
            case ["refs"]:
                self._send_json(repository.refs())
            case ["tree", revision, *path]:
                self._tree(repository, self._commit(repository, revision), "/".join(path), query)
            case ["paths-info", revision]:
                commit = self._commit(repository, revision)
                entries = [repository.entry(commit, p) for p in parse_qs(body).get("paths", [])]
                self._send_json([entry for entry in entries if entry is not None])
            case _:
                raise Refusal(404, None, "Not Found")

    def _tree(
        self, repository: Repository, commit: str, under: str, query: dict[str, list[str]]
    ) -> None:
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = repository.entries(commit, under, recursive=recursive)
        if under and not entries:
            entry = repository.entry(commit, under)
            if entry is None:
                raise Refusal(404, "EntryNotFound", f"{under} does not exist", commit)
            entries = [entry]
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        headers = {}
        if end < len(entries):
            page = f"{self.hub.address}{urlsplit(self.path).path}?recursive={recursive}"
            headers["Link"] = f'<{page}&cursor={end}>; rel="next"'
        self._send_json(entries[start:end], headers)

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        """Large files lie elsewhere; small ones are at another address of the same host."""
        self._let_in(repository)
        commit = self._commit(repository, revision)
        file = self._file(repository, commit, path)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        place = f"{repository.name}/{commit}/{quote(path)}"
        if not file.is_large:
            kind = f"{repository.kind}s"
            self._redirect(307, f"/api/resolve-cache/{kind}/{place}", headers)
            return
        linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.etag}"'}
        self._redirect(302, f"{self.hub.cdn}/{repository.kind}/{place}", headers | linked)

    def _cdn(self, kind: str, name: str, commit: str, path: str) -> None:
        if self.headers.get("Authorization"):
            raise Refusal(400, None, "Only one auth mechanism allowed")
        if not self.headers.get("Host", "").startswith("localhost"):
            raise Refusal(404, None, "not the address of large files")
        repository = self.hub.repositories[kind, name]
        self._send_file(self._file(repository, commit, path), path, commit)

    # Who may read what

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        token = header.removeprefix("Bearer ") if header else None
        if token not in (None, self.hub.member, self.hub.stranger):
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return token

    def _repository(self, kind: str, name: str) -> Repository:
        token = self._token()
        repository = self.hub.repositories.get((kind, name))
        hidden = repository is not None and repository.private and token != self.hub.member
        if repository is not None and not hidden:
            return repository
        if token is None:  # the hub does not tell strangers what exists
            # It leaves the code out here: its client knows the meaning from an https address.
            raise Refusal(401, "RepoNotFound", "Invalid username or password.")
        raise Refusal(404, "RepoNotFound", "Repository not found")

    def _let_in(self, repository: Repository) -> None:
        token = self._token()
        if not repository.gated or token == self.hub.member:
            return
        text = f"Access to {repository.kind} {repository.name} is restricted"
        if token is None:
            raise Refusal(401, "GatedRepo", f"{text}. You must have access to it. Please log in.")
        raise Refusal(403, "GatedRepo", f"{text} and you are not in the authorized list.")

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _file(self, repository: Repository, commit: str, path: str) -> StoredFile:
        file = repository.trees.get(commit, {}).get(path)
        if file is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", commit)
        return file

    # Answers

    def _give(self, answer: Answer) -> None:
        """Send an answer as it is, whatever a client makes of it."""
        self.status, self.close_connection = answer.status, True
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{k}: {v}" for k, v in answer.headers)]
        self.wfile.write(
            "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8", "surrogatepass")
        )
        if self.command != "HEAD":
            self.wfile.write(answer.body)
            self.sent += len(answer.body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _redirect(self, status: int, location: str, headers: dict[str, str]) -> None:
        self._head(status, 0, headers | {"Location": location})

    def _send_json(self, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(content).encode(), headers or {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(body), {"Content-Type": "application/json"} | headers)
        if self.command != "HEAD":
            self.wfile.write(body)
            self.sent += len(body)

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Message": refusal.message}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        if refusal.commit:
            headers["X-Repo-Commit"] = refusal.commit
        self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    def _send_file(self, file: StoredFile, path: str, commit: str) -> None:
        first, last = self._range(file.size)
        length = last - first + 1
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{file.etag}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        self._head(206 if "Range" in self.headers else 200, length, headers)
        if self.command != "HEAD":
            self._stream(file, path, first, length)

    def _range(self, size: int) -> tuple[int, int]:
        """Return the first and the last byte that are wanted."""
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "bytes=0-")
        if asked is None:
            raise Refusal(416, None, "Invalid range")
        start, end = asked.groups()
        if not start:
            return max(0, size - int(end)), size - 1
        if int(start) >= size and size:
            raise Refusal(416, None, "Range not satisfiable")
        return int(start), min(int(end or size - 1), size - 1)

    def _stream(self, file: StoredFile, path: str, first: int, length: int) -> None:
        end = self.hub.take_break(path, length)
        left = length if end is None else min(end, length)
        with file.place.open("rb") as source:
            source.seek(first)
            while left and (chunk := source.read(min(_CHUNK, left))):
                self.wfile.write(chunk)
                self.sent += len(chunk)
                left -= len(chunk)
        if end is not None:
            self.close_connection = True
