"""What is refused before a server starts anything, and what it says that it serves.

vLLM opens a model in its workers, minutes after it was told to; an error there is followed by a
hundred lines of other processes. Here the same is found in the first process, by headers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vllm_moe_prune.checkpoint import COMPACT_FOLDER, Checkpoint, read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.loader import PrunedMoELoader, folder_of, logger
from vllm_moe_prune.mapped_checkpoint import (
    LOAD_FORMAT,
    METRICS,
    MappedCheckpoint,
    mapped_checkpoint,
    options_of,
    refuse_compact,
    refuse_foreign_keys,
)
from vllm_moe_prune.repository import pruned_facts
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap
from vllm_moe_prune.served import Served
from vllm_moe_prune.vllm_compat.built_by import built_by
from vllm_moe_prune.vllm_compat.drafts import is_same_model
from vllm_moe_prune.vllm_compat.first_process import (
    drafting_model,
    is_first_to_tell,
    is_server,
    remember,
)
from vllm_moe_prune.vllm_compat.limits import check_metrics, check_pruned


@dataclass(frozen=True, slots=True)
class Found:
    """What the arguments of a server name: a pruned model, and our options for it."""

    mapped: MappedCheckpoint
    options: Mapping[str, Any]
    name: str


def check_arguments(arguments: Any) -> Found | None:
    """Refuse what no server can be made of, by vLLM's `EngineArgs`; None for an unpruned model.

    :raises PruneError: in one line, with what to say instead
    """
    extra = arguments.model_loader_extra_config
    extra = extra if isinstance(extra, Mapping) else {}
    load_format = str(arguments.load_format).lower()
    if load_format == LOAD_FORMAT:
        options, _ = options_of(extra)
        # Refuses another version of vLLM, and keys that neither we nor vLLM know.
        PrunedMoELoader(arguments.create_load_config())
        folder = folder_of(arguments.model, arguments.revision, arguments.download_dir)
        return _found(folder, options, arguments.model)
    if load_format != LOAD_FORMAT and get_close_matches(load_format, [LOAD_FORMAT], cutoff=0.75):
        raise PruneError(
            f"there is no load format {arguments.load_format!r}",
            hint=f"--load-format {LOAD_FORMAT}",
        )
    refuse_foreign_keys(arguments.model, extra, load_format)
    return _plain(arguments.model, arguments.revision)


def _found(folder: Path, options: Mapping[str, Any], name: str) -> Found | None:
    if folder.is_dir() and "speculators_config" in read_config(folder):
        return None  # a head that names the model that it drafts for; vLLM turns to that one
    return Found(mapped_checkpoint(folder, options, name), options, name)


def _plain(model: str, revision: str | None) -> Found | None:
    """Return a plain checkpoint that another load format opens, if the model is one.

    :raises PruneError: if it is a compact one, which none of them can open
    """
    folder = pruned_facts(model, revision)
    if folder is None:
        return None
    if (folder / COMPACT_FOLDER).is_dir():
        refuse_compact(model, revision)
    try:
        beside = RoutingMap.load(folder)
        mapped = MappedCheckpoint(Checkpoint.open(folder), (), beside, is_plain=True)
    except PruneError as error:  # vLLM reads neither the map nor, maybe, this kind of files
        logger.warning("%s beside %s is not read: %s", MAP_FILE, model, error)
        return None
    return Found(mapped, {}, model)


def check_config(vllm_config: Any, found: Found | None) -> None:
    """Refuse what the model cannot be served with, and say what is served.

    :raises PruneError: in one line, with what to say instead
    """
    _check_draft(vllm_config)
    if found is None:
        return
    routing_map = found.mapped.routing_map
    if not found.mapped.is_plain:
        check_pruned(vllm_config, routing_map)
        built_by(vllm_config.model_config, routing_map)
    if found.options.get(METRICS):
        check_metrics(vllm_config)
        _check_shown()
    served = Served.of(found.mapped, found.name, found.options)
    remember(vllm_config.model_config, served)
    if is_first_to_tell(vllm_config):
        logger.info("%s", served.block())


def _check_shown() -> None:
    """Refuse to count in a server what it would not show."""
    if is_server() and LOAD_FORMAT not in os.environ.get("VLLM_PLUGINS", "").split(","):
        raise PruneError(
            f"{METRICS} is shown by a route that vLLM adds only where VLLM_PLUGINS names it",
            hint=f"VLLM_PLUGINS={LOAD_FORMAT} vllm serve ..., or vmprune serve --expert-metrics",
        )


def _check_draft(vllm_config: Any) -> None:
    """Look at another model that drafts, which is opened by the target's load format or its own."""
    drafting = drafting_model(vllm_config)
    if drafting is None:
        return
    draft, load_format = drafting
    if is_same_model(draft.model, vllm_config.model_config.model):
        return
    facts = pruned_facts(draft.model, draft.revision)
    if facts is None or not (facts / COMPACT_FOLDER).is_dir():
        return
    if load_format != LOAD_FORMAT:
        raise PruneError(
            f"{draft.model}, which drafts, is a compact pruned checkpoint",
            hint=f'add "draft_load_config": {{"load_format": "{LOAD_FORMAT}"}} '
            "to --speculative-config",
        )
    check_pruned(vllm_config, mapped_checkpoint(facts, {}, draft.model).routing_map)
