"""Starting a live vLLM engine: its settings, its environment, its log, its errors in one line."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from serve.logs import last_error
from serve.process import SAFE_PATH
from serve.server import cpu_build, split_cpus
from vllm_moe_prune.checkpoint import read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.plugin import LIVE_LOAD_FORMAT
from vllm_moe_prune.reading import read_text

if TYPE_CHECKING:
    from vllm import LLM

_LOG = logging.getLogger(__name__)
_GIB = 1024**3
_CPU_BLOCK_TOKENS = 32  # of the prefix cache: vLLM's CPU kernels are slow with fewer
_SETTINGS: Mapping[str, Any] = {
    "load_format": LIVE_LOAD_FORMAT,
    "worker_extension_cls": "offline.engines.live.worker.LiveWorker",
    "enable_prefix_caching": True,
    "disable_log_stats": True,
    "language_model_only": True,  # text is all that is asked: no processor, no room for pictures
}


class OwnsVllm:
    """Has a running vLLM, whose processes end with `close` or with a `with` block."""

    _llm: Any

    def close(self) -> None:
        """End vLLM's processes; nothing can be asked afterwards."""
        from vllm_moe_prune.vllm_compat.engine import shut_down

        if self._llm is not None:
            shut_down(self._llm)
            self._llm = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(folder: Path, settings: Mapping[str, Any]) -> LLM:
    """Start vLLM on a base checkpoint, with a `LiveMoELoader` unless ``settings`` say otherwise.

    :param settings: arguments of `vllm.LLM`
    :raises PruneError: if vLLM is absent, of another version, or does not start
    """
    tensor_parallel = int(settings.get("tensor_parallel_size", 1))
    with tempfile.TemporaryDirectory(prefix="vmprune-vllm-") as scratch:
        log = Path(scratch) / "log"
        with _environment(_defaults(tensor_parallel, log), _forced()):
            llm_class = _import_vllm()
            own = {**_SETTINGS, **_of_platform(folder, settings)}
            try:
                llm = llm_class(str(folder), **{**own, **settings})
            except Exception as error:  # vLLM raises whatever its many parts do
                text = read_text(log, errors="replace") if log.is_file() else ""
                # Of a failure in another process this one has only second-hand news.
                reason = last_error(f"{text}\n{type(error).__name__}: {error}")
                raise PruneError(f"vLLM cannot start on {folder}: {reason}") from error
    from vllm_moe_prune.vllm_compat.engine import watch

    watch(llm)
    return llm


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


def _of_platform(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `vllm.LLM` that depend on where it runs.

    On a GPU vLLM itself chooses the size of its cache and of the cache's blocks: not every kernel
    takes small ones.
    """
    found: dict[str, Any] = {}
    if int(settings.get("tensor_parallel_size", 1)) > 1:
        found["distributed_executor_backend"] = "mp"  # not Ray's, which may have placed this engine
    if not cpu_build():
        return found
    # vLLM would take nearly all memory of the machine for its cache.
    found |= {"kv_cache_memory_bytes": _GIB, "block_size": _CPU_BLOCK_TOKENS}
    config = read_config(folder)
    layout = layout_of(config)
    latent = layout.text_config(config).get("kv_lora_rank")  # MLA (docs/families.md)
    if latent or layout.torch_rotary:
        found["compilation_config"] = {"custom_ops": ["-rotary_embedding"]}  # its kernel is wrong
    if latent and settings.get("dtype") == "float32":
        found["attention_backend"] = "CPU_MLA"
    return found


def _forced() -> dict[str, str]:
    """Return what the environment has to have, whatever it has, and say what is overruled."""
    from vllm_moe_prune.vllm_compat.steps import LIVE_ENVIRONMENT

    for name, value in LIVE_ENVIRONMENT.items():
        given = os.environ.get(name)
        if given not in (None, value):
            _LOG.warning(
                "%s=%s: this engine needs vLLM's first model runner and starts with %s=%s",
                *(name, given, name, value),
            )
    return dict(LIVE_ENVIRONMENT)


def _defaults(tensor_parallel: int, log: Path) -> dict[str, str]:
    config = log.with_name("logging.json")
    config.write_text(json.dumps(_logging(log)))
    found = {
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
def _environment(defaults: Mapping[str, str], forced: Mapping[str, str]) -> Iterator[None]:
    """Within this context the environment has ``defaults`` where it has nothing of its own.

    :param forced: what it has in any case
    """
    missing = {name: value for name, value in defaults.items() if name not in os.environ}
    changes = {**missing, **forced}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
