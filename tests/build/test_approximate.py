"""A substituted model in vLLM 0.33's own form, checked by what its source says that it reads."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offline.build.approximate import write_approximate
from offline.build.export import export
from tests.command import invoke
from tests.families.constants import substituted_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

KEPT = {0: (5, 0), 1: (0, 1, 2, 3, 4, 5, 6, 7)}
STEM = "model.layers.{}.block_sparse_moe.experts.{}."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("approximate") / "base"
    return Checkpoint.open(make_tiny_mixtral(folder, dtype="bfloat16", shards=3))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_the_checkpoint_has_a_vector_in_place_of_an_expert(
    base: Checkpoint, tmp_path: Path
) -> None:
    routing_map, vectors = substituted_map(base, KEPT)
    routing_map.save(tmp_path / "map")
    out = tmp_path / "out"
    words = ["--format", "approximate-experts", "--model", base.folder, "--out", out]
    assert "vllm serve" in invoke("export", tmp_path / "map", *words).stdout
    config = json.loads((out / "config.json").read_text())
    assert config.pop("approximate_experts") == {"0": [1, 2, 3, 4, 6, 7]}
    assert config == base.config
    before, after = tensors(base.folder), tensors(out)
    gone = {name for name in before if name not in after}
    assert gone == {
        f"{STEM.format(0, e)}{w}.weight" for e in vectors[0] for w in ("w1", "w2", "w3")
    }
    new = {name: after.pop(name) for name in list(after) if name not in before}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert list(new) == sorted(f"{STEM.format(0, e)}approx_value" for e in vectors[0])
    for expert, vector in vectors[0].items():
        stored = new[f"{STEM.format(0, expert)}approx_value"]
        assert torch.equal(stored, torch.tensor(vector).to(torch.bfloat16))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == after.keys() | new.keys()
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in (after | new).values()
    )
    with pytest.raises(PruneError, match="stand for experts of this checkpoint already"):
        Checkpoint.open(out)


def changed(routing_map: RoutingMap, **changes: Any) -> RoutingMap:
    fields = routing_map.model_dump()
    fields["layers"] = [{**fields["layers"][0], **changes}, fields["layers"][1]]
    matrices = routing_map.matrices if "substituted" not in changes else {}
    return RoutingMap.build(matrices=matrices, **fields)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"top_k": 1}, "layer 0 activates 1 experts, which must be the model's 2"),
    ({"router": "mapped"}, "layer 0 merges experts or mixes their scores"),
    ({"substituted": None}, "layer 0 drops experts"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_that_form_cannot_say_is_refused(
    changes: dict[str, Any], message: str, base: Checkpoint, tmp_path: Path
) -> None:
    routing_map = changed(substituted_map(base, KEPT)[0], **changes)
    with pytest.raises(PruneError, match=message):
        write_approximate(base, routing_map, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_exports_are_no_form_for_it(base: Checkpoint) -> None:
    routing_map, _ = substituted_map(base, KEPT)
    for form in ("kept-ids", "llm-compressor"):
        with pytest.raises(PruneError, match="layer 0 substitutes experts"):
            export(routing_map, form)  # type: ignore[arg-type]


_OWN = "vllm.model_executor.layers.fused_moe"


@pytest.mark.skipif(
    find_spec("vllm") is None or find_spec(f"{_OWN}.expert_substitution") is None,
    reason="vLLM 0.33 is the first that has it",
)
def test_vllm_itself_serves_it(tmp_path: Path) -> None:
    """Stock vLLM gives what our plugin gives for the same map."""
    from tests.vllm_moe_prune.test_parity import FLOAT32_LIMIT, PROMPTS, assert_equal
    from tests.vllm_probe import probe

    base = Checkpoint.open(make_tiny_mixtral(tmp_path / "base"))
    routing_map, _ = substituted_map(base, KEPT)
    write_approximate(base, routing_map, tmp_path / "out")
    routing_map.save(tmp_path / "map")
    theirs = probe(tmp_path / "out", PROMPTS, steps=8, dtype="float32")
    ours = probe(
        base.folder,
        PROMPTS,
        steps=8,
        load_format="pruned_moe",
        dtype="float32",
        model_loader_extra_config={"routing_map": str(tmp_path / "map")},
    )
    print(f"vLLM's own against ours: {assert_equal(theirs, ours, FLOAT32_LIMIT):.1e}")
