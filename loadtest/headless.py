"""One measurement: locust as a child process, headless, its records read back."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from loadtest.devices import DeviceWatch
from loadtest.endpoint import KEY_VARIABLE
from loadtest.health import Health
from loadtest.metrics import Record, Summary, summarise
from loadtest.records import read_records
from loadtest.results import Settings
from loadtest.server_metrics import ServerUse, read_samples
from loadtest.workload import DEFAULT_WORKLOAD
from serve.process import python_module
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import MissingFileError, read_model, read_text

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_USERS_PER_PROCESS = 64
_LEVEL = re.compile(r"\S+/(WARNING|ERROR|CRITICAL)/(\S+): (.*)")
_USUAL = ("spawn rate is very high", "gevent")  # warnings about what we ask for ourselves


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run of locust found, and what locust itself complained of."""

    summary: Summary
    health: Health
    server: ServerUse | None
    warnings: tuple[str, ...]

    def using(self, watch: DeviceWatch) -> Measurement:
        """This one, with what accelerators took meanwhile."""
        more = {"device_bytes": watch.most_bytes, "joules": watch.joules}
        return replace(self, summary=self.summary.model_copy(update=more))


def measure(
    url: str, users: int, settings: Settings, records: Path, extra: tuple[str, ...] = ()
) -> Measurement:
    """Load ``url`` with ``users`` for the settings' number of requests or duration.

    The records are kept in ``records``, how the client did beside it (``.client.json``) and
    locust's own output (``.log``).

    :param extra: more flags of the locustfile's
    :raises PruneError: if locust itself fails; failed requests are counted, not raised
    """
    requests = settings.requests_at(users)
    if requests is not None:
        length = ["--requests", str(requests)]
    else:
        length = ["--run-time", f"{settings.duration or 20:g}s", "--drain"]
    if extra:
        length = []
    arguments = ["--users", str(users), *length, *extra, *_processes(settings, users)]
    found, warnings = _run(url, settings, arguments, records)
    try:
        health = read_model(records.with_suffix(".client.json"), Health)
    except MissingFileError:
        health = Health()
    server = ServerUse.of(read_samples(records))
    return Measurement(summarise(found, users), health, server, warnings)


def _processes(settings: Settings, users: int) -> list[str]:
    number = settings.processes or min(-(-users // _USERS_PER_PROCESS), os.cpu_count() or 1)
    if number < 2:
        return []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = ["--processes", str(number), "--master-bind-host", "127.0.0.1"]
    return [*flags, "--master-bind-port", port, "--master-port", port]


def _run(
    url: str, settings: Settings, arguments: list[str], records: Path
) -> tuple[list[Record], tuple[str, ...]]:
    records.parent.mkdir(parents=True, exist_ok=True)
    command = [*python_module("locust"), "-f", str(LOCUSTFILE), "--headless", "--host", url]
    command += [*arguments, "--spawn-rate", "1000", *_flags(settings), "--records", str(records)]
    # Failures are in the records; locust's own verdict would hide them behind an exit status.
    command += ["--only-summary", "--exit-code-on-error", "0"]
    log = records.with_suffix(".log")
    with log.open("wb") as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=_environment()
        )
    said = read_text(log, errors="replace").splitlines()
    if done.returncode:
        last = next(filter(None, reversed(said)), "")
        message = f"locust ended with status {done.returncode}: {last.removeprefix('error: ')}"
        raise PruneError(message, hint=f"see {log}")
    found = (match.group(3) for line in said if (match := _LEVEL.search(line)))
    told = dict.fromkeys(text for text in found if not any(u in text for u in _USUAL))
    return read_records(records), tuple(told)


def _flags(settings: Settings) -> list[str]:
    chat = settings.endpoint == "chat"
    flags = ["--workload", settings.workload or str(DEFAULT_WORKLOAD)]
    flags += ["--workload-seed", str(settings.seed), "--temperature", str(settings.temperature)]
    flags += ["--chat-weight", str(int(chat)), "--completion-weight", str(int(not chat))]
    flags += ["--request-timeout", f"{settings.request_timeout:g}", "--client-lag-ms", "0"]
    if settings.max_tokens is not None:
        flags += ["--max-tokens", str(settings.max_tokens)]
    if settings.ignore_eos:
        flags.append("--ignore-eos")
    if settings.insecure:
        flags.append("--insecure")
    if settings.ca:
        flags += ["--ca", settings.ca]
    if settings.api_key_env != KEY_VARIABLE:
        flags += ["--api-key-env", settings.api_key_env]
    return flags


def _environment() -> dict[str, str]:
    # The locustfile imports this package, which need not be installed in a checkout.
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
