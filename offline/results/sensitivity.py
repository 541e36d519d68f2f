"""`Sensitivity`: what a model loses when each layer alone keeps fewer experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from offline.results.result_file import ResultFile
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import DataIdentity, Provenance, sha256_text

SENSITIVITY_FILE = "sensitivity.json"
_POWERS = (1.5, 3, 6)  # of the share that goes: every sum of them rises, and ever more steeply


class LayerSensitivity(BaseModel):
    """One layer: by the experts that it keeps, what a token's loss is more, in nats.

    All other layers keep all of theirs; with all E of its own the loss is 0 more. ``errors`` are
    standard errors over documents drawn again, where domains have two or more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layer: int = Field(ge=0)
    num_experts: int = Field(ge=1)
    losses: dict[int, float] = Field(description="experts kept -> nats per token, below E each")
    errors: dict[int, float] = Field(default_factory=dict)

    def curve(self) -> NDArray[np.float64]:
        """Return the loss by the number of experts kept, [E + 1]: a convex fit of those measured.

        Least squares over sums of powers of the share that goes, with no negative part: each expert
        more that goes costs more than the one before, as noise would not have it.
        """
        from scipy.optimize import nnls

        def powers(counts: Iterable[int]) -> NDArray[np.float64]:
            gone = 1 - np.fromiter(counts, np.float64) / self.num_experts
            return np.stack([gone**power for power in _POWERS], axis=1)

        parts, _ = nnls(powers(self.losses), np.array(list(self.losses.values())))
        return np.asarray(powers(range(self.num_experts + 1)) @ parts)


class Sensitivity(ResultFile):
    """All layers of a model, under one order of its experts.

    ``choice`` are the settings of `vmprune plan` that this order comes from; ``loss`` is that of a
    token with every expert there, the mean over the domains, each of which counts the same.
    """

    file_name = SENSITIVITY_FILE
    made_by = "vmprune sensitivity"

    schema_version: int = 1
    base: BaseFingerprint
    choice: dict[str, JsonValue]
    loss: float
    tokens: int = Field(ge=1)
    layers: tuple[LayerSensitivity, ...]
    provenance: Provenance

    @property
    def identity(self) -> DataIdentity:
        """Say by content which measurement this is, for the provenance of what goes by it."""
        digest = sha256_text(self.to_json())
        return DataIdentity(name="sensitivity", count=self.tokens, sha256=digest)

    def losses(self, base: BaseFingerprint, choice: dict[str, JsonValue]) -> Losses:
        """Return decoder layer -> loss by the number of experts kept, [E + 1].

        :raises PruneError: if another base was measured, or what other settings choose
        """
        if not self.base.matches(base):
            raise PruneError(
                f"the sensitivity is of another base ({self.base.name or 'unnamed'})",
                hint="measure this model: vmprune sensitivity",
            )
        for name in sorted({*self.choice, *choice}):
            own, asked = self.choice.get(name), choice.get(name)
            if own != asked:
                flag = f"--{name.replace('_', '-')}"
                raise PruneError(
                    f"the sensitivity was measured with {flag} {own}, not {asked}",
                    hint="measure it with the settings of the plan, or plan with its own",
                )
        return {one.layer: one.curve() for one in shrunk(self.layers)}


def shrunk(layers: Sequence[LayerSensitivity]) -> list[LayerSensitivity]:
    """Return the layers with losses nearer to their mean, the more the larger their errors.

    Of layers that were measured alike, the variance among them is that of the losses less the mean
    squared error, s^2; a loss with error e keeps s^2 / (s^2 + e^2) of its distance to the mean
    (empirical Bayes). What is all noise becomes the same in every layer.
    """
    found = []
    for one in layers:
        how = one.num_experts, {*one.losses}
        alike = [other for other in layers if (other.num_experts, {*other.losses}) == how]
        losses = {count: _shrunk(one, count, alike) for count in one.losses}
        found.append(one.model_copy(update={"losses": losses}))
    return found


def _shrunk(one: LayerSensitivity, count: int, alike: Sequence[LayerSensitivity]) -> float:
    values = np.array([other.losses[count] for other in alike])
    noise = np.array([other.errors.get(count, 0.0) for other in alike]) ** 2
    own = one.errors.get(count, 0.0) ** 2
    if len(alike) < 2 or own == 0:
        return one.losses[count]
    among = max(float(values.var(ddof=1) - noise.mean()), 0.0)
    mean = float(values.mean())
    return mean + among / (among + own) * (one.losses[count] - mean)


Losses = dict[int, NDArray[np.float64]]
