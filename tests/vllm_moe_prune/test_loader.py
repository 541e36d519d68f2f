"""The loader's decisions, without an engine: what it reads, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offline.build.build import build
from tests.hub.server import Hub
from tests.sample_maps import build_compact, mixed_map, uniform_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.draft_config import SECTION
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.mapped_checkpoint import apply_map
from vllm_moe_prune.plugin import register
from vllm_moe_prune.rewrite import Drop

vllm = pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from vllm.config.load import LoadConfig  # noqa: E402
from vllm.model_executor.model_loader import get_model_loader  # noqa: E402

from vllm_moe_prune.loader import PrunedMoELoader  # noqa: E402
from vllm_moe_prune.vllm_compat.limits import check_draft, check_parallel  # noqa: E402
from vllm_moe_prune.vllm_compat.version import check_version  # noqa: E402

UNIFORM = [(0, 2, 5, 7)] * 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base"), layers=4)


@pytest.fixture(scope="module")
def compact(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_compact(base, tmp_path_factory.mktemp("compact") / "out")


def loader(**extra: Any) -> PrunedMoELoader:
    register()
    config = LoadConfig(load_format="pruned_moe", model_loader_extra_config=extra)
    made = get_model_loader(config)
    assert isinstance(made, PrunedMoELoader)
    return made


def model_config(model: Path | str, revision: str | None = None) -> Any:
    return SimpleNamespace(model=str(model), revision=revision)


def test_registering_twice_changes_nothing() -> None:
    register()
    before = type(get_model_loader(LoadConfig()))
    register()
    assert type(get_model_loader(LoadConfig())) is before


@pytest.mark.parametrize("load_format", ["auto", "safetensors", "hf", "dummy"])
def test_a_compact_checkpoint_is_refused_by_every_other_format(
    compact: Path, load_format: str
) -> None:
    register()
    with pytest.raises(PruneError, match=r"compact pruned checkpoint.*--load-format pruned_moe"):
        get_model_loader(LoadConfig(load_format=load_format)).load_model(
            SimpleNamespace(), model_config(compact)
        )


@pytest.mark.parametrize("load_format", ["auto", "safetensors"])
def test_a_compact_checkpoint_on_the_hub_is_refused_by_every_other_format(
    hub: Hub, compact: Path, base: Path, load_format: str
) -> None:
    hub.publish("me/out", base, tag="base")
    hub.publish("me/out", compact)
    register()
    other = get_model_loader(LoadConfig(load_format=load_format))
    with pytest.raises(PruneError, match=r"^me/out is a compact.*me/out --load-format pruned_moe"):
        other.load_model(SimpleNamespace(), model_config("me/out"))
    with pytest.raises(AttributeError, match="SimpleNamespace"):  # vLLM begins to load it
        other.load_model(SimpleNamespace(), model_config("me/out", "base"))


def test_checkpoints_and_maps_are_loaded_by_their_names_on_the_hub(
    hub: Hub, compact: Path, base: Path, tmp_path: Path
) -> None:
    mixed_map(base).save(tmp_path / "map")
    hub.publish("me/map", tmp_path / "map", tag="v1")
    hub.publish("me/base", base)
    hub.publish("me/out", compact, tag="v1")
    hub.publish("me/out", base)
    wanted = loader()._mapped_checkpoint(model_config(compact))
    assert wanted is not None
    found = loader()._mapped_checkpoint(model_config("me/out", "v1"))
    assert found is not None and found.checkpoint.tensors == wanted.checkpoint.tensors
    assert found.routing_map.digest() == wanted.routing_map.digest()
    for model in (base, "me/base"):
        mapped = loader(routing_map="me/map@v1")._mapped_checkpoint(model_config(model))
        assert mapped is not None and mapped.routing_map.digest() == wanted.routing_map.digest()
        targets = {o.target.name: o.target for o in mapped.operations if not isinstance(o, Drop)}
        assert targets == wanted.checkpoint.tensors
    other = make_tiny_mixtral(tmp_path / "other", layers=4, seed=7)
    hub.publish("me/other", other)
    with pytest.raises(PruneError, match=r"another base.*routers hash differs"):
        loader(routing_map="me/map")._mapped_checkpoint(model_config("me/other"))
    assert not [r for r in hub.asked("me/other") if r.sent > 100_000]  # no weights for nothing
    with pytest.raises(PruneError, match=r"^me/out is already pruned; .*\(hint: give the base"):
        loader(routing_map="me/map")._mapped_checkpoint(model_config("me/out", "v1"))
    with pytest.raises(PruneError, match=r"^me/base has no routing_map\.json"):
        loader()._mapped_checkpoint(model_config("me/base"))


def test_files_of_the_hub_go_where_vllm_was_told_to_keep_them(
    hub: Hub, compact: Path, tmp_path: Path
) -> None:
    hub.publish("me/out", compact)
    register()
    config = LoadConfig(load_format="pruned_moe", download_dir=str(tmp_path / "disk"))
    get_model_loader(config).download_model(model_config("me/out"))
    (snapshot,) = (tmp_path / "disk").glob("models--me--out/snapshots/*")
    assert Checkpoint.open(snapshot).tensors == Checkpoint.open(compact).tensors
    assert not (tmp_path / "huggingface").exists()


def test_map_only_reads_no_dropped_expert(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routing_map = uniform_map(base, UNIFORM)
    mapped = apply_map(Checkpoint.open(base), routing_map)
    read: list[str] = []
    whole: Callable[[Checkpoint, str], torch.Tensor] = Checkpoint.tensor

    def spy(self: Checkpoint, name: str) -> torch.Tensor:
        read.append(name)
        return whole(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", spy)
    made = loader()
    made._mapped = mapped
    weights = dict(made.get_all_weights(model_config(base), torch.nn.Module()))
    experts = {int(name.split(".experts.")[1].split(".")[0]) for name in read if "experts" in name}
    assert experts == {0, 2, 5, 7}
    assert sum("experts" in name for name in weights) == 4 * 4 * 3
    original = Checkpoint.open(base).tensor("model.layers.0.block_sparse_moe.experts.5.w1.weight")
    assert torch.equal(weights["model.layers.0.block_sparse_moe.experts.2.w1.weight"], original)


def test_a_map_for_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = make_tiny_mixtral(tmp_path / "other", layers=4, seed=7)
    uniform_map(other, UNIFORM).save(tmp_path / "map")
    with pytest.raises(PruneError, match=r"another base.*routers hash differs"):
        loader(routing_map=str(tmp_path / "map"))._mapped_checkpoint(model_config(base))
    allowed = loader(routing_map=str(tmp_path / "map"), allow_other_base=True)
    assert allowed._mapped_checkpoint(model_config(base)) is not None


def test_a_map_on_a_pruned_checkpoint_is_refused(compact: Path, base: Path) -> None:
    with pytest.raises(PruneError, match="already pruned"):
        loader(routing_map=str(compact))._mapped_checkpoint(model_config(compact))


def test_a_model_without_a_map_is_refused(base: Path) -> None:
    with pytest.raises(PruneError, match=r"has no routing_map\.json"):
        loader()._mapped_checkpoint(model_config(base))


def test_a_plain_checkpoint_is_loaded_as_it_is(base: Path, tmp_path: Path) -> None:
    build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "out")
    assert loader()._mapped_checkpoint(model_config(tmp_path / "out")) is None


def test_a_compact_checkpoint_with_another_map_is_refused(
    compact: Path, base: Path, tmp_path: Path
) -> None:
    uniform_map(base, UNIFORM).save(tmp_path)
    beside = (compact / "routing_map.json").read_text()
    try:
        (compact / "routing_map.json").write_text((tmp_path / "routing_map.json").read_text())
        with pytest.raises(PruneError, match="layer 0 has 8 experts, its routing map says 4"):
            loader()._mapped_checkpoint(model_config(compact))
    finally:
        (compact / "routing_map.json").write_text(beside)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="routing_mapp"):
        loader(routing_mapp="typo")


@pytest.mark.parametrize("version", ["0.29.4", "0.34.0", "1.0.0+cpu"])
def test_an_unsupported_vllm_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.version.__version__", version)
    with pytest.raises(PruneError, match=rf"vLLM {version[:4]}.*install vLLM 0.30.x to 0.33.x"):
        loader()


def parallel_config(size: int = 2, *, eplb: bool = False) -> Any:
    parallel = SimpleNamespace(
        enable_expert_parallel=True,
        enable_eplb=eplb,
        tensor_parallel_size=size,
        data_parallel_size=1,
    )
    return SimpleNamespace(parallel_config=parallel)


def test_expert_parallelism_needs_uniform_counts_that_can_be_shared(base: Path) -> None:
    with pytest.raises(PruneError, match=r"same number of experts in every layer.*3 to 8"):
        check_parallel(parallel_config(), mixed_map(base))
    uniform = uniform_map(base, UNIFORM)
    check_parallel(parallel_config(2), uniform)
    check_parallel(parallel_config(4), uniform)
    with pytest.raises(PruneError, match=r"a multiple of the 8 ranks; this model has 4 to 4"):
        check_parallel(parallel_config(8), uniform)
    context = parallel_config(4)
    context.parallel_config.prefill_context_parallel_size = 2
    with pytest.raises(PruneError, match=r"a multiple of the 8 ranks"):
        check_parallel(context, uniform)


def test_expert_load_balancing_is_refused(base: Path) -> None:
    with pytest.raises(PruneError, match="EPLB"):
        check_parallel(parallel_config(eplb=True), uniform_map(base, UNIFORM))


def test_experts_are_not_balanced_where_draft_layers_have_others() -> None:
    own = {SECTION: {"num_experts": 8, "num_experts_per_tok": 2}}
    for fields, eplb, refused in ((own, True, True), (own, False, False), ({}, True, False)):
        draft: Any = SimpleNamespace(hf_text_config=SimpleNamespace(**fields))
        with pytest.raises(PruneError, match="EPLB") if refused else nullcontext():
            check_draft(parallel_config(eplb=eplb), draft)


def test_the_seam_is_where_the_compat_layer_expects_it() -> None:
    """The contract test for the supported window: the two names that are replaced exist."""
    from vllm.model_executor.models import mixtral

    assert callable(mixtral.make_layers)
    assert callable(mixtral.FusedMoEFactory)
    check_version()
