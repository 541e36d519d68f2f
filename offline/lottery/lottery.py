"""What all rounds of a lottery share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offline.finetune.teacher import Teacher
from offline.finetune.where import Where
from offline.lottery.loaded import Loaded
from offline.lottery.schedule import LotterySettings, RoundPlan
from offline.lottery.text import LotteryText
from offline.runs.progress import Reporter
from vllm_moe_prune.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Lottery:
    """A lottery under way: all that its rounds share.

    :param folder: where the rounds lie
    :param blend: weights of the scored domains for the criterion; None pools all tokens
    :param scores: of the base, if there are any, for the first round
    :param teacher: what the base expects of the text of all rounds, if that is learnt
    """

    base: Checkpoint
    settings: LotterySettings
    plans: tuple[RoundPlan, ...]
    text: LotteryText
    folder: Path
    seed: int
    loaded: Loaded
    where: Where
    reporter: Reporter
    blend: Mapping[str, float] | None = None
    scores: Path | None = None
    teacher: Teacher | None = None
