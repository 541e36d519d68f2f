"""Token blocks of the eight domains, made once per working folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline.data.domains import DOMAINS, Corpus, load_corpora
from offline.demo.dense import load_tokenizer

BLOCK = 256
_TRAIN_BLOCKS, _HELDOUT_BLOCKS = 640, 24


def token_blocks(work: Path) -> dict[str, dict[str, Tensor]]:
    """``{domain: {"train": [n, 256], "heldout": [m, 256]}}``, kept in ``work/tokens.pt``."""
    path = work / "tokens.pt"
    if not path.is_file():
        tokenizer = load_tokenizer()
        corpora = load_corpora()
        blocks = {name: _blocks(tokenizer, corpora[name]) for name in DOMAINS}
        save_atomically({"blocks": blocks, "sha256": _hashes(corpora)}, path)
    saved: dict[str, dict[str, Tensor]] = torch.load(path)["blocks"]
    return saved


def corpus_hashes(work: Path) -> dict[str, str]:
    """sha256 of each domain's text, as read when the tokens were made."""
    saved: dict[str, str] = torch.load(work / "tokens.pt")["sha256"]
    return saved


def save_atomically(value: object, path: Path) -> None:
    """``torch.save`` that never leaves half a file behind."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    partial.replace(path)


def _hashes(corpora: dict[str, Corpus]) -> dict[str, str]:
    return {name: corpus.sha256() for name, corpus in corpora.items()}


def _blocks(tokenizer: Any, corpus: Corpus) -> dict[str, Tensor]:
    return {
        "train": _pack(tokenizer, corpus.train, _TRAIN_BLOCKS),
        "heldout": _pack(tokenizer, corpus.heldout, _HELDOUT_BLOCKS),
    }


def _pack(tokenizer: Any, documents: list[str], limit: int) -> Tensor:
    """Documents end to end with <|endoftext|> (token 0) between, cut into blocks [n, 256]."""
    ids: list[int] = []
    for text in documents:
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], 0]
        if len(ids) >= limit * BLOCK:
            break
    count = min(limit, len(ids) // BLOCK)
    return torch.tensor(ids[: count * BLOCK]).view(count, BLOCK)
