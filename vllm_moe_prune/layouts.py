"""`MoeLayout`: what distinguishes one model family from another, as data.

Adding a family is one entry of ``_FAMILIES``; no code asks for a model type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.roles import WEIGHT, Role, name_pattern, router_part

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class MoeLayout:
    """Tensor names, config keys and routing semantics of one model family.

    Names are templates as the hub has them, with the placeholders {layer}, {expert}, {projection}
    and {part} (roles.py). A family has either ``expert`` with ``projections`` (of one expert, in
    the order gate, up, down) or ``stacked``, tensors of all experts. ``router`` is the gate
    [E, D] and ``router_rows`` are what else has an entry per expert. ``block`` begins the name of
    every tensor of an MoE block, and ``beside`` what follows it in tensors that pruning leaves as
    they are: shared experts, and layers without experts. A name that fits nothing is refused
    rather than copied.

    ``renormalise`` says whether top-k weights are divided by their sum, as the family's code or
    the config's ``renormalise_key`` has it; `layout_of` fills it in. ``mappable`` says whether a
    W_RM can act on the scores: not where a correction bias or more than a top-k chooses.

    MTP (draft) layers follow the ``num_layers`` decoder layers, which `layout_of` fills in:
    ``mtp_layer`` is what their tensors' names have in place of "model.layers.{layer}.", and
    ``mtp_prefix`` begins all names of MTP tensors where it is not just a number that goes on.

    ``vllm_module`` is the name of vLLM's module with the model's code, where that is not the model
    type.
    """

    model_type: str
    block: str
    router: str
    num_experts_key: str
    num_experts_alias: str | None = None
    top_k_key: str = "num_experts_per_tok"
    expert: str | None = None
    projections: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    router_rows: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    score: Score = "softmax"
    renormalise: bool = True
    renormalise_key: str | None = None
    num_groups_key: str | None = None
    mappable: bool = True
    mtp_layer: str | None = None
    mtp_prefix: str | None = None
    num_layers: int | None = None
    vllm_module: str | None = None

    @property
    def slices(self) -> bool:
        """Whether to keep a gate's rows is the same as to keep the scores of these experts.

        Up to what a softmax over fewer rows multiplies all of them by, which a division by the
        sum of the top-k takes out again. Where a router cannot be mapped there is no other way.
        """
        return self.renormalise or self.score == "sigmoid" or not self.mappable

    @property
    def is_corrected(self) -> bool:
        """Whether a correction bias of -inf removes an expert and changes nothing else.

        The bias is added to choose and the weights are without it. With a softmax it would not do:
        the kept scores grow when others are removed, and the bias does not grow with them.
        """
        biased = any("correction_bias" in name for name in self.router_rows)
        return biased and self.score == "sigmoid"

    def classify(self, name: str) -> Role | None:
        """Return the role of a tensor, or None if pruning leaves it as it is.

        Tensors of MTP layers have none here; `mtp_layout` knows them.

        :raises PruneError: if the name looks like MoE and fits no template of this family
        """
        if self.is_mtp(name) or not (found := name_pattern(self.block).match(name)):
            return None
        layer, rest = int(found["layer"]), name[found.end() :]
        if self.expert and (found := name_pattern(self.expert, self.projections).fullmatch(name)):
            return Role("expert", layer, int(found["expert"]), found["projection"], found["part"])
        for one in self.stacked:
            if found := name_pattern(one + "{stacked}").fullmatch(name):
                return Role("stacked", layer, part=found["stacked"] or WEIGHT)
        if any(name_pattern(one).fullmatch(name) for one in (self.router, *self.router_rows)):
            return Role("router", layer)
        if part := router_part(self.router, name):
            return Role("router", layer, part=part)
        if rest.startswith(self.beside):
            return None
        raise PruneError(
            f"tensor {name} belongs to an MoE block but is not known for {self.model_type}",
            hint="the checkpoint is of another format than the hub's; nothing was written",
        )

    def is_mtp(self, name: str) -> bool:
        """Whether a tensor is of an MTP (draft) layer, which transformers does not load."""
        if self.mtp_layer is None:
            return False
        if self.mtp_prefix is not None:
            return name.startswith(self.mtp_prefix)
        found = name_pattern(_LAYER).match(name)
        return bool(found and self.num_layers and int(found["layer"]) >= self.num_layers)

    def mtp_layout(self) -> MoeLayout:
        """Return the layout of the MTP layers: the same blocks under other names."""
        assert self.mtp_layer is not None, f"{self.model_type} has no MTP layers"

        def moved(template: str) -> str:
            return template.replace(_LAYER, self.mtp_layer or _LAYER)

        return replace(
            self,
            block=moved(self.block),
            router=moved(self.router),
            expert=moved(self.expert) if self.expert else None,
            stacked=tuple(map(moved, self.stacked)),
            router_rows=tuple(map(moved, self.router_rows)),
            mtp_layer=None,
            mtp_prefix=None,
        )

    def expert_name(self, layer: int, expert: int, projection: str, part: str = WEIGHT) -> str:
        """Return the tensor name of one projection of one expert, or of a part of it."""
        assert self.expert is not None, f"{self.model_type} stacks its experts"
        return self.expert.format(layer=layer, expert=expert, projection=projection, part=part)

    def stacked_names(self, layer: int) -> tuple[str, ...]:
        """Return the names of the tensors that hold all experts of a layer."""
        return tuple(one.format(layer=layer) for one in self.stacked)

    def router_name(self, layer: int) -> str:
        """Return the tensor name of the gate of a layer, [E, D]."""
        return self.router.format(layer=layer)

    def num_experts(self, config: Mapping[str, Any]) -> int:
        """Return E as config.json has it."""
        return _count(config, self.num_experts_key)

    def top_k(self, config: Mapping[str, Any]) -> int:
        """Return the number of active experts per token as config.json has it."""
        return _count(config, self.top_k_key)

    def counted(self, config: Mapping[str, Any], num_experts: int, top_k: int) -> dict[str, Any]:
        """Return the config with other counts, under every name that it has for them."""
        known = {self.num_experts_key: num_experts, self.top_k_key: top_k}
        if self.num_experts_alias and self.num_experts_alias in config:
            known[self.num_experts_alias] = num_experts
        return {**config, **known}

    def num_groups(self, config: Mapping[str, Any]) -> int:
        """Return the number of router groups (1 where the family has none)."""
        return int(config.get(self.num_groups_key) or 1) if self.num_groups_key else 1


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise PruneError(f"config.json has no usable {key} (found {value!r})")
    return value


_LAYER = "model.layers.{layer}."
_MLP = _LAYER + "mlp."
_SPARSE = _LAYER + "block_sparse_moe."
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_DENSE = tuple(f"{projection}." for projection in _PROJECTIONS)  # of layers without experts


def _mixtral(model_type: str, **more: Any) -> MoeLayout:
    return MoeLayout(
        model_type,
        _SPARSE,
        router=_SPARSE + "gate.weight",
        num_experts_key="num_local_experts",
        expert=_SPARSE + "experts.{expert}.{projection}.{part}",
        projections=("w1", "w3", "w2"),
        **more,
    )


def _mlp(model_type: str, num_experts_key: str, **more: Any) -> MoeLayout:
    fields: dict[str, Any] = {"beside": _DENSE, "renormalise_key": "norm_topk_prob"}
    return MoeLayout(
        model_type,
        _MLP,
        router=_MLP + "gate.weight",
        num_experts_key=num_experts_key,
        expert=_MLP + "experts.{expert}.{projection}.{part}",
        projections=_PROJECTIONS,
        **(fields | more),
    )


def _deepseek(model_type: str, **more: Any) -> MoeLayout:
    return _mlp(
        model_type,
        "n_routed_experts",
        beside=("shared_experts.", *_DENSE),
        num_groups_key="n_group",
        **more,
    )


_BIASED: Mapping[str, Any] = {
    "score": "sigmoid",
    "router_rows": (_MLP + "gate.e_score_correction_bias",),
    "mappable": False,
    "mtp_layer": _LAYER,
}
_FAMILIES = (
    _mixtral("mixtral"),
    _mixtral("phimoe", mappable=False),  # its router is a sparse mixer, not a top-k
    _mlp(
        "qwen2_moe",
        "num_experts",
        renormalise=False,
        beside=("shared_expert.", "shared_expert_gate.", *_DENSE),
    ),
    # transformers renames the count when it saves a model
    _mlp("qwen3_moe", "num_experts", num_experts_alias="num_local_experts", renormalise=False),
    _mlp(
        "qwen3_next",
        "num_experts",
        beside=("shared_expert.", "shared_expert_gate.", *_DENSE),
        mtp_layer="mtp.layers.{layer}.",
        mtp_prefix="mtp.",
    ),
    _mlp("olmoe", "num_experts", renormalise=False),
    _deepseek("deepseek_v2", renormalise=False),
    _deepseek("deepseek_v3", vllm_module="deepseek_v2", **_BIASED),
    _deepseek("glm4_moe", **_BIASED),
    _mlp(
        "ernie4_5_moe",
        "moe_num_experts",
        top_k_key="moe_k",
        vllm_module="ernie45_moe",
        beside=("shared_experts.", *_DENSE),
        router_rows=(_MLP + "moe_statics.e_score_correction_bias",),
        renormalise_key=None,
        mappable=False,
        mtp_layer="model.mtp_block.{layer}.",
        mtp_prefix="model.mtp_",
    ),
    MoeLayout(
        "gpt_oss",
        _MLP,
        router=_MLP + "router.weight",
        router_rows=(_MLP + "router.bias",),
        num_experts_key="num_local_experts",
        stacked=tuple(
            f"{_MLP}experts.{name}"
            for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        ),
    ),
    MoeLayout(
        "granitemoe",
        _SPARSE,
        router=_SPARSE + "router.layer.weight",
        num_experts_key="num_local_experts",
        stacked=(_SPARSE + "input_linear.weight", _SPARSE + "output_linear.weight"),
    ),
)
LAYOUTS: Mapping[str, MoeLayout] = {layout.model_type: layout for layout in _FAMILIES}


def layout_of(config: Mapping[str, Any]) -> MoeLayout:
    """Return the layout for a config.json.

    :raises PruneError: for a family that is not in the table
    """
    model_type = config.get("model_type")
    layout = LAYOUTS.get(str(model_type))
    if layout is None:
        raise PruneError(
            f"model type {model_type!r} is not supported",
            hint=f"supported: {', '.join(sorted(LAYOUTS))}",
        )
    alias = layout.num_experts_alias
    if alias and alias in config and layout.num_experts_key not in config:
        layout = replace(layout, num_experts_key=alias, num_experts_alias=None)
    if layout.mtp_layer and not layout.mtp_prefix:
        layout = replace(layout, num_layers=config.get("num_hidden_layers"))
    renormalise = config.get(layout.renormalise_key) if layout.renormalise_key else None
    return layout if renormalise is None else replace(layout, renormalise=bool(renormalise))
