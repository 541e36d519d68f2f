"""Locust with the load test's file, as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import loadtest

LOCUSTFILE = Path(loadtest.__file__).with_name("locustfile.py")
ROOT = LOCUSTFILE.parents[1]
_UNJUDGED = ("--client-lag-ms", "0")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *_UNJUDGED, *arguments]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def locust(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("--headless", "--only-summary", *arguments),
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(**extra),
    )
