"""What logits say of a text that a model reads: see `Reading`."""

from __future__ import annotations

import torch

from offline.engines.reading import Reading

_CHUNK = 256  # positions whose distributions are in float32 at the same time


def read(
    logits: torch.Tensor,
    rows: torch.Tensor,
    targets: torch.Tensor,
    count: int,
    wanted: torch.Tensor | None,
) -> Reading:
    """Read off what was expected of one text.

    :param logits: [K, V]
    :param rows: [L] which of them is of each token
    :param targets: [L] the tokens
    :param count: likeliest tokens to list
    :param wanted: [L, N] tokens to list instead
    """
    parts: tuple[list[torch.Tensor], ...] = ([], [], [], [])
    for begin in range(0, len(rows), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        found = read_rows(logits[rows[part]], targets[part], count, _part(wanted, part))
        for column, values in zip(parts, found, strict=True):
            column.append(values)
    own, greatest, tokens, listed = (torch.cat(column) for column in parts)
    return Reading(
        own.double().cpu().numpy(),
        greatest.cpu().numpy(),
        tokens.to(torch.int32).cpu().numpy(),
        listed.cpu().numpy(),
    )


def read_rows(
    logits: torch.Tensor, targets: torch.Tensor, count: int, wanted: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the log-probabilities [L] of the targets and [L] of the likeliest tokens, and the
    tokens that are listed with theirs, [L, K], all where the logits are.

    :param logits: [L, V]
    :param targets: [L]
    """
    log_probs = logits.float().log_softmax(dim=-1)
    own = log_probs.gather(1, targets.to(logits.device)[:, None])[:, 0]
    greatest = log_probs.amax(dim=-1)
    if wanted is None:
        listed, tokens = log_probs.topk(min(count, log_probs.shape[1]), dim=-1)
    else:
        tokens = wanted.to(logits.device, torch.int64)
        listed = log_probs.gather(1, tokens)
    return own, greatest, tokens, listed


def _part(wanted: torch.Tensor | None, part: slice) -> torch.Tensor | None:
    return None if wanted is None else wanted[part]
