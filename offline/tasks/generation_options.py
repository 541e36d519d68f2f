"""Which options of generation there are: lm-evaluation-harness's, as far as engines honour them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_moe_prune.errors import PruneError

# Option -> the least and the greatest it may be.
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-9, 1.0),
    "top_k": (-1, 1 << 30),  # 0 and -1 are all tokens
    "min_p": (0.0, 1.0),
    "seed": (0, (1 << 63) - 1),
    "max_gen_toks": (1, 1 << 30),
    "num_beams": (1, 1),
}
_WHOLE = {"top_k", "seed", "max_gen_toks", "num_beams"}
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
OPTIONS = (*_RANGES, *LENGTHS[1:], "do_sample", "until")  # those that a user may give


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what no engine honours.

    :raises PruneError: naming the option
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise PruneError(
                f"the generation option {name!r} is not offered",
                hint=f"those that are: {', '.join(OPTIONS)}",
            )
        if name in (*_RANGES, *LENGTHS):
            _check_number("max_gen_toks" if name in LENGTHS else name, name, value)
        elif name == "do_sample" and not isinstance(value, bool):
            raise PruneError(f"the generation option do_sample is {value!r}: it is true or false")


def _check_number(kind: str, name: str, value: Any) -> None:
    low, high = _RANGES[kind]
    number = isinstance(value, int if kind in _WHOLE else int | float)
    if not number or isinstance(value, bool) or not low <= value <= high:
        what = "a whole number" if kind in _WHOLE else "a number"
        bounds = f" from {low:g} to {high:g}" if high < 1 << 30 else f" from {low:g} on"
        raise PruneError(f"the generation option {name} is {value!r}: it is {what}{bounds}")
