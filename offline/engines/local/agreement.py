"""How often the model now would accept what its base says: sum_v min(p_v, q_v), per token."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from offline.engines.local.packing import BLOCK, Batch
from offline.engines.local.scoring import PackedLM
from offline.tasks.results import ItemResult
from vllm_moe_prune.errors import PruneError

# Probabilities are kept as float16 of 2^15 times their value: the largest, 1, still fits, and
# those down to 2e-9 keep float16's full precision.
_SCALE = float(1 << 15)
_CHUNK = 256  # positions whose distributions are in float32 at the same time
Text = tuple[str, str]


class BaseDistributions:
    """Next-token distributions of the base, [positions, V] of each text, in temporary files.

    Two bytes for each word of the vocabulary and each token: 98 kB a token for 49,152 words, so
    100 texts of 250 tokens are 2.5 GB. They are files, mapped into memory, so that the operating
    system may drop what does not fit. Removed with the object.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmprune-base-")
        self._files: dict[Hashable, Path] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._files

    def put(self, key: Hashable, rows: torch.Tensor) -> None:
        """Keep the rows [positions, V] in float16 of one text.

        :raises PruneError: if the disk is full
        """
        file = Path(self._folder.name) / f"{len(self._files)}.npy"
        try:
            np.save(file, rows.numpy())
        except OSError as error:
            file.unlink(missing_ok=True)
            raise PruneError(
                f"cannot keep the base's distributions in {file.parent}: {error.strerror}",
                hint="set TMPDIR to a disk with more room, or use fewer items",
            ) from error
        self._files[key] = file

    def get(self, key: Hashable) -> NDArray[np.float16]:
        """Return the rows of one text, read from its file as they are used."""
        rows: NDArray[np.float16] = np.load(self._files[key], mmap_mode="c")
        return rows


def blocks(texts: Sequence[Text], first: int) -> Iterator[list[Text]]:
    """Yield the (id, text) items ``first``, ... of a split in the blocks that evaluations use."""
    at = 0
    while at < len(texts):
        size = BLOCK - (first + at) % BLOCK
        yield list(texts[at : at + size])
        at += size


def remember(
    lm: PackedLM, texts: Sequence[Text], first: int, prefix: Hashable, base: BaseDistributions
) -> None:
    """Store the distributions of the model, which must be the base, on all texts not yet known."""
    for block in blocks(texts, first):
        if all((prefix, name) in base for name, _ in block):
            continue
        for batch in lm.passage_batches([text for _, text in block]):
            for place, logits in _by_text(lm, batch):
                base.put(
                    (prefix, block[place][0]), torch.cat([rows.cpu() for rows in _scaled(logits)])
                )


def compare(
    lm: PackedLM, texts: Sequence[Text], first: int, prefix: Hashable, base: BaseDistributions
) -> tuple[ItemResult, ...]:
    """Return the mean acceptance of each text, 0..1, with the model as it is now."""
    found = []
    for block in blocks(texts, first):
        accepted = {}
        for batch in lm.passage_batches([text for _, text in block]):
            for place, logits in _by_text(lm, batch):
                rows = torch.from_numpy(base.get((prefix, block[place][0])))
                accepted[place] = _acceptance(rows, logits)
        found += [(name, accepted[place]) for place, (name, _) in enumerate(block)]
    return tuple(ItemResult(name, value, margin=None, prediction="") for name, value in found)


def _by_text(lm: PackedLM, batch: Batch) -> Iterator[tuple[int, torch.Tensor]]:
    """Run a batch of passages; yield each one's place and logits [positions, V]."""
    logits, at = lm.forward(batch), 0
    for place, length in zip(batch.places, batch.lengths, strict=True):
        yield place, logits[batch.source[at : at + length]]
        at += length


def _scaled(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the distributions in chunks, in float16 as `BaseDistributions` keeps them."""
    for chunk in torch.split(logits, _CHUNK):
        yield (chunk.float().softmax(dim=-1) * _SCALE).half()


def _acceptance(base: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the mean over positions of sum_v min(p, q) = 1 - sum_v |p - q| / 2.

    The second form gives exactly 1 for the base itself, however its values were rounded.
    """
    distance = torch.zeros((), dtype=torch.float64, device=logits.device)
    for p, q in zip(torch.split(base, _CHUNK), _scaled(logits), strict=True):
        away = (p.to(q.device).float() - q.float()).abs_()
        distance += away.sum(dtype=torch.float64)
    return 1.0 - float(distance) / (2.0 * _SCALE * len(base))
