"""Packs multiple-choice questions so that the context of each is computed once.

A row holds whole questions one after the other: context, then every continuation. A mask keeps
the continuations of a question from seeing each other and questions from seeing one another, and
positions restart, so each continuation sees exactly what it would see alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

Tokens = tuple[int, ...]

# Long rows waste attention on pairs that the mask forbids, short ones cannot be filled well.
# On a CPU 4 rows of 256 tokens took 0.77 of the time of one of 1024.
ROW_TOKENS = 256
# Items are packed in blocks that begin at multiples of this number in their split, so that an
# item is in the same batch, and its scores have the same bits, in whatever range of whole blocks.
BLOCK = 25


@dataclass(frozen=True, slots=True)
class Question:
    """One context with its continuations; ``places`` are their numbers among the requests."""

    context: Tokens
    continuations: tuple[Tokens, ...]
    places: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute: the last token of a continuation is only predicted."""
        return len(self.context) + sum(len(c) - 1 for c in self.continuations)

    @property
    def length(self) -> int:
        """Tokens of the longest sequence that is computed."""
        return len(self.context) + max(len(c) - 1 for c in self.continuations)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors for one forward pass over B rows of L tokens that predicts P targets."""

    input_ids: torch.Tensor  # [B, L]
    position_ids: torch.Tensor  # [B, L]
    mask: torch.Tensor  # bool: [B, 1, L, L] which may attend, or [B, L] not padding: see `build`
    real: torch.Tensor  # [B * L] bool, False at padding
    keep: torch.Tensor  # [K] places in B * L whose logits are needed
    source: torch.Tensor  # [P] index into keep
    target: torch.Tensor  # [P] token to predict there
    lengths: tuple[int, ...]  # targets of each continuation, in order
    places: tuple[int, ...]  # request number of each continuation
    num_tokens: int  # without padding


class _Row:
    """One row while it is being laid out, as flat lists over its tokens."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.owner: list[int] = []  # which question a token belongs to
        self.branch: list[int] = []  # 0 for the context, else which continuation
        self.origin: list[int] = []  # place in the row that predicts each target
        for number, question in enumerate(questions):
            self._add(number, question)

    def _add(self, number: int, question: Question) -> None:
        start, context = len(self.ids), len(question.context)
        self._extend(question.context, 0, number, branch=0)
        for branch, continuation in enumerate(question.continuations, start=1):
            fed = continuation[:-1]
            self.origin += [start + context - 1, *range(len(self.ids), len(self.ids) + len(fed))]
            self._extend(fed, context, number, branch)

    def _extend(self, ids: Tokens, position: int, owner: int, branch: int) -> None:
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.owner += [owner] * len(ids)
        self.branch += [branch] * len(ids)


def group(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]], max_length: int, *, share: bool = True
) -> list[Question]:
    """Collect (context, continuation) pairs with the same context into questions.

    A context that is too long for ``max_length`` tokens with its longest continuation loses its
    beginning, as in lm-evaluation-harness.

    :param share: False makes a question of each pair, so that nothing is computed only once
    """
    found: dict[tuple[Tokens, int], list[tuple[int, Tokens]]] = {}
    for place, (context, continuation) in enumerate(pairs):
        assert context and continuation
        key = (tuple(context), 0 if share else place)
        found.setdefault(key, []).append((place, tuple(continuation)))
    questions = []
    for (context, _), entries in found.items():
        room = max(max_length - max(len(c) - 1 for _, c in entries), 1)
        continuations = tuple(c for _, c in entries)
        questions.append(Question(context[-room:], continuations, tuple(p for p, _ in entries)))
    return questions


def pack(
    questions: Iterable[Question], tokens_per_batch: int, row_tokens: int = ROW_TOKENS
) -> list[list[list[Question]]]:
    """Fill rows with questions, longest first, and batches with rows of about the same length.

    :param row_tokens: a row takes another question while it stays within so many
    """
    rows: list[list[Question]] = []
    used: list[int] = []
    for question in sorted(questions, key=lambda q: -q.num_tokens):
        size = question.num_tokens
        at = next((i for i, full in enumerate(used) if full + size <= row_tokens), len(rows))
        if at == len(rows):
            rows.append([])
            used.append(0)
        rows[at].append(question)
        used[at] += size
    batches: list[list[list[Question]]] = []
    longest = 0
    for size, row in sorted(zip(used, rows, strict=True), key=lambda entry: -entry[0]):
        if not batches or (len(batches[-1]) + 1) * longest > tokens_per_batch:
            batches.append([])
            longest = size
        batches[-1].append(row)
    return batches


def build(rows: Sequence[Sequence[Question]], device: torch.device) -> Batch:
    """Lay questions out as the tensors of one batch.

    Where every row is one sequence and nothing else, the mask says only what is padding, which
    comes last, and the model's own attention applies.
    """
    laid = [_Row(row) for row in rows]
    length = max(len(row.ids) for row in laid)

    def padded(lists: Iterable[list[int]], fill: int) -> torch.Tensor:
        table = [entries + [fill] * (length - len(entries)) for entries in lists]
        return torch.tensor(table, device=device)

    owner = padded((row.owner for row in laid), -1)
    origins = [number * length + place for number, row in enumerate(laid) for place in row.origin]
    kept = sorted(set(origins))
    index = {place: number for number, place in enumerate(kept)}
    questions = [question for row in rows for question in row]
    targets = [t for q in questions for c in q.continuations for t in c]
    alone = all(len(row) == 1 and len(row[0].continuations) == 1 for row in rows)
    return Batch(
        input_ids=padded((row.ids for row in laid), 0),
        position_ids=padded((row.positions for row in laid), 0),
        mask=owner >= 0 if alone else _mask(owner, padded((row.branch for row in laid), 0)),
        real=(owner >= 0).reshape(-1),
        keep=torch.tensor(kept, device=device),
        source=torch.tensor([index[place] for place in origins], device=device),
        target=torch.tensor(targets, device=device),
        lengths=tuple(len(c) for q in questions for c in q.continuations),
        places=tuple(place for q in questions for place in q.places),
        num_tokens=sum(len(row.ids) for row in laid),
    )


def _mask(owner: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Return [B, 1, L, L]: same question, not later, and in the context or same continuation."""
    length = owner.shape[1]
    not_later = torch.ones(length, length, dtype=torch.bool, device=owner.device).tril()
    same = owner[:, :, None] == owner[:, None, :]
    visible = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (not_later & same & visible)[:, None]
