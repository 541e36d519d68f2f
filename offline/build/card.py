"""The model card of a pruned checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue

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

_MORE = ("<details><summary>Defaults, and the numbers behind them</summary>\n\n", "\n</details>\n")


def model_card(base_name: str, routing_map: RoutingMap, form: Form) -> str:
    """Return README.md: what was pruned, how, and how to serve it."""
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
tags: [mixture-of-experts, expert-pruning, vllm-moe-prune]
---

# {base_name}, experts pruned

{routing_map.summary()}

{_SERVE[form]}
`{MAP_FILE}` says what became of every expert and of the routers.
{trained if tuned else ""}
## How it was made

Method `{provenance.method}`, seed {provenance.seed}, {provenance.tool}, {provenance.created}.

{_json(settings)}
{f"{_MORE[0]}{_json(more)}{_MORE[1]}" if more else ""}
Data that decided:

{chr(10).join(data) or "none"}
"""


def _json(fields: Mapping[str, JsonValue]) -> str:
    return f"```json\n{json.dumps(fields, indent=2)}\n```\n"
