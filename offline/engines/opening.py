"""Opening a checkpoint with transformers; apart from the engine, which needs far more to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import transformers

from offline.quantised import check_unquantised
from vllm_moe_prune.errors import PruneError

Dtype = Literal["auto", "bfloat16", "float32"]


def from_pretrained(folder: Path, dtype: Dtype, **placed: Any) -> Any:
    """Open a checkpoint with transformers, without its progress bars.

    :param placed: further arguments of transformers' function of this name
    :raises PruneError: if transformers cannot open it, or it is quantised
    """
    check_unquantised(folder)
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # type: ignore[no-untyped-call]  # the caller owns the progress
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, **placed
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise PruneError(f"transformers cannot open {folder}: {error}") from error
    finally:
        if shown:
            bars.enable_progress_bar()  # type: ignore[no-untyped-call]
