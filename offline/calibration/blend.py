"""Joins the statistics of a layer on several domains of text, each with a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from offline.calibration.statistics import Floats, GradientStatistics, LayerStatistics
from vllm_moe_prune.errors import PruneError

# Everything else that is joined is a plain sum over tokens.
_SUMS = (
    *("counts", "scores", "weights", "weight_bins", "logit_gram", "pairs"),
    *("units", "norms", "weighted_norms", "outliers"),
)


def factors(tokens: Mapping[str, float], blend: Mapping[str, float] | None) -> dict[str, float]:
    """Return domain -> by how much each of its tokens counts, without domains that do not.

    None lets each token of every domain count once. A blend of weights w lets each token of domain
    d count ``(w_d / sum w) * (sum T / T_d)`` times, sums over the domains with a weight above 0:
    the blend stands for as many tokens as these domains have, and domain d for its weight's share
    of them. So a domain alone counts as it is, and weights like the numbers of tokens pool.

    :param tokens: T_d of each domain
    :raises PruneError: if a domain is unknown, a weight negative, or none above 0
    """
    if blend is None:
        return dict.fromkeys(tokens, 1.0)
    known = f"the scores have {', '.join(sorted(tokens))}"
    for domain, weight in blend.items():
        if domain not in tokens:
            raise PruneError(f"no scores of domain {domain!r}", hint=known)
        if not (math.isfinite(weight) and weight >= 0):
            raise PruneError(f"domain {domain} has weight {weight}", hint="give 0 or more")
    chosen = {domain: weight for domain, weight in blend.items() if weight > 0}
    if not chosen:
        raise PruneError("no domain has a weight above 0", hint=known)
    total, all_tokens = sum(chosen.values()), sum(tokens[domain] for domain in chosen)
    return {
        domain: (weight / total) * (all_tokens / tokens[domain]) if tokens[domain] else 0.0
        for domain, weight in chosen.items()
    }


def blended(parts: Sequence[tuple[float, LayerStatistics]]) -> LayerStatistics:
    """Join statistics of one layer, each with the factor by which its tokens count.

    Sums are linear; means and deviations are joined by the parallel formula with the scaled
    counts; vocabularies are united; of peaks the greatest counts. Outliers are summed, so each is
    against its own domain's mean and deviation. Gradient statistics are means weighted by share
    of the tokens, and absent if one part has none.
    """
    if len(parts) == 1 and parts[0][0] == 1.0:
        return parts[0][1]
    mean, deviations = _moments(parts)
    sums = {name: _sum(parts, name) for name in _SUMS}
    return LayerStatistics(
        tokens=sum(factor * part.tokens for factor, part in parts),
        vocabulary=np.logical_or.reduce([part.vocabulary for _, part in parts]),
        mean=mean,
        deviations=deviations,
        peaks=np.max([part.peaks for _, part in parts], axis=0),
        gradient=_gradient(parts),
        **sums,
    )


def _sum(parts: Sequence[tuple[float, LayerStatistics]], name: str) -> Floats:
    total: Floats = np.zeros_like(getattr(parts[0][1], name))
    for factor, part in parts:
        total += factor * getattr(part, name)
    return total


def _moments(parts: Sequence[tuple[float, LayerStatistics]]) -> tuple[Floats, Floats]:
    """Return mean and squared deviations of the outputs, [E, D] each."""
    first = parts[0][1]
    counts = np.zeros_like(first.counts)  # [E]
    mean, deviations = np.zeros_like(first.mean), np.zeros_like(first.mean)
    for factor, part in parts:
        new = factor * part.counts
        total = counts + new
        share = np.divide(new, total, out=np.zeros_like(total), where=total > 0)[:, None]
        shift = part.mean - mean
        mean = mean + shift * share
        deviations = deviations + factor * part.deviations + shift**2 * counts[:, None] * share
        counts = total
    return mean, deviations


def _gradient(parts: Sequence[tuple[float, LayerStatistics]]) -> GradientStatistics | None:
    """Return the means of the gradient statistics."""
    total = sum(factor * part.tokens for factor, part in parts)
    joined: dict[str, Floats] = {}
    for factor, part in parts:
        if part.gradient is None:
            return None
        share = factor * part.tokens / total if total else 0.0
        for field in fields(part.gradient):
            before = joined.get(field.name, 0.0)
            joined[field.name] = before + share * getattr(part.gradient, field.name)
    return GradientStatistics(**joined)


def parse_blend(text: str) -> dict[str, float]:
    """Read `code:2,prose:1`; a name alone has weight 1.

    :raises PruneError: naming the part that is wrong
    """
    found: dict[str, float] = {}
    for part in (piece.strip() for piece in text.split(",")):
        name, _, weight = (part if ":" in part else f"{part}:1").rpartition(":")
        try:
            value = float(weight)
        except ValueError:
            raise PruneError(f"--domains {text!r}: weight {weight!r} is not a number") from None
        if not name or not math.isfinite(value) or value < 0:
            raise PruneError(f"--domains {text!r}: {part!r} is not NAME:WEIGHT, WEIGHT 0 or more")
        if name in found:
            raise PruneError(f"--domains {text!r}: {name} is given twice")
        found[name] = value
    return found
