"""A comparison: two servers, one workload, ratios.

The servers run one after the other with identical flags, in alternating rounds (A B A B ...): in
each server's lifetime every number of users is measured, and a ratio never crosses rounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtest.asking import natural_length, warm_up
from loadtest.headless import measure
from loadtest.results import (
    CompareResult,
    Lifetime,
    Settings,
    SideName,
    check_place,
    ratios,
    write_atomic,
)
from loadtest.table import markdown
from loadtest.workload import load_workload
from serve.describe import describe
from serve.server import Server, ServerSpec
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import commit, parse


@dataclass(frozen=True, slots=True)
class Target:
    """One side: a model to serve (folder or hub name) or the address of a running server."""

    name: str
    load_format: str = "auto"
    loader_extra_config: Mapping[str, Any] | None = None

    @property
    def is_url(self) -> bool:
        """Whether the server runs already."""
        return self.name.startswith(("http://", "https://"))

    def model(self) -> Path | str:
        """The folder, or the hub's name, with its revision if one is given.

        :raises PruneError: if it looks like a folder and is none
        """
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            self._check(folder)
            return folder
        if parse(self.name) is None:
            raise PruneError(
                f"no model folder {self.name}", hint="give a folder, a hub name or http://HOST:PORT"
            )
        return self.name

    def _check(self, folder: Path) -> None:
        """Refuse what vLLM would refuse a minute later."""
        if not (folder / "config.json").is_file():
            raise PruneError(
                f"{folder} has no config.json",
                hint="a routing map is served with its base: --candidate BASE "
                '--candidate-load-format pruned_moe --candidate-loader-config {"routing_map": ...}',
            )
        has_map = (folder / "routing_map.json").is_file() or bool(self.loader_extra_config)
        if (folder / "pruned_moe").is_dir() and self.load_format == "auto":
            raise PruneError(
                f"{folder} is a compact checkpoint", hint="--candidate-load-format pruned_moe"
            )
        if self.load_format == "pruned_moe" and not has_map:
            raise PruneError(f"{folder} has no routing map", hint="leave its load format out")
        given = (self.loader_extra_config or {}).get("routing_map")
        if isinstance(given, str) and given.count("/") != 1 and not Path(given).exists():
            raise PruneError(f"no routing map at {given}")


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """What both servers are started with. ``extra`` goes to `vllm serve` as it is.

    The prefix cache is off: the workload's prompts repeat, and answers from the cache would hide
    the cost of a prompt.
    """

    dtype: str = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    extra: tuple[str, ...] = ("--no-enable-prefix-caching",)
    startup_timeout: float = 1800.0

    def spec(self, target: Target) -> ServerSpec:
        """The server of ``target``."""
        return ServerSpec(
            model=target.model(),
            load_format=target.load_format,
            loader_extra_config=target.loader_extra_config,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            tensor_parallel_size=self.tensor_parallel_size,
            enforce_eager=self.enforce_eager,
            extra_args=self.extra,
        )

    def shown(self) -> tuple[str, ...]:
        """The flags as they appear on the command line, without model, address and port."""
        arguments = self.spec(Target("MODEL/NAME")).arguments(0)
        skip = ("MODEL/NAME", "--host", "127.0.0.1", "--port", "0", "--load-format")
        return tuple(word for word in arguments if word not in skip)[1:]


def compare(
    base: Target,
    candidate: Target,
    settings: Settings,
    out: Path,
    flags: ServerFlags | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> CompareResult:
    """Measure both sides and write ``compare.json`` and ``compare.md`` into ``out``.

    ``tell`` is given a line before each step. Server logs and request records go to ``out/rounds``.

    :raises PruneError: if the input is bad, a server does not start or locust fails
    """
    flags = flags or ServerFlags()
    sides: dict[SideName, Target] = {"base": base, "candidate": candidate}
    _check(sides, settings)
    check_place(out)
    lifetimes = []
    for number in range(settings.rounds):
        for side, target in sides.items():
            tell(f"round {number + 1} of {settings.rounds}, {side}: {target.name}")
            folder = out / "rounds" / f"{number + 1}-{side}"
            lifetimes.append(_lifetime(side, number, target, settings, flags, folder, tell))
    result = CompareResult(
        base=base.name,
        candidate=candidate.name,
        settings=settings,
        server_arguments=() if base.is_url and candidate.is_url else flags.shown(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        lifetimes=tuple(lifetimes),
        ratios=ratios(lifetimes),
    )
    write_atomic(out / "compare.json", result.model_dump_json(indent=2) + "\n")
    write_atomic(out / "compare.md", markdown(result))
    return result


def _check(sides: Mapping[SideName, Target], settings: Settings) -> None:
    """Refuse bad input before the first server is started."""
    if not settings.users or min(settings.users) < 1:
        raise PruneError("the numbers of users must be 1 or more", hint="for example --users 1,8")
    if len(set(settings.users)) < len(settings.users):
        raise PruneError("a number of users is given twice")
    if settings.rounds < 1:
        raise PruneError("at least one round is needed")
    if settings.workload:
        load_workload(Path(settings.workload))
    for target in sides.values():
        if target.is_url:
            describe(target.name)
        else:
            if (named := parse(str(target.model()))) is not None:
                commit(named)  # says what is wrong before a server takes its time to
            if find_spec("vllm") is None:
                raise PruneError(
                    f"vLLM, which is to serve {target.name}, is not installed",
                    hint="pip install 'vllm-moe-prune[gpu]' (or [cpu])",
                )


def _lifetime(
    side: SideName,
    number: int,
    target: Target,
    settings: Settings,
    flags: ServerFlags,
    folder: Path,
    tell: Callable[[str], None],
) -> Lifetime:
    folder.mkdir(parents=True, exist_ok=True)
    natural = None
    points = []
    with _serving(target, flags, folder / "server.log") as (url, server):
        if server:
            tell(f"  ready after {server.startup_seconds:.0f} s")
        warm_up(url, max(settings.users), settings)
        for users in settings.users:
            point = measure(url, users, settings, folder / f"users-{users}.jsonl")
            points.append(point)
            speed = f"{point.output_tokens_per_second:.1f} output tokens/s"
            tell(f"  {users} users: {speed}, {point.requests} answers, {point.errors} errors")
        # The same greedy answers in every round: asking once is enough.
        if settings.natural_requests and number == 0:
            natural = natural_length(url, settings)
        info = describe(url)
        return Lifetime(
            side=side,
            round=number,
            model=info.models[0] if info.models else target.name,
            version=info.version,
            startup_seconds=server.startup_seconds if server else None,
            peak_bytes=(server.peak_bytes or None) if server else None,
            natural_output_tokens=natural,
            points=tuple(points),
        )


@contextlib.contextmanager
def _serving(target: Target, flags: ServerFlags, log: Path) -> Iterator[tuple[str, Server | None]]:
    """The address of a server for ``target``, started here unless it runs already."""
    if target.is_url:
        yield target.name.rstrip("/"), None
        return
    with Server(flags.spec(target), log, flags.startup_timeout) as server:
        yield server.url, server
