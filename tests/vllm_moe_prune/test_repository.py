"""Maps and checkpoints of ours that lie on the hub, asked for by the real client."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.server import Hub
from tests.sample_maps import build_compact, mixed_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference
from vllm_moe_prune.repository import fetch_facts, fetch_weights, is_compact, load_map
from vllm_moe_prune.routing_map import RoutingMap

OUT = HubReference("me/out")


@pytest.fixture(scope="module")
def mixed(base: Path) -> RoutingMap:
    return mixed_map(base)


@pytest.fixture(scope="module")
def compact(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_compact(base, tmp_path_factory.mktemp("compact") / "out")


def assert_refused(name: str, *parts: str) -> None:
    with pytest.raises(PruneError) as refused:
        load_map(Path(name))
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


def test_a_map_alone_is_shared_as_kilobytes(hub: Hub, mixed: RoutingMap, tmp_path: Path) -> None:
    mixed.save(tmp_path / "map")
    hub.publish("me/map", tmp_path / "map")
    assert load_map(Path("me/map")) == mixed
    assert hub.sent < 32_000


def test_of_a_checkpoint_only_its_map_is_fetched(hub: Hub, compact: Path) -> None:
    hub.publish("me/out", compact)
    assert load_map(Path("me/out")) == RoutingMap.load(compact)
    assert hub.sent < 32_000 < Checkpoint.open(compact).num_bytes


def test_a_revision_names_one_of_several_maps(
    hub: Hub, base: Path, mixed: RoutingMap, tmp_path: Path
) -> None:
    other = mixed_map(base, seed=1)
    mixed.save(tmp_path / "map")
    hub.publish("me/map", tmp_path / "map", tag="v1")
    other.save(tmp_path / "map")
    hub.publish("me/map", tmp_path / "map")
    assert load_map(Path("me/map@v1")) == mixed != other
    assert load_map(Path("me/map")) == other


def test_what_lies_here_is_read_from_here(
    hub: Hub, mixed: RoutingMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed.save(tmp_path / "me" / "map")
    monkeypatch.chdir(tmp_path)
    assert load_map(Path("me/map")) == load_map(Path("me/map/routing_map.json")) == mixed
    assert hub.requests == []


def test_what_cannot_be_had_is_one_line(
    hub: Hub, base: Path, mixed: RoutingMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    mixed.save(tmp_path / "map")
    hub.publish("me/map", tmp_path / "map")
    hub.publish("me/gated", tmp_path / "map", gated=True)
    hub.publish("me/base", base)
    assert_refused("me/absent", "me/absent", "check the name")
    assert_refused("me/gated", "me/gated is gated", "HF_TOKEN")
    assert_refused("me/map@v9", "me/map has no revision 'v9'")
    assert_refused("me/base", "me/base has no file that is called routing_map.json")
    load_map(Path("me/map"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_map(Path("me/map")) == mixed
    assert_refused(
        "me/other", "HF_HUB_OFFLINE is set", "me/other is neither a folder here nor in the cache"
    )


def files_of(folder: Path) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}


def test_a_compact_checkpoint_comes_whole_and_weights_come_last(hub: Hub, compact: Path) -> None:
    hub.publish("me/out", compact)
    checkpoint = Checkpoint.open(fetch_facts(OUT))
    index = "pruned_moe/model.safetensors.index.json"
    facts = {"config.json", "routing_map.json", "routing_map.safetensors", index}
    assert files_of(checkpoint.folder) == facts
    whole = Checkpoint.open(compact)
    assert checkpoint.fingerprint().matches(whole.fingerprint())
    fetch_weights(checkpoint)
    assert files_of(checkpoint.folder) == facts | {"pruned_moe/model.safetensors"}
    assert all(checkpoint.raw(name) == whole.raw(name) for name in whole.tensors)
    assert RoutingMap.load(checkpoint.folder) == RoutingMap.load(compact)


@pytest.mark.parametrize("shards", [1, 3])
def test_of_a_base_only_the_weights_that_it_loads_are_fetched(
    hub: Hub, tmp_path: Path, shards: int
) -> None:
    base = make_tiny_mixtral(tmp_path / "base", shards=shards)
    (base / "consolidated.safetensors").write_bytes(b"the same again")
    (base / "pytorch_model.bin").write_bytes(b"a pickle")
    (base / "original").mkdir()
    (base / "original" / "model.safetensors").write_bytes(b"and again")
    hub.publish("me/base", base)
    checkpoint = Checkpoint.open(fetch_facts(HubReference("me/base")))
    fetch_weights(checkpoint)
    wanted = {"config.json", *(file.name for file in base.glob("model*"))}
    assert files_of(checkpoint.folder) == wanted
    assert checkpoint.tensors == Checkpoint.open(base).tensors


def test_all_files_are_of_one_commit(hub: Hub, base: Path, compact: Path) -> None:
    """A push in between must not mix the map of one model with the weights of another."""
    first = hub.publish("me/out", compact)
    checkpoint = Checkpoint.open(fetch_facts(OUT))
    hub.publish("me/out", base)
    fetch_weights(checkpoint)
    assert checkpoint.folder.name == first
    assert Checkpoint.open(checkpoint.folder).tensors == Checkpoint.open(compact).tensors


def test_a_compact_checkpoint_is_told_from_others(hub: Hub, base: Path, compact: Path) -> None:
    hub.publish("me/out", base, tag="base")
    hub.publish("me/out", compact)
    assert is_compact(OUT.repo_id)
    assert not is_compact("me/out", "base")
    assert not is_compact("me/absent")
