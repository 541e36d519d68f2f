"""`vmprune check` against a real vLLM server, on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline.build.build import build
from offline.check import check as module
from offline.check.answers import Answer
from offline.check.check import check, save
from offline.check.probes import repetition
from offline.engines.local.transformers import TransformersEngine
from tests.command import invoke
from tests.hub.server import Hub
from tests.sample_maps import build_compact, mixed_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError


def test_repetition_is_the_share_of_repeated_4_grams() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([7] * 10) == pytest.approx(6 / 7)  # 7 windows, one of them new
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base"), layers=4)


@pytest.fixture(scope="module")
def compact(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_compact(base, tmp_path_factory.mktemp("compact") / "out")


@pytest.mark.vllm
def test_a_good_compact_checkpoint_passes(base: Path, compact: Path, tmp_path: Path) -> None:
    result = check(compact, base, dtype="float32", log=tmp_path / "log")
    found = {finding.name: finding for finding in result.checks}
    assert found["parity of log-probabilities"].ok
    assert found["parity of log-probabilities"].value < 2e-3
    assert found["parity of greedy tokens"].value == 1.0
    assert found["log-probabilities are finite"].ok
    assert result.served_as == "pruned_moe"
    save(result, tmp_path)
    assert json.loads((tmp_path / "check.json").read_text())["ok"] == result.ok


@pytest.mark.vllm
@pytest.mark.slow
def test_a_checkpoint_with_wrong_weights_fails(base: Path, tmp_path: Path) -> None:
    """Built from another base but claiming this one: parity must notice."""
    other = make_tiny_mixtral(tmp_path / "other", layers=4, seed=5)
    build(Checkpoint.open(other), mixed_map(base), tmp_path / "out", allow_other=True)
    result = check(tmp_path / "out", base, dtype="float32", log=tmp_path / "log")
    parity = next(f for f in result.checks if f.name == "parity of log-probabilities")
    assert not parity.ok
    assert not result.ok


@pytest.mark.vllm
@pytest.mark.slow
def test_what_lies_on_the_hub_is_checked_by_its_name(
    hub: Hub, base: Path, compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.publish("me/out", compact, tag="v1")
    hub.publish("Org/Tiny", base)
    words = ("check", "me/out@v1", "--base", "Org/Tiny", "--dtype", "float32", "--json")
    facts = json.loads(invoke(*words).stdout)
    found = {finding["name"]: finding for finding in facts["checks"]}
    assert found["parity of log-probabilities"]["value"] < 2e-3
    assert (facts["model"], facts["served_as"]) == ("me/out", "pruned_moe")
    assert (tmp_path / "out@v1.check.log").is_file()
    assert list(tmp_path.rglob("check.json")) == []


def test_the_reference_is_where_it_is_told_when_the_server_has_ended(
    base: Path, compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU has no room for both. The server is none here: it is the order that is looked at."""
    events: list[str] = []

    class Ending:
        startup_seconds = 1.0

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Ending:
            return self

        def __exit__(self, *_: object) -> None:
            events.append("ended")

    def engine(*given: Any, device: str, **more: Any) -> TransformersEngine:
        events.append(device)
        return TransformersEngine(*given, device=device, **more)

    monkeypatch.setattr(module, "Server", Ending)
    monkeypatch.setattr(module, "continued", lambda *_: Answer((1, 2), (-1.0, -1.0)))
    monkeypatch.setattr(module, "chat", lambda *_: "words")
    monkeypatch.setattr("offline.engines.local.transformers.TransformersEngine", engine)
    result = check(compact, base, dtype="float32", device="cpu", log=tmp_path / "log")
    assert events == ["ended", "cpu"]
    assert not result.ok  # these are not its answers


def test_a_compact_checkpoint_needs_its_base(compact: Path, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="is a compact checkpoint"):
        check(compact, None, log=tmp_path / "log")


def test_another_base_is_refused(compact: Path, tmp_path: Path) -> None:
    other = make_tiny_mixtral(tmp_path / "other", layers=4, seed=5)
    with pytest.raises(PruneError, match="made for another base"):
        check(compact, other, log=tmp_path / "log")
