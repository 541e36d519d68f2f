"""What of a command line or an address nobody but the server may see."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"
# --api-key, --hf-token and their like; no --max-num-batched-tokens, --tokenizer, --ssl-keyfile.
_SECRET = re.compile(r"--([\w.-]+[-.])?(keys?|token|password|secret)")
_USER = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(words: Sequence[str]) -> tuple[str, ...]:
    """Return arguments of `vllm serve` as they may be shown and kept: without keys and tokens."""
    shown, secret = [], False
    for word in words:
        if secret and not word.startswith("--"):
            shown.append(HIDDEN)
            continue
        name, equals, _ = word.partition("=")
        is_secret = _SECRET.fullmatch(name.replace("_", "-")) is not None
        secret = is_secret and not equals  # --api-key takes several
        shown.append(f"{name}={HIDDEN}" if is_secret and equals else _USER.sub(f"{HIDDEN}@", word))
    return tuple(shown)
