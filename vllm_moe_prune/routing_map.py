"""`RoutingMap`: the artefact that says, per layer, what becomes of each expert and of the router.

On disk it is a folder with ``routing_map.json`` and, only where a matrix is not one-hot,
``routing_map.safetensors``. The format is described in docs/routing-map.md.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
    ValidationError,
    model_validator,
)
from safetensors.numpy import save

from vllm_moe_prune.errors import PruneError, one_line
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.layer_map import LayerMap, Selection, check_groups
from vllm_moe_prune.matrices import Matrix, check_matrices, read_matrices
from vllm_moe_prune.provenance import Provenance, write_atomic
from vllm_moe_prune.reading import MissingFileError, read_object, validated
from vllm_moe_prune.tuning import Tuning

SCHEMA_VERSION = 3
MAP_FILE = "routing_map.json"
MATRIX_FILE = "routing_map.safetensors"

Form = Literal["plain", "compact"]


class RoutingMap(BaseModel):
    """One `LayerMap` per layer with experts, the matrices they name, and how it all came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: StrictInt = 2  # 3 where experts are substituted: older readers know the rest
    model_type: str
    base: BaseFingerprint
    num_groups: int = Field(default=1, ge=1, strict=True)
    layers: tuple[LayerMap, ...] = Field(min_length=1)
    tokens_seen: dict[int, tuple[StrictInt, ...]] | None = None
    tuned: tuple[Tuning, ...] = ()  # finetunes that the weights beside this map went through
    provenance: Provenance
    _matrices: dict[str, Matrix] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        numbers = Counter(layer.layer for layer in self.layers)
        for layer in self.layers:
            if numbers[layer.layer] > 1:
                raise ValueError(f"layer {layer.layer} appears twice")
            check_groups(layer, self.num_groups)
        if self.tuned and self.schema_version < 2:
            raise ValueError("`tuned` needs schema_version 2")
        if self.substitutes and self.schema_version < 3:
            raise ValueError("`substituted` needs schema_version 3")
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoutingMap):
            return NotImplemented
        return self.digest() == other.digest() and self.model_dump() == other.model_dump()

    @classmethod
    def build(cls, *, matrices: Mapping[str, Any] | None = None, **fields: Any) -> RoutingMap:
        """Make a map together with the matrices that its layers name.

        :param matrices: name -> array, finite; stored as float32
        :param fields: ``schema_version`` is the lowest that has them, if not given
        :raises PruneError: if a rule is broken, naming the layer and the rule
        """
        layers = fields.get("layers", ())
        if any(_substitutes(layer) for layer in layers):
            fields.setdefault("schema_version", 3)
        try:
            routing_map = cls(**fields)
        except ValidationError as error:
            raise PruneError(f"routing map: {one_line(error)}") from None
        arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in (matrices or {}).items()}
        check_matrices(routing_map.layers, arrays)
        routing_map._matrices.update(arrays)
        return routing_map

    @property
    def matrices(self) -> Mapping[str, Matrix]:
        """Return the named matrices in float32: W_EM [E', E], W_RM [E' + S, E], vectors [S, D]."""
        return self._matrices

    @property
    def form(self) -> Form:
        """``plain`` if any reader can open the built checkpoint, else ``compact``."""
        counts = {(layer.num_kept, layer.top_k) for layer in self.layers}
        sliced = all(layer.router == "sliced" for layer in self.layers)
        plain = sliced and len(counts) == 1 and not self.substitutes
        return "plain" if plain else "compact"

    @property
    def max_kept(self) -> int:
        """The largest E' of all layers: the one number that config.json can carry."""
        return max(layer.num_kept for layer in self.layers)

    @property
    def max_top_k(self) -> int:
        """The largest top-k of all layers."""
        return max(layer.top_k for layer in self.layers)

    @property
    def substitutes(self) -> bool:
        """Whether a constant vector stands for an expert of any layer."""
        return any(layer.substituted is not None for layer in self.layers)

    @property
    def loses_rows(self) -> bool:
        """Whether a router loses gate rows: sliced, with fewer experts than before."""
        return any(layer.gate_rows < layer.num_experts for layer in self.layers)

    def summary(self) -> str:
        """Say in one line what the map does."""
        before = sum(layer.num_experts for layer in self.layers)
        after = sum(layer.num_kept for layer in self.layers)
        kept = sorted({layer.num_kept for layer in self.layers})
        top_k = sorted({layer.top_k for layer in self.layers})
        mapped = sum(layer.router == "mapped" for layer in self.layers)
        merged = sum(layer.experts.matrix is not None for layer in self.layers)
        constant = sum(len(layer.constant_ids) for layer in self.layers)
        also = f", {constant} substituted experts" if constant else ""
        return (
            f"{self.form}: {after} of {before} experts in {len(self.layers)} layers "
            f"({'/'.join(map(str, kept))} per layer, top-{'/'.join(map(str, top_k))}, "
            f"{mapped} mapped routers, {merged} merged layers{also})"
        )

    def by_layer(self) -> dict[int, LayerMap]:
        """Return the layer maps by decoder layer index."""
        return {layer.layer: layer for layer in self.layers}

    def expert_matrix(self, layer: LayerMap) -> Matrix:
        """Return W_EM, shape [E', E]: new expert j = sum_i W_EM[j, i] * old expert i."""
        return self._dense(layer.experts, layer)

    def router_matrix(self, layer: LayerMap) -> Matrix:
        """Return W_RM, shape [E' + S, E]: acts on the scores over E (EEP, section 4.2)."""
        return self._dense(layer.router_selection, layer)

    def vectors(self, layer: LayerMap) -> Matrix:
        """Return the vectors of a layer's substituted experts, [S, D]."""
        assert layer.substituted is not None
        return self._matrices[layer.substituted.vectors]

    @property
    def vector_bytes(self) -> int:
        """Bytes of the vectors of substituted experts, which lie beside the map."""
        layers = (layer for layer in self.layers if layer.substituted is not None)
        return sum(self.vectors(layer).nbytes for layer in layers)

    def _dense(self, selection: Selection, layer: LayerMap) -> Matrix:
        if selection.matrix is not None:
            return self._matrices[selection.matrix]
        assert selection.kept is not None
        dense = np.zeros((len(selection.kept), layer.num_experts), np.float32)
        dense[np.arange(len(dense)), list(selection.kept)] = 1.0
        return dense

    def digest(self) -> str:
        """Return ``sha256:...`` of what the map does: layers and matrices, not who made it."""
        digest = hashlib.sha256()
        for layer in sorted(self.layers, key=lambda item: item.layer):
            head = f"{layer.layer}/{layer.num_experts}/{layer.top_k}/{layer.router}"
            digest.update(head.encode())
            digest.update(self.expert_matrix(layer).tobytes())
            digest.update(self.router_matrix(layer).tobytes())
            if layer.substituted is not None:
                digest.update(f"/substituted/{layer.choices}/{layer.constant_ids}".encode())
                digest.update(self.vectors(layer).tobytes())
        return "sha256:" + digest.hexdigest()

    def check_base(
        self,
        fingerprint: BaseFingerprint,
        experts: Mapping[int, int],
        *,
        allow_other: bool = False,
        allowed_by: str = "--allow-other-base",
    ) -> None:
        """Refuse a base checkpoint that this map was not made for.

        :param experts: decoder layer -> number of experts in the checkpoint
        :param allowed_by: what the user may say to have it all the same
        :raises PruneError: naming the first layer or hash that differs, or saying that this map's
            weights were tuned, which no base has
        """
        self._refuse_tuned()
        mapped = {layer.layer: layer.num_experts for layer in self.layers}
        for layer in sorted(experts.keys() | mapped.keys()):
            if layer not in mapped:
                raise PruneError(f"routing map says nothing of layer {layer}, which has experts")
            if layer not in experts:
                raise PruneError(f"routing map has layer {layer}, where the model has no experts")
            if mapped[layer] != experts[layer]:
                raise PruneError(
                    f"routing map is for {mapped[layer]} experts in layer {layer}, "
                    f"the model has {experts[layer]}"
                )
        if not allow_other and not self.base.matches(fingerprint):
            differs = self.base.difference(fingerprint)
            raise PruneError(
                f"routing map was made for another base ({self.base.name or 'unnamed'}): "
                f"the {differs} hash differs",
                hint=f"give the model it was made for, or {allowed_by}",
            )
        self.base.note_unknown("routing map", fingerprint)

    def _refuse_tuned(self) -> None:
        if self.tuned:
            steps = sum(one.steps for one in self.tuned)
            raise PruneError(
                f"the weights beside this routing map were tuned for {steps} steps after pruning; "
                "applied to its base it would make a model without that",
                hint="serve or load the checkpoint that the map lies beside",
            )

    def save(self, folder: Path) -> None:
        """Write the map into ``folder``; the JSON last, so that a map is whole or absent."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._matrices:
            write_atomic(folder / MATRIX_FILE, save(dict(self._matrices)))
        else:
            (folder / MATRIX_FILE).unlink(missing_ok=True)
        write_atomic(folder / MAP_FILE, self.to_json())

    def to_json(self) -> str:
        """Return the readable JSON form: one line per layer, so that maps can be diffed."""
        fields = self.model_dump(mode="json", exclude_none=True)
        layers = ",\n    ".join(json.dumps(layer) for layer in fields.pop("layers"))
        rest = json.dumps(fields, indent=2).removesuffix("\n}")
        return f'{rest},\n  "layers": [\n    {layers}\n  ]\n}}\n'

    @classmethod
    def load(cls, path: Path) -> RoutingMap:
        """Read a map from its folder or from the path of its JSON file.

        :raises PruneError: if it is missing, damaged, of a newer schema or breaks a rule
        """
        file = path / MAP_FILE if path.is_dir() else path
        fields = _read_json(file)
        version = fields.get("schema_version")
        if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
            raise PruneError(
                f"routing map {file} has schema_version {version}, "
                f"this program reads up to {SCHEMA_VERSION}",
                hint="upgrade vllm-moe-prune",
            )
        routing_map = validated(fields, cls, f"routing map {file}")
        matrices = read_matrices(file.with_name(MATRIX_FILE), routing_map.layers)
        try:
            check_matrices(routing_map.layers, matrices)
        except PruneError as error:
            raise PruneError(f"routing map {file}: {error.message}") from None
        routing_map._matrices.update(matrices)
        return routing_map


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return read_object(file, "routing map ")
    except MissingFileError:
        raise PruneError(f"no routing map at {file}") from None


def _substitutes(layer: Any) -> bool:
    found = layer.get("substituted") if isinstance(layer, Mapping) else layer.substituted
    return found is not None
