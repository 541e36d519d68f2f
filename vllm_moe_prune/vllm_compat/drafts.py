"""Speculative decoding: which of two models, the one that drafts or its target, is meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_moe_prune.draft_config import NUM_EXPERTS, SECTION, TOP_K
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.vllm_compat.config_counts import counts_in, put_counts, set_counts


def is_other_draft(vllm_config: Any, model_config: Any) -> bool:
    """Whether a model is loaded to draft for another one, as EAGLE heads and small models are.

    Not so for draft (MTP) layers, which are part of the target's own checkpoint. vLLM hands the
    target's load format to both.
    """
    drafting = vllm_config.speculative_config
    if drafting is None or drafting.target_model_config is None:
        return False
    return not is_same_model(model_config.model, drafting.target_model_config.model)


def is_own_draft(vllm_config: Any, model_config: Any) -> bool:
    """Whether what is loaded are the draft (MTP) layers of the target's own checkpoint."""
    drafting = vllm_config.speculative_config
    if drafting is None or drafting.method != "mtp" or model_config.runner_type != "draft":
        return False
    return not is_other_draft(vllm_config, model_config)


def is_same_model(one: str | None, other: str) -> bool:
    """Whether two names are of the same model: equal, or of the same folder."""
    if one is None or one == other:
        return one == other
    folders = Path(one), Path(other)
    return all(folder.is_dir() for folder in folders) and folders[0].samefile(folders[1])


def own_counts_in(config: Any) -> tuple[int, int] | None:
    """Return (experts, active experts) of draft layers, if a config has their own for them.

    :param config: vLLM's, of the language model
    """
    section = getattr(config, SECTION, None)
    return (int(section[NUM_EXPERTS]), int(section[TOP_K])) if section else None


def refuse_own_counts(vllm_config: Any, model_config: Any) -> None:
    """Refuse draft layers with counts of their own, which another load format would not see.

    :raises PruneError: saying which flag to add
    """
    if not is_own_draft(vllm_config, model_config):
        return
    if (own := own_counts_in(model_config.hf_text_config)) is not None:
        raise PruneError(
            f"{model_config.model} has draft (MTP) layers with {own[0]} experts, more than its "
            "other layers have",
            hint="add --load-format pruned_moe",
        )


@contextmanager
def counted_as_drafts(vllm_config: Any, model_config: Any, layout: MoeLayout) -> Iterator[None]:
    """Within this context draft layers are built and loaded with their own counts of experts.

    Model code asks the draft's config or the target's, whichever its author had at hand. So both
    say the draft's: the one goes on to do so, and with it the key of what vLLM compiles; the other
    says afterwards what it said before. A map that is applied while loading changed the target's
    alone, so that the draft's says what the base has.
    """
    own, target = model_config.hf_text_config, vllm_config.model_config.hf_text_config
    if (counts := own_counts_in(own)) is not None:
        set_counts(own, layout, *counts)
    before = counts_in(target, layout)
    put_counts(target, {k: v for k, v in counts_in(own, layout).items() if k in before})
    try:
        yield
    finally:
        if target is not own:
            put_counts(target, before)
