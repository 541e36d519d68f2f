"""One of several processes that train together: ``python -m offline.finetune.worker FOLDER``.

Started by `launch`, never by a person. The folder has ``job.json`` and ``examples.safetensors``;
the main process puts ``trained.json`` there, and a process that fails says why in
``error-RANK.json``. Progress goes to stdout, one line of JSON behind `PROGRESS` for each call.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from offline.finetune.examples import Examples
from offline.finetune.job import Job
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.reading import read_model

JOB, EXAMPLES, TRAINED = "job.json", "examples.safetensors", "trained.json"
PROGRESS = "vmprune-progress "
_WATCH_SECONDS = 1.0


class Lines:
    """A reporter that writes lines for the process that waits."""

    def stage(self, title: str, total: int) -> None:
        """Begin a stage of ``total`` steps."""
        self._say(stage=title, total=total)

    def step(self, amount: int = 1, note: str = "") -> None:
        """Finish ``amount`` steps of the current stage."""
        self._say(step=amount, note=note)

    def _say(self, **fields: Any) -> None:
        sys.stdout.write(PROGRESS + json.dumps(fields) + "\n")
        sys.stdout.flush()


def main(folder: Path) -> int:
    """Do the job in a folder; returns the exit status."""
    job = read_model(folder / JOB, Job)
    if job.parent is not None:
        threading.Thread(target=_die_with, args=(job.parent,), daemon=True).start()
    rank = int(os.environ.get("RANK", "0"))
    try:
        from offline.finetune.trainer import train

        examples = Examples.load(folder / EXAMPLES)
        trained = train(job, examples, Lines() if rank == 0 else None)
    except Exception as error:  # whatever it is, the waiting process shall say it
        write_atomic(folder / f"error-{rank}.json", json.dumps(_said(error)))
        logging.getLogger(__name__).exception("training failed")
        return 1
    if rank == 0:
        write_atomic(folder / TRAINED, trained.model_dump_json())
    return 0


def _said(error: Exception) -> dict[str, str | None]:
    if isinstance(error, PruneError):
        return {"message": error.message, "hint": error.hint}
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return {"message": f"{type(error).__name__}: {lines[0]}".removesuffix(": "), "hint": None}


def _die_with(parent: int) -> None:
    """End this process when the one that waits for it, or its launcher, is gone, killed or not."""
    launcher = os.getppid()
    while True:
        time.sleep(_WATCH_SECONDS)
        if os.getppid() != launcher:
            os._exit(1)
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(1)
        except PermissionError:  # there, and another user's
            continue


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
