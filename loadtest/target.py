"""What is compared, and how servers for it are started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.secrets import without_secrets
from serve.server import ServerSpec
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import parse


@dataclass(frozen=True, slots=True)
class Target:
    """One side: a model to serve (folder or hub name) or the address of a running server.

    ``arguments`` go to its `vllm serve` alone, after those of all sides.
    """

    name: str
    load_format: str = "auto"
    loader_extra_config: Mapping[str, Any] | None = None
    arguments: tuple[str, ...] = ()

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
    the cost of a prompt. ``kv_cache_bytes``: of each side's KV cache, whatever its weights leave;
    ``memory_share``: of the device, for weights and KV cache together. None: vLLM's defaults.
    """

    dtype: str = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    extra: tuple[str, ...] = ("--no-enable-prefix-caching",)
    startup_timeout: float = 1800.0
    kv_cache_bytes: int | None = None
    memory_share: float | None = None

    def check(self, targets: Iterable[Target]) -> None:
        """Refuse what cannot be equal.

        :raises PruneError: for a bound on servers that run already, or both bounds at once
        """
        if self.kv_cache_bytes is None and self.memory_share is None:
            return
        if None not in (self.kv_cache_bytes, self.memory_share):
            raise PruneError(
                "--kv-cache-memory and --memory-share are two comparisons",
                hint="make one after the other, each with an --out of its own",
            )
        for target in targets:
            if target.is_url:
                raise PruneError(
                    f"the memory of {target.name} was set when it was started",
                    hint="leave --kv-cache-memory and --memory-share out, or give its folder",
                )

    @property
    def _memory(self) -> tuple[str, ...]:
        if self.kv_cache_bytes is not None:
            return ("--kv-cache-memory-bytes", str(self.kv_cache_bytes))
        if self.memory_share is not None:
            return ("--gpu-memory-utilization", f"{self.memory_share:g}")
        return ()

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
            extra_args=(*self.extra, *self._memory, *target.arguments),
            # On a CPU it would win over either flag.
            env={"VLLM_CPU_KVCACHE_SPACE": ""} if self._memory else {},
        )

    def shown(self) -> tuple[str, ...]:
        """The flags as they appear on the command line, without model, address and load format."""
        words = list(self.spec(Target("MODEL/NAME")).arguments(0))[1:]
        for name in ("--host", "--port", "--load-format"):
            place = words.index(name)
            del words[place : place + 2]
        return without_secrets(words)
