"""vLLM drafts with a pruned or a whole MTP layer beside a pruned model, and answers as without it.

An answer cannot tell whether the draft layer is right: vLLM verifies what is drafted. So what was
drafted is compared, too, with the layer as transformers computes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.build.build import build
from tests.draft_probe import drafted
from tests.families.models import EXPERTS
from tests.families.mtp import make_with_mtp
from tests.families.quantised import tensors_of
from tests.families.serving import serving_of
from tests.families.test_build import KEPT, loaded, sliced_map
from tests.sample_maps import kept_map, map_of
from tests.vllm_probe import probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.routing_map import RoutingMap

PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42, 50, 51]]
DRAFTING = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}
OURS = {"load_format": "pruned_moe"}
COMMON: dict[str, Any] = {"steps": 8, "dtype": "float32", "skip_tokenizer_init": True}
# Whose draft layers vLLM's CPU build runs, and what their configs need beside the tests' own.
SERVED: dict[str, dict[str, Any]] = {
    "glm4_moe": {},
    "deepseek_v3": {},
    "glm4_moe_lite": {},
    "qwen3_next": {},
    "hy_v3": {"route_norm": True},  # transformers has another word for it
}

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(make_with_mtp("glm4_moe", tmp_path_factory.mktemp("glm")))


@pytest.fixture(scope="module")
def expected(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What the model without its draft layer answers."""
    out = tmp_path_factory.mktemp("drop") / "out"
    build(base, sliced_map(base), out, mtp="drop")
    return tokens(out)


def tokens(folder: Path, **arguments: Any) -> list[list[int]]:
    return [found for found, _ in probe(folder, PROMPTS, **{**COMMON, **arguments})]


def drafting_with(arguments: dict[str, Any]) -> dict[str, Any]:
    """Draft with the target's attention: vLLM chooses another one for draft layers by itself."""
    told = {name: arguments[name] for name in ("attention_backend",) if name in arguments}
    return {"speculative_config": {**DRAFTING["speculative_config"], **told}}


def with_map(folder: Path) -> dict[str, Any]:
    return {**OURS, "model_loader_extra_config": {"routing_map": str(folder)}}


def test_a_pruned_draft_layer_loads_and_drafts(
    base: Checkpoint, expected: list[list[int]], tmp_path: Path
) -> None:
    build(base, sliced_map(base), tmp_path / "out", mtp="prune")
    assert tokens(tmp_path / "out", **DRAFTING) == expected
    assert tokens(base.folder, **DRAFTING) != expected


def test_map_only_leaves_the_bases_draft_layer_out(
    base: Checkpoint, expected: list[list[int]], tmp_path: Path
) -> None:
    sliced_map(base).save(tmp_path)
    assert tokens(base.folder, **with_map(tmp_path)) == expected


@torch.no_grad()
def as_transformers_drafts(
    base: Checkpoint, pruned: Path, text: list[int], prompt: int
) -> list[int]:
    """Return what a whole draft layer proposes, step by step, while ``text`` is generated.

    :param pruned: a checkpoint of the target without draft layers, whose hidden states it reads
    :param prompt: how many tokens are the prompt's
    """
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeDecoderLayer

    model, own = loaded(pruned), tensors_of(base.folder)
    config = model.config.__class__(**{**model.config.to_dict(), "n_routed_experts": EXPERTS})
    config._attn_implementation = "eager"
    prefix = "model.layers.3."
    whole = loaded_layer(Glm4MoeDecoderLayer(config, 2), own, prefix)
    ids = torch.tensor([text])
    hidden = model.model(ids[:, :-1]).last_hidden_state
    embedded = model.model.embed_tokens(ids[:, 1:]).clone()
    embedded[:, 0] = 0  # as vLLM does at the first position
    joint = [
        norm(embedded, own[prefix + "enorm.weight"]),
        norm(hidden, own[prefix + "hnorm.weight"]),
    ]
    given = torch.cat(joint, -1) @ own[prefix + "eh_proj.weight"].T
    count = given.shape[1]
    places = torch.arange(count)[None]
    mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
    out = whole(
        given,
        attention_mask=mask,
        position_ids=places,
        position_embeddings=model.model.rotary_emb(given, places),
    )
    out = out[0] if isinstance(out, tuple) else out
    head = norm(out, own[prefix + "shared_head.norm.weight"])
    # vLLM lets draft layers share the target's head.
    proposals = (head @ model.lm_head.weight.T).argmax(-1)[0].tolist()
    found, place = [], prompt - 1
    while place < count:
        found.append(proposals[place])  # for the token after the next one
        accepted = place + 2 < len(text) and text[place + 2] == proposals[place]
        place += 2 if accepted else 1
    return found


def norm(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-5) * weight


def loaded_layer(layer: Any, tensors: dict[str, torch.Tensor], prefix: str) -> Any:
    """Fill a decoder layer with a draft layer's tensors, whose experts are stored one by one."""
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    every = [f"mlp.experts.{expert}." for expert in range(EXPERTS)]
    gate_up = [
        torch.cat([state[one + "gate_proj.weight"], state[one + "up_proj.weight"]]) for one in every
    ]
    state["mlp.experts.gate_up_proj"] = torch.stack(gate_up)
    state["mlp.experts.down_proj"] = torch.stack([state[one + "down_proj.weight"] for one in every])
    missing = layer.load_state_dict(state, strict=False).missing_keys
    assert not missing
    return layer.float().eval()


@pytest.mark.parametrize("kind", ["plain", "compact", "map only"])
def test_a_whole_draft_layer_drafts_as_transformers_computes_it(
    kind: str, base: Checkpoint, tmp_path: Path
) -> None:
    """Of a pruned target with eight experts in its draft layer, and fewer in all others."""
    routing_map = sliced_map(base)
    if kind == "compact":
        routing_map = kept_map(base.folder, (KEPT[0], KEPT[2][:2]), (2, 1))
    build(base, routing_map, tmp_path / "none", mtp="drop")
    form = OURS if kind == "compact" else {}
    without = tokens(tmp_path / "none", **form)
    folder, arguments = tmp_path / "out", OURS
    if kind == "map only":
        folder, arguments = base.folder, with_map(tmp_path / "none.map")
        routing_map.save(tmp_path / "none.map")
    else:
        build(base, routing_map, folder, mtp="keep")
    answers, proposals = drafted(folder, PROMPTS, **COMMON, **arguments, **DRAFTING)
    assert [found for found, _ in answers] == without
    if kind == "compact":  # transformers has one count for all layers
        return
    for prompt, answer, found in zip(PROMPTS, without, proposals, strict=True):
        wanted = as_transformers_drafts(base, tmp_path / "none", prompt + answer, len(prompt))
        assert len(found) > 3 and found[: len(wanted)] == wanted[: len(found)]


@pytest.mark.parametrize("family", SERVED)
def test_a_whole_draft_layer_of_every_family_that_runs_here(family: str, tmp_path: Path) -> None:
    base = Checkpoint.open(make_with_mtp(family, tmp_path / "base", **SERVED[family]))
    routing_map, arguments = sliced_map(base), serving_of(family).arguments
    build(base, routing_map, tmp_path / "none", mtp="drop")
    build(base, routing_map, tmp_path / "out", mtp="keep")
    without = tokens(tmp_path / "none", **arguments)
    drafting = drafting_with(arguments)
    assert tokens(tmp_path / "out", **OURS, **drafting, **arguments) == without


def test_a_mapped_router_is_not_the_draft_layers(tmp_path: Path) -> None:
    """Layer 0 of the draft layers has another number of experts than layer 0, and its own gate."""
    base = Checkpoint.open(make_with_mtp("qwen3_next", tmp_path / "base"))
    routing_map, arguments = mapped(base), serving_of("qwen3_next").arguments
    build(base, routing_map, tmp_path / "none", mtp="drop")
    without = tokens(tmp_path / "none", **OURS, **arguments)
    for choice in ("keep", "prune"):
        build(base, routing_map, tmp_path / choice, mtp=choice)  # type: ignore[arg-type]
        assert tokens(tmp_path / choice, **OURS, **DRAFTING, **arguments) == without


def mapped(base: Checkpoint) -> RoutingMap:
    rng = np.random.default_rng(0)
    layers = [
        LayerMap(
            layer=layer,
            num_experts=count,
            num_kept=4,
            top_k=2,
            experts=Selection(kept=KEPT[layer]),
            router="mapped",
            router_rows=Selection(matrix=f"layers.{layer}.router"),
        )
        for layer, count in base.expert_counts().items()
    ]
    matrices = {f"layers__{one.layer}__router": rng.random((4, EXPERTS)) for one in layers}
    return map_of(base.folder, layers, **matrices)
