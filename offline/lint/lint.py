"""`lint`: what a routing map will meet where it is served, before hours of work go into it.

Every rule is about something that users of pruned models ran into, or that vLLM 0.32's sources
say; its docstring names which. Nothing here imports vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from offline.lint.counts import (
    FUSED_TOPK,
    TUNED,
    by_counts,
    by_kept,
    routes_in_kernel,
    spans,
    starts_on_blackwell,
)
from offline.maps.router_groups import RouterGroups
from vllm_moe_prune.config_keys import expert_size_of, hidden_size_of, known
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.routing_map import RoutingMap

_EP_SIZES = (2, 4, 8)  # what people serve with
_CPU_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule found: a warning if it breaks or slows, a note if it depends on the host."""

    code: str
    level: Literal["warning", "note"]
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.level}: {self.message}; {self.hint} [{self.code}]"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What rules ask of the model beside the map; None is not known, and its rules are silent."""

    hidden: int | None = None  # D
    intermediate: int | None = None  # I of one expert
    topk_group: int | None = None
    slices: bool | None = None  # whether slicing a router is exact (`MoeLayout.slices`)

    @classmethod
    def of(cls, layout: MoeLayout, config: Mapping[str, Any]) -> ModelFacts:
        """Read them from a config.json."""
        text = layout.text_config(config)
        sizes = known(hidden_size_of, text), known(expert_size_of, text)
        return cls(*sizes, RouterGroups.of(layout, config).active, layout.slices)


@dataclass(frozen=True, slots=True)
class Target:
    """How the model is to be served; None where it is open."""

    tensor_parallel: int | None = None
    expert_parallel: int | None = None


Rule = Callable[[RoutingMap, ModelFacts, Target], Iterator[Finding]]


def lint(
    routing_map: RoutingMap, facts: ModelFacts | None = None, target: Target | None = None
) -> list[Finding]:
    """Return what a server of this map should know, warnings first."""
    given = (routing_map, facts or ModelFacts(), target or Target())
    found = [finding for rule in RULES for finding in rule(*given)]
    return sorted(found, key=lambda finding: finding.level != "warning")


def _reachable(routing_map: RoutingMap, facts: ModelFacts, _: Target) -> Iterator[Finding]:
    """A token must reach k experts in the groups that a group-limited router takes.

    Otherwise experts of groups that were not chosen fill its slots. llm-compressor checks the
    same before it prunes.
    """
    if facts.topk_group is None or routing_map.num_groups == 1:
        return
    router = RouterGroups(routing_map.num_groups, facts.topk_group)
    for layers, kept, k in by_counts(e for e in routing_map.layers if e.substituted is None):
        if kept < router.least(k):
            yield Finding(
                "unreachable-top-k",
                "warning",
                f"{spans(layers)}: top-{k} from {router.active} of {router.count} router groups "
                f"needs {router.least(k)} experts, {kept} are kept",
                f"keep {router.least(k)} or more",
            )


def _all_active(routing_map: RoutingMap, _: ModelFacts, __: Target) -> Iterator[Finding]:
    """With k = E' every expert is active for every token, and the router only weights them."""
    for layers, kept, k in by_counts(e for e in routing_map.layers if e.substituted is None):
        if k == kept:
            yield Finding(
                "all-active",
                "warning",
                f"{spans(layers)}: all {kept} kept experts are active for every token (top-{k})",
                "keep more, or lower --top-k",
            )


def _form(routing_map: RoutingMap, _: ModelFacts, __: Target) -> Iterator[Finding]:
    """Different counts are a compact checkpoint: other readers know one count per model.

    Users who computed such budgets could not load them elsewhere (vLLM #17150, reap-mlx #48).
    """
    counts = sorted({(layer.num_kept, layer.top_k) for layer in routing_map.layers})
    if len(counts) > 1:
        kept = "/".join(map(str, sorted({count for count, _ in counts})))
        top_k = "/".join(map(str, sorted({k for _, k in counts})))
        yield Finding(
            "per-layer-counts",
            "note",
            f"layers differ (keep {kept}, top-{top_k}): served with --load-format pruned_moe only, "
            "without expert parallelism",
            "for any other reader keep the same number everywhere (--keep)",
        )


def _mapped(routing_map: RoutingMap, _: ModelFacts, __: Target) -> Iterator[Finding]:
    """A mapped router is a custom routing function to vLLM.

    It is served by the plugin alone, and kernels that route and compute in one step do not take
    it (vLLM: `RoutingMethodType.Custom`).
    """
    layers = [entry.layer for entry in routing_map.layers if entry.router == "mapped"]
    if layers:
        yield Finding(
            "mapped-router",
            "note",
            f"{spans(layers)}: the router is mapped: served with --load-format pruned_moe only, "
            "and not by GPU kernels that route by themselves",
            "pruning alone (--phases prune, --merge-router dominant) slices routers where the "
            "model renormalises, and anywhere with --router sliced",
        )


def _substituted(routing_map: RoutingMap, _: ModelFacts, __: Target) -> Iterator[Finding]:
    """Constant vectors are added by the plugin, whose routing function then chooses."""
    layers = [entry.layer for entry in routing_map.layers if entry.substituted is not None]
    if layers:
        yield Finding(
            "substituted",
            "note",
            f"{spans(layers)}: vectors stand for experts: served with --load-format pruned_moe "
            "only, without expert parallelism, and not by GPU kernels that route by themselves",
            "vLLM 0.33 and later serve an export (--format approximate-experts) without the plugin",
        )


def _inexact(routing_map: RoutingMap, facts: ModelFacts, _: Target) -> Iterator[Finding]:
    """A sliced router's softmax runs over E'; only a division by the top-k's sum undoes that.

    Qwen1.5/2-MoE, OLMoE and DeepSeek-V2 have none. docs/routers.md has what it costs.
    """
    layers = [entry.layer for entry in routing_map.layers if entry.gate_rows < entry.num_experts]
    if layers and facts.slices is False:
        mapped = "" if routing_map.num_groups > 1 else "--router mapped keeps the weights; "
        yield Finding(
            "inexact-router",
            "note",
            f"{spans(layers)}: the model does not renormalise its top-k weights, so that those of "
            "a sliced router are larger: its softmax runs over the kept experts alone",
            f"{mapped}training (vmprune recover) makes up for it",
        )


def _expert_parallel(routing_map: RoutingMap, _: ModelFacts, target: Target) -> Iterator[Finding]:
    """Ranks share the experts: the plugin refuses different counts, EPLB an uneven share.

    vLLM gives the first ranks one more where E' does not divide, and `--enable-eplb` raises
    (fused_moe/layer.py; #52435, #30614, #57465).
    """
    counts = sorted({entry.num_kept for entry in routing_map.layers})
    size = target.expert_parallel
    if size is None:
        pruned = routing_map.form == "plain" and any(
            entry.num_kept < entry.num_experts for entry in routing_map.layers
        )
        bad = [n for n in _EP_SIZES if n <= counts[0] and counts[0] % n] if pruned else []
        if bad:
            sizes = ", ".join(map(str, bad))
            yield Finding(
                "expert-parallel",
                "note",
                f"{counts[0]} experts per layer do not divide among {sizes} expert-parallel ranks",
                "vmprune plan --friendly --serve-ep N chooses a count that does",
            )
    elif size > 1 and (len(counts) > 1 or counts[0] % size or routing_map.substitutes):
        kept = "/".join(map(str, counts))
        yield Finding(
            "expert-parallel",
            "warning",
            f"{kept} experts per layer cannot be shared equally by {size} expert-parallel ranks",
            f"keep a multiple of {size} in every layer, or serve with tensor parallelism",
        )


def _blackwell(routing_map: RoutingMap, _: ModelFacts, __: Target) -> Iterator[Finding]:
    """vLLM's first choice on Blackwell, FlashInfer's TRT-LLM kernels, refuses some counts.

    It is chosen without a look at them, so nothing falls back. For FP8 blocks vLLM asserts a
    multiple of four and at most 512 (experts/trtllm_fp8_moe.py) and FlashInfer's launcher wants
    k < E'; for bfloat16 and FP4 it depends on FlashInfer's version. Mapped routers go elsewhere.
    """
    sliced = (entry for entry in routing_map.layers if routes_in_kernel(entry))
    changed = (e for e in sliced if e.num_kept < e.num_experts or e.num_kept == e.top_k)
    for layers, kept, k in by_counts(changed):
        if not starts_on_blackwell(kept, k):
            why = "no multiple of 4" if kept % 4 else "all active" if kept == k else "over 512"
            yield Finding(
                "blackwell",
                "warning",
                f"{spans(layers)}: {kept} experts ({why}) are refused by the kernels that vLLM "
                "takes by default on Blackwell GPUs (B200)",
                "serve with --moe-backend triton there, or plan with --friendly",
            )


def _kernels(routing_map: RoutingMap, _: ModelFacts, __: Target) -> Iterator[Finding]:
    """GPU kernels are made for some counts (`FUSED_TOPK`), tuned for some (`TUNED`).

    Only what the base had and the map loses is said of the tuned ones.

    Grouped and mapped routers do not take the fused top-k. vLLM #17619, #17768 and #34846 tell
    what a missing tuned file costs; TRT-LLM's FP8 block-scale kernels assert a multiple of 4.
    """
    pruned = [entry for entry in routing_map.layers if entry.num_kept < entry.num_experts]
    fused = [e for e in pruned if routes_in_kernel(e) and routing_map.num_groups == 1]
    for layers, kept in by_kept(e for e in fused if e.num_kept not in FUSED_TOPK):
        yield Finding(
            "general-top-k",
            "note",
            f"{spans(layers)}: on a GPU {kept} experts take vLLM's general top-k, in two kernels "
            "instead of a fused one",
            "--friendly rounds to a count that has one",
        )
    lost = [e for e in pruned if e.num_experts in TUNED and e.num_kept not in TUNED]
    for layers, kept in by_kept(lost):
        yield Finding(
            "untuned",
            "note",
            f"{spans(layers)}: vLLM 0.32 ships no tuned GPU settings for {kept} experts and takes "
            "its defaults",
            "tune with vLLM's benchmarks/kernels/benchmark_moe.py and VLLM_TUNED_CONFIG_FOLDER",
        )


def _shapes(_: RoutingMap, facts: ModelFacts, target: Target) -> Iterator[Finding]:
    """Experts are split by tensor parallelism, and vLLM's CPU kernel wants multiples of 32.

    Otherwise the CPU computes expert by expert in a slow loop (vLLM #49591, cpu_moe.py). Pruning
    changes neither size: this is about the base.
    """
    tp, size = target.tensor_parallel or 1, facts.intermediate
    if size is not None and size % tp:
        yield Finding(
            "tensor-parallel",
            "warning",
            f"an expert's intermediate size {size} does not divide by {tp} tensor-parallel ranks",
            "serve with a size that divides it",
        )
    local = size // tp if size is not None else None
    for name, value in (("hidden size", facts.hidden), ("intermediate size per rank", local)):
        if value is not None and value % _CPU_MULTIPLE:
            yield Finding(
                "cpu-alignment",
                "note",
                f"{name} {value} is no multiple of {_CPU_MULTIPLE}: on a CPU experts are computed "
                "one by one, slowly",
                "serve this base on a GPU",
            )


RULES: tuple[Rule, ...] = (
    _reachable,
    _all_active,
    _expert_parallel,
    _form,
    _mapped,
    _substituted,
    _inexact,
    _blackwell,
    _kernels,
    _shapes,
)
