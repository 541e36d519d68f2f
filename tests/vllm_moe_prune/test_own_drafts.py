"""Draft layers of the target's own checkpoint, as many experts as they have; without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offline.build.build import build
from tests.families.models import EXPERTS
from tests.families.mtp import make_with_mtp
from tests.families.quantised import tensors_of
from tests.families.test_build import KEPT, sliced_map
from tests.sample_maps import kept_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import layout_of

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import get_draft_load_config

from tests.engineless import alone, config_of, loaded
from vllm_moe_prune.vllm_compat.drafts import counted_as_drafts, is_own_draft

pytestmark = pytest.mark.vllm

DRAFTING = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}
OURS: dict[str, Any] = {"load_format": "pruned_moe", **DRAFTING}
PREFIX = "model.layers.3."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_with_mtp("glm4_moe", tmp_path_factory.mktemp("glm"))


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    with alone():
        yield


def drafts_of(config: VllmConfig) -> torch.nn.Module:
    """Load draft layers as vLLM's proposers do: under the target's config."""
    assert config.speculative_config is not None
    with set_current_vllm_config(config):
        loader = get_model_loader(get_draft_load_config(config))
        return loader.load_model(config, config.speculative_config.draft_model_config)


def widths(model: torch.nn.Module) -> list[int]:
    """The number of experts in each MoE layer, as its weights have it."""
    return [len(module.w13_weight) for module in model.modules() if hasattr(module, "w13_weight")]


def sorted_numbers(weight: torch.Tensor) -> torch.Tensor:
    """What is in a weight [E, ...], for each expert, in whatever order a kernel wants it."""
    return weight.flatten(1).sort(dim=1).values


def check_is_the_bases(drafts: torch.nn.Module, base: Path) -> None:
    """The draft layer has all experts of the base's, and what chooses among them."""
    stored = tensors_of(base)
    (layer,) = (one for one in drafts.modules() if hasattr(one, "w13_weight"))
    for expert in range(EXPERTS):
        name = f"{PREFIX}mlp.experts.{expert}."
        parts = [stored[f"{name}{one}_proj.weight"].float().flatten() for one in ("gate", "up")]
        down = stored[f"{name}down_proj.weight"].float().flatten()
        assert torch.equal(sorted_numbers(layer.w13_weight)[expert], torch.cat(parts).sort().values)
        assert torch.equal(sorted_numbers(layer.w2_weight)[expert], down.sort().values)
    name = "mlp.gate.e_score_correction_bias"  # vLLM's CPU build packs the gate itself
    (bias,) = (t for n, t in drafts.state_dict().items() if n.endswith(name))
    assert torch.equal(bias, stored[PREFIX + name].float())


def test_a_full_width_draft_layer_beside_a_plain_target(base: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(base)
    build(checkpoint, sliced_map(checkpoint), tmp_path / "out", mtp="keep")
    config = config_of(tmp_path / "out", **OURS)
    assert widths(loaded(config, tmp_path)) == [4, 4]
    check_is_the_bases(drafts_of(config), base)
    # The target's config is asked again later, for what it has.
    assert config.model_config.hf_text_config.n_routed_experts == 4
    assert config.speculative_config is not None
    drafting = config.speculative_config.draft_model_config.hf_text_config
    assert (drafting.n_routed_experts, drafting.num_experts_per_tok) == (EXPERTS, 2)


def test_a_full_width_draft_layer_beside_a_compact_target(base: Path, tmp_path: Path) -> None:
    routing_map = kept_map(base, (KEPT[0], KEPT[2][:2]), (1, 2))
    build(Checkpoint.open(base), routing_map, tmp_path / "out", mtp="keep")
    config = config_of(tmp_path / "out", **OURS)
    assert widths(loaded(config, tmp_path)) == [4, 2]
    drafts = drafts_of(config)
    check_is_the_bases(drafts, base)
    (router,) = (one.router for one in drafts.modules() if hasattr(one, "router"))
    assert router.top_k == 2


def test_a_map_that_is_applied_while_loading_leaves_the_draft_layer_whole(
    base: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(base)
    sliced_map(checkpoint).save(tmp_path / "map")
    extra = {"routing_map": str(tmp_path / "map")}
    config = config_of(base, model_loader_extra_config=extra, **OURS)
    assert widths(loaded(config, tmp_path)) == [4, 4]
    check_is_the_bases(drafts_of(config), base)
    assert config.model_config.hf_text_config.n_routed_experts == 4


def test_what_vllm_keeps_of_a_model_it_keeps_for_its_draft_layers_too(
    base: Path, tmp_path: Path
) -> None:
    """Compiled code is found by this hash: a pruned draft layer and a whole one are two models."""
    checkpoint, out = Checkpoint.open(base), tmp_path / "out"
    keys = []
    for choice in ("keep", "prune", "keep"):
        build(checkpoint, sliced_map(checkpoint), out, mtp=choice, force=True)  # type: ignore[arg-type]
        config = config_of(out, **OURS)
        loaded(config, tmp_path)
        assert widths(drafts_of(config)) == [EXPERTS if choice == "keep" else 4]
        keys.append(config.compute_hash())
    assert keys[0] == keys[2] != keys[1]


def test_without_our_load_format_it_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(base)
    build(checkpoint, sliced_map(checkpoint), tmp_path / "out", mtp="keep")
    config = config_of(tmp_path / "out", **DRAFTING)
    assert widths(loaded(config, tmp_path)) == [4, 4]
    said = r"has draft \(MTP\) layers with 8 experts.*\(hint: add --load-format pruned_moe"
    with pytest.raises(PruneError, match=said):
        drafts_of(config)


def test_counts_of_both_configs_while_draft_layers_are_built() -> None:
    """vLLM's model code asks one or the other."""
    layout = layout_of({"model_type": "glm4_moe", "n_routed_experts": 4, "num_hidden_layers": 3})
    own = {"pruned_moe_drafts": {"num_experts": 8, "num_experts_per_tok": 3}}
    target = SimpleNamespace(n_routed_experts=4, num_experts_per_tok=1, **own)
    draft = SimpleNamespace(n_routed_experts=4, num_experts_per_tok=1, **own)
    configs: Any = [SimpleNamespace(hf_text_config=one) for one in (target, draft)]
    whole: Any = SimpleNamespace(model_config=configs[0])

    def counts(config: Any) -> tuple[int, int]:
        return config.n_routed_experts, config.num_experts_per_tok

    with pytest.raises(ZeroDivisionError), counted_as_drafts(whole, configs[1], layout):
        assert counts(target) == counts(draft) == (8, 3)
        raise ZeroDivisionError
    assert (counts(target), counts(draft)) == ((4, 1), (8, 3))


def test_draft_layers_are_told_from_all_else_that_is_loaded() -> None:
    target = SimpleNamespace(model="Org/Name", runner_type="generate")
    layers = SimpleNamespace(model="Org/Name", runner_type="draft")
    head = SimpleNamespace(model="Org/Head", runner_type="draft")

    def drafting(method: str) -> Any:
        speculative = SimpleNamespace(method=method, target_model_config=target)
        return SimpleNamespace(speculative_config=speculative)

    assert is_own_draft(drafting("mtp"), layers)
    assert not is_own_draft(drafting("mtp"), target)
    assert not is_own_draft(drafting("mtp"), head)
    assert not is_own_draft(drafting("draft_model"), layers)
    assert not is_own_draft(SimpleNamespace(speculative_config=None), target)
