"""What vLLM would refuse, or take without a word and serve wrongly, of a checkpoint's tensors.

Told from names, types and settings, before a checkpoint is built and of one that is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from offline.lint.counts import spans
from offline.lint.lint import Finding
from offline.lint.schemes import Kinds, Settings, kinds_of, method_of
from vllm_moe_prune.completeness import Matrices, is_unquantised, matrices_of, missing_tensors
from vllm_moe_prune.config_keys import hidden_size_of, known
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.module_patterns import ModulePatterns
from vllm_moe_prune.quantisation import FILES, KEYS, settings_of
from vllm_moe_prune.rewrite import TensorInfo, expert_counts

# What parts of stacked tensors are called where experts are stored one by one.
_AS_SINGLE = {
    "scale": "weight_scale",
    "scale_inv": "weight_scale_inv",
    "activation_scale": "input_scale",
}
_OWN_SCHEME = frozenset({"deepseek_v4"})  # in vLLM's code for the family: FP4 named as FP8
# Families whose code in vLLM 0.32 has no place for experts as transformers 5 has them in memory: it
# reads experts one by one by itself, or calls the block or the matrices otherwise.
_NOT_STACKED = frozenset({
    "axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "hy_v3",
    "kimi_k2", "kimi_k25", "kimi_linear", "lfm2_moe", "longcat_flash", "mimo_v2_flash",
    "minimax_m2", "minimax_m3_vl", "minimax_m3_vl_text", "mixtral", "phimoe",
})  # fmt: skip
# Released with stacked matrices transposed, which vLLM turns round; transformers 5 has them as they
# are multiplied, and saves them so.
_TURNED = frozenset({"qwen3_vl_moe", "qwen3_vl_moe_text"})


@dataclass(frozen=True, slots=True)
class _Stored:
    """A checkpoint by its names: what it has of experts, and what its settings say of them.

    ``kinds`` is layer -> experts that are not quantised, and the parts that matrices have.
    ``settings`` are those that vLLM finds, ``where`` the file and the key that they are from, and
    ``told`` any that there are.
    """

    tensors: Mapping[str, TensorInfo]
    layout: MoeLayout
    matrices: Matrices
    kinds: Mapping[int, tuple[list[int], frozenset[str]]]
    settings: Settings
    where: str
    told: Settings
    hidden: int | None
    patterns: ModulePatterns = field(default_factory=ModulePatterns)


def lint_tensors(
    tensors: Mapping[str, TensorInfo],
    layout: MoeLayout,
    config: Mapping[str, Any],
    beside: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Return what vLLM would refuse or pass over.

    :param tensors: of a checkpoint that is there, or that is to be built
    :param config: its config.json
    :param beside: its hf_quant_config.json, if there is one
    :raises PruneError: as `kinds_of`
    """
    settings, where = _found_by_vllm(config, beside)
    told = settings or settings_of(config)
    hidden = known(hidden_size_of, layout.text_config(config))
    matrices = matrices_of(tensors, layout)
    kinds = _by_kind(tensors, layout, matrices)
    stored = _Stored(tensors, layout, matrices, kinds, settings, where, told, hidden)
    return [finding for rule in _RULES for finding in rule(stored)]


def _found_by_vllm(
    config: Mapping[str, Any], beside: Mapping[str, Any] | None
) -> tuple[Settings, str]:
    """Return the settings that vLLM goes by, and where they stand.

    They are at the top, in a file beside, or in text_config.
    """
    inner = config.get("text_config")
    sections = {"": config, "text_config.": inner if isinstance(inner, Mapping) else {}}
    found = [(config.get(KEYS[0]), f"config.json: {KEYS[0]}"), (beside, FILES[0])]
    for begin, section in sections.items():
        found += [(section.get(key), f"config.json: {begin}{key}") for key in KEYS]
    for settings, where in found:
        if isinstance(settings, Mapping) and settings:
            return settings, where
    return {}, ""


def _place(stored: _Stored) -> Iterator[Finding]:
    """vLLM looks at the top of config.json, in its text_config and in hf_quant_config.json."""
    if stored.told and not stored.settings:
        yield Finding(
            "quantisation-place",
            "warning",
            "config.json says how the model is quantised in a section where vLLM does not look: it "
            "would take it for unquantised",
            "copy quantization_config to the top of the base's config.json",
        )


def _act_order(stored: _Stored) -> Iterator[Finding]:
    """vLLM 0.32 has no kernels for GPTQ's order of activations any more."""
    settings = stored.told
    ordered = method_of(settings).startswith("gptq") and settings.get("desc_act")
    if ordered and settings.get("group_size") != -1:
        yield Finding(
            "activation-order",
            "warning",
            "GPTQ with desc_act is refused by vLLM from 0.32 on",
            "quantise with static activation ordering, or with desc_act false",
        )


def _whole(stored: _Stored) -> Iterator[Finding]:
    """What experts lack is not asked for when a quantised model is loaded: NaN, or nonsense."""
    counts = expert_counts(stored.tensors, stored.layout)
    for layer, experts in missing_tensors(stored.matrices, stored.layout, counts).items():
        first = next(iter(experts.values()))[0]
        yield Finding(
            "incomplete-experts",
            "warning",
            f"layer {layer}: {_experts(experts)} without tensors that others of the layer have "
            f"({first}): vLLM serves them with numbers that were never set",
            "`vmprune plan` drops such experts first; a build refuses to keep them",
        )


def _alike(stored: _Stored) -> Iterator[Finding]:
    """All experts of a layer are one tensor to vLLM."""
    for layer, (plain, _) in stored.kinds.items():
        if plain and _quantised(stored, layer):
            yield Finding(
                "mixed-experts",
                "warning",
                f"layer {layer}: {_experts(plain)} not quantised, while others of the layer are: "
                "vLLM stores all experts of a layer alike and refuses them",
                "drop them, or quantise the model again with all experts or none of this layer",
            )


def _kinds(stored: _Stored) -> Iterator[Finding]:
    """Kinds of tensor that vLLM wants of experts and the checkpoint lacks, and the reverse."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for layer, (plain, parts) in stored.kinds.items():
        kinds = _expected(stored, layer)
        if kinds is None or (plain and _quantised(stored, layer)):
            continue
        for code, names in (
            ("missing-kind", kinds.wanted - parts),
            ("left-over-kind", parts - kinds.wanted - kinds.also),
        ):
            if names:
                found.setdefault((code, ", ".join(sorted(names)), kinds.name), []).append(layer)
    for (code, told, name), layers in found.items():
        lacking = code == "missing-kind"
        verb = "have no" if lacking else "have"
        why = "wants" if lacking else "has no place for: it refuses to load them"
        yield Finding(
            code,
            "warning",
            f"{spans(layers)}: experts {verb} {told}, which vLLM's code for {name} {why}",
            "compare the base's config.json (and hf_quant_config.json) with its tensors: "
            "vmprune inspect BASE --explain",
        )


def _rows(stored: _Stored) -> Iterator[Finding]:
    """A quantised model without a correction bias in one layer is loaded, and routes by chance."""
    layout, tensors = stored.layout, stored.tensors
    begins = {layer: layout.layer.format(layer=layer) for layer in sorted(layout.found)}
    layers = [
        layer  # but those that choose by a table
        for layer, begin in begins.items()
        if not any(begin + table in tensors for table in layout.form(layer).tables)
    ]
    for row in sorted({row for layer in layers for row in layout.form(layer).rows}):
        absent = [layer for layer in layers if begins[layer] + row not in tensors]
        if absent and len(absent) < len(layers):
            yield Finding(
                "missing-row",
                "warning",
                f"{spans(absent)}: no {row}, which other layers have beside their gate",
                "vLLM would route by numbers that were never set; download the base again",
            )


def _form(stored: _Stored) -> Iterator[Finding]:
    """Some families are not loaded in the form that transformers 5 has them in memory."""
    layout = stored.layout
    if layout.model_type not in _NOT_STACKED:
        return
    layers = [n for n, form in layout.found.items() if form.stacked and form != layout.forms[0]]
    if layers:
        yield Finding(
            "stacked-experts",
            "warning",
            f"{spans(layers)}: experts are stacked as transformers 5 has them in memory, which "
            f"vLLM 0.32's code for {layout.model_type} does not load",
            "save the base in its own form: save_pretrained(..., save_original_format=True)",
        )


def _turned(stored: _Stored) -> Iterator[Finding]:
    """Which way round a matrix is, told by the one that ends in the hidden dimension."""
    layout = stored.layout
    if layout.model_type not in _TURNED:
        return
    layers = []
    for layer, form in layout.found.items():
        name = layout.layer.format(layer=layer) + (form.stacked[-1] if form.stacked else "")
        shape = stored.tensors[name].shape if name in stored.tensors else ()
        if len(shape) == 3 and shape[1] == stored.hidden != shape[2]:
            layers.append(layer)
    if layers:
        yield Finding(
            "turned-experts",
            "warning",
            f"{spans(layers)}: matrices of experts are the other way round than in the released "
            f"model: vLLM's code for {layout.model_type} cannot load them",
            "transpose the last two dimensions of experts.gate_up_proj and experts.down_proj",
        )


_RULES = (_place, _act_order, _whole, _alike, _kinds, _rows, _form, _turned)


def _expected(stored: _Stored, layer: int) -> Kinds | None:
    if stored.layout.model_type in _OWN_SCHEME:
        return None
    form = stored.layout.form(layer)
    name = form.expert or form.stacked[0]
    before, inside, _ = (stored.layout.layer.format(layer=layer) + name).partition("experts")
    module = before + inside if inside else before.rstrip(".")
    settings, where = stored.settings, stored.where
    return kinds_of(settings, module, form.projections, where, stored.patterns)


def _by_kind(
    tensors: Mapping[str, TensorInfo], layout: MoeLayout, matrices: Matrices
) -> dict[int, tuple[list[int], frozenset[str]]]:
    found: dict[int, tuple[list[int], frozenset[str]]] = {}
    for layer, projections in matrices.items():
        each = [(expert, parts) for of in projections.values() for expert, parts in of.items()]
        plain = sorted({expert for expert, parts in each if is_unquantised(parts)})
        found[layer] = plain, frozenset(part for _, parts in each for part in parts)
    for name in tensors:
        role = layout.classify(name)
        if role is not None and role.kind == "stacked" and "_bias" not in name:
            part = role.part.strip("_")
            plain, parts = found.get(role.layer, ([], frozenset()))
            found[role.layer] = plain, parts | {_AS_SINGLE.get(part, part)}
    return dict(sorted(found.items()))


def _quantised(stored: _Stored, layer: int) -> bool:
    """Whether any single expert of a layer is quantised."""
    each = (parts for of in stored.matrices.get(layer, {}).values() for parts in of.values())
    return not all(map(is_unquantised, each))


def _experts(ids: Any) -> str:
    listed = list(ids)
    shown = ", ".join(map(str, listed[:8])) + (f" and {len(listed) - 8} more" if listed[8:] else "")
    return f"expert {shown} is" if len(listed) == 1 else f"experts {shown} are"
