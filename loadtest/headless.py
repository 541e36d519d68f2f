"""One measurement: locust as a child process, headless, its records read back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from loadtest.metrics import Record, Summary, read_records, summarise
from loadtest.results import Settings
from loadtest.workload import DEFAULT_WORKLOAD
from serve.process import python_module
from vllm_moe_prune.errors import PruneError

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def measure(url: str, users: int, settings: Settings, records: Path) -> Summary:
    """Load ``url`` with ``users`` for the settings' duration or number of requests.

    The records are kept in ``records`` and locust's own output beside it (``.log``).

    :raises PruneError: if locust itself fails; failed requests are counted, not raised
    """
    length = ["--run-time", f"{settings.duration:g}s"]
    if settings.requests:
        length = ["--requests", str(settings.requests)]
    return summarise(_run(url, settings, ["--users", str(users), *length], records), users)


def _run(url: str, settings: Settings, arguments: list[str], records: Path) -> list[Record]:
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
    if done.returncode:
        last = next(filter(None, reversed(log.read_text(errors="replace").splitlines())), "")
        message = f"locust ended with status {done.returncode}: {last}"
        raise PruneError(message, hint=f"see {log}")
    return read_records(records)


def _flags(settings: Settings) -> list[str]:
    chat = settings.endpoint == "chat"
    flags = ["--workload", settings.workload or str(DEFAULT_WORKLOAD)]
    flags += ["--workload-seed", str(settings.seed), "--temperature", str(settings.temperature)]
    flags += ["--chat-weight", str(int(chat)), "--completion-weight", str(int(not chat))]
    if settings.max_tokens is not None:
        flags += ["--max-tokens", str(settings.max_tokens)]
    if settings.ignore_eos:
        flags.append("--ignore-eos")
    return flags


def _environment() -> dict[str, str]:
    # The locustfile imports this package, which need not be installed in a checkout.
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
