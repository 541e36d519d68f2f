"""What a checkpoint's tensors look like, of any family: by numbers in names, by shapes, by words.

A guess for people who add a family. What is pruned goes by `layouts.py` alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.rewrite import TensorInfo
from vllm_moe_prune.roles import WEIGHT

Guess = Literal["expert", "experts, stacked", "gate", "row per expert", "shared expert", "other"]
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
_EXPERTS = re.compile(r"(?:^|[._])experts?\.$")
_ROUTERS = re.compile("gate|router|classifier|correction|expert")
_ACTIVE = re.compile("per_tok|top_?k|moe_k|active_expert")
_LAYERS = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.$")


@dataclass(slots=True)
class Group:
    """Tensors whose names differ in numbers only.

    ``role`` is what the family's layout takes them for: "" where it leaves them as they are, None
    where there is no layout or it refuses them.
    """

    pattern: str
    shape: tuple[int, ...]
    dtype: str
    layers: set[int] = field(default_factory=set)
    experts: set[int] = field(default_factory=set)
    guess: Guess = "other"
    role: str | None = None


def groups_of(
    tensors: Mapping[str, TensorInfo], layout: MoeLayout | None = None
) -> dict[str, Group]:
    """Return pattern of names -> what they are, in the order of the files.

    :param layout: of the family, if it is a known one
    """
    found: dict[str, Group] = {}
    for name, info in tensors.items():
        pattern, layer, expert = _read(name)
        group = found.get(pattern)
        if group is None:
            group = found[pattern] = Group(pattern, info.shape, info.dtype)
            group.role = _role(name, layout)
        group.layers.update(() if layer is None else (layer,))
        group.experts.update(() if expert is None else (expert,))
    _guess(found.values())
    return found


def _read(name: str) -> tuple[str, int | None, int | None]:
    """Return a name with {layer}, {expert} and {n} in place of numbers, and the first two."""
    layer = expert = None
    parts, end = [], 0
    for number in _NUMBER.finditer(name):
        before = name[: number.start()]
        parts.append(name[end : number.start()])
        end = number.end()
        if _EXPERTS.search(before):
            expert, mark = int(number[0]), "{expert}"
        elif layer is None and _LAYERS.search(before):
            layer, mark = int(number[0]), "{layer}"
        else:
            mark = "{n}"
        parts.append(mark)
    return "".join([*parts, name[end:]]), layer, expert


def _role(name: str, layout: MoeLayout | None) -> str | None:
    if layout is None:
        return None
    layouts = [layout, *([layout.mtp_layout()] if layout.mtp_layer is not None else [])]
    try:
        roles = [one.classify(name) for one in layouts]
    except PruneError:
        return None
    return next((role.kind for role in roles if role is not None), "")


def _guess(groups: Iterable[Group]) -> None:
    """Say what each group may be: experts by their numbers, then what has as many rows."""
    listed = list(groups)
    for group in listed:
        if "shared" in group.pattern:
            group.guess = "shared expert"
        elif group.experts:
            group.guess = "expert"
        elif len(group.shape) > 2 and re.search("expert|moe", group.pattern):
            group.guess = "experts, stacked"
    counts = _counts(listed)
    for group in listed:
        count = counts.get(min(group.layers, default=-1))
        if group.guess != "other" or not _ROUTERS.search(group.pattern):
            continue
        if len(group.shape) == 2 and group.shape[0] == count:
            group.guess = "experts, stacked" if ".experts." in group.pattern else "gate"
        elif group.shape in ((count,), (1, count)):
            group.guess = "row per expert"


def _counts(groups: Iterable[Group]) -> dict[int, int]:
    """Return layer -> number of experts."""
    found: dict[int, int] = {}
    for group in groups:
        if group.guess == "expert":
            count = max(group.experts) + 1
        elif group.guess == "experts, stacked":
            count = group.shape[0]
        else:
            continue
        for layer in group.layers:
            found[layer] = max(found.get(layer, 0), count)
    return found


def experts_per_layer(groups: Iterable[Group]) -> dict[int, int]:
    """Return layer -> number of experts, as the guess has it."""
    return dict(sorted(_counts(groups).items()))


def recognised(groups: Iterable[Group], config: Mapping[str, Any]) -> list[str]:
    """Return in lines what the tensors of MoE blocks were taken for, and what was not recognised.

    :param config: config.json, in which numbers of experts have some key
    """
    listed = list(groups)
    counts = sorted(set(_counts(listed).values()))
    lines = [
        f"{guess}: {_named([one for one in listed if one.guess == guess])}"
        for guess in dict.fromkeys(one.guess for one in listed if one.guess != "other")
    ]
    guesses = {one.guess for one in listed}
    if not guesses & {"expert", "experts, stacked"}:
        lines.append(
            "no experts were recognised: no tensor has a number after `experts.`, or three "
            "dimensions and `expert` or `moe` in its name"
        )
    elif "gate" not in guesses:
        told = "/".join(map(str, counts))
        lines.append(
            f"no gate was recognised: no matrix with `gate` or `router` in its name has {told} rows"
        )
    if others := _beside(listed):
        lines.append(f"in the same blocks, and taken for no part of experts: {_named(others)}")
    for what, keys in config_keys(config, counts).items():
        lines.append(f"{what} in config.json: {', '.join(keys) or 'no key was recognised'}")
    return lines


def _named(groups: Iterable[Group]) -> str:
    return ", ".join(f"{one.pattern} {list(one.shape)}" for one in groups)


def _beside(groups: Iterable[Group]) -> list[Group]:
    """Return the groups of MoE blocks that are nothing that pruning would touch."""
    listed = [one for one in groups if one.layers]
    parts = [one for one in listed if one.guess not in ("other", "shared expert")]
    blocks = tuple({_block(one.pattern) for one in parts})
    blocks = tuple(one for one in blocks if not one.endswith("{layer}."))
    return [one for one in listed if one.guess == "other" and one.pattern.startswith(blocks or " ")]


def config_keys(config: Mapping[str, Any], counts: Collection[int]) -> dict[str, list[str]]:
    """Return the keys that may be the numbers of experts and of active ones, with their values.

    A dot leads into a section, as in `MoeLayout`.
    """
    entries = list(_entries(config))
    return {
        "number of experts": [f"{key} = {n}" for key, n in entries if n in counts],
        "active experts": [f"{key} = {n}" for key, n in entries if _ACTIVE.search(key)],
    }


def _entries(config: Mapping[str, Any], begin: str = "") -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{begin}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield begin + key, value


def proposed(groups: Iterable[Group]) -> str | None:
    """Return the `Form` that these tensors would have, as code; None without gate or experts."""
    listed = [group for group in groups if "{layer}" in group.pattern]
    gates = [group for group in listed if group.guess == "gate"]
    experts = [group for group in listed if group.guess in ("expert", "experts, stacked")]
    if not gates or not experts:
        return None
    layer = gates[0].pattern.partition("{layer}.")[0] + "{layer}."
    names = {group.pattern: group.pattern.removeprefix(layer) for group in listed}
    every = sorted({_block(names[one.pattern]) for one in (gates[0], *experts)})
    blocks = tuple(b for b in every if not any(b != a and b.startswith(a) for a in every))
    fields: dict[str, object] = {"router": names[gates[0].pattern], "blocks": blocks}
    single = [names[one.pattern] for one in experts if one.guess == "expert"]
    if single:
        head, _, _ = single[0].partition("{expert}.")
        fields["expert"] = head + "{expert}.{projection}.{part}"
        tails = (name.removeprefix(head + "{expert}.") for name in single)
        fields["projections"] = tuple(dict.fromkeys(tail.partition(".")[0] for tail in tails))
    else:
        fields["stacked"] = tuple(names[one.pattern] for one in experts)
    fields["rows"] = tuple(names[one.pattern] for one in listed if one.guess == "row per expert")
    others = (names[one.pattern] for one in listed if one.guess in ("shared expert", "other"))
    fields["beside"] = tuple(
        dict.fromkeys(
            block + "".join(name.removeprefix(block).partition(".")[:2])
            for name in others
            for block in blocks
            if name.startswith(block)
        )
    )
    told = ",\n    ".join(f"{key}={value!r}" for key, value in fields.items() if value)
    return f"layer={layer!r}\nForm(\n    {told},\n)"


def _block(name: str) -> str:
    """Return the beginning of a name that its whole MoE block shares."""
    head, inside, _ = name.partition("experts.")
    if inside:
        return head or inside
    return name.removesuffix("." + WEIGHT).rpartition(".")[0] + "."
