"""Checkpoints whose weights lie on the hub: headers and single tensors come over the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.hub.handler import Handler
from tests.hub.server import Hub
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune import headers
from vllm_moe_prune.checkpoint import INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference, fetch

NAME = HubReference("Org/Tiny")
FACTS = ["/config.json", "/*.index.json"]


@pytest.fixture(params=[1, 3], ids=["one file", "shards"])
def published(request: pytest.FixtureRequest, hub: Hub, tmp_path: Path) -> Path:
    headers._remote.cache_clear()  # commits are those of the test before
    folder = make_tiny_mixtral(tmp_path / "tiny", shards=request.param)
    hub.publish("Org/Tiny", folder)
    return folder


def test_it_is_the_checkpoint_of_the_folder(hub: Hub, published: Path) -> None:
    remote, local = Checkpoint.open(fetch(NAME, FACTS)), Checkpoint.open(published)
    assert list(remote.tensors.items()) == list(local.tensors.items())
    assert remote.fingerprint().matches(local.fingerprint())
    assert (remote.name, local.name) == ("Org/Tiny", "tiny")
    for name in list(remote.tensors)[::7]:
        assert remote.raw(name) == local.raw(name)
    assert not list(remote.folder.glob("*.safetensors"))


def test_a_long_header_is_read_in_two_parts(
    hub: Hub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "_FIRST", 100)
    remote = Checkpoint.open(fetch(NAME, FACTS))
    assert remote.tensors == Checkpoint.open(published).tensors


def test_a_connection_that_breaks_off_is_asked_again(hub: Hub, published: Path) -> None:
    shard = sorted(published.glob("*.safetensors"))[0].name
    hub.break_off(shard, after=1000)
    assert Checkpoint.open(fetch(NAME, FACTS)).tensors == Checkpoint.open(published).tensors
    assert not hub.breaks[shard].times


def test_a_file_of_another_length_than_its_header_says_is_refused(
    hub: Hub, published: Path, tmp_path: Path
) -> None:
    shorter = tmp_path / "shorter"
    shutil.copytree(published, shorter)
    shard = sorted(shorter.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    hub.publish("Org/Tiny", shorter)
    with pytest.raises(
        PruneError, match=rf"{shard.name} is truncated or damaged: it has \d+ bytes"
    ):
        Checkpoint.open(fetch(NAME, FACTS))


def test_pickled_weights_and_absent_shards_are_named(
    hub: Hub, published: Path, tmp_path: Path
) -> None:
    without = tmp_path / "without"
    shutil.copytree(published, without, ignore=shutil.ignore_patterns("*.safetensors"))
    (without / "pytorch_model.bin").write_bytes(b"a pickle")
    hub.publish("Org/Tiny", without)
    sharded = (without / INDEX_FILE).exists()
    said = "is missing" if sharded else "has no safetensors weights"
    with pytest.raises(PruneError, match=said):
        Checkpoint.open(fetch(NAME, FACTS))


def test_a_server_that_sends_no_parts_is_refused_before_it_sends_all(
    hub: Hub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(NAME, FACTS)
    send = Handler._send_file

    def whole(self: Handler, *arguments: object) -> None:
        del self.headers["Range"]
        send(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Handler, "_send_file", whole)
    with pytest.raises(PruneError, match="does not send parts of files"):
        Checkpoint.open(folder)
