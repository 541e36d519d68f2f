"""Runs command lines in one process in which nothing heavy can be imported.

    python -m tests.cli.words_child FILE

FILE has a JSON list of command lines; the last line of stdout is a JSON list of what each came to:
its status, its stderr, and the files that are new after it. Runs in the folder of the inputs.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from offline.runs import device

HEAVY = (
    "torch",
    "transformers",
    "vllm",
    "lm_eval",
    "ray",
    "datasets",
    "accelerate",
    "peft",
    "scipy",
)


class _Refusing(Loader, MetaPathFinder):
    """Finds what is heavy, so that it can be asked for, and refuses to run it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        return ModuleSpec(name, self) if name in HEAVY else None

    def exec_module(self, module: ModuleType) -> NoReturn:
        raise BaseException(f"imported {module.__name__}")  # which nobody catches


def _no_process(command: Any, **_: Any) -> NoReturn:
    raise BaseException(f"started {command}")


def _run(line: str) -> dict[str, Any]:
    before = _files()
    words = shlex.split(line)
    said, began = io.StringIO(), time.monotonic()
    status: Any = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            _command(words)
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
    took = time.monotonic() - began
    new = sorted(_files() - before)
    for name in reversed(new):  # so that the next line finds what this one did
        Path(name).rmdir() if Path(name).is_dir() else Path(name).unlink()
    return {"status": status, "said": said.getvalue(), "new": new, "seconds": round(took, 2)}


def _command(words: list[str]) -> None:
    if words[0] == "compare":
        from loadtest.compare import compare_command

        compare_command(words[1:])
        return
    from offline.cli.main import main

    sys.argv = ["vmprune", *words]
    main()


def _files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts}


def main() -> None:
    """Run the lines of the file."""
    subprocess.Popen = _no_process  # type: ignore[assignment, misc]
    sys.meta_path.insert(0, _Refusing())
    device._DRIVERS = ()  # whatever GPU this machine has
    lines = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([_run(line) for line in lines]))


if __name__ == "__main__":
    main()
