"""`MappedCheckpoint`: which tensors of a checkpoint make the model that is served, and its map.

All that can be wrong with a model, its map and the two together is found here, by headers: no
weights are read, and neither torch nor vLLM is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vllm_moe_prune.checkpoint import COMPACT_FOLDER, Checkpoint, read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.repository import is_compact, load_map
from vllm_moe_prune.rewrite import Copy, Operation, rewrite
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap

LOAD_FORMAT = "pruned_moe"
ALLOW_OTHER = "allow_other_base"
METRICS = "expert_metrics"
OUR_KEYS = ("routing_map", ALLOW_OTHER, METRICS)
_ALLOWED_BY = f'add "{ALLOW_OTHER}": true to --model-loader-extra-config'


@dataclass(frozen=True, slots=True)
class MappedCheckpoint:
    """A model to serve: its checkpoint, the operations that load it, and its map.

    No operations: a plain checkpoint, which is loaded as any other is.
    """

    checkpoint: Checkpoint
    operations: tuple[Operation, ...]
    routing_map: RoutingMap
    is_plain: bool = False


def options_of(extra: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the entries of ``--model-loader-extra-config`` into our own and vLLM's.

    :raises PruneError: for one of ours with a value that it cannot have
    """
    ours = {key: value for key, value in extra.items() if key in OUR_KEYS}
    if "routing_map" in ours and not (isinstance(ours["routing_map"], str) and ours["routing_map"]):
        raise PruneError(
            f"routing_map is {ours['routing_map']!r}", hint="it is a folder or Org/Name[@revision]"
        )
    for key in (ALLOW_OTHER, METRICS):
        if not isinstance(ours.get(key, False), bool):
            raise PruneError(f"{key} is {ours[key]!r}", hint="it is true or false")
    return ours, {key: value for key, value in extra.items() if key not in ours}


def misspelt(key: str) -> str | None:
    """Return the key of ours that another one may be meant to be."""
    return next(iter(get_close_matches(key, OUR_KEYS, cutoff=0.75)), None)


def refuse_foreign_keys(model: str, extra: Mapping[str, Any], load_format: str) -> None:
    """Refuse keys of ours, or misspelt ones, that another load format is about to get.

    :param extra: ``--model-loader-extra-config``
    :raises PruneError: saying which flag to add
    """
    for key in extra:
        if key in OUR_KEYS:
            raise PruneError(
                f"{key} in --model-loader-extra-config is read by --load-format {LOAD_FORMAT} "
                f"alone, not by {load_format}",
                hint=f"vllm serve {model} --load-format {LOAD_FORMAT} and the same config",
            )
        if (meant := misspelt(key)) is not None:
            raise PruneError(
                f"--model-loader-extra-config has {key!r}, which no load format knows",
                hint=f'write "{meant}", and add --load-format {LOAD_FORMAT}',
            )


def refuse_compact(model: str, revision: str | None) -> None:
    """Refuse a compact checkpoint that another load format is about to open.

    :param model: a folder or the hub's ``Org/Name``
    :raises PruneError: saying which flag to add
    """
    if is_compact(model, revision):
        raise PruneError(
            f"{model} is a compact pruned checkpoint and cannot be served as it is",
            hint=f"vllm serve {model} --load-format {LOAD_FORMAT}",
        )


def mapped_checkpoint(
    folder: Path, options: Mapping[str, Any], name: str, *, allowed_by: str = _ALLOWED_BY
) -> MappedCheckpoint:
    """Return what ``--load-format pruned_moe`` serves of a folder.

    :param folder: with what can be checked; its weights may still be on the hub
    :param options: our keys of ``--model-loader-extra-config``
    :param name: what the user calls the model
    :param allowed_by: what the user may say to apply a map to another base
    :raises PruneError: if it has no map, is damaged, is no MoE, or the map does not fit
    """
    path = options.get("routing_map")
    given = None if path is None else load_map(Path(path))
    config = read_config(folder)
    compact, has_map = (folder / COMPACT_FOLDER).is_dir(), (folder / MAP_FILE).exists()
    if given is None and not has_map:
        raise _unpruned(config, name)
    if given is not None and (compact or has_map):
        raise PruneError(
            f"{name} is already pruned; a routing map applies to its base",
            hint="give the base model, or leave routing_map out",
        )
    if is_dense(config):
        raise PruneError(
            f"{name} is a dense model ({config.get('model_type')}): there are no experts that a "
            "routing map could drop",
            hint=f"vllm serve {name} serves it as it is",
        )
    checkpoint = Checkpoint.open(folder, mapped=True)  # a rank wants a part of most tensors
    if given is not None:
        allow_other = bool(options.get(ALLOW_OTHER, False))
        return apply_map(checkpoint, given, allow_other=allow_other, allowed_by=allowed_by)
    beside = RoutingMap.load(folder)
    if not compact:
        return MappedCheckpoint(checkpoint, (), beside, is_plain=True)
    return _as_it_is(checkpoint, beside)


def is_dense(config: Mapping[str, Any]) -> bool:
    """Whether a config.json tells of no experts, by all the names that families have for them."""
    sections = (config, *(value for value in config.values() if isinstance(value, Mapping)))
    return not any("expert" in key for section in sections for key in section) and not any(
        "moe" in str(section.get("model_type")) or "moe" in key
        for section in sections
        for key in section
    )


def _unpruned(config: Mapping[str, Any], name: str) -> PruneError:
    if is_dense(config):
        return PruneError(
            f"{name} is a dense model ({config.get('model_type')}) and has no {MAP_FILE}",
            hint=f"vllm serve {name} serves it as it is",
        )
    return PruneError(
        f"{name} has no {MAP_FILE}",
        hint=f"serve it as it is without --load-format {LOAD_FORMAT}, or name a map "
        'with --model-loader-extra-config \'{"routing_map": "MAP"}\'',
    )


def apply_map(
    checkpoint: Checkpoint,
    routing_map: RoutingMap,
    *,
    allow_other: bool = False,
    allowed_by: str = _ALLOWED_BY,
) -> MappedCheckpoint:
    """Plan the loading of an original checkpoint through a routing map.

    :raises PruneError: if the map does not fit the checkpoint
    """
    routing_map.check_base(
        checkpoint.fingerprint(),
        checkpoint.expert_counts(),
        allow_other=allow_other,
        allowed_by=allowed_by,
    )
    operations = rewrite(checkpoint.tensors, routing_map, checkpoint.layout)
    return MappedCheckpoint(checkpoint, tuple(operations), routing_map)


def _as_it_is(checkpoint: Checkpoint, routing_map: RoutingMap) -> MappedCheckpoint:
    """Plan the loading of a compact checkpoint, whose tensors are already the pruned ones."""
    found = checkpoint.expert_counts()
    for layer in routing_map.layers:
        count = found.get(layer.layer, 0)
        # Experts that lie below one another are counted by the router, which may have more rows.
        flat = checkpoint.layout.form(layer.layer).flat
        said = layer.gate_rows if flat else layer.num_kept
        if count != said:
            raise PruneError(
                f"{checkpoint.folder}: layer {layer.layer} has {count} experts, "
                f"its routing map says {said}",
                hint="the checkpoint and its routing map do not belong together; build it again",
            )
    operations = tuple(Copy(info.name, info) for info in checkpoint.tensors.values())
    return MappedCheckpoint(checkpoint, operations, routing_map)
