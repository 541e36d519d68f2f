"""For which tensors of an expert vLLM has a place, by what a checkpoint's settings say.

Read in vLLM 0.32: quantization/fp8.py, modelopt.py, auto_gptq.py, auto_awq.py, mxfp4.py and
compressed_tensors_moe/. All of them decide for the experts of a layer at once. What is missing
keeps the number it was made with (of a quantised model vLLM does not check that all were loaded);
what is left over ends the start with "has no parameter".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.module_patterns import ModulePatterns, inner
from vllm_moe_prune.reading import DAMAGED

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kinds:
    """The parts of a matrix that vLLM wants in a layer's experts, and those that it takes as well.

    ``name`` goes on "vLLM's ...".
    """

    name: str
    wanted: frozenset[str]
    also: frozenset[str] = frozenset()

    @classmethod
    def of(cls, name: str, wanted: Iterable[str], also: Iterable[str] = ()) -> Kinds:
        """Make one; a bias is passed over where there is no place for it."""
        return cls(name, frozenset(wanted), frozenset((*also, "bias")))


PLAIN = Kinds.of("unquantised experts", ["weight"])
_LEFT_OUT = Kinds.of("experts of a layer that the settings leave out", ["weight"])
_MODELOPT = {
    "FP8": ("weight", "weight_scale", "input_scale"),
    "NVFP4": ("weight", "weight_scale", "weight_scale_2", "input_scale"),
    "W4A16_NVFP4": ("weight", "weight_scale", "weight_scale_2"),
    "MXFP8": ("weight", "weight_scale"),
}


@dataclass(frozen=True, slots=True)
class Listed:
    """Asks entries of settings for a layer's experts.

    ``experts`` is the module that holds them, such as ``model.layers.0.mlp.experts``, and ``where``
    the file, and the key in it, that the settings are from.
    """

    experts: str
    projections: Sequence[str]
    where: str
    patterns: ModulePatterns

    @property
    def first(self) -> list[str]:
        """The modules of the first expert, which speaks for all."""
        return [f"{self.experts}.0.{one}" for one in self.projections]

    def begins(self, entry: str, key: str, name: str) -> bool:
        """Whether a regular expression among those of a key matches a name."""
        return self.patterns.begins(entry, inner(self.where, key), name)

    def is_like(self, entry: str, key: str) -> bool:
        """Whether a wildcard among those of a key is like the experts' module."""
        return self.patterns.is_like(entry, inner(self.where, key), self.experts)

    def has(self, entries: Iterable[str], key: str, name: str) -> bool:
        """Whether names and marked expressions of compressed-tensors are about a module."""
        return any(
            self.begins(entry, key, name) if entry.startswith("re:") else entry == name
            for entry in entries
        )


def kinds_of(
    settings: Settings,
    experts: str,
    projections: Sequence[str],
    where: str = "config.json: quantization_config",
    patterns: ModulePatterns | None = None,
) -> Kinds | None:
    """Return what vLLM expects of a layer's experts; None where that is not known here.

    :param settings: nothing for an unquantised checkpoint
    :param experts: the module that holds them, such as ``model.layers.0.mlp.experts``
    :param where: the file, and the key in it, that the settings are from
    :param patterns: what matches those of all layers
    :raises PruneError: if the settings are of other types than the method's, or a pattern cannot be
        read or takes too long to match
    """
    if not settings:
        return PLAIN
    find = _METHODS.get(method := method_of(settings))
    if find is None:
        return None
    try:
        return find(settings, Listed(experts, projections, where, patterns or ModulePatterns()))
    except PruneError:
        raise
    except DAMAGED as error:
        raise PruneError(
            f"the settings of {method} are not as its tools write them: {error}",
            hint="compare config.json (and hf_quant_config.json) with the ones on the hub",
        ) from error


def method_of(settings: Settings) -> str:
    """Return the method as vLLM calls it; ModelOpt's older files do not name it."""
    method = str(settings.get("quant_method") or "").lower().replace("_", "-")
    return method or ("modelopt" if "quantization" in settings else "")


def _fp8(settings: Settings, asked: Listed) -> Kinds:
    listed = settings.get("ignored_layers") or settings.get("modules_to_not_convert") or ()
    if any("experts" in entry and asked.experts in entry for entry in listed):
        return _LEFT_OUT  # one name of a single expert is enough
    if settings.get("weight_block_size"):
        return Kinds.of("FP8 in blocks", ["weight", "weight_scale_inv"])
    static = ["input_scale"] if settings.get("activation_scheme") == "static" else []
    return Kinds.of("FP8", ["weight", "weight_scale", *static])


def _modelopt(settings: Settings, asked: Listed) -> Kinds | None:
    older, experts = settings.get("quantization"), asked.experts
    inside = older if isinstance(older, Mapping) else settings
    listed = inside.get("exclude_modules" if inside is older else "ignore") or ()
    key = "quantization.exclude_modules" if inside is older else "ignore"
    if any(one in experts or asked.is_like(one, key) for one in listed):
        return _LEFT_OUT
    algorithm = str(inside.get("quant_algo") or "").upper()
    if algorithm == "MIXED_PRECISION":
        layers = inside.get("quantized_layers") or {}
        found = (one for name, one in layers.items() if name.startswith((experts, experts + ".")))
        first: Settings = next(found, {})
        algorithm = str(first.get("quant_algo") or "").upper()
    parts = _MODELOPT.get(algorithm)
    # Without activations in four bits what was measured of inputs is not needed, but has a place.
    return Kinds.of(f"ModelOpt {algorithm}", parts, ["input_scale"]) if parts else None


def _compressed(settings: Settings, asked: Listed) -> Kinds | None:
    names = asked.first
    if names and all(asked.has(settings.get("ignore") or (), "ignore", one) for one in names):
        return _LEFT_OUT
    for name, group in (settings.get("config_groups") or {}).items():
        targets, key = group.get("targets") or (), f"config_groups.{name}.targets"
        if any(t == "Linear" or asked.has([t], key, n) for t in targets for n in names):
            return _of_group(group, str(group.get("format") or settings.get("format")))
    return None


def _of_group(group: Settings, stored: str) -> Kinds | None:
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    bits, number = weights.get("num_bits"), weights.get("type")
    static = bool(inputs) and not (inputs or {}).get("dynamic")
    if stored == "nvfp4-pack-quantized":
        given = ["input_global_scale"] if inputs else []
        parts = ["weight_packed", "weight_scale", "weight_global_scale", *given]
        return Kinds.of("NVFP4 of compressed-tensors", parts, ["input_global_scale"])
    if stored == "pack-quantized" and not inputs:
        zeros = [] if weights.get("symmetric", True) else ["weight_zero_point"]
        parts = ["weight_packed", "weight_scale", "weight_shape", *zeros]
        return Kinds.of(f"INT{bits} of compressed-tensors", parts, ["weight_g_idx"])
    if (number, bits) in (("float", 8), ("int", 8)) and stored in (
        "float-quantized",
        "int-quantized",
    ):
        # There is no kernel for experts in INT8 whose inputs have fixed scales.
        given = ["input_scale"] if static and number == "float" else []
        name = f"{'FP8' if number == 'float' else 'INT8'} of compressed-tensors"
        return Kinds.of(name, ["weight", "weight_scale", *given])
    return None


def _gptq(settings: Settings, asked: Listed) -> Kinds:
    for pattern in settings.get("dynamic") or {}:
        if asked.begins(pattern, "dynamic", asked.experts):
            if pattern.startswith("-:"):
                return _LEFT_OUT
            break
    return Kinds.of("GPTQ", ["qweight", "qzeros", "scales"], ["g_idx"])


def _awq(settings: Settings, asked: Listed) -> Kinds:
    if any(entry in asked.experts for entry in settings.get("modules_to_not_convert") or ()):
        return _LEFT_OUT
    return Kinds.of("AWQ", ["qweight", "qzeros", "scales"])


def _mxfp4(_: Settings, __: Listed) -> Kinds:
    return Kinds.of("MXFP4", ["blocks", "scales"])


_METHODS: Mapping[str, Callable[[Settings, Listed], Kinds | None]] = {
    "fp8": _fp8,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
    "modelopt-mixed": _modelopt,
    "compressed-tensors": _compressed,
    "gptq": _gptq,
    "gptq-marlin": _gptq,
    "awq": _awq,
    "awq-marlin": _awq,
    "mxfp4": _mxfp4,
}
