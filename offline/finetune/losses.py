"""What is minimised: summed over places, with gradients of the logits."""

from __future__ import annotations

import torch

from offline.finetune.examples import NO_LOSS


def next_token(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the summed negative log-likelihood of tokens, in nats.

    :param logits: [..., V], of the model
    :param wanted: [...] the tokens; ``NO_LOSS`` where none counts
    """
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, -2), wanted.flatten(), ignore_index=NO_LOSS, reduction="sum"
    )


def divergence(logits: torch.Tensor, tokens: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Return the summed KL(teacher || model) in nats, over listed tokens and all others as one.

    That is never more than the whole KL, and 0 where both are equal: as `engines.reading` has it.
    What the others have of the model is summed up itself, as one less the listed ones loses all
    digits where a model is sure.

    :param logits: [T, V], of the model, in float32 or more
    :param tokens: [T, K], each once in a row
    :param log_probs: [T, K], of the teacher
    """
    whole = logits.logsumexp(dim=-1, keepdim=True)
    p = log_probs.double().exp()
    total = (p * (log_probs - (logits.gather(1, tokens) - whole))).sum()
    if tokens.shape[1] < logits.shape[1]:
        rest = (1 - p.sum(dim=-1)).clamp_min(0)
        others = logits.scatter(1, tokens, -torch.inf).logsumexp(dim=-1) - whole[:, 0]
        total = total + (torch.xlogy(rest, rest) - rest * others).sum()
    return total.to(logits.dtype)
