"""A quantised checkpoint from scores to a checked, served one, by the commands, and nothing else.

There is no unquantised copy: it is made, quantised and removed before anything is asked.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.server import Server, ServerSpec
from tests.command import invoke
from tests.families.quantised import FORMATS, SERVED, config_of, quantise
from tests.sample_files import write_task
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.cpu._is_amx_tile_supported(), reason="vLLM's CPU kernels need AMX"
    ),
]
SIZES = {"hidden": 128, "intermediate": 128, "heads": 4, "kv_heads": 4}
TEXT = "the cat sees a dog and the king sings to the moon .\n"
NEAR = 0.1  # nats of an item's margin: how bfloat16 rounds differs between batches


def facts(*words: str | Path) -> dict[str, Any]:
    done = invoke(*words, "--json")
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", SERVED)
def test_from_scores_to_a_checked_server(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    original = make_tiny_mixtral(tmp_path / "original", dtype="bfloat16", **SIZES)
    base = quantise(original, tmp_path / "base", FORMATS[name], config_of(name))
    shutil.rmtree(original)
    task = write_task(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT * 200)
    out, scores, routing_map = (tmp_path / one for one in ("out", "scores", "map"))

    text = ("--calibration", f"{tmp_path / 'text.txt'}:8", "--length", "64")
    facts("score", "--model", base, "--engine", "vllm", *text, "--out", scores)
    invoke(
        *("plan", "--scores", scores, "--criterion", "min-ean", "--keep", "4"),
        *("--out", routing_map),
    )
    invoke("build", "--model", base, "--map", routing_map, "--out", out)
    kept, whole = Checkpoint.open(out), Checkpoint.open(base)
    released = {whole.raw(tensor) for tensor in whole.stored if "experts" in tensor}
    experts = [tensor for tensor in kept.stored if "experts" in tensor]
    assert len(experts) == len([one for one in whole.stored if "experts" in one]) // 2
    assert all(kept.raw(tensor) in released for tensor in experts)

    asked = ("--task", task, "--split", "test")
    live = facts("eval", "--model", base, "--map", routing_map, "--engine", "vllm", *asked)
    local = facts("eval", "--model", base, "--map", routing_map, "--dtype", "float32", *asked)
    spec = ServerSpec(out, dtype="bfloat16", max_model_len=128, enforce_eager=True)
    with Server(spec, tmp_path / "server.log") as server:
        served = facts("eval", "--model", out, "--endpoint", server.url, *asked)
    margins = [
        (one["margin"], other["margin"], one["prediction"] == other["prediction"])
        for one, other in zip(live["items"], served["items"], strict=True)
    ]
    apart = max(abs(ours - theirs) for ours, theirs, _ in margins)
    alike = sum(same for *_, same in margins)
    print(f"{name}: {alike} of {len(margins)} predictions alike, margins within {apart:.3f}")
    assert apart < NEAR
    assert all(same or abs(ours) < NEAR for ours, _, same in margins)
    assert abs(local["accuracy"] - live["accuracy"]) <= 2 / len(margins)

    for engine in ("transformers", "vllm"):
        found = facts("check", out, "--base", base, "--engine", engine)
        parity, share, *_ = found["checks"]
        print(f"{name}, {engine}: {parity['value']:.4f}, {share['value']:.3f}")
        assert parity["ok"] and share["ok"], found
        assert parity["limit"] == (0.15 if engine == "transformers" else 0.05)
