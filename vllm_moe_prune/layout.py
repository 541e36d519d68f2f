"""`MoeLayout`: what distinguishes one model family from another, as data; layouts.py has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vllm_moe_prune.config_keys import count_at, value_at, with_value
from vllm_moe_prune.draft_names import draft_beginnings, draft_names_in
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.form import Form
from vllm_moe_prune.layer_names import INSIDE, STEMS, layer_names_in
from vllm_moe_prune.roles import WEIGHT, Role, name_pattern

Score = Literal["softmax", "sigmoid", "sqrtsoftplus"]
_BIASES = ("correction_bias", "expert_bias", "router_bias")  # which choose experts, no more
LAYER = "model.layers.{layer}."


@dataclass(frozen=True, slots=True)
class MoeLayout:
    """Tensor names, config keys and routing semantics of one model family.

    ``forms`` are the ways in which its MoE blocks may be stored, the usual one first. Which one a
    layer has is found in the files (`settled`) and stands in ``found``, as does what its names
    begin with: ``layer``, a template. A name that fits nothing is refused rather than copied.

    A count of config.json has one key or several, ``num_experts_key`` and its aliases; a dot leads
    into a section, and a list has one number per layer. `layout_of` puts the key that there is
    first. Of the gate's rows those after the experts' stay, ``zero_experts`` as the config's
    ``zero_experts_key`` says: they are chosen as experts are and have no weights.

    ``renormalise`` says whether top-k weights are divided by their sum, as the family's code or
    the config's ``renormalise_key`` has it; `layout_of` fills it in. ``mappable`` says whether a
    W_RM can act on the scores: not where a correction bias or more than a top-k chooses.
    ``weights_on_input`` says that routing weights multiply what an expert is given, in place of
    what it gives. ``torch_rotary`` says that vLLM's CPU kernel for rotary embeddings is wrong for
    its queries and keys; PyTorch's is not.

    ``interleaved`` says that gate and up take turns in the first of the stacked tensors; otherwise
    up follows gate.

    Where a checkpoint has more than a language model, ``section`` is the part of config.json that
    is the language model's, and ``prefix`` begins the names of its tensors. All other tensors stay
    as they are, and transformers' causal language model is without them.

    MTP (draft) layers follow the ``num_layers`` decoder layers, which `layout_of` fills in:
    ``mtp_layer`` is what their tensors' names have in place of ``layer``, and ``mtp_prefix`` begins
    all names of MTP tensors where it is not just a number that goes on, in the same names.
    ``mtp_key`` is the config's count of them.

    ``vllm_module`` is the name of vLLM's module with the model's code, where that is not the model
    type: with dots one outside of its folder of models, with a colon that of a class, of which
    there is one for each kind of device. ``vllm_layers_module`` is the one that makes the decoder
    layers, where it is another.
    """

    model_type: str
    forms: tuple[Form, ...]
    num_experts_key: str
    num_experts_aliases: tuple[str, ...] = ()
    top_k_key: str = "num_experts_per_tok"
    top_k_aliases: tuple[str, ...] = ()
    layer: str = LAYER
    score: Score = "softmax"
    renormalise: bool = True
    renormalise_key: str | None = None
    num_groups_key: str | None = None
    zero_experts_key: str | None = None
    zero_experts: int = 0
    interleaved: bool = False
    mappable: bool = True
    weights_on_input: bool = False
    torch_rotary: bool = False
    section: str | None = None
    prefix: str = ""
    mtp_layer: str | None = None
    mtp_prefix: str | None = None
    mtp_key: str = "num_nextn_predict_layers"
    num_layers: int | None = None
    vllm_module: str | None = None
    vllm_layers_module: str | None = None
    found: Mapping[int, Form] = field(default_factory=dict, repr=False)
    _roles: dict[str, Role | None] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )  # of names that were asked for: whatever is said of a checkpoint asks for all of them again

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
        biased = any(name.endswith(_BIASES) for name in self.router_rows)
        return biased and self.score == "sigmoid"

    def form(self, layer: int | None = None) -> Form:
        """Return the form of a layer, or what most layers have; the usual one until `settled`."""
        if layer is None:
            layer = next(iter(self.found), -1)
        return self.found.get(layer, self.forms[0])

    def classify(self, name: str) -> Role | None:
        """Return the role of a tensor, or None if pruning leaves it as it is.

        Tensors of MTP layers have none here; `mtp_layout` knows them.

        :raises PruneError: if the name looks like MoE and fits no template of this family
        """
        if name not in self._roles:
            self._roles[name] = self._classified(name)
        return self._roles[name]

    def _classified(self, name: str) -> Role | None:
        layer, rest = self.place(name)
        inside = [form for form in self._forms(layer) if rest.startswith(form.blocks)]
        for form in inside:
            if (role := form.role(layer, rest, name)) is not None:
                return role
        if not inside or any(rest.startswith(form.beside) for form in inside):
            return None
        raise PruneError(
            f"tensor {name} belongs to an MoE block but is not known for {self.model_type}",
            hint=f"expected {' or '.join(dict.fromkeys(form.expected() for form in inside))}; "
            "`vmprune inspect MODEL --explain` shows what is recognised of the model",
        )

    def place(self, name: str) -> tuple[int, str]:
        """Return the decoder layer of a tensor with the rest of its name; -1 if it is in none."""
        found = name_pattern(self.layer).match(name)
        if found is None:
            return -1, ""
        layer = int(found["layer"])
        return (-1, "") if self._is_numbered_on(layer) else (layer, name[found.end() :])

    def _is_numbered_on(self, layer: int) -> bool:
        """Whether a layer is an MTP layer by its number."""
        last = self.num_layers if self.mtp_layer and self.mtp_prefix is None else None
        return last is not None and layer >= last

    def _forms(self, layer: int) -> tuple[Form, ...]:
        return (self.found[layer],) if layer in self.found else self.forms

    def is_mtp(self, name: str) -> bool:
        """Whether a tensor is of an MTP (draft) layer, which transformers does not load."""
        if name.startswith(draft_beginnings(self.mtp_prefix)):
            return True
        if self.mtp_layer is None or self.mtp_prefix is not None:
            return False
        found = name_pattern(self.layer).match(name)
        return found is not None and self._is_numbered_on(int(found["layer"]))

    def mtp_layout(self) -> MoeLayout:
        """Return the layout of the MTP layers: the same blocks under other names."""
        assert self.mtp_layer is not None, f"{self.model_type} has no MTP layers"
        layer = self.layer if self.mtp_prefix is None else self.mtp_layer
        return replace(self, layer=layer, mtp_layer=None, mtp_prefix=None, found={})

    def settled(self, names: Iterable[str]) -> MoeLayout:
        """Return the layout with the names and the form that the files have, layer by layer.

        :raises PruneError: if a layer has experts in two forms
        """
        listed = list(names)
        layout = self._named_as(listed)
        found: dict[int, tuple[Form, str]] = {}
        roles: dict[str, Role | None] = {}
        for name in listed:
            layer, rest = layout.place(name)
            known = found.get(layer)
            if known is not None and (role := known[0].of_experts(layer, rest)) is not None:
                roles[name] = role
                continue
            form = next((one for one in layout.forms if one.holds(rest)), None) if rest else None
            if form is None:
                continue
            if known is not None:
                raise PruneError(
                    f"layer {layer} has experts in two forms: {known[1]} and {name}",
                    hint="leave the tensors of one of them out of the checkpoint",
                )
            found[layer] = (form, name)
        layout = replace(layout, found={n: form for n, (form, _) in sorted(found.items())})
        layout._roles.update(roles)
        return layout

    def _named_as(self, names: list[str]) -> MoeLayout:
        """Return the layout with what the names of decoder and of draft layers begin with."""
        if self.mtp_layer is not None and self.mtp_prefix is not None:
            prefix, layer = draft_names_in(names, self.mtp_prefix, self.mtp_layer)
            return replace(self, mtp_prefix=prefix, mtp_layer=layer)._trunk_named_as(names)
        return self._trunk_named_as(names)

    def _trunk_named_as(self, names: list[str]) -> MoeLayout:
        layer = layer_names_in(names, self.layer, [form.router for form in self.forms])
        if layer in (None, self.layer):
            return self
        prefix = STEMS[layer.partition("layers.")[0]]
        return replace(self, layer=layer, prefix=prefix)

    def own_name(self, name: str) -> str | None:
        """Return what the language model by itself calls a tensor; None for what is beside it."""
        if name.startswith(self.prefix):
            own = name.removeprefix(self.prefix)
            return "model." + own if self.prefix == INSIDE else own
        return name if self.prefix == INSIDE and name.startswith("lm_head.") else None

    def whole_name(self, own: str) -> str:
        """Return the checkpoint's name of a tensor that the language model by itself calls so."""
        if self.prefix != INSIDE:
            return self.prefix + own
        if own.startswith(self.prefix):  # transformers puts it back where it took it from
            return own
        return self.prefix + own.removeprefix("model.") if own.startswith("model.") else own

    def expert_name(self, layer: int, expert: int, projection: str, part: str = WEIGHT) -> str:
        """Return the tensor name of one projection of one expert, or of a part of it."""
        template = self.form(layer).expert
        assert template is not None, f"{self.model_type} stacks its experts"
        return self._of(layer, template.format(expert=expert, projection=projection, part=part))

    def stacked_names(self, layer: int) -> tuple[str, ...]:
        """Return the names of the tensors that hold all experts of a layer."""
        names = (one.format(part=WEIGHT) for one in self.form(layer).stacked)
        return tuple(self._of(layer, name) for name in names)

    def router_name(self, layer: int) -> str:
        """Return the tensor name of the gate of a layer, [E, D]."""
        return self._of(layer, self.form(layer).router)

    def _of(self, layer: int, name: str) -> str:
        return self.layer.format(layer=layer) + name

    @property
    def expert(self) -> str | None:
        """The template of an expert's tensors, if experts are stored one by one."""
        return self.form().expert

    @property
    def projections(self) -> tuple[str, ...]:
        """An expert's matrices, if experts are stored one by one."""
        return self.form().projections

    @property
    def router_rows(self) -> tuple[str, ...]:
        """Templates of what has an entry per expert beside the gate."""
        return tuple(self.layer + name for name in self.form().rows)

    def text_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what config.json says of the language model; nothing if it has no such section."""
        section = value_at(config, self.section) if self.section else config
        return section if isinstance(section, Mapping) else {}

    def num_experts(self, config: Mapping[str, Any]) -> int:
        """Return E as config.json has it."""
        return count_at(self.text_config(config), self.num_experts_key)

    def top_k(self, config: Mapping[str, Any]) -> int:
        """Return the number of active experts per token as config.json has it."""
        return count_at(self.text_config(config), self.top_k_key)

    def with_counts(
        self, config: Mapping[str, Any], num_experts: int, top_k: int
    ) -> dict[str, Any]:
        """Return the config with other counts, under every name that it has for them."""
        text = dict(self.text_config(config))
        for keys, count in (
            ((self.num_experts_key, *self.num_experts_aliases), num_experts),
            ((self.top_k_key, *self.top_k_aliases), top_k),
        ):
            for key in keys:
                if key == keys[0] or value_at(text, key) is not None:
                    text = with_value(text, key, count)
        return text if self.section is None else with_value(dict(config), self.section, text)

    def num_groups(self, config: Mapping[str, Any]) -> int:
        """Return the number of router groups (1 where the family has none)."""
        if self.num_groups_key is None:
            return 1
        return int(self.text_config(config).get(self.num_groups_key) or 1)
