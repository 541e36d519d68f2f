"""What a checkpoint says of its quantisation, wherever that stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_moe_prune.checkpoint import read_config
from vllm_moe_prune.reading import read_object

# Entries of config.json or of a section of it, and files beside it, which quantisers write.
KEYS = ("quantization_config", "compression_config")
FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
_OTHERS = ("vision", "visual", "audio", "talker", "draft")  # sections of no language model

Place = tuple[str, ...]  # keys that lead to an entry


def places(config: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    """Yield every entry of a config about quantisation with its place, outer ones first."""
    for key in KEYS:
        if config.get(key):
            yield (key,), config[key]
    for section, inside in config.items():
        if section not in KEYS and isinstance(inside, Mapping):
            yield from (((section, *place), found) for place, found in places(inside))


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what config.json says of its language model's quantisation; nothing if it does not."""
    found = next(_of_language(config), None)
    return found if isinstance(found, Mapping) else {}


def _of_language(config: Mapping[str, Any]) -> Iterator[Any]:
    for place, found in places(config):
        if not any(word in section for section in place[:-1] for word in _OTHERS):
            yield found


def unsettled(config: Mapping[str, Any]) -> list[str]:
    """Return the entries of a config, or of a section, that an unquantised one would not have."""
    return [key for key in KEYS if key in config]


def settings_beside(folder: Path) -> Mapping[str, Any] | None:
    """Return ModelOpt's settings in a file beside config.json, where vLLM looks second."""
    file = folder / FILES[0]
    return read_object(file) if file.exists() else None


def quantiser_of(folder: Path) -> str | None:
    """Return how a checkpoint was quantised, as its own files call it, or None if it was not."""
    found = next(_of_language(read_config(folder)), None)
    if found is None:
        return next((f"see {name}" for name in FILES if (folder / name).exists()), None)
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    return str(method or "by ModelOpt")
