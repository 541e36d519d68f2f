"""Opening a checkpoint with transformers; apart from the engine, which needs far more to import."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import transformers

from offline.engines.local.dequantised import open_dequantised
from offline.engines.quantised.need import dequantised
from vllm_moe_prune.checkpoint import read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.tensor_files import can_read

_LOG = logging.getLogger(__name__)
_SHOWN = 3
Dtype = Literal["auto", "bfloat16", "float32"]


def from_pretrained(folder: Path, dtype: Dtype, **placed: Any) -> Any:
    """Open a checkpoint's language model with transformers, without its progress bars.

    A quantised one is dequantised; how much that takes is said first.

    :param placed: further arguments of transformers' function of this name
    :raises PruneError: if transformers cannot open it, something in it is missing, or it is
        quantised in an unknown format
    """
    quantised = dequantised(folder)
    if quantised is not None:
        _LOG.warning("%s", quantised.line(dtype, on_disk="offload_folder" in placed))
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # type: ignore[no-untyped-call]  # the caller owns the progress
    try:
        with _without_report(folder), _unmapped():
            if quantised is not None:
                model, found = open_dequantised(folder, dtype, **placed)
            else:
                loaded: Any = _opened_as(folder).from_pretrained(
                    folder, dtype=dtype, local_files_only=True, output_loading_info=True, **placed
                )
                model, found = loaded
    except (OSError, RuntimeError, ValueError) as error:
        raise PruneError(f"transformers cannot open {folder}: {error}") from error
    finally:
        if shown:
            bars.enable_progress_bar()  # type: ignore[no-untyped-call]
    _check_all_there(folder, found)
    return model


def _check_all_there(folder: Path, found: Mapping[str, Any]) -> None:
    """Refuse a model whose checkpoint lacks weights: transformers made them up, and only warned.

    :param found: what transformers tells of the loading
    """
    missing = sorted(map(str, found.get("missing_keys", ())))
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise PruneError(
            f"{folder} lacks {', '.join(missing[:_SHOWN])}{more}", hint="download it again"
        )


def _opened_as(folder: Path) -> Any:
    """Return the class of transformers that opens a checkpoint: as a language model, if it can."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    language, images = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForImageTextToText,
    )
    alone = type(config) in language._model_mapping or type(config) not in images._model_mapping
    return language if alone else images


@contextmanager
def _unmapped() -> Iterator[None]:
    """Let transformers read files instead of mapping them into memory.

    On a CPU it would use what is mapped as the model's weights: a file that shrinks later, hours
    after it was loaded, would end the process.
    """
    module: Any = transformers.modeling_utils
    before = module.safe_open

    def reading(*args: Any, **more: Any) -> Any:
        return before(*args, **(more | {"backend": "pread"}))

    module.safe_open = reading if can_read(before) else before
    try:
        yield
    finally:
        module.safe_open = before


@contextmanager
def _without_report(folder: Path) -> Iterator[None]:
    """Keep transformers from listing what a checkpoint has beside its language model.

    A report in which something is missing is shown.
    """
    if not layout_of(read_config(folder)).prefix:
        yield
        return

    def is_news(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "UNEXPECTED" not in text or "MISSING" in text or "MISMATCH" in text

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)
