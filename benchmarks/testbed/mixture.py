"""What the model reads: a tokenizer of its own and packed blocks of text and puzzles."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from benchmarks.testbed import passages, puzzles
from benchmarks.testbed.text import DOMAINS, Corpus

END = "<|endoftext|>"  # token 0, after every document
# Shares of all tokens: 60 % real text in six equal parts, 40 % puzzles.
SHARES = dict.fromkeys(DOMAINS, 0.10) | {
    "arithmetic": 0.14,
    "pattern": 0.08,
    "lookup": 0.12,
    "classify": 0.06,
}
# Weights in the loss. Prompts are mostly random, so there is little to learn from them.
_ANSWER, _PROMPT, _TEXT = 2.0, 0.1, 1.0
Segments = list[tuple[str, float]]  # (text, weight of its tokens in the loss)


def train_tokenizer(corpora: dict[str, Corpus], vocab: int) -> Tokenizer:
    """Byte-level BPE on a sample of the mixture; digits stay single tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for name in DOMAINS for text in corpora[name].train]
    for name in puzzles.MAKERS:
        sample = islice(puzzles.stream(name, "train", seed=-1), 8000)
        texts += ["".join(text for text, _ in puzzle_segments(one)) for one in sample]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def puzzle_segments(puzzle: puzzles.Puzzle) -> Segments:
    """Text of a puzzle as the model is trained on it, one line for each answer."""
    segments = [(puzzle.prompt, _PROMPT), (f" {puzzle.answer}\n", _ANSWER)]
    for prompt, answer in puzzle.more:
        segments += [(prompt, _PROMPT), (f" {answer}\n", _ANSWER)]
    return segments


def documents(corpora: dict[str, Corpus], name: str, seed: int) -> Iterator[Segments]:
    """Give endless documents of one part of the mixture; text is shuffled anew in each pass."""
    if name in puzzles.MAKERS:
        yield from map(puzzle_segments, puzzles.stream(name, "train", seed))
    elif name == "classify":
        yield from map(puzzle_segments, passages.stream(corpora, "train", seed))
    rng = random.Random(f"{name} {seed}")
    texts = list(corpora[name].train)
    while True:
        rng.shuffle(texts)
        yield from ([(text, _TEXT)] for text in texts)


def encode(tokenizer: Tokenizer, segments: Segments) -> tuple[list[int], list[float]]:
    """Token ids with the end mark, and their weights; a document's first token has none.

    Segments are encoded one by one: their borders lie where the tokenizer splits anyway.
    """
    ids: list[int] = []
    weights: list[float] = []
    for encoded, (_, weight) in zip(
        tokenizer.encode_batch([text for text, _ in segments]), segments, strict=True
    ):
        ids += encoded.ids
        weights += [weight] * len(encoded.ids)
    return [*ids, 0], [0.0, *weights[1:], weights[-1]]


def blocks(
    tokenizer: Tokenizer, corpora: dict[str, Corpus], count: int, length: int, seed: int
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Pack the mixture: ids int16 [count, length], loss weights f16 of the same shape, tokens.

    The next document always comes from the part that is furthest behind its share.
    """
    parts = {name: documents(corpora, name, seed) for name in SHARES}
    seen = dict.fromkeys(SHARES, 0)
    ids = torch.empty(count * length, dtype=torch.int16)
    weights = torch.empty(count * length, dtype=torch.float16)
    at = 0
    while at < count * length:
        name = min(SHARES, key=lambda one: seen[one] / SHARES[one])
        more, weighted = encode(tokenizer, next(parts[name]))
        more, weighted = more[: count * length - at], weighted[: count * length - at]
        ids[at : at + len(more)] = torch.tensor(more, dtype=torch.int16)
        weights[at : at + len(more)] = torch.tensor(weighted, dtype=torch.float16)
        at += len(more)
        seen[name] += len(more)
    return ids.view(count, length), weights.view(count, length), seen


def same_document(ids: Tensor) -> Tensor:
    """Causal attention mask [B, 1, T, T] that ends at the borders of documents."""
    ended = (ids == 0).cumsum(dim=1)
    number = ended - (ids == 0).to(ended.dtype)  # the end mark belongs to what it ends
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    return ((number[:, :, None] == number[:, None, :]) & causal)[:, None]
