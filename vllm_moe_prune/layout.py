"""`MoeLayout`: what distinguishes one model family from another, as data; layouts.py has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.roles import WEIGHT, Role, name_pattern, router_part

Score = Literal["softmax", "sigmoid"]
LAYER = "model.layers.{layer}."


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
    ``weights_on_input`` says that routing weights multiply what an expert is given, in place of
    what it gives.

    ``interleaved`` says that gate and up take turns in the first of the stacked tensors; otherwise
    up follows gate.

    Where a checkpoint has more than a language model, ``section`` is the part of config.json that
    is the language model's, and ``prefix`` begins the names of its tensors. All other tensors stay
    as they are, and transformers' causal language model is without them.

    MTP (draft) layers follow the ``num_layers`` decoder layers, which `layout_of` fills in:
    ``mtp_layer`` is what their tensors' names have in place of "model.layers.{layer}.", and
    ``mtp_prefix`` begins all names of MTP tensors where it is not just a number that goes on.

    ``vllm_module`` is the name of vLLM's module with the model's code, where that is not the model
    type, and ``vllm_layers_module`` of the one that makes the decoder layers, where it is another.
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
    interleaved: bool = False
    mappable: bool = True
    weights_on_input: bool = False
    section: str | None = None
    prefix: str = ""
    mtp_layer: str | None = None
    mtp_prefix: str | None = None
    num_layers: int | None = None
    vllm_module: str | None = None
    vllm_layers_module: str | None = None

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
        found = name_pattern(LAYER).match(name)
        return bool(found and self.num_layers and int(found["layer"]) >= self.num_layers)

    def mtp_layout(self) -> MoeLayout:
        """Return the layout of the MTP layers: the same blocks under other names."""
        assert self.mtp_layer is not None, f"{self.model_type} has no MTP layers"
        return self.renamed(self.mtp_layer, mtp_layer=None, mtp_prefix=None)

    def renamed(self, layer: str, **changes: Any) -> MoeLayout:
        """Return the layout of the same blocks under other names.

        :param layer: what names have in place of "model.layers.{layer}."
        :param changes: of other fields
        """

        def moved(template: str) -> str:
            return template.replace(LAYER, layer)

        return replace(
            self,
            block=moved(self.block),
            router=moved(self.router),
            expert=moved(self.expert) if self.expert else None,
            stacked=tuple(map(moved, self.stacked)),
            router_rows=tuple(map(moved, self.router_rows)),
            **changes,
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

    def text_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what config.json says of the language model; nothing if it has no such section."""
        section = config.get(self.section) if self.section else config
        return section if isinstance(section, Mapping) else {}

    def num_experts(self, config: Mapping[str, Any]) -> int:
        """Return E as config.json has it."""
        return _count(self.text_config(config), self.num_experts_key)

    def top_k(self, config: Mapping[str, Any]) -> int:
        """Return the number of active experts per token as config.json has it."""
        return _count(self.text_config(config), self.top_k_key)

    def with_counts(
        self, config: Mapping[str, Any], num_experts: int, top_k: int
    ) -> dict[str, Any]:
        """Return the config with other counts, under every name that it has for them."""
        known = {self.num_experts_key: num_experts, self.top_k_key: top_k}
        text = self.text_config(config)
        if self.num_experts_alias and self.num_experts_alias in text:
            known[self.num_experts_alias] = num_experts
        counted = {**text, **known}
        return counted if self.section is None else {**config, self.section: counted}

    def num_groups(self, config: Mapping[str, Any]) -> int:
        """Return the number of router groups (1 where the family has none)."""
        if self.num_groups_key is None:
            return 1
        return int(self.text_config(config).get(self.num_groups_key) or 1)


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise PruneError(f"config.json has no usable {key} (found {value!r})")
    return value
