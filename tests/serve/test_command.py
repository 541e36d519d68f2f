"""`vmprune serve` as far as the command line that it becomes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from offline.build.build import build
from serve import command as module
from serve.command import ServeCommand, plugins
from tests.hub.server import Hub
from tests.sample_maps import build_compact, mixed_map, uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

KEPT = [(0, 2, 5, 7)] * 4


@pytest.fixture(scope="module")
def compact(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_compact(base, tmp_path_factory.mktemp("compact") / "out")


def own(model: Path | str, *arguments: str, **options: Any) -> list[str]:
    return list(ServeCommand.checked(str(model), options, arguments).own)


def test_flags_follow_from_the_form(base: Path, compact: Path, tmp_path: Path) -> None:
    build(Checkpoint.open(base), uniform_map(base, KEPT), tmp_path / "plain")
    mixed_map(base).save(tmp_path / "map")
    host = ["--host", "127.0.0.1"]
    ours = ["--load-format", "pruned_moe"]
    assert own(tmp_path / "plain") == [str(tmp_path / "plain"), *host]
    assert own(compact) == [str(compact), *ours, *host]
    options = {"routing_map": str(tmp_path / "map")}
    extra = ["--model-loader-extra-config", json.dumps(options)]
    assert own(base, **options) == [str(base), *ours, *extra, *host]
    counted = own(tmp_path / "plain", expert_metrics=True)
    assert counted[1:4] == [*ours, "--model-loader-extra-config"]


@pytest.mark.parametrize("said", [["--host", "0.0.0.0"], ["--host=::"], ["--uds", "/run/s"]])
def test_others_reach_it_only_where_that_is_said(compact: Path, said: list[str]) -> None:
    assert "--host" in own(compact, "--port", "1")
    assert "--host" not in own(compact, *said)


def test_a_revision_on_the_hub_is_said_to_vllm(hub: Hub, compact: Path) -> None:
    hub.publish("me/out", compact, tag="v1")
    revision = ["--revision", "v1", "--tokenizer-revision", "v1"]
    assert own("me/out@v1")[:5] == ["me/out", *revision]
    assert own("me/out")[:2] == ["me/out", "--load-format"]


@pytest.mark.parametrize(
    "said", ["--load-format=auto", "--load_format", "--model-loader-extra-config.routing_map"]
)
def test_what_follows_from_the_model_is_not_said_again(compact: Path, said: str) -> None:
    with pytest.raises(PruneError, match=r"--(load-format|model-loader-extra-config) is not for"):
        own(compact, said, "x")


def test_another_base_is_refused_with_a_flag_that_there_is(base: Path, tmp_path: Path) -> None:
    routing_map = mixed_map(base)
    other = routing_map.base.model_copy(update={"routers": "sha256:0"})
    routing_map.model_copy(update={"base": other}).save(tmp_path)
    with pytest.raises(PruneError, match=r"another base.*or --allow-other-base\)"):
        own(base, routing_map=str(tmp_path))
    assert own(base, routing_map=str(tmp_path), allow_other_base=True)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("", "pruned_moe"), ("a,b", "a,b,pruned_moe"), ("pruned_moe", "pruned_moe")],
)
def test_our_route_is_named_among_the_plugins(
    given: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", given)
    assert plugins() == wanted


def test_no_plugin_is_lost_and_no_route_of_others_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[vllm.platform_plugins]\nchip = a:b\n[vllm.endpoint_plugins]\ndoor = a:b\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    names = plugins().split(",")
    assert {"chip", "pruned_moe"} <= set(names) and "door" not in names


def test_it_becomes_vllm_with_the_users_arguments_last(
    compact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: called.append(given))
    monkeypatch.setenv("VLLM_PLUGINS", "a")
    ServeCommand.checked(str(compact), {}, ["--port", "8001"]).become()
    ((program, words, environment),) = called
    assert program == words[0] == sys.executable
    assert words[1:6] == ["-P", "-m", "serve.launch", "serve", str(compact)]
    assert words[-2:] == ["--port", "8001"]
    assert environment["VLLM_PLUGINS"] == "a,pruned_moe"


def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "version", absent)
    with pytest.raises(PruneError, match="vLLM is not installed here"):
        module.check_installed()
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "0.29.1")
    with pytest.raises(PruneError, match=r"install vLLM 0\.30\.x to 0\.33\.x"):
        module.check_installed()
