"""A comparison: two servers or more, one workload, ratios.

The servers run one after the other with identical flags, in alternating rounds (A B, B A, A B ...):
in each server's lifetime every number of users is measured, and a ratio never crosses rounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from loadtest import vllm_bench
from loadtest.answers import ANSWERS, Answers, mean_tokens, read_answers, write_answers
from loadtest.asking import natural_answers, warm_up
from loadtest.devices import DeviceWatch
from loadtest.endpoint import Endpoint, ask_served, key_from
from loadtest.headless import Measurement, measure
from loadtest.judgement import machine, verdict, versions
from loadtest.metrics import Record, Summary
from loadtest.out_folder import check_place
from loadtest.ratios import ratios, second_opinions
from loadtest.records import need_parquet, read_records
from loadtest.results import (
    BASE,
    CompareResult,
    Lifetime,
    Settings,
    Side,
    SideName,
    write_atomic,
)
from loadtest.table import markdown
from loadtest.target import ServerFlags, Target
from loadtest.workload_file import read_workload
from serve.secrets import without_secrets
from serve.server import Server
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import commit, parse

Tell = Callable[[str], None]


def compare(
    sides: Mapping[SideName, Target],
    settings: Settings,
    out: Path,
    flags: ServerFlags | None = None,
    tell: Tell = lambda _: None,
) -> CompareResult:
    """Measure all sides and write ``compare.json``, ``compare.md`` and ``loadtest.html`` into
    ``out``.

    ``tell`` is given a line before each step. Server logs and request records go to ``out/rounds``.

    :param sides: what is compared; the first is called ``base``
    :raises PruneError: if the input is bad, a server does not start or locust fails
    """
    flags = flags or ServerFlags()
    _check(sides, settings, flags)
    check_place(out)
    lifetimes = []
    for number, side in _turns(tuple(sides), settings.rounds):
        tell(f"round {number + 1} of {settings.rounds}, {side}: {sides[side].name}")
        folder = _folder(out, number, side)
        lifetimes.append(_lifetime(side, number, sides[side], settings, flags, folder, tell))
        if lifetimes[-1].gone:
            tell("  the server answers no more: the comparison ends here")
            break
    result = _result(sides, settings, flags, lifetimes, out)
    write_atomic(out / "compare.json", result.model_dump_json(indent=2) + "\n")
    write_atomic(out / "compare.md", markdown(result))
    return result


def _turns(sides: Sequence[SideName], rounds: int) -> Iterator[tuple[int, SideName]]:
    """Every round's sides. What changes with time must not always meet the same one first."""
    for number in range(rounds):
        for side in sides[:: -1 if number % 2 else 1]:
            yield number, side


def _folder(out: Path, number: int, side: SideName) -> Path:
    return out / "rounds" / f"{number + 1}-{side}"


def _records(folder: Path, users: int, settings: Settings) -> Path:
    return folder / f"users-{users}.{settings.records}"


def _result(
    sides: Mapping[SideName, Target],
    settings: Settings,
    flags: ServerFlags,
    lifetimes: Sequence[Lifetime],
    out: Path,
) -> CompareResult:
    def records_of(life: Lifetime, users: int) -> list[Record]:
        return read_records(_records(_folder(out, life.round, life.side), users, settings))

    def second_of(life: Lifetime, users: int) -> list[Record]:
        ours = _records(_folder(out, life.round, life.side), users, settings)
        found = vllm_bench.read_bench(vllm_bench.result_file(ours))
        return found.records(settings.endpoint)

    base, candidate, *_ = sides.values()
    all_urls = all(target.is_url for target in sides.values())
    return CompareResult(
        base=base.name,
        candidate=candidate.name,
        settings=settings,
        server_arguments=() if all_urls else flags.shown(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        lifetimes=tuple(lifetimes),
        ratios=ratios(lifetimes, records_of),
        second=second_opinions(lifetimes, records_of, second_of),
        sides=tuple(_side(name, target) for name, target in sides.items()),
        machine=machine(),
        versions=versions(),
        verdict=tuple(verdict(settings, lifetimes)),
        answers=_answers(sides, settings, out),
    )


def _answers(
    sides: Mapping[SideName, Target], settings: Settings, out: Path
) -> tuple[Answers, ...]:
    """What the sides answered in the first round, against the base; the base against itself."""
    first = {side: read_answers(_folder(out, 0, side)) for side in sides}
    again = read_answers(_folder(out, 1, BASE)) if settings.rounds > 1 else []
    # Sampled answers differ whatever the model.
    compared = settings.temperature == 0
    return tuple(
        Answers.of(side, found, (again if side == BASE else first[BASE]) if compared else [])
        for side, found in first.items()
        if found
    )


def _side(name: SideName, target: Target) -> Side:
    config = target.loader_extra_config
    return Side(
        name=name,
        target=target.name,
        load_format=None if target.is_url else target.load_format,
        loader_extra_config=None if config is None else dict(config),
        arguments=without_secrets(target.arguments),
    )


def _endpoint(url: str, settings: Settings) -> Endpoint:
    key = key_from(settings.api_key_env)
    return Endpoint.of(url, key, insecure=settings.insecure, ca=settings.ca)


def _check(sides: Mapping[SideName, Target], settings: Settings, flags: ServerFlags) -> None:
    """Refuse bad input before the first server is started."""
    flags.check(sides.values())
    if settings.records == "parquet":
        need_parquet()
    if not settings.users or min(settings.users) < 1:
        raise PruneError("the numbers of users must be 1 or more", hint="for example --users 1,8")
    if len(set(settings.users)) < len(settings.users):
        raise PruneError("a number of users is given twice")
    if settings.rounds < 1:
        raise PruneError("at least one round is needed")
    if settings.workload and read_workload(Path(settings.workload)).load.stages:
        raise PruneError(
            f"workload {settings.workload} has a load of its own",
            hint="a comparison sends a number of requests; leave load: out",
        )
    if settings.engine == "vllm-bench":
        vllm_bench.check(settings)
    for target in sides.values():
        if target.is_url:
            ask_served(_endpoint(target.name, settings))
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
    tell: Tell,
) -> Lifetime:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWERS).unlink(missing_ok=True)
    natural = None
    measured: list[Measurement] = []
    second = []
    with _serving(target, flags, folder / "server.log") as (url, server):
        if server:
            tell(f"  ready after {server.startup_seconds:.0f} s")
        endpoint = _endpoint(url, settings)
        tell("  warming up")
        warm_up(endpoint, max(settings.users), settings)
        served = ask_served(endpoint)
        for users in settings.users:
            if measured and not _answering(endpoint):
                break
            records = _records(folder, users, settings)
            with DeviceWatch(here=server is not None) as watch:
                found = measure(url, users, settings, records)
            measured.append(found.using(watch))
            _tell_of(found, tell)
            if settings.engine == "vllm-bench":
                again = vllm_bench.measure_again(endpoint, users, settings, records)
                second.append(again)
                _tell_of_second(again, tell)
        # The same greedy answers in every round: asking once is enough. That they are the same is
        # seen of the base, which is asked twice.
        asked = number == 0 or (number == 1 and side == BASE)
        gone = not _answering(endpoint)
        if settings.natural_requests and asked and not gone:
            answers = natural_answers(endpoint, settings)
            write_answers(folder, answers)
            natural = mean_tokens(answers) if number == 0 else None
        return Lifetime(
            side=side,
            round=number,
            model=served.models[0],
            version=served.version,
            startup_seconds=server.startup_seconds if server else None,
            peak_bytes=(server.peak_bytes or None) if server else None,
            natural_output_tokens=natural,
            points=tuple(found.summary for found in measured),
            clients=tuple(found.health for found in measured),
            servers=tuple(found.server for found in measured),
            second=tuple(second),
            warnings=tuple(dict.fromkeys(w for found in measured for w in found.warnings)),
            gone=gone,
        )


def _answering(endpoint: Endpoint) -> bool:
    try:
        ask_served(endpoint)
    except PruneError:
        return False
    return True


def _tell_of(found: Measurement, tell: Tell) -> None:
    tell(f"  {_line(found.summary)}")
    for warning in found.warnings:
        tell(f"    locust: {warning}")


def _tell_of_second(again: Summary, tell: Tell) -> None:
    tell(f"    vllm bench serve: {_line(again)}")


def _line(point: Summary) -> str:
    speed = f"{point.output_tokens_per_second:.1f} output tokens/s"
    return f"{point.users} users: {speed}, {point.requests} answers, {point.errors} errors"


@contextlib.contextmanager
def _serving(target: Target, flags: ServerFlags, log: Path) -> Iterator[tuple[str, Server | None]]:
    """The address of a server for ``target``, started here unless it runs already."""
    if target.is_url:
        yield target.name.rstrip("/"), None
        return
    with Server(flags.spec(target), log, flags.startup_timeout) as server:
        yield server.url, server
