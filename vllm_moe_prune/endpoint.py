"""``GET /v1/pruning``: what a server of vLLM says of the pruned model that it serves.

Where experts are counted it also brings the counts from the workers to ``/metrics``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from vllm_moe_prune.expert_metrics import ExpertTokens, keep_counting
from vllm_moe_prune.vllm_compat.first_process import served_by

PATH = "/v1/pruning"  # under /v1, so that vLLM asks for its API key


class PruningEndpoint:
    """A plugin of vLLM's endpoints: one route, which reads and changes nothing."""

    name = "pruned_moe"
    required_tasks = None

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {"pruned": False}
        self._counting: asyncio.Task[None] | None = None

    def attach_router(self, app: Any) -> None:
        """Add the route."""
        app.add_api_route(PATH, self._answer, methods=["GET"])

    async def _answer(self) -> dict[str, Any]:
        return self._facts

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Read what is served, and begin to ask for counts where they are kept."""
        served = None if engine_client is None else served_by(engine_client.model_config)
        if served is None:
            return
        self._facts = served.facts()
        if served.expert_metrics:
            tokens = ExpertTokens.registered()
            self._counting = asyncio.create_task(keep_counting(engine_client, tokens))
