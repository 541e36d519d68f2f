"""Tasks that a search does not see: measured beside the others, part of no fitness."""

from __future__ import annotations

import pytest

from offline.fitness.objective import Objective
from vllm_moe_prune.errors import PruneError


def test_of_a_group_what_is_kept_out_is_measured_only() -> None:
    objective = Objective.parse("eep_mmlu")
    assert objective.names == ("eep_mmlu_iid",)
    assert [entry.task.name for entry in objective.kept_out] == ["eep_mmlu_ood"]


def test_what_is_kept_out_takes_no_weight() -> None:
    assert Objective.parse("eep_mmlu:2,sciq:2").shares == {"eep_mmlu_iid": 0.5, "sciq": 0.5}
    identity = Objective.parse("eep_mmlu_iid").identity()
    assert Objective.parse("eep_mmlu").identity() == identity


def test_it_is_named_once_and_never_alone() -> None:
    with pytest.raises(PruneError, match="task eep_mmlu_ood is named twice"):
        Objective.parse("eep_mmlu,eep_mmlu_ood")
    with pytest.raises(PruneError, match="task eep_mmlu_ood is only measured"):
        Objective.parse("eep_mmlu_ood")
