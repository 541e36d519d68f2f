"""`Sensitivity`: what a model loses when each layer alone keeps fewer experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from offline.results.result_file import ResultFile
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import DataIdentity, Provenance, sha256_text

SENSITIVITY_FILE = "sensitivity.json"


class LayerSensitivity(BaseModel):
    """One layer: by the experts that it keeps, what a token's loss is more, in nats.

    All other layers keep all of theirs; with all E of its own the loss is 0 more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layer: int = Field(ge=0)
    num_experts: int = Field(ge=1)
    losses: dict[int, float] = Field(description="experts kept -> nats per token, below E each")

    def curve(self) -> NDArray[np.float64]:
        """Return the loss by the number of experts kept, [E + 1], straight between those measured.

        Below the fewest that were measured it is that of the fewest.
        """
        known = {**self.losses, self.num_experts: 0.0}
        counts = sorted(known)
        return np.interp(range(self.num_experts + 1), counts, [known[n] for n in counts])


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
        return {one.layer: one.curve() for one in self.layers}


Losses = dict[int, NDArray[np.float64]]
