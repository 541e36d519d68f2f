"""`Form`: the tensor names of an MoE block in one of the ways in which a family is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_moe_prune.roles import PART, WEIGHT, Role, name_pattern, router_part

# Of all experts in one tensor, as transformers 5 has them in memory, and saves them when told to.
STACKED = ("gate_up_proj", "down_proj")
TABLE = "table"  # the part of a router that holds ids of experts


@dataclass(frozen=True, slots=True)
class Form:
    """Names of the tensors of an MoE block, as they go on after the layer's own name.

    They are templates with the placeholders {expert}, {projection} and {part} (roles.py).
    ``router`` is the gate, [E, D], and ``rows`` are what else has an entry per expert. Either
    ``expert`` with ``projections`` (of one expert: gate, up, down, or up, down) or ``stacked``,
    tensors of all experts, name the experts; ``flat`` says that these are [E * I, D] instead of
    [E, ...]. ``tables`` hold ids of experts, so that none of a layer with one can go.

    Every name that begins with one of ``blocks`` is of the MoE block, and ``beside`` begins those
    that pruning leaves as they are: shared experts, and layers without experts.
    """

    router: str
    blocks: tuple[str, ...]
    expert: str | None = None
    projections: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    flat: bool = False

    def role(self, layer: int, name: str, whole: str) -> Role | None:
        """Return the role of a tensor, or None if this form does not know it.

        :param name: what follows the layer's name in ``whole``, that of the tensor
        :raises PruneError: for a gate that is stored so that it cannot lose rows
        """
        if (of_experts := self.of_experts(layer, name)) is not None:
            return of_experts
        if any(name_pattern(one).fullmatch(name) for one in (self.router, *self.rows)):
            return Role("router", layer)
        if name in self.tables:
            return Role("router", layer, part=TABLE)
        part = router_part(self.router, name, whole)
        return Role("router", layer, part=part) if part else None

    def holds(self, name: str) -> bool:
        """Whether the tensor with this name after its layer's is one of experts."""
        return self.of_experts(0, name) is not None

    def of_experts(self, layer: int, name: str) -> Role | None:
        """Return the role of a tensor of experts, by its name after its layer's; None of others."""
        if not name.startswith(self.blocks):
            return None
        if self.expert and (found := name_pattern(self.expert, self.projections).fullmatch(name)):
            number, (begin, end) = int(found["expert"]), found.span("expert")
            places = (begin - len(name), end - len(name))
            return Role("expert", layer, number, found["projection"], found["part"], places)
        for one in self.stacked:
            # A part follows an underscore, unless the template has a place for it.
            template = one if PART in one else one + "{stacked}"
            if found := name_pattern(template).fullmatch(name):
                return Role("stacked", layer, part=found["part"] or WEIGHT)
        return None

    def in_transformers(self, block: str | None = None, **changes: object) -> Form:
        """Return the form with experts stacked as transformers 5 has them in memory.

        :param block: in which they are; this form's own if not given
        :param changes: of other fields
        """
        block = self.blocks[0] if block is None else block
        stacked = tuple(f"{block}experts.{name}" for name in STACKED)
        return replace(self, expert=None, projections=(), stacked=stacked, **changes)  # type: ignore[arg-type]

    def expected(self) -> str:
        """Return in words which names a block of this form has."""
        template = self.expert or self.stacked[0]
        named = {"expert": "N", "part": WEIGHT, "projection": next(iter(self.projections), "")}
        return f"experts as {template.format(**named)} with the gate {self.router}"
