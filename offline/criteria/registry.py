"""All criteria by name, and the words that a user writes: `min-ean`, `max-rwn`, or just `ean`.

Adding one is a function in one of the files beside this and a line in ``CRITERIA``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from offline.calibration.statistics import Floats, LayerEvidence
from offline.criteria.activation import (
    activation_entropy,
    activation_norm,
    activation_outliers,
    activation_similarity,
)
from offline.criteria.gradient import (
    gradient_entropy,
    gradient_norm,
    gradient_outliers,
    gradient_similarity,
)
from offline.criteria.inference import (
    collaboration,
    token_similarity,
    usage,
    vocabulary_coverage,
)
from offline.criteria.order import Direction, DropOrder, order_of, pair_order
from offline.criteria.others import (
    ean_token_sum,
    mean_norm,
    mean_squared_norm,
    reap,
    soft_activation,
    weighted_frequency,
)
from offline.criteria.weight import (
    router_norm,
    stable_rank,
    weight_flatness,
    weight_norm,
    weight_similarity,
)
from vllm_moe_prune.errors import PruneError

Group = Literal["weight", "inference", "activation", "gradient"]
# Where the better direction comes from: the figures and tables of the source, or our reading where
# it is silent.
Grounds = Literal["paper", "our reading"]

_MC_SUITE = "MC-Suite, arXiv 2504.05586"
_MEANS = "MAN and MSAN, arXiv 2606.15716"


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion: what it computes, and which end of it is better dropped first.

    ``of_pairs`` says that it values pairs [E, E], not experts [E].
    """

    function: Callable[[LayerEvidence], Floats]
    group: Group
    better: Direction
    grounds: Grounds
    formula: str
    of_pairs: bool = False
    source: str = _MC_SUITE

    @property
    def needs_gradients(self) -> bool:
        """Whether scores must have been made with gradients."""
        return self.group == "gradient"

    @property
    def needs_tokens(self) -> bool:
        """Whether it says nothing of an expert that saw no token: such experts then go first."""
        return self.of_pairs or self.group in ("activation", "gradient")

    @property
    def meaning(self) -> str:
        """Return what it is, in one line: how its function's docstring begins."""
        first = (self.function.__doc__ or "").splitlines()[0]
        return re.sub(r", \[E(, E)?\]", "", first.removesuffix("."))


CRITERIA: Mapping[str, Criterion] = {
    "ews": Criterion(weight_similarity, "weight", "max", "paper", "sum_q cos(W_p, W_q), q != p"),
    "rwn": Criterion(router_norm, "weight", "max", "paper", "|gate_p|_2"),
    "wsr": Criterion(stable_rank, "weight", "max", "paper", "mean over W of |W|_F^2 / |W|_2^2"),
    "ewn": Criterion(weight_norm, "weight", "min", "our reading", "|W_p|_2"),
    "euf": Criterion(usage, "inference", "min", "paper", "T_p"),
    "ecc": Criterion(
        collaboration, "inference", "max", "paper", "tokens of p and q", of_pairs=True
    ),
    "evtc": Criterion(vocabulary_coverage, "inference", "min", "paper", "|ids_p| / |V|"),
    "ets": Criterion(
        token_similarity, "inference", "max", "paper", "|ids_p and ids_q|", of_pairs=True
    ),
    "weighted_frequency": Criterion(
        weighted_frequency, "inference", "min", "our reading", "sum_t g_t", source="ours"
    ),
    "soft_activation": Criterion(
        soft_activation,
        "inference",
        "min",
        "paper",
        "sum over all tokens of score_p",
        source="EEP, arXiv 2407.00945, appendix A.2",
    ),
    "eas": Criterion(
        activation_similarity, "activation", "max", "paper", "sum_q mean cos(a_p, a_q), q != p"
    ),
    "eae": Criterion(activation_entropy, "activation", "min", "paper", "sum_j ln std(A_p[:, j])"),
    "eao": Criterion(
        activation_outliers, "activation", "min", "our reading", "|entries beyond 3 std_j|"
    ),
    "ean": Criterion(activation_norm, "activation", "min", "paper", "sum_j |A_p[:, j]|_2"),
    "ean_token_sum": Criterion(
        ean_token_sum,
        "activation",
        "min",
        "our reading",
        "sum_t |A_p[t, :]|_2",
        source="other implementations of MC-Suite's EAN",
    ),
    "reap": Criterion(
        reap,
        "activation",
        "min",
        "paper",
        "mean_t g_t |A_p[t, :]|_2",
        source="REAP, arXiv 2510.13999",
    ),
    "man": Criterion(
        mean_norm, "activation", "min", "paper", "mean_t |A_p[t, :]|_2", source=_MEANS
    ),
    "msan": Criterion(
        mean_squared_norm, "activation", "min", "paper", "mean_t |A_p[t, :]|_2^2", source=_MEANS
    ),
    "aimer": Criterion(
        weight_flatness,
        "weight",
        "max",
        "paper",
        "mean |W_p| / rms(W_p)",
        source="AIMER, arXiv 2603.18492",
    ),
    "egs": Criterion(gradient_similarity, "gradient", "max", "our reading", "EWS of W_p^g"),
    "ege": Criterion(gradient_entropy, "gradient", "min", "paper", "sum_j ln std(W_p^g[:, j])"),
    "ego": Criterion(gradient_outliers, "gradient", "min", "our reading", "EAO of W_p^g"),
    "egn": Criterion(gradient_norm, "gradient", "min", "our reading", "|W_p^g|_2"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A criterion and the end of it that is dropped first: what a word such as `min-ean` says."""

    name: str
    direction: Direction

    @classmethod
    def parse(cls, word: str) -> Rule:
        """Read `min-NAME` (drops the lowest first), `max-NAME`, or a bare name: the better end.

        :raises PruneError: naming the word and the criteria that there are
        """
        text = word.strip().lower()
        direction: Direction | None = (
            "min" if text.startswith("min-") else "max" if text.startswith("max-") else None
        )
        name = (text[4:] if direction else text).replace("-", "_")
        if name not in CRITERIA:
            raise PruneError(
                f"unknown criterion {word!r}",
                hint=f"min-NAME, max-NAME or NAME, with NAME one of {', '.join(CRITERIA)}",
            )
        return cls(name, direction or CRITERIA[name].better)

    @property
    def word(self) -> str:
        """Return the word with its direction, e.g. `min-ean`."""
        return f"{self.direction}-{self.name}"

    @property
    def criterion(self) -> Criterion:
        """Return the criterion's line of the table."""
        return CRITERIA[self.name]

    def order(self, evidence: LayerEvidence, protected: Collection[int] = ()) -> DropOrder:
        """Return in which order the experts of a layer go.

        :param protected: experts that will stay: a pair's rule takes the other one. Criteria that
            value experts order them all the same
        :raises PruneError: if the layer saw no token, a value is not finite, or the criterion
            needs gradients and there are none
        """
        criterion, seen = self.criterion, evidence.seen
        values = values_of(self.name, evidence)
        unseen = (seen.counts == 0) & criterion.needs_tokens
        if criterion.of_pairs:
            return pair_order(values, self.direction, seen.counts, unseen, protected)
        return order_of(values, self.direction, unseen)


def values_of(name: str, evidence: LayerEvidence) -> Floats:
    """Return a criterion's values in one layer: [E], or [E, E] if it is of pairs.

    :raises PruneError: as `Rule.order`
    """
    criterion = CRITERIA[name]
    if not evidence.seen.tokens:
        raise PruneError(
            f"layer {evidence.layer} saw no token in these scores",
            hint="give --domains that were scored, or score more text",
        )
    if criterion.needs_gradients and evidence.seen.gradient is None:
        raise PruneError(
            f"criterion {name} needs gradients, which these scores do not hold",
            hint="make them with `vmprune score --gradients`",
        )
    values = criterion.function(evidence)
    if not np.isfinite(values).all():
        expert = int(np.argwhere(~np.isfinite(values))[0][0])
        raise PruneError(
            f"layer {evidence.layer}: criterion {name} of expert {expert} is not finite",
            hint="the model overflows in this dtype; score it with --dtype float32",
        )
    return values
