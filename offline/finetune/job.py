"""`Job`: all that a process needs to know to train; `JobResult`: what it has to say afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from offline.finetune.settings import FinetuneSettings

StoredDtype = Literal["float32", "bfloat16", "base"]


class Job(BaseModel):
    """One finetune, as it is handed to the processes that do it.

    :param out: folder that the weights are put into
    :param states: folder for states to continue from, and how many steps lie between two
    :param teacher: folder of a `Teacher`, whose place ``first_place`` is the examples' first
    :param parent: process id of who waits for the result; workers do not outlive it
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    out: Path
    settings: FinetuneSettings
    seed: int
    device: str
    dtype: StoredDtype
    states: Path | None = None
    save_every: int | None = None
    parent: int | None = None
    teacher: Path | None = None
    first_place: int = 0


class JobResult(BaseModel):
    """What training did: numbers only, the weights are in the job's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    tokens: int
    losses: tuple[float, ...]
    seconds: float
    peak_bytes: int
