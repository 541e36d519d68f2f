"""Entries of config.json by keys whose dots lead into sections, and the counts that are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_moe_prune.errors import PruneError

# Of Kimi-Linear the second, of DBRX the third.
_LENGTHS = ("max_position_embeddings", "model_max_length", "max_seq_len")
_WIDTHS = ("hidden_size", "d_model")  # of DBRX the second
_DEPTHS = ("num_hidden_layers", "n_layers", "num_layers")  # of DBRX and of LongCat-Flash
# Of one expert; of LongCat-Flash the second, of DBRX the third, the last where all are alike.
_INNER = (
    *("moe_intermediate_size", "expert_ffn_hidden_size"),
    *("ffn_config.ffn_hidden_size", "intermediate_size"),
)
_KINDS = ("layers_block_type", "layer_types")  # of each layer, where there is no number


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key, or None if it or its section is not there."""
    section, _, rest = key.partition(".")
    value = config.get(section)
    if not rest:
        return value
    return value_at(value, rest) if isinstance(value, Mapping) else None


def with_value(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the config with another value of a key, in a list of numbers for each of them."""
    section, _, rest = key.partition(".")
    before = config.get(section)
    if rest:
        value = with_value(before if isinstance(before, Mapping) else {}, rest, value)
    elif isinstance(before, list) and isinstance(value, int):
        value = [value] * len(before)
    return {**config, section: value}


def most_tokens(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a language model's config says that it takes, None if nothing."""
    found = (config.get(key) for key in _LENGTHS)
    return next((int(value) for value in found if value), None)


def hidden_size_of(config: Mapping[str, Any]) -> int:
    """Return D of a language model's config.

    :raises PruneError: if it says nothing of it
    """
    return _first_count(config, _WIDTHS)


def expert_size_of(config: Mapping[str, Any]) -> int:
    """Return I of one routed expert of a language model's config.

    :raises PruneError: if it says nothing of it, or layers differ
    """
    return _first_count(config, _INNER)


def num_layers_of(config: Mapping[str, Any]) -> int:
    """Return how many decoder layers a language model's config names.

    :raises PruneError: if it says nothing of them
    """
    listed: list[Any] = next(
        (config[key] for key in _KINDS if isinstance(config.get(key), list)), []
    )
    if listed and all(config.get(key) is None for key in _DEPTHS):
        return len(listed)
    return _first_count(config, _DEPTHS)


def known(count_of: Callable[[Mapping[str, Any]], int], config: Mapping[str, Any]) -> int | None:
    """Return what one of the counts above is, None where a config does not say."""
    try:
        return count_of(config)
    except PruneError:
        return None


def _first_count(config: Mapping[str, Any], keys: Sequence[str]) -> int:
    return count_at(
        config, next((key for key in keys if value_at(config, key) is not None), keys[0])
    )


def count_at(config: Mapping[str, Any], key: str) -> int:
    """Return a count, which may be a list of the same number for every layer.

    :raises PruneError: if there is none, or layers differ
    """
    value = value_at(config, key)
    numbers = value if isinstance(value, list) else [value]
    count = numbers[0] if numbers and all(one == numbers[0] for one in numbers) else None
    if not isinstance(count, int) or count < 1:
        raise PruneError(f"config.json has no usable {key} (found {value!r})")
    return count
