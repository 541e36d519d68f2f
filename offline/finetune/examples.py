"""`Examples`: token sequences to train on, and which of their tokens have a loss."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.calibration.corpus import Domain
from offline.finetune.schedule import shuffled
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, write_atomic
from vllm_moe_prune.reading import parse_json, validated
from vllm_moe_prune.tensor_files import metadata_of, read_arrays

NO_LOSS = -100  # the label that torch's cross-entropy leaves out
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Examples:
    """N sequences of L tokens; ``labels`` are the tokens themselves where there is a loss.

    Labels are not shifted: a label counts for what the model says at the position before it, so
    one at position 0 has no loss.
    """

    input_ids: NDArray[np.int32]  # [N, L]
    labels: NDArray[np.int32]  # [N, L]; NO_LOSS on prompts and padding
    identity: tuple[DataIdentity, ...]

    def __post_init__(self) -> None:
        assert self.input_ids.shape == self.labels.shape, "labels of other sequences"
        assert self.input_ids.ndim == 2 and len(self.input_ids), "no sequences"

    @property
    def num_tokens(self) -> int:
        """Tokens that have a loss."""
        return int(self.tokens_of_each().sum())

    def tokens_of_each(self) -> NDArray[np.int64]:
        """Return [N]: how many tokens of each sequence have a loss."""
        counts: NDArray[np.int64] = np.count_nonzero(self.labels[:, 1:] != NO_LOSS, axis=1)
        return counts

    def digest(self) -> str:
        """Return ``sha256:...`` of all ids and labels."""
        digest = hashlib.sha256(repr(self.input_ids.shape).encode())
        for array in (self.input_ids, self.labels):
            digest.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
        return "sha256:" + digest.hexdigest()

    def save(self, file: Path) -> None:
        """Write one safetensors file."""
        from safetensors.numpy import save

        identity = json.dumps([entry.model_dump(mode="json") for entry in self.identity])
        tensors = {"input_ids": self.input_ids, "labels": self.labels}
        write_atomic(file, save(tensors, metadata={"identity": identity}))

    @classmethod
    def load(cls, file: Path) -> Examples:
        """Read what `save` wrote.

        :raises PruneError: if the file is absent or something else
        """
        try:
            arrays, told = read_arrays(file), metadata_of(file)
        except PruneError as error:
            raise PruneError(f"{file} holds no examples to train on: {error.message}") from None
        identity = parse_json(told.get("identity", "null"), str(file))
        if not {"input_ids", "labels"} <= arrays.keys() or not isinstance(identity, list):
            raise PruneError(f"{file} holds no examples to train on")
        named = tuple(validated(entry, DataIdentity, str(file)) for entry in identity)
        return cls(arrays["input_ids"], arrays["labels"], named)


def packed(domains: Sequence[Domain], *, tokens: int, seed: int, skip: int = 0) -> Examples:
    """Return about ``tokens`` tokens of text for next-token training.

    The sequences of all domains come in one seeded order. When they are used up, they come again
    in another one, and the log says so.

    :param tokens: rounded up to whole sequences
    :param skip: sequences at the beginning of the order to leave out (a round takes those that
        the rounds before it did not have)
    """
    assert domains and tokens > 0 and skip >= 0, "nothing to train on"
    sequences = np.concatenate([domain.token_ids for domain in domains]).astype(np.int32)
    owner = np.repeat(np.arange(len(domains)), [len(domain.token_ids) for domain in domains])
    wanted = -(-tokens // sequences.shape[1])
    if skip + wanted > len(sequences):
        _LOG.warning(
            "training on %d sequences after %d others, of a text of %d: some are repeated",
            *(wanted, skip, len(sequences)),
        )
    chosen = shuffled(len(sequences), skip + wanted, seed)[skip:]
    ids = sequences[chosen]
    return Examples(ids, ids.copy(), tuple(_identities(domains, ids, owner[chosen])))


def supervised(
    pairs: Sequence[tuple[str, str]],
    tokenizer: Any,
    *,
    length: int,
    identity: tuple[DataIdentity, ...],
    seed: int,
) -> Examples:
    """Return pairs of a prompt and its answer, with a loss on the answer and end-of-text alone.

    A prompt and its answer are tokenised as evaluation tokenises them (engines/encoding.py).
    Padding is on the right. A pair that is too long loses the front of its prompt, and the end of
    its answer only where that is itself longer than ``length``.

    :param tokenizer: of transformers, with an end-of-text token
    :param length: most tokens of a sequence
    :param identity: of the pairs
    :param seed: of the order
    :raises PruneError: if there is no pair, an answer is empty, or the tokenizer has no end-of-text
    """
    if not pairs:
        raise PruneError("there is no pair of prompt and answer to train on")
    end = tokenizer.eos_token_id
    if end is None:
        raise PruneError("the model's tokenizer has no end-of-text token to end answers with")
    rows = [_row(tokenizer, prompt, answer, end, length) for prompt, answer in pairs]
    chosen = [rows[i] for i in shuffled(len(rows), len(rows), seed)]
    width = max(len(prompt) + len(answer) for prompt, answer in chosen)
    ids = np.full((len(chosen), width), end, dtype=np.int32)
    labels = np.full((len(chosen), width), NO_LOSS, dtype=np.int32)
    for number, (prompt, answer) in enumerate(chosen):
        ids[number, : len(prompt) + len(answer)] = [*prompt, *answer]
        labels[number, len(prompt) : len(prompt) + len(answer)] = answer
    return Examples(ids, labels, identity)


def _row(
    tokenizer: Any, prompt: str, answer: str, end: int, length: int
) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and of its answer, together at most ``length``."""
    if not answer.strip():
        raise PruneError(f"the answer to {prompt[-60:]!r} is empty")
    before, after = _encode(tokenizer, prompt, answer)
    after = [*after, end][: length - 1]  # what is first in a sequence has no loss
    return before[max(len(before) + len(after) - length, 0) :], after


def _encode(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Return a prompt and its answer as tokens; spaces between them belong to the answer."""
    bare = prompt.rstrip()
    if not bare:
        start = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if start is None else start
        return [first], tokenizer.encode(answer, add_special_tokens=False)
    before, whole = tokenizer.encode(bare), tokenizer.encode(prompt + answer)
    return before, whole[len(before) :]


def _identities(
    domains: Sequence[Domain], ids: NDArray[np.int32], owner: NDArray[np.int64]
) -> Iterator[DataIdentity]:
    for number, domain in enumerate(domains):
        taken = ids[owner == number]
        if len(taken):
            digest = hashlib.sha256(taken.astype("<i8").tobytes()).hexdigest()
            yield DataIdentity(
                name=domain.name,
                split=domain.identity.split,
                count=len(taken),
                sha256=f"sha256:{digest}",
            )
