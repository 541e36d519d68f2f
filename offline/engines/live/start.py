"""Starting a live vLLM engine: its settings, its environment, its log, its errors in one line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.logs import last_error
from serve.process import SAFE_PATH
from serve.server import cpu_build, split_cpus
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.plugin import LIVE_LOAD_FORMAT

if TYPE_CHECKING:
    from vllm import LLM

_GIB = 1024**3
_BLOCK_TOKENS = 16  # of the prefix cache on a GPU: fine enough to share the context of a question
_CPU_BLOCK_TOKENS = 32  # its CPU kernels are slow with fewer
_SETTINGS: Mapping[str, Any] = {
    "load_format": LIVE_LOAD_FORMAT,
    "worker_extension_cls": "offline.engines.live.worker.LiveWorker",
    "enable_prefix_caching": True,
    "disable_log_stats": True,
}


def start(folder: Path, settings: Mapping[str, Any]) -> LLM:
    """Start vLLM on a base checkpoint, with a `LiveMoELoader` unless ``settings`` say otherwise.

    :param settings: arguments of `vllm.LLM`
    :raises PruneError: if vLLM is absent, of another version, or does not start
    """
    tensor_parallel = int(settings.get("tensor_parallel_size", 1))
    with tempfile.TemporaryDirectory(prefix="vmprune-vllm-") as scratch:
        log = Path(scratch) / "log"
        with _environment(_defaults(tensor_parallel, log)):
            llm_class = _import_vllm()
            try:
                return llm_class(str(folder), **{**_SETTINGS, **_memory(), **settings})
            except Exception as error:  # vLLM raises whatever its many parts do
                text = log.read_text(errors="replace") if log.is_file() else ""
                # Of a failure in another process this one has only second-hand news.
                reason = last_error(f"{text}\n{type(error).__name__}: {error}")
                raise PruneError(f"vLLM cannot start on {folder}: {reason}") from error


def _import_vllm() -> type[LLM]:
    try:
        import vllm  # noqa: F401  # the check below asks it for its version
    except ImportError as error:
        raise PruneError(
            f"vLLM is not installed ({error})",
            hint="pip install 'vllm-moe-prune[gpu]' (or [cpu]), or use the transformers engine",
        ) from error
    from vllm_moe_prune.vllm_compat.version import check_version

    check_version()
    from vllm import LLM

    return LLM


def _memory() -> dict[str, Any]:
    if cpu_build():  # which would take nearly all memory of the machine for its cache
        return {"kv_cache_memory_bytes": _GIB, "block_size": _CPU_BLOCK_TOKENS}
    return {"block_size": _BLOCK_TOKENS}


def _defaults(tensor_parallel: int, log: Path) -> dict[str, str]:
    from vllm_moe_prune.vllm_compat.steps import LIVE_ENVIRONMENT

    config = log.with_name("logging.json")
    config.write_text(json.dumps(_logging(log)))
    found = {
        **LIVE_ENVIRONMENT,
        **SAFE_PATH,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_CONFIG_PATH": str(config),
    }
    if tensor_parallel > 1 and cpu_build():
        found["VLLM_CPU_OMP_THREADS_BIND"] = split_cpus(tensor_parallel)
    return found


def _logging(file: Path) -> dict[str, Any]:
    """Return a logging configuration: the terminal belongs to whoever searches, not to vLLM."""
    handler = {"class": "logging.FileHandler", "filename": str(file)}
    logger = {"handlers": ["file"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"file": handler},
        "loggers": {"vllm": logger},
    }


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Within this context the environment has ``defaults`` where it has nothing of its own."""
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
