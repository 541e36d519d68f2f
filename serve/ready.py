"""`python -m serve.ready URL`: whether a server answers with a token that its model made.

For probes of containers: status 0 if it does. An open port, or ``/health``, is there before an
engine that hangs is noticed. The key is read from VLLM_API_KEY.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from serve.describe import ask_json
from vllm_moe_prune.errors import PruneError

_SECONDS = 9.0  # a probe that is given ten says why it failed


def answered(url: str, key: str | None = None, timeout: float = _SECONDS) -> str:
    """Return the name of the model that answered a request for one token.

    :raises PruneError: in one line, if none did
    """
    url = url.rstrip("/")
    try:
        model = str(ask_json(f"{url}/v1/models", timeout, key)["data"][0]["id"])
        asked = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        answer: Any = ask_json(f"{url}/v1/completions", timeout, key, asked)
        made = answer["usage"]["completion_tokens"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PruneError(f"{url} does not answer: {error or type(error).__name__}") from error
    if made != 1:
        raise PruneError(f"{url}: {model} answered with {made} tokens, asked for one")
    return model


def main() -> None:
    """Ask the server that the one argument names."""
    try:
        (url,) = sys.argv[1:]
        print(answered(url, os.environ.get("VLLM_API_KEY")))
    except PruneError as error:
        sys.exit(str(error))
    except ValueError:
        sys.exit("usage: python -m serve.ready URL")


if __name__ == "__main__":
    main()
