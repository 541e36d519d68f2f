"""Speculative decoding: which of two models, the one that drafts or its target, is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def is_other_draft(vllm_config: Any, model_config: Any) -> bool:
    """Whether a model is loaded to draft for another one, as EAGLE heads and small models are.

    Not so for draft (MTP) layers, which are part of the target's own checkpoint. vLLM hands the
    target's load format to both.
    """
    drafting = vllm_config.speculative_config
    if drafting is None or drafting.target_model_config is None:
        return False
    return not is_same_model(model_config.model, drafting.target_model_config.model)


def is_same_model(one: str | None, other: str) -> bool:
    """Whether two names are of the same model: equal, or of the same folder."""
    if one is None or one == other:
        return one == other
    folders = Path(one), Path(other)
    return all(folder.is_dir() for folder in folders) and folders[0].samefile(folders[1])
