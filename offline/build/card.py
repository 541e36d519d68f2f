"""The model card of a pruned checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_yaml, read_text
from vllm_moe_prune.routing_map import MAP_FILE, Form, RoutingMap

_SERVE = {
    "plain": """Any reader of the base model opens this checkpoint.

    vllm serve .
""",
    "compact": """Its layers differ in expert count, top-k or router, so it needs the
`pruned_moe` load format (`pip install vllm-moe-prune`); without it vLLM finds no weights.

    vllm serve . --load-format pruned_moe
""",
}

_DRAFTS = """
Its MTP (draft) layers keep all {count} experts. vLLM builds them so by the `pruned_moe` load
format (`pip install vllm-moe-prune`) alone:

    vllm serve . --load-format pruned_moe \\
        --speculative-config '{{"method": "mtp", "num_speculative_tokens": 1}}'
"""

_INEXACT = """
Routers are sliced, and this model does not renormalise its top-k weights: the softmax runs over the
kept experts alone, so that their weights are larger than in the base.
"""

_TAGS = ("mixture-of-experts", "expert-pruning", "vllm-moe-prune")
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag", "tags")
_PLAIN = re.compile(r"[a-z][a-z-]*")  # what YAML takes for nothing but a text
_MORE = ("<details><summary>Defaults, and the numbers behind them</summary>\n\n", "\n</details>\n")


def card_fields(folder: Path) -> dict[str, JsonValue]:
    """Return what a pruned model inherits of its base's card: licence, language, tags."""
    file = folder / "README.md"
    text = read_text(file, errors="replace") if file.is_file() else ""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return {}
    import yaml

    try:
        # Texts alone: `no` is Norwegian here.
        head = parse_yaml(parts[1], str(file), yaml.BaseLoader)
    except PruneError:
        return {}
    found = head if isinstance(head, dict) else {}
    return {name: found[name] for name in _INHERITED if found.get(name)}


def model_card(
    base_name: str,
    routing_map: RoutingMap,
    form: Form,
    inherited: Mapping[str, JsonValue] | None = None,
    *,
    slices: bool = True,
    drafts: tuple[int, int] | None = None,
) -> str:
    """Return README.md: what was pruned, how, and how to serve it.

    :param inherited: as `card_fields`
    :param slices: whether a sliced router of this model is exact (`MoeLayout.slices`)
    :param drafts: (experts, active experts) of draft layers, if they have others than the rest
    """
    fields = dict(inherited or {})
    given = fields.pop("tags", None)
    own = given if isinstance(given, list) else [given] if given else []
    tags = dict.fromkeys([*_TAGS, *map(str, own)])
    more_fields = "".join(
        f"{name}: {json.dumps(value, default=str)}\n" for name, value in fields.items()
    )
    provenance = routing_map.provenance
    told = provenance.settings
    settings = {name: value for name, value in told.items() if not isinstance(value, dict)}
    more = {name: value for name, value in told.items() if isinstance(value, dict)}
    data = [f"- {d.name} ({d.split}): {d.count} items, {d.sha256}" for d in provenance.data]
    tuned = [
        f"- {t.trainable}: {t.parameters:,} parameters, {t.steps} steps, {t.tokens:,} tokens, "
        f"learning rate {t.learning_rate:g}"
        for t in routing_map.tuned
    ]
    trained = "\nThe weights were trained after pruning:\n\n" + "\n".join(tuned) + "\n"
    return f"""---
base_model: {base_name}
{more_fields}tags: [{", ".join(t if _PLAIN.fullmatch(t) else json.dumps(t) for t in tags)}]
---

# {base_name}, experts pruned

{routing_map.summary()}

## How to serve it

{_SERVE[form]}{_DRAFTS.format(count=drafts[0]) if drafts else ""}
`{MAP_FILE}` says what became of every expert and of the routers.
{"" if slices or not routing_map.loses_rows else _INEXACT}{trained if tuned else ""}
## How it was made

Method `{provenance.method}`, seed {provenance.seed}, {provenance.tool}, {provenance.created}.

{_json(settings)}
{f"{_MORE[0]}{_json(more)}{_MORE[1]}" if more else ""}
Data that decided:

{chr(10).join(data) or "none"}
"""


def _json(fields: Mapping[str, JsonValue]) -> str:
    return f"```json\n{json.dumps(fields, indent=2)}\n```\n"
