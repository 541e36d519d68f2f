"""What vLLM's first process refuses, by its arguments and by its configs, and what it says."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offline.build.build import build
from tests.hub.server import Hub
from tests.sample_maps import build_compact, mixed_map, uniform_map
from tests.tiny import make_tiny_llama, make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.plugin import register

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from vllm.engine.arg_utils import EngineArgs

from vllm_moe_prune.first_process import check_arguments, check_config
from vllm_moe_prune.vllm_compat.first_process import served_by

KEPT = [(0, 2, 5, 7)] * 4
OURS = "pruned_moe"


@pytest.fixture(scope="module")
def models(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, maps, a compact and a plain checkpoint, and a dense model."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "base").symlink_to(base)
    mixed_map(base).save(folder / "map")
    uniform_map(make_tiny_mixtral(folder / "other", layers=4, seed=7), KEPT).save(
        folder / "foreign"
    )
    build_compact(base, folder / "compact")
    build(Checkpoint.open(base), uniform_map(base, KEPT), folder / "plain")
    make_tiny_llama(folder / "dense")
    return folder


def arguments(model: Path | str, load_format: str = OURS, **extra: Any) -> EngineArgs:
    return EngineArgs(str(model), load_format=load_format, model_loader_extra_config=extra)


@pytest.mark.parametrize(
    ("model", "load_format", "extra", "said"),
    [
        ("base", "auto", {"routing_map": "map"}, r"routing_map in .*--load-format pruned_moe"),
        ("base", "auto", {"routing-map": "map"}, r"'routing-map', which no .*\"routing_map\""),
        ("base", OURS, {"routing_mapp": "map"}, r"'routing_mapp', which .*write \"routing_map\""),
        ("base", OURS, {"abacus": 1}, r"'abacus', which .*knows routing_map, allow_other_base"),
        ("base", OURS, {"num_threads": -1}, r"^--model-loader-extra-config: num_threads"),
        ("base", OURS, {"routing_map": 7}, "routing_map is 7"),
        ("base", OURS, {"routing_map": "map", "allow_other_base": "yes"}, "is true or false"),
        ("base", "pruned-moe", {"routing_map": "map"}, r"no load format 'pruned-moe'.*pruned_moe"),
        ("base", OURS, {"routing_map": "absent"}, "no routing map at absent"),
        ("base", OURS, {"routing_map": "foreign"}, r'another base.*"allow_other_base": true'),
        ("compact", "auto", {}, r"compact pruned checkpoint.*--load-format pruned_moe"),
        ("compact", OURS, {"routing_map": "map"}, "already pruned"),
        ("base", OURS, {}, r"has no routing_map\.json"),
        ("dense", OURS, {}, r"is a dense model \(llama\) and has no.*vllm serve .*dense serves it"),
        ("dense", OURS, {"routing_map": "map"}, r"is a dense model \(llama\): there are no exp"),
    ],
)
def test_it_is_refused_before_vllm_makes_a_config(
    models: Path,
    model: str,
    load_format: str,
    extra: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    with pytest.raises(PruneError, match=said) as caught:
        arguments(models / model, load_format, **extra).create_engine_config()
    assert "\n" not in str(caught.value)
    assert "supported:" not in str(caught.value)  # no list of families


def test_models_of_others_are_left_alone(models: Path, tmp_path: Path, hub: Hub) -> None:
    for model in ("base", "dense"):
        assert check_arguments(arguments(models / model, "auto")) is None
    hub.publish("me/base", models / "base")
    assert check_arguments(arguments("me/base", "auto")) is None
    assert not [r for r in hub.asked("me/base") if r.sent > 10_000]
    (tmp_path / "config.json").write_text(json.dumps({"speculators_config": {}}))
    assert check_arguments(arguments(tmp_path)) is None


def test_a_broken_map_beside_a_plain_checkpoint_is_no_reason_not_to_serve_it(
    models: Path, tmp_path: Path
) -> None:
    for file in (models / "plain").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "routing_map.json").unlink()
    (tmp_path / "routing_map.json").write_text("{}")
    assert check_arguments(arguments(tmp_path, "auto")) is None


def vllm_config(model: Path | str, **more: Any) -> Any:
    parallel = {
        "tensor_parallel_size": 1,
        "data_parallel_size": 1,
        "enable_expert_parallel": False,
        "enable_eplb": False,
        "_api_process_count": 1,
        "_api_process_rank": 0,
    }
    named = {name: more.pop(name) for name in parallel.keys() & more.keys()}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{**parallel, **named}),
        model_config=SimpleNamespace(model=str(model), hf_text_config=SimpleNamespace()),
        load_config=SimpleNamespace(load_format=OURS),
        **{"lora_config": None, "speculative_config": None, **more},
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tensor_parallel_size": 2, "enable_expert_parallel": True}, "a multiple of the 2 ranks"),
        ({"enable_eplb": True}, "EPLB"),
        ({"lora_config": SimpleNamespace(target_modules=None)}, "--lora-target-modules"),
        ({"data_parallel_size": 2}, "expert_metrics counts in one engine"),
        ({"_api_process_count": 2}, "expert_metrics needs one API server"),
        (
            {"aux_output_config": SimpleNamespace(enable_return_routed_experts=True)},
            "top-1 to top-2|need the same place",
        ),
    ],
)
def test_what_it_cannot_be_served_with_is_refused(
    models: Path, more: dict[str, Any], said: str
) -> None:
    extra = {"routing_map": str(models / "map"), "expert_metrics": True}
    found = check_arguments(arguments(models / "base", **extra))
    with pytest.raises(PruneError, match=said):
        check_config(vllm_config(models / "base", **more), found)


def test_expert_parallelism_on_one_rank_is_no_parallelism(models: Path) -> None:
    found = check_arguments(arguments(models / "compact"))
    check_config(vllm_config(models / "compact", enable_expert_parallel=True), found)


def drafting(model: Path, **more: Any) -> Any:
    draft = SimpleNamespace(model=str(model), revision=None)
    return SimpleNamespace(model=str(model), draft_model_config=draft, **more)


def test_a_model_that_drafts_is_looked_at_by_its_own_load_format(models: Path) -> None:
    """A dense draft beside a pruned target is nobody's business; a compact one needs the format."""
    found = check_arguments(arguments(models / "compact"))
    dense = vllm_config(models / "compact", speculative_config=drafting(models / "dense"))
    check_config(dense, found)
    other = SimpleNamespace(load_format="auto")
    compact = drafting(models / "compact", draft_load_config=other)
    with pytest.raises(PruneError, match=r'which drafts, is a compact.*"draft_load_config"'):
        check_config(vllm_config(models / "dense", speculative_config=compact), None)
    compact.draft_load_config = None
    check_config(vllm_config(models / "dense", speculative_config=compact), None)


def test_one_block_of_the_log_says_what_is_served(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_moe_prune.loader import logger

    said: list[str] = []
    monkeypatch.setattr(logger, "info", lambda text, *values: said.append(text % values))
    extra = {"routing_map": str(models / "map")}
    found = check_arguments(arguments(models / "base", **extra))
    check_config(vllm_config(models / "base"), found)
    (block,) = said
    lines = block.splitlines()
    assert lines[0] == f"pruned model (map-only): {models / 'base'}"
    assert lines[1] == (
        "  experts: 19 of 32 in 4 layers; layer 0: 8 of 8 (top-2); layer 1: 4 of 8 (top-2); "
        "layer 2: 3 of 8 (top-1) mapped; layer 3: 4 of 8 (top-2) mapped merged"
    )
    bytes_of_all = Checkpoint.open(models / "base").expert_bytes()
    assert lines[2].endswith(f" of {bytes_of_all / 2**20:.2f} MiB of experts")
    digest = mixed_map(models / "base").digest()
    assert lines[3] == f"  routing map: {digest} from {models / 'map'}"
    assert lines[4].startswith("  base: tiny; chosen by by hand")
    # Of several API servers one says it.
    check_config(vllm_config(models / "base", _api_process_count=2, _api_process_rank=1), found)
    assert len(said) == 1


def test_bytes_saved_are_those_of_the_base_in_every_form(models: Path) -> None:
    extra = {"routing_map": str(models / "map")}
    served = []
    for model, given in (("base", extra), ("compact", {}), ("plain", {})):
        config = vllm_config(models / model)
        check_config(config, check_arguments(arguments(models / model, **given)))
        found = served_by(config.model_config)
        assert found is not None and pickle.loads(pickle.dumps(found)) == found
        served.append(found)
    assert [one.form for one in served] == ["map-only", "compact", "plain"]
    whole = Checkpoint.open(models / "base").expert_bytes()
    assert {one.bytes_before for one in served} == {whole}
    assert [one.bytes_after for one in served] == [whole * 19 // 32, whole * 19 // 32, whole // 2]


def test_models_are_listed_with_what_was_pruned(models: Path) -> None:
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry

    register()
    config = vllm_config(models / "base")
    config.model_config.max_model_len = 128
    extra = {"routing_map": str(models / "map")}
    check_config(config, check_arguments(arguments(models / "base", **extra)))
    paths = [BaseModelPath("m", "base"), BaseModelPath("n", "base")]
    listed = asyncio.run(OpenAIModelRegistry(config.model_config, paths).show_available_models())
    for card in listed.model_dump()["data"]:
        assert card["pruning"]["form"] == "map-only" and card["root"] == "base"
        assert card["pruning"]["routing_map"] == mixed_map(models / "base").digest()
    unpruned: Any = SimpleNamespace(max_model_len=128)
    listed = asyncio.run(OpenAIModelRegistry(unpruned, paths).show_available_models())
    assert "pruning" not in listed.model_dump()["data"][0]
