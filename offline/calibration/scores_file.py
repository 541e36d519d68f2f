"""Scores on disk: ``scores.json`` to read, ``scores.safetensors`` with the numbers.

Tensors are named ``domains/DOMAIN/LAYER/FIELD``, ``domains/DOMAIN/LAYER/gradient/FIELD`` and
``weights/LAYER/FIELD`` after the fields of statistics.py, and are float64, so that a round trip
is exact; ``vocabulary`` is packed to bits, uint8 [E, ceil(V / 8)], the first id in the highest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from safetensors.numpy import save_file

from offline.calibration.statistics import (
    WEIGHT_BINS,
    GradientStatistics,
    LayerStatistics,
    WeightStatistics,
)
from offline.maps.moe_shape import MoeShape
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.provenance import Provenance, let_others_read, write_atomic
from vllm_moe_prune.reading import MissingFileError, opened, read_object, validated
from vllm_moe_prune.tensor_files import read_arrays

SCHEMA_VERSION = 2  # 1 has no `flatness`
SCORES_FILE = "scores.json"
TENSORS_FILE = "scores.safetensors"

Arrays = dict[str, NDArray[Any]]
Domains = Mapping[str, Mapping[int, LayerStatistics]]
Weights = Mapping[int, WeightStatistics]

# Axes of the fields: E experts, D hidden, B bins, V bytes of vocabulary bits; "" is one number.
_SEEN = {
    **{"tokens": "", "counts": "E", "scores": "E", "weights": "E", "weight_bins": "EB"},
    **{"logit_gram": "EE", "pairs": "EE", "vocabulary": "EV", "mean": "ED", "deviations": "ED"},
    **{"units": "ED", "norms": "E", "weighted_norms": "E", "outliers": "E", "peaks": "E"},
}
_GRADIENT = {"similarity": "EE", "entropy": "E", "outliers": "E", "norm": "E"}
_WEIGHTS = {
    **{"similarity": "EE", "router_norm": "E", "stable_rank": "E", "norm": "E", "flatness": "E"},
}
_LATER = {"flatness"}  # of weights; scores of schema version 1 have none
assert _SEEN.keys() | {"gradient"} == {field.name for field in fields(LayerStatistics)}
assert _GRADIENT.keys() == {field.name for field in fields(GradientStatistics)}
assert _WEIGHTS.keys() == {field.name for field in fields(WeightStatistics)}


class DomainRecord(BaseModel):
    """What was seen of one domain of text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(ge=0)
    sequences: int | None = Field(default=None, ge=0)
    gradients: bool
    tokens_seen: dict[int, tuple[int, ...]]  # decoder layer -> tokens routed to each expert


class ScoresRecord(BaseModel):
    """``scores.json``: what the numbers are of, and the hash of the file that holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model_type: str
    base: BaseFingerprint
    hidden: int = Field(ge=1, strict=True)  # D
    vocab: int = Field(ge=1, strict=True)  # V
    num_groups: int = Field(default=1, ge=1, strict=True)
    topk_group: int = Field(default=1, ge=1, strict=True)
    slices: bool = True
    incomplete: dict[int, tuple[StrictInt, ...]] | None = None  # decoder layer -> experts
    top_k: dict[int, StrictInt] = Field(min_length=1)  # decoder layer -> k
    num_experts: dict[int, StrictInt]  # decoder layer -> E
    domains: dict[str, DomainRecord] = Field(min_length=1)
    provenance: Provenance
    tensors: str = ""  # sha256:... of scores.safetensors

    @property
    def shape(self) -> MoeShape:
        """Return the shape of the scored model, its layers in order."""
        layout = LAYOUTS.get(self.model_type)
        return MoeShape(
            model_type=self.model_type,
            base=self.base,
            num_experts=dict(sorted(self.num_experts.items())),
            top_k=dict(sorted(self.top_k.items())),
            num_groups=self.num_groups,
            topk_group=self.topk_group,
            slices=self.slices,
            mappable=layout is not None and layout.mappable,
            incomplete=self.incomplete or {},
        )

    def to_json(self) -> str:
        """Return readable JSON: each list of numbers on one line."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2)
        # A line break right after a bracket cannot be part of a JSON string.
        lists = re.compile(r"\[\n\s*([^\[\]{}\"]*?)\s*\]")
        return lists.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def record_of(
    shape: MoeShape, domains: Domains, sequences: Mapping[str, int], provenance: Provenance
) -> ScoresRecord:
    """Describe statistics of a model of this shape.

    :param sequences: domain -> sequences of its text, where that is known
    """
    first = next(iter(next(iter(domains.values())).values()))
    return ScoresRecord(
        model_type=shape.model_type,
        base=shape.base,
        hidden=first.mean.shape[1],
        vocab=first.vocabulary.shape[1],
        num_groups=shape.num_groups,
        topk_group=shape.topk_group,
        slices=shape.slices,
        incomplete=dict(shape.incomplete) or None,
        top_k=dict(shape.top_k),
        num_experts=dict(shape.num_experts),
        domains={
            name: DomainRecord(
                tokens=int(max(seen.tokens for seen in found.values())),
                sequences=sequences.get(name),
                gradients=all(seen.gradient is not None for seen in found.values()),
                tokens_seen={
                    number: tuple(int(count) for count in seen.counts)
                    for number, seen in found.items()
                },
            )
            for name, found in domains.items()
        },
        provenance=provenance,
    )


def write(folder: Path, domains: Domains, weights: Weights, record: ScoresRecord) -> None:
    """Write both files; the JSON is removed first and written last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCORES_FILE).unlink(missing_ok=True)
    file = folder / TENSORS_FILE
    partial = file.with_name(f".{file.name}.partial")
    try:
        save_file(dict(_named(domains, weights, record)), partial)
        let_others_read(partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    earlier = any(one.flatness is None for one in weights.values())  # read from schema version 1
    version = {"schema_version": 1} if earlier else {}
    whole = record.model_copy(update={"tensors": _sha256(file), **version})
    write_atomic(folder / SCORES_FILE, whole.to_json())


def _named(
    domains: Domains, weights: Weights, record: ScoresRecord
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield tensor names and arrays."""
    for number, one in weights.items():
        yield from _fields(f"weights/{number}", one, _WEIGHTS)
    for name, layers in domains.items():
        for number, seen in layers.items():
            prefix = f"domains/{name}/{number}"
            yield from _fields(prefix, seen, _SEEN)
            if record.domains[name].gradients:
                yield from _fields(f"{prefix}/gradient", seen.gradient, _GRADIENT)


def _fields(prefix: str, source: Any, axes: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name in axes:
        value = getattr(source, name)
        if value is None:  # read from scores of an earlier version
            continue
        if name == "vocabulary":
            yield f"{prefix}/{name}", np.packbits(value, axis=1)
        else:
            # Unlike ascontiguousarray, this gives a single number no axis.
            yield f"{prefix}/{name}", np.asarray(value, np.float64, order="C")


def read(
    folder: Path,
) -> tuple[ScoresRecord, dict[str, dict[int, LayerStatistics]], dict[int, WeightStatistics]]:
    """Read what `write` wrote.

    :raises PruneError: if something is missing, damaged, or of a newer schema
    """
    record = _read_record(folder / SCORES_FILE)
    reader = _Reader(_read_tensors(folder / TENSORS_FILE, record), folder / TENSORS_FILE, record)
    weights = {
        number: WeightStatistics(**reader.take(f"weights/{number}", _WEIGHTS, number))
        for number in record.top_k
    }
    domains = {
        name: {
            number: reader.seen(f"domains/{name}/{number}", number, gradients=entry.gradients)
            for number in record.top_k
        }
        for name, entry in record.domains.items()
    }
    if reader.arrays:
        raise PruneError(f"{reader.file} has {min(reader.arrays)}, which {SCORES_FILE} lacks")
    return record, domains, weights


class _Reader:
    """Takes arrays by name and checks their dtype and shape."""

    def __init__(self, arrays: Arrays, file: Path, record: ScoresRecord) -> None:
        self.arrays, self.file, self.record = arrays, file, record

    def seen(self, prefix: str, layer: int, *, gradients: bool) -> LayerStatistics:
        found = self.take(prefix, _SEEN, layer)
        found["tokens"] = float(found["tokens"])
        bits = np.unpackbits(found["vocabulary"], axis=1, count=self.record.vocab)
        found["vocabulary"] = bits.view(np.bool_)
        gradient = None
        if gradients:
            taken = self.take(f"{prefix}/gradient", _GRADIENT, layer)
            gradient = GradientStatistics(**taken)
        return LayerStatistics(**found, gradient=gradient)

    def take(self, prefix: str, axes: Mapping[str, str], layer: int) -> dict[str, Any]:
        sizes = {
            "E": self.record.num_experts[layer],
            "D": self.record.hidden,
            "B": WEIGHT_BINS,
            "V": -(-self.record.vocab // 8),
        }
        found = {}
        for name, letters in axes.items():
            array = self.arrays.pop(f"{prefix}/{name}", None)
            if array is None and name in _LATER and self.record.schema_version == 1:
                continue
            shape = tuple(sizes[letter] for letter in letters)
            dtype = np.uint8 if name == "vocabulary" else np.float64
            if array is None or array.shape != shape or array.dtype != dtype:
                has = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
                expected = f"{np.dtype(dtype)}{list(shape)}"
                raise PruneError(f"{self.file}: {prefix}/{name} is {has}, not {expected}")
            found[name] = array
        return found


def _read_record(file: Path) -> ScoresRecord:
    try:
        content = read_object(file, "scores ")
    except MissingFileError:
        raise PruneError(f"no scores at {file}", hint="make them with vmprune score") from None
    version = content.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise PruneError(
            f"scores {file} have schema_version {version}, "
            f"this program reads up to {SCHEMA_VERSION}",
            hint="upgrade vllm-moe-prune, or score again",
        )
    record = validated(content, ScoresRecord, f"scores {file}")
    if record.num_experts.keys() != record.top_k.keys():
        raise PruneError(f"scores {file}: num_experts and top_k are not of the same layers")
    return record


def _read_tensors(file: Path, record: ScoresRecord) -> Arrays:
    try:
        digest = _sha256(file)
        if digest != record.tensors:
            raise PruneError(
                f"{file} is damaged or not the file that {SCORES_FILE} describes",
                hint="copy both files again, or score again",
            )
        return read_arrays(file)
    except MissingFileError as error:
        raise PruneError(error.message, hint="copy both files, or score again") from None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with opened(file) as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return "sha256:" + digest.hexdigest()
