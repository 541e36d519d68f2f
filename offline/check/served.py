"""What is served of a pruned model or its base, and who answers: a server of ours, or another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from offline.engines.server import Endpoint
from offline.results.check import Served, Side
from serve.secrets import without_secrets
from serve.server import Server, ServerSpec
from vllm_moe_prune.checkpoint import COMPACT_FOLDER
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import snapshot_of
from vllm_moe_prune.routing_map import MAP_FILE

# What decides where the server of a check listens, and who may ask it.
_OURS = {"--host", "--port", "--api-key", "--uds", "--root-path", "--ssl-keyfile", "--ssl-certfile"}
# Files that do not change a model: what is written beside it later.
_SAYS_NOTHING = (".", "README", "report", "check", "answers", "serving", "analysis")


def spec_of(folder: Path, base: Path | None) -> ServerSpec:
    """Return how vLLM serves a plain or compact checkpoint, or a routing map on its base.

    :raises PruneError: if it needs its base
    """
    is_map_only = (folder / MAP_FILE).exists() and not (folder / "config.json").exists()
    is_compact = (folder / COMPACT_FOLDER).is_dir()
    if (is_map_only or is_compact) and base is None:
        kind = "routing map" if is_map_only else "compact checkpoint"
        name = snapshot_of(folder) or folder
        raise PruneError(f"{name} is a {kind}", hint="add --base with the model it was made for")
    return ServerSpec(
        model=base if is_map_only and base else folder,
        load_format="pruned_moe" if is_map_only or is_compact else "auto",
        loader_extra_config={"routing_map": str(folder)} if is_map_only else None,
    )


@dataclass(frozen=True, slots=True)
class Target:
    """One side of a check: a server to be started, or the address of one that is there.

    ``name`` is what is served; ``model`` the name that requests must use there, None for the first.
    """

    side: Side
    name: str
    spec: ServerSpec | None = None
    url: str | None = None
    model: str | None = None
    reads: tuple[Path, ...] = ()

    @property
    def identity(self) -> dict[str, object]:
        """Return what answers depend on, for a run that continues."""
        if self.spec is None:
            return {"url": self.url, "model": self.model}
        files = {str(path): _files(path) for path in self.reads}
        return {"arguments": self.arguments, "files": files}

    @property
    def arguments(self) -> list[str]:
        """Return vLLM's arguments, all but where it listens and what it keeps to itself."""
        if self.spec is None:
            return []
        given = self.spec.arguments(0)
        place = given.index("--host")
        return list(without_secrets(given[:place] + given[place + 4 :]))

    @contextmanager
    def answering(self, log: Path) -> Iterator[tuple[Endpoint, Served]]:
        """Give the server for as long as the block runs.

        :param log: of a server that is started
        :raises PruneError: if it does not start, or nobody answers
        """
        if self.spec is None:
            assert self.url is not None
            endpoint = Endpoint.find(self.url, self.model)
            yield endpoint, Served(model=endpoint.root or endpoint.model, url=endpoint.url)
            return
        with Server(self.spec, log=log) as server:
            told = {"startup_seconds": server.startup_seconds}
            endpoint = Endpoint.find(server.url, server.model_name)
            yield endpoint, self.described.model_copy(update=told)

    @property
    def described(self) -> Served:
        """Return what can be said of it without asking."""
        return Served(model=self.name, url=self.url, arguments=tuple(self.arguments))


def as_deployed(
    spec: ServerSpec, arguments: Sequence[str], *, dtype: str, eager: bool, ranks: int
) -> ServerSpec:
    """Return a server with the flags that the user will serve with.

    :raises PruneError: if a flag says where it listens
    """
    for argument in arguments:
        if argument.partition("=")[0].replace("_", "-") in _OURS:
            raise PruneError(f"{argument} is chosen by the check", hint="leave it out")
    return replace(
        spec,
        dtype=dtype,
        enforce_eager=eager,
        tensor_parallel_size=ranks,
        extra_args=tuple(arguments),
    )


def _files(folder: Path) -> dict[str, list[int]]:
    """Return size and time of every file that makes a model what it is."""
    return {
        entry.path.removeprefix(f"{folder}/"): [entry.stat().st_size, entry.stat().st_mtime_ns]
        for place in (folder, folder / COMPACT_FOLDER)
        if place.is_dir()
        for entry in os.scandir(place)
        if entry.is_file() and not entry.name.startswith(_SAYS_NOTHING)
    }
