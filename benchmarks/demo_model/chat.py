"""Chat text for training: questions answered by the dense base itself, in its own template."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.demo_model.corpus_tokens import BLOCK, save_atomically
from offline.data.domains import train_gold
from offline.demo.dense import GGUF, gguf_folder, load_tokenizer

_AT_ONCE = 72
_FORMS = (
    "Explain {} in simple words.",
    "What is {}?",
    "Write a short story about {}.",
    "Give me three tips about {}.",
    "Why is {} important?",
    "Write a short paragraph about {}.",
)
_TOPICS = (
    "the water cycle",
    "the moon",
    "friendship",
    "cooking rice",
    "the history of Rome",
    "a lost dog",
    "photosynthesis",
    "learning to swim",
    "gravity",
    "the ocean",
    "a brave mouse",
    "saving money",
    "healthy sleep",
    "Python functions",
    "the French Revolution",
    "planting a garden",
    "electricity",
    "a trip to the mountains",
    "music",
    "vaccines",
    "fractions",
    "volcanoes",
    "writing a letter",
    "the internet",
    "winter",
    "a good breakfast",
    "democracy",
    "bees",
    "riding a bicycle",
    "the solar system",
)


def chat_blocks(work: Path, answers: int, seed: int) -> Tensor:
    """Conversations packed into blocks [n, 256]; kept in ``work/chat.pt``."""
    path = work / "chat.pt"
    if not path.is_file():
        save_atomically(_pack(_converse(answers, seed)), path)
    blocks: Tensor = torch.load(path)
    return blocks


def _prompts(count: int, seed: int) -> list[str]:
    """Half everyday instructions, half questions from train splits."""
    rng = random.Random(seed)
    plain = [form.format(topic) for form in _FORMS for topic in _TOPICS]
    rng.shuffle(plain)
    half = min(len(plain), count // 2)
    return plain[:half] + rng.sample(_train_questions(), count - half)


def _train_questions() -> list[str]:
    """Bare questions of ARC, CommonsenseQA and PIQA (train splits): prompts for chat text."""
    questions = [doc["query"] for task in ("arc_easy", "csqa") for doc, _ in train_gold(task)]
    stripped = [q.removeprefix("Question:").removesuffix("Answer:").strip() for q in questions]
    goals = [doc["goal"].strip() for doc, _ in train_gold("piqa") if doc["goal"].endswith("?")]
    return sorted({q for q in stripped + goals if 20 < len(q) < 200})


def _converse(count: int, seed: int) -> list[list[int]]:
    """Token ids of whole conversations, the answers sampled from the dense base."""
    from transformers import AutoModelForCausalLM  # slow to import

    tokenizer: Any = load_tokenizer()
    tokenizer.padding_side = "left"
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf_folder(), gguf_file=GGUF, dtype=torch.float32, local_files_only=True
    )
    model = loaded.to(torch.bfloat16)
    torch.manual_seed(seed)
    found: list[list[int]] = []
    prompts = _prompts(count, seed)
    for at in range(0, count, _AT_ONCE):
        chats = [[{"role": "user", "content": p}] for p in prompts[at : at + _AT_ONCE]]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        print(f"chat: answering prompts from {at}", flush=True)
        output = model.generate(
            **inputs, max_new_tokens=96, do_sample=True, temperature=0.7, top_p=0.95
        )
        for ids, mask in zip(output, inputs["attention_mask"], strict=True):
            found.append(_trim(ids[int((mask == 0).sum()) :].tolist(), tokenizer.eos_token_id))
    return found


def _trim(ids: list[int], end: int) -> list[int]:
    """Without the padding after the answer's end (padding is the end token repeated)."""
    while len(ids) > 1 and ids[-1] == ids[-2] == end:
        ids.pop()
    return ids


def _pack(conversations: list[list[int]]) -> Tensor:
    """Conversations end to end, each starting on its own template, cut into blocks."""
    ids = [token for conversation in conversations for token in conversation]
    count = len(ids) // BLOCK
    return torch.tensor(ids[: count * BLOCK]).view(count, BLOCK)
