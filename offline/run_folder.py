"""`OUT.run`: the folder in which a run keeps what lets it continue after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic


def run_folder(out: Path, identity: dict[str, Any], *, force: bool) -> Path:
    """Return ``OUT.run``, made if it is not there.

    :param identity: the settings and the base that results depend on
    :raises PruneError: if the folder holds another run and ``force`` is not given
    """
    folder = out.with_name(out.name + ".run")
    settings = folder / "settings.json"
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    if settings.exists() and settings.read_text() != text:
        if not force:
            raise PruneError(
                f"{folder} holds a run with other settings or another base",
                hint="choose another --out, or add --force to start anew",
            )
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_atomic(settings, text)
    return folder
