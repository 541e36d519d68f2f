"""An OpenAI-compatible vLLM server as a child process: ready when entered, gone when left."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from serve.describe import get_json
from serve.logs import last_error
from serve.process import SAFE_PATH, MemoryWatch, end_group, python_module
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import parse
from vllm_moe_prune.reading import read_text

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """What to serve and how; every field that is None keeps vLLM's own default.

    ``model`` is a local folder (a ``Path`` must exist) or ``Org/Name[@revision]`` on the Hugging
    Face hub.
    ``extra_args`` go to `vllm serve` as they are; ``env`` is added to this process's environment,
    and takes out of it what it has as an empty word.
    ``loader_extra_config`` becomes ``--model-loader-extra-config``.
    """

    model: Path | str
    load_format: str = "auto"
    dtype: str = "auto"
    port: int | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    loader_extra_config: Mapping[str, Any] | None = None

    def arguments(self, port: int) -> list[str]:
        """The arguments of `vllm serve` for this spec, listening on ``port``."""
        named = parse(str(self.model))
        arguments = [named.repo_id if named else str(self.model)]
        if named and named.revision:
            arguments += ["--revision", named.revision, "--tokenizer-revision", named.revision]
        arguments += ["--host", HOST, "--port", str(port)]
        arguments += ["--load-format", self.load_format, "--dtype", self.dtype]
        arguments += ["--tensor-parallel-size", str(self.tensor_parallel_size)]
        if self.max_model_len is not None:
            arguments += ["--max-model-len", str(self.max_model_len)]
        if self.enforce_eager:
            arguments.append("--enforce-eager")
        if self.loader_extra_config is not None:
            arguments += ["--model-loader-extra-config", json.dumps(dict(self.loader_extra_config))]
        return [*arguments, *self.extra_args]

    def environment(self) -> dict[str, str]:
        """The child's whole environment: defaults, then this process's, then ``env``."""
        defaults = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **SAFE_PATH}
        if not self._asks_hub():
            defaults["HF_HUB_OFFLINE"] = "1"
        if cpu_build():
            defaults["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; vLLM would take half of the machine
            if self.tensor_parallel_size > 1:
                defaults["VLLM_CPU_OMP_THREADS_BIND"] = split_cpus(self.tensor_parallel_size)
        found = {**defaults, **os.environ, **self.env}
        return {name: value for name, value in found.items() if value or name not in self.env}

    def api_key(self) -> str | None:
        """The key that this server will ask for, as its arguments or its environment have it."""
        for number, word in enumerate(self.extra_args):
            name, _, value = word.partition("=")
            if name.replace("_", "-") == "--api-key":
                return value or next(iter(self.extra_args[number + 1 :]), None)
        return self.environment().get("VLLM_API_KEY")

    def _asks_hub(self) -> bool:
        """Whether the model or the routing map may have to be fetched."""
        routing_map = (self.loader_extra_config or {}).get("routing_map")
        remote_map = routing_map is not None and parse(str(routing_map)) is not None
        return remote_map or not Path(self.model).is_dir()


def cpu_build() -> bool:
    """Whether the installed vLLM is a CPU build: the rule by which vLLM itself chooses."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    return False


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """A running vLLM server; use it as a context manager.

    Leaving the context ends the server and all processes that it started, whatever happened
    inside. Enter it from a thread that outlives it: the child dies with the thread that made it.

    Attributes (valid once entered): ``url`` without a trailing slash, ``model_name`` as requests
    must spell it, ``startup_seconds`` from the start of the process until it answered.
    """

    def __init__(self, spec: ServerSpec, log: Path, startup_timeout: float = 1800.0) -> None:
        self.spec = spec
        self.log = Path(log)
        self.startup_timeout = startup_timeout
        self.url = ""
        self.model_name = ""
        self.startup_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._memory: MemoryWatch | None = None

    @property
    def peak_bytes(self) -> int:
        """Largest memory of the server's processes together, sampled twice a second (0: unknown).

        Host memory only; what a device holds is fixed by vLLM's own memory settings.
        """
        return self._memory.peak_bytes if self._memory else 0

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line of the child; a seam for tests."""
        return [*python_module("serve.launch"), "--with-parent", "serve", *arguments]

    def start(self) -> None:
        """Start the server and wait until it answers.

        :raises PruneError: if there is no such model folder, the port is taken, the server ended
            or it did not answer within ``startup_timeout`` seconds
        """
        model = self.spec.model
        if isinstance(model, Path) and not model.is_dir():
            raise PruneError(f"no model folder {model}", hint="give the folder with config.json")
        port = _checked_port(self.spec.port)
        self.url = f"http://{HOST}:{port}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                self.command(self.spec.arguments(port)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.spec.environment(),
                start_new_session=True,
            )
        try:
            self._memory = MemoryWatch(self._process.pid)
            self._wait_until_ready(began + self.startup_timeout)
            self.startup_seconds = time.monotonic() - began
            listed = get_json(f"{self.url}/v1/models", key=self.spec.api_key())
            self.model_name = listed["data"][0]["id"]
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        while True:
            if self._process.poll() is not None:
                reason = last_error(read_text(self.log, errors="replace"))
                status = f"the server ended with status {self._process.returncode}"
                raise PruneError(f"{status}: {reason or 'it said nothing'}", hint=f"see {self.log}")
            try:
                get_json(f"{self.url}/health", timeout=2.0)
                return
            except OSError:  # not listening yet, or not healthy yet
                pass
            if time.monotonic() > deadline:
                raise PruneError(
                    f"the server did not answer within {self.startup_timeout:.0f} s",
                    hint=f"see {self.log}",
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """End the server and all its processes; does nothing when there is none."""
        if self._memory is not None:
            self._memory.stop()
        if self._process is not None:
            end_group(self._process)
            self._process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _checked_port(port: int | None) -> int:
    if port is None:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PruneError(f"port {port} is taken", hint="leave the port out") from error
    return port


def split_cpus(parts: int) -> str:
    """vLLM's syntax for giving each of ``parts`` workers its share of this process's CPUs."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cpus) < parts:
        return "nobind"
    return "|".join(",".join(map(str, cpus[part::parts])) for part in range(parts))
