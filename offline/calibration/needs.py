"""What a calibration needs of a model, told from headers: imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from offline.build.whole import check_whole_base
from offline.engines.needs import check_tokenizer, check_vllm, check_whole
from offline.engines.quantised.need import check_dequantisable
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.config_keys import most_tokens
from vllm_moe_prune.errors import PruneError


def check_length(base: Checkpoint, length: int) -> None:
    """Refuse sequences of more tokens than the model's config says that it takes.

    :raises PruneError: naming both
    """
    most = most_tokens(base.text_config) or length
    if length > most:
        raise PruneError(
            f"--length {length}: the model takes at most {most} tokens",
            hint=f"--length {most} or less",
        )


def open_base(
    folder: Path,
    *,
    length: int,
    in_vllm: bool = False,
    dtype: str = "auto",
    gradients: bool = False,
    in_parts: bool = False,
) -> Checkpoint:
    """Open a model that text is to go through.

    :param length: tokens of a sequence
    :param in_vllm: in a running vLLM, which computes with quantised experts as they are
    :param in_parts: without its decoder layers in memory at the same time
    :raises PruneError: if it is compact or takes fewer tokens; if it is quantised and cannot be
        dequantised, or with ``in_vllm`` if there is no vLLM
    """
    if in_vllm:
        check_vllm()
    base = Checkpoint.open(folder)
    check_whole(folder)
    check_whole_base(base)
    if not in_vllm:
        other = "--offload FOLDER" if gradients else "--engine vllm, or --offload FOLDER"
        check_dequantisable(folder, dtype=dtype, otherwise=other, in_parts=in_parts)
    check_tokenizer(folder)
    check_length(base, length)
    return base
