"""Text as token ids; a long one in pieces, so that no more of it is read than is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from offline.texts.row import LongText, chunks_of

WHOLE = 1 << 20  # characters of the longest text that is tokenised at once
PIECE = 1 << 17  # characters of the pieces of a longer one
_OVERLAP = 4096  # characters that two pieces have in common
_AGREE = 8  # tokens that both must see alike where they are joined

Placed = list[tuple[int, int]]  # where in the text a token begins, and its id


def plain_ids(text: str | LongText, tokenizer: Any) -> Iterator[list[int]]:
    """Yield the token ids of a text, some at a time, without special tokens.

    Special tokens that are written in the text are taken as the characters that they are.

    A text of up to `WHOLE` characters is tokenised at once. A longer one is taken in pieces that
    overlap, and two are joined where both give the same tokens at the same places, far from the
    ends of either: for tokenizers that look at a word and its neighbours, as all but a few do,
    that is what the whole text gives. Where there is no such place (a word of thousands of
    characters), or the tokenizer does not say where its tokens are, pieces are put side by side.
    """
    fast = bool(getattr(tokenizer, "is_fast", False))
    held: Placed = []  # of the piece before: what lies in the overlap with the next one
    begin = 0
    for piece, last in _pieces(chunks_of(text), _OVERLAP if fast else 0):
        if begin == 0 and last:
            yield encoded(piece, tokenizer)
            return
        if not fast:
            yield encoded(piece, tokenizer)
            begin += len(piece)
            continue
        placed = _placed(piece, tokenizer, begin)
        before, here = _joined(held, placed, begin + _OVERLAP // 2, begin + _OVERLAP)
        end = begin + len(piece) - (0 if last else _OVERLAP)
        done = here if last else [one for one in here if one[0] < end]
        yield [token for _, token in (*before, *done)]
        held, begin = here[len(done) :], end


def encoded(text: str, tokenizer: Any) -> list[int]:
    """Return the ids of a text, which has no control tokens: what is written so are characters."""
    ids: list[int]
    try:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    except ValueError:  # Mistral's own, which never do otherwise and refuse to be told
        ids = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _pieces(chunks: Iterable[str], overlap: int) -> Iterator[tuple[str, bool]]:
    """Yield a text whole, or pieces of it, each with the last ``overlap`` characters of the one
    before, and whether a piece is the last."""
    rest, most = "", WHOLE
    for chunk in chunks:
        rest += chunk
        while len(rest) > most:
            most = PIECE
            yield rest[:PIECE], False
            rest = rest[PIECE - overlap :]
    yield rest, True


def _placed(piece: str, tokenizer: Any, begin: int) -> Placed:
    found = tokenizer(
        piece,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    starts = (begin + start for start, _ in found["offset_mapping"])
    return list(zip(starts, found["input_ids"], strict=True))


def _joined(before: Placed, here: Placed, middle: int, end: int) -> tuple[Placed, Placed]:
    """Return the tokens of an overlap that come from the piece before, and the rest from this one.

    :param middle: the place where a joint is best, as far from both ends as there is
    :param end: of the overlap
    """
    places = {placed: number for number, placed in reversed(list(enumerate(here)))}
    for number in sorted(range(len(before)), key=lambda n: abs(before[n][0] - middle)):
        other = places.get(before[number])
        if other is None or number + _AGREE > len(before):
            continue
        if before[number : number + _AGREE] == here[other : other + _AGREE]:
            return before[:number], here[other:]
    return before, [one for one in here if one[0] >= end] if before else here
