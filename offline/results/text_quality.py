"""`TextQuality`: what a model makes of plain text, beside its base: perplexity and agreement."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from offline.results.estimate import Estimate, worst
from offline.results.result_file import ResultFile
from vllm_moe_prune.provenance import Provenance

TEXT_QUALITY_FILE = "text_quality.json"


class DomainQuality(BaseModel):
    """One domain's documents under a model; intervals are over documents drawn again.

    ``perplexity`` is exp of the mean negative log-likelihood of a token, ``ratio`` the model's by
    the base's on the same documents. ``same_first`` is the share of places where the base's
    likeliest token is the model's too, ``divergence`` the mean KL(base || model) in nats over the
    base's ``listed`` likeliest tokens and all others as one: never more than the whole, and less
    yet where ``divergence_is_least``, as a server tells only the likeliest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    pieces: bool = Field(default=False, description="documents are pieces of fewer, longer ones")
    perplexity: Estimate
    base_perplexity: Estimate | None = None
    ratio: Estimate | None = None
    same_first: Estimate | None = None
    divergence: Estimate | None = None
    listed: int = 0
    divergence_is_least: bool = False


class TextQuality(ResultFile):
    """All domains that were measured in one go."""

    file_name = TEXT_QUALITY_FILE
    made_by = "vmprune eval --perplexity or --agreement"

    schema_version: int = 1
    model: str
    base: str | None = None
    domains: tuple[DomainQuality, ...]
    provenance: Provenance

    @property
    def worst_ratio(self) -> Estimate | None:
        """The greatest ratio of perplexities; None where there is no base."""
        ratios = [domain.ratio for domain in self.domains if domain.ratio is not None]
        return worst(ratios) if ratios else None
