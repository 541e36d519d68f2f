"""The search's numbers: the released ones, ours, and how they are changed."""

from __future__ import annotations

import pytest

from offline.methods.eep import check_phases
from offline.methods.eep_settings import PRESETS, Preset, settings_of
from tests.maps.landscape import space_of
from vllm_moe_prune.errors import PruneError


def test_the_released_numbers_are_the_paper_preset() -> None:
    assert PRESETS["paper"].model_dump() == {
        "phases": "both",
        "num_groups": 4,
        "num_initial": 30,
        "prune_until": 100,
        "num_evaluations": 400,
        "children": 1,
        "expert_group_probability": 0.25,
        "router_group_probability": 0.25,
        "swap_probability": 0.15,
        "noise_probability": 0.25,
        "noise_scale": 0.065,
        "mutation_threshold": 0.03,
        "mutation_rank": 0,
        "crossover_probability": 0.3,
        "crossover_phases": "merge",
        "crossover_threshold": 0.01,
        "crossover_rank": 6,
        "from_front_probability": 0.6,
        "align_rows": False,
        "normalise_probability": 0.1,
        "move_probability": 0.3,
        "skip_known": True,
        "finalists": 20,
    }


def test_a_preset_is_changed_field_by_field_and_scaled_as_a_whole() -> None:
    assert settings_of("paper") == PRESETS["paper"]
    scaled = settings_of("paper", num_evaluations=40, children=None)
    assert (scaled.num_initial, scaled.prune_until, scaled.num_evaluations) == (3, 10, 40)
    given_too = settings_of("paper", num_evaluations=40, prune_until=20)
    assert (given_too.num_initial, given_too.prune_until) == (3, 20)
    assert settings_of("paper", num_evaluations=40, phases="prune").prune_until == 40
    assert settings_of("fast", phases="prune").prune_until == 160


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("evaluations", range(1, 12))
def test_few_evaluations_leave_one_to_merge(preset: Preset, evaluations: int) -> None:
    """Who gives none but these is not told of phases that do not fit."""
    few = settings_of(preset, num_evaluations=evaluations)
    assert 1 <= few.num_initial <= few.prune_until <= max(1, evaluations - 1)
    check_phases(space_of(2, 4, 2), few, has_initial=False)


def test_a_setting_that_is_none_is_refused() -> None:
    with pytest.raises(PruneError, match="eep: children: Input should be greater"):
        settings_of("fast", children=0)
    with pytest.raises(PruneError, match="eep: colour: Extra inputs"):
        settings_of("fast", colour="red")
