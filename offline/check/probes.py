"""Prompts and measures that show whether a model's text has collapsed. Pure; no model here."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

PROMPTS = (
    "The capital of France is",
    "Water boils when",
    "def fibonacci(n):\n    ",
    "Question: What do plants need to grow?\nAnswer:",
    "Once upon a time there was a fisherman who",
    "The three states of matter are",
)
CHAT_PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Explain why the sky is blue.",
    "Give me a recipe for a simple soup.",
)


def repetition(tokens: Sequence[Hashable], size: int = 4) -> float:
    """Return the share of n-grams that occurred before, 0..1: near 1 for text that loops."""
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
