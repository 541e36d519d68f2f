"""The window of vLLM versions that this package was tested with.

Another one is refused rather than tried, because a routing detail that moved would not fail, it
would answer wrongly.
"""

from __future__ import annotations

import re

from vllm_moe_prune.errors import PruneError

SUPPORTED = ((0, 30), (0, 33))  # lowest and highest minor version, both inclusive


def check_version() -> None:
    """Refuse a vLLM outside the supported window.

    :raises PruneError: naming the installed version and the window
    """
    from vllm.version import __version__ as installed  # type: ignore[attr-defined]

    check_supported(installed)


def check_supported(installed: str) -> None:
    """Refuse a version outside the window, as `check_version`; imports nothing of vLLM."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    lowest, highest = SUPPORTED
    if not lowest <= numbers <= highest:
        raise PruneError(
            f"vLLM {installed} is not supported by the pruned_moe load format",
            hint=f"install vLLM {_dotted(lowest)}.x to {_dotted(highest)}.x",
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
