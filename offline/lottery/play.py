"""The loop: round after round on disk, each from the model that the one before it made.

    OUT.run/base.json        the base on the held-out text
    OUT.run/round-01/scores  of the model that the round began with, unless experts go at random
                    /map     what the round drops of that model
                    /pruned  that model without them, and pruned.json: held-out text
                    /tuned   the finetuned model, and tuned.json: held-out text
                    /round.json, when all of it is done

Every entry appears whole or not at all and none is made twice, so a killed run goes on at the
first that is missing. The weights of a round are deleted when the next round is over.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from offline.lottery.lottery import Lottery
from offline.lottery.measure import measure
from offline.lottery.round import Round
from offline.results.lottery import LotteryRecord, Measured, RoundRecord, read_measured, read_round
from offline.runs.resume import delete
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.tuning import Tuning

_BASE_FILE = "base.json"
_RESULT_FILE = "result.json"


@dataclass(frozen=True, slots=True)
class Played:
    """All rounds are over.

    :param checkpoint: plain; its weights are in float32 where they were trained
    :param dropping: the rounds' maps as one of the base, without the rounds' finetunes
    """

    checkpoint: Path
    dropping: RoutingMap
    base: Measured
    rounds: tuple[RoundRecord, ...]

    @property
    def tuned(self) -> tuple[Tuning, ...]:
        """Return what the weights went through."""
        return tuple(one.trained.tuning for one in self.rounds if one.trained is not None)

    @property
    def routing_map(self) -> RoutingMap:
        """Return the map that lies beside the result."""
        return self.dropping.model_copy(update={"tuned": self.tuned})

    def made(self, provenance: Provenance) -> Played:
        """Return it with a map that says so of itself."""
        dropping = self.dropping.model_copy(update={"provenance": provenance})
        return replace(self, dropping=dropping)

    def record(self, result: Measured) -> LotteryRecord:
        """Return what is told of it."""
        return LotteryRecord(base=self.base, rounds=self.rounds, result=result)


def play(lottery: Lottery) -> Played:
    """Play all rounds, or those that are left.

    :raises PruneError: if the model or the text does not allow it
    """
    base = _measured_base(lottery)
    _begin_again_without_weights(lottery)
    current, composed, records = lottery.base.folder, None, list[RoundRecord]()
    for plan in lottery.plans:
        one = Round(lottery, plan, current, composed)
        done = read_round(one.folder)
        records.append(one.play() if done is None else done)
        composed, before = one.composed(), current
        current = one.result
        _forget(one, before, lottery.folder)
    lottery.loaded.release()
    assert composed is not None and composed.form == "plain"
    return Played(current, composed, base, tuple(records))


def _begin_again_without_weights(lottery: Lottery) -> None:
    """Forget all rounds if the weights to go on from are gone, as they are after the last."""
    over = [plan for plan in lottery.plans if read_round(lottery.folder / plan.name) is not None]
    if not over:
        return
    last = lottery.folder / over[-1].name / ("tuned" if over[-1].tokens else "pruned")
    if not last.exists():
        for plan in lottery.plans:
            shutil.rmtree(lottery.folder / plan.name, ignore_errors=True)
        (lottery.folder / _RESULT_FILE).unlink(missing_ok=True)


def measured_result(lottery: Lottery, checkpoint: Path, played: Played) -> Measured:
    """Measure the checkpoint that is the lottery's outcome, as it is stored in the end."""
    ids = {entry.layer: entry.experts.kept or () for entry in played.routing_map.layers}
    return _measured(lottery, _RESULT_FILE, checkpoint, ids)


def _measured_base(lottery: Lottery) -> Measured:
    ids = {n: tuple(range(count)) for n, count in lottery.base.expert_counts().items()}
    return _measured(lottery, _BASE_FILE, lottery.base.folder, ids)


def _measured(
    lottery: Lottery, name: str, checkpoint: Path, ids: Mapping[int, tuple[int, ...]]
) -> Measured:
    file = lottery.folder / name
    found = read_measured(file)
    if found is None:
        lottery.reporter.stage(f"measuring on held-out text ({file.stem})", 1)
        found = measure(lottery.loaded.open(checkpoint), lottery.text.held_out, ids)
        found.save(file)
        lottery.reporter.step()
    return found


def _forget(done: Round, before: Path, folder: Path) -> None:
    """Delete weights that are not needed any more: the round is over, and it has begun with them.

    Its own model without the finetune goes as well, where there is a finetuned one.
    """
    if before.is_relative_to(folder):
        delete(before)
    if done.result != done.pruned:
        delete(done.pruned)
