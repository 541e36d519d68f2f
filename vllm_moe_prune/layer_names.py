"""How the names of decoder layers begin, wherever a language model was put."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_moe_prune.roles import name_pattern

INSIDE = "model.language_model."  # beside which the head is, not inside
# What may stand before "layers.N.", and what all names of the language model begin with then.
STEMS = {
    "model.": "",
    "language_model.model.": "language_model.",
    INSIDE: INSIDE,
    "language_model.": "language_model.",
    "": "",
}


def layer_names_in(names: Iterable[str], layer: str, routers: Sequence[str]) -> str | None:
    """Return the template of decoder layers as a checkpoint has it; None if it has none.

    :param layer: the family's own, which comes first
    :param routers: what gates are called after it
    """
    gates = [one for one in names if one.endswith(tuple(routers))]

    def fits(template: str) -> bool:
        places = ((name, name_pattern(template).match(name)) for name in gates)
        return any(place and name[place.end() :] in routers for name, place in places)

    templates = (layer, *(stem + "layers.{layer}." for stem in STEMS))
    return next((template for template in templates if fits(template)), None)
