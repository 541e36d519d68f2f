"""A model for lm-evaluation-harness that notes what it is asked and answers by a hash of it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

_ANSWERS = ("yes", "#### 4", "The answer is (B).", "Ada", "True", "A", "$5$", "    return a + 8\n")


class RecordingLM(LM):  # type: ignore[misc]  # lm-eval is untyped
    """Answers the same to the same; ``asked`` is task -> (kind, arguments) in the order asked."""

    tokenizer_name = "recording"

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.asked: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation so that each turn and each blank shows."""
        turns = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in chat_history)
        return f"{turns}<|assistant|>" if add_generation_prompt else turns.removesuffix("<|end|>")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return any text: lm-eval hashes it."""
        return "recording"

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return a number of nats and whether that is the greedy text."""
        found = self._noted("loglikelihood", requests)
        return [(-float(number % 9973) / 100, number % 3 == 0) for number in found]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return a number of nats."""
        return [-float(n % 9973) / 10 for n in self._noted("loglikelihood_rolling", requests)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return one of a few answers."""
        found = self._noted("generate_until", requests)
        return [_ANSWERS[number % len(_ANSWERS)] for number in found]

    def _noted(self, kind: str, requests: Sequence[Any]) -> list[int]:
        for request in requests:
            self.asked[request.task_name].append((kind, json.dumps(request.args)))
        return [_hash(json.dumps(request.args)) for request in requests]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
