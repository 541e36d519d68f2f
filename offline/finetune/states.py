"""States of a training on disk, from which a killed one goes on with identical bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vllm_moe_prune.reading import read_json

_LOSSES = "losses.json"


class States:
    """The folder of one training's states: ``step-N`` is whole, and the newest is the only one.

    :param folder: exists, and belongs to this training alone
    :param accelerator: with the model and the optimizer prepared
    """

    def __init__(self, folder: Path, accelerator: Any) -> None:
        self._folder, self._accelerator = folder, accelerator

    def load(self) -> list[float]:
        """Continue from the newest state; returns the loss of each step that it has."""
        states = self._whole()
        if not states:
            return []
        newest = states[-1]
        self._accelerator.load_state(str(newest))
        losses: list[float] = read_json(newest / _LOSSES)
        return losses

    def save(self, losses: list[float]) -> None:
        """Keep the state after so many steps, then remove the one before."""
        name = f"step-{len(losses):08d}"
        partial = self._folder / f"{name}.partial"
        main = self._accelerator.is_main_process
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(partial))
        self._accelerator.wait_for_everyone()
        if main:
            before = self._whole()
            (partial / _LOSSES).write_text(json.dumps(losses))
            partial.rename(self._folder / name)
            for state in before:
                shutil.rmtree(state)
        self._accelerator.wait_for_everyone()

    def _whole(self) -> list[Path]:
        return sorted(f for f in self._folder.glob("step-*") if f.suffix != ".partial")
