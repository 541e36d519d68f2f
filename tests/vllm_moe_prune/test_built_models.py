"""What vLLM knows and does about a pruned model that it has built, without an engine."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from offline.build.build import build
from tests.families.quantised import tensors_of
from tests.sample_maps import kept_map
from tests.tiny import make_tiny_llama, make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from vllm.config import VllmConfig, replace, set_current_vllm_config
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.reload.inplace import reload_weights
from vllm.model_executor.model_loader.utils import get_draft_load_config

from tests.engineless import alone, config_of, loaded
from tests.vllm_moe_prune.test_drafts import make_eagle
from vllm_moe_prune.vllm_compat.built_by import built_by

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base"), layers=2)


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    with alone():
        yield


def map_only(base: Path, routing_map: RoutingMap, folder: Path, **arguments: Any) -> VllmConfig:
    routing_map.save(folder)
    extra = {"routing_map": str(folder)}
    return config_of(base, load_format="pruned_moe", model_loader_extra_config=extra, **arguments)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


WIDE, NARROW = (0, 2, 3, 5, 6, 7), (1, 3, 4, 6)
EACH = (2, 2)  # active in each layer


def test_what_vllm_keeps_of_a_model_it_keeps_for_its_map(base: Path, tmp_path: Path) -> None:
    """Compiled code is found by this hash, and two such maps differ in nothing else of it."""
    maps = [(WIDE, NARROW), (NARROW, WIDE), (WIDE, NARROW)]
    keys = []
    for number, kept in enumerate(maps):
        config = map_only(base, kept_map(base, kept, EACH), tmp_path / str(number))
        before = config.compute_hash()
        loaded(config, tmp_path)
        assert config.model_config.hf_text_config.num_local_experts == 6
        found = config.compute_hash()
        assert found != before
        assert pickle.loads(pickle.dumps(config)).compute_hash() == found
        keys.append(found)
    assert keys[0] == keys[2] != keys[1]
    plain = config_of(base)
    assert plain.compute_hash() not in keys


def test_a_language_model_in_a_section_of_the_config_is_hashed_as_well(base: Path) -> None:
    config = config_of(base).model_config
    config.hf_text_config = copy.deepcopy(config.hf_config)  # as models with a vision tower have it
    keys = {config.compute_hash()}
    for kept in ((WIDE, NARROW), (NARROW, WIDE)):
        built_by(config, kept_map(base, kept, EACH))
        keys.add(config.compute_hash())
    assert len(keys) == 3


def test_weights_are_loaded_again_as_the_map_says(base: Path, tmp_path: Path) -> None:
    config = map_only(base, kept_map(base, (WIDE, NARROW), EACH), tmp_path / "map")
    model = loaded(config, tmp_path)
    expected = weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with set_current_vllm_config(config), torch.device("cpu"):
        reload_weights(config, model, None, None, True)
    found = model.state_dict()
    for name, tensor in expected.items():  # vLLM's CPU build packs experts once, not again
        assert torch.equal(numbers(found[name]), numbers(tensor)), name


def numbers(weight: torch.Tensor) -> torch.Tensor:
    """What is in a weight [E', ...], for each expert, in whatever order a kernel wants it."""
    return weight.flatten(1).sort(dim=1).values if weight.dim() == 3 else weight


def test_weights_of_another_map_are_not_loaded_into_a_running_model(
    base: Path, tmp_path: Path
) -> None:
    for name, kept in (("one", (WIDE, NARROW)), ("other", (NARROW, WIDE))):
        build(Checkpoint.open(base), kept_map(base, kept, EACH), tmp_path / name)
    config = config_of(tmp_path / "one", load_format="pruned_moe")
    model = loaded(config, tmp_path)
    with (
        set_current_vllm_config(config),
        pytest.raises(PruneError, match=r"other has another routing map than the model that is"),
    ):
        reload_weights(config, model, None, str(tmp_path / "other"), True)


def test_the_time_that_vllm_logs_is_that_of_loading(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, Any]] = []
    from vllm.model_executor.model_loader import default_loader

    monkeypatch.setattr(default_loader.logger, "info_once", lambda *words: said.append(words))
    loaded(map_only(base, kept_map(base, (WIDE, NARROW), EACH), tmp_path / "map"), tmp_path)
    (seconds,) = [words[1] for words in said if "Loading weights took" in words[0]]
    assert 0 < seconds < 60


def drafting(draft: Path) -> dict[str, Any]:
    config = {"model": str(draft), "method": "draft_model", "num_speculative_tokens": 2}
    return {"speculative_config": config}


def draft_of(config: VllmConfig) -> torch.nn.Module:
    """Load what drafts as vLLM's `DraftModelProposer` does."""
    assert config.speculative_config is not None
    own = replace(config, model_config=config.speculative_config.draft_model_config)
    with set_current_vllm_config(own):
        loader = get_model_loader(get_draft_load_config(own))
        return loader.load_model(own, own.model_config, prefix="draft_model")


@pytest.mark.parametrize("kind", ["dense", "compact"])
def test_another_model_that_drafts_is_loaded_as_it_is(
    kind: str, base: Path, tmp_path: Path
) -> None:
    make = make_tiny_llama if kind == "dense" else make_other
    draft, arguments = make(tmp_path / "draft"), {}
    if kind == "compact":
        build(Checkpoint.open(draft), kept_map(draft, (NARROW, WIDE), EACH), tmp_path / "compact")
        draft, arguments = tmp_path / "compact", {"load_format": "pruned_moe"}
    config = map_only(
        base, kept_map(base, (WIDE, NARROW), EACH), tmp_path / "map", **drafting(draft)
    )
    target = loaded(config, tmp_path)
    assert [len(m.w13_weight) for m in target.modules() if hasattr(m, "w13_weight")] == [6, 4]
    found = draft_of(config).state_dict()
    expected = loaded(config_of(draft, **arguments), tmp_path).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def make_other(folder: Path) -> Path:
    return make_tiny_mixtral(folder, seed=3)


def test_an_eagle_head_is_loaded_beside_a_pruned_target(base: Path, tmp_path: Path) -> None:
    head = make_eagle(tmp_path / "head")
    drafts = {"model": str(head), "method": "eagle", "num_speculative_tokens": 2}
    routing_map = kept_map(base, (WIDE, NARROW), EACH)
    config = map_only(base, routing_map, tmp_path / "map", speculative_config=drafts)
    loaded(config, tmp_path)
    assert config.speculative_config is not None
    with set_current_vllm_config(config):  # the target's, as vLLM's proposers for EAGLE have it
        loader = get_model_loader(get_draft_load_config(config))
        found = loader.load_model(config, config.speculative_config.draft_model_config)
    assert type(found).__name__ == "EagleLlamaForCausalLM"
    norms = {n: t for n, t in found.state_dict().items() if n.endswith("layernorm.weight")}
    expected = tensors_of(head)
    assert norms
    for name, tensor in norms.items():
        assert torch.equal(tensor, expected[name.removeprefix("model.")].float()), name


def test_chosen_experts_are_returned_only_where_layers_activate_equally_many(
    base: Path, tmp_path: Path
) -> None:
    def returning(routing_map: RoutingMap, folder: Path) -> VllmConfig:
        config = map_only(base, routing_map, folder)
        config.aux_output_config.enable_return_routed_experts = True
        return config

    loaded(returning(kept_map(base, (WIDE, NARROW), EACH), tmp_path / "a"), tmp_path)
    differ = kept_map(base, (WIDE, NARROW), (2, 1))
    with pytest.raises(PruneError, match=r"top-1 to top-2 \(hint: leave --enable-return-routed"):
        loaded(returning(differ, tmp_path / "b"), tmp_path)
