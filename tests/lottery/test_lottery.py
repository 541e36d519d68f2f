"""The whole of a lottery on a tiny model: what it leaves, and what that is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from offline.build.build import build
from offline.engines.local.transformers import TransformersEngine
from offline.lottery.lottery import Lottery
from offline.results.compression import RunResult
from offline.results.lottery import read_round
from tests.lottery.conftest import Ground
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.composition import compose
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

IDS = torch.arange(3, 75).view(2, 36)


def test_what_a_lottery_leaves(ground: Ground, won: Path) -> None:
    result, made = RunResult.load(won), RoutingMap.load(won)
    assert result.lottery is not None
    assert [one.number for one in result.lottery.rounds] == [1, 2]
    assert [len(one.kept[0]) for one in result.lottery.rounds] == [6, 5]
    assert [t.tokens for t in made.tuned] == [8 * 31, 12 * 31]  # 256 and 384 tokens, first ones off
    assert [t.learning_rate for t in made.tuned] == [1e-3, 1e-3]
    assert {d.name for t in made.tuned for d in t.data} == {"prose", "other"}
    assert (made.form, made.provenance.method) == ("plain", "lottery")
    assert made.base.matches(Checkpoint.open(ground.model).fingerprint())
    assert made.tokens_seen is not None and len(made.tokens_seen[0]) == 8
    assert [d.name for d in made.provenance.data] == ["prose", "other"]
    assert {name: use.used > 0 for name, use in result.text.items()} == {"prose": 1, "other": 1}
    assert [(q.variant, q.items) for q in result.quality] == [("base", 10), ("lottery", 10)]
    built, base = Checkpoint.open(won), Checkpoint.open(ground.model)
    assert built.expert_counts() == {0: 5, 1: 5}
    assert built.config["num_local_experts"] == 5
    assert all(info.dtype == base.tensors[name].dtype for name, info in built.tensors.items())
    assert built.num_bytes == result.pruned_size.num_bytes < base.num_bytes
    assert "The weights were trained after pruning" in (won / "README.md").read_text()


def test_the_finetune_helps_and_numbers_are_of_the_models_they_are_said_of(
    ground: Ground, won: Path
) -> None:
    lottery = RunResult.load(won).lottery
    assert lottery is not None
    for one in lottery.rounds:
        assert one.tuned is not None and one.tuned.loss < one.dropped.loss
    last = lottery.rounds[-1].tuned
    assert last == lottery.result  # float32 all along
    base_tokens = {sum(layer.tokens) for layer in lottery.base.load}
    assert base_tokens == {2 * 4 * 32 * 2}  # domains x sequences x tokens x top-k
    for layer in lottery.result.load:
        assert layer.experts == lottery.rounds[-1].kept[layer.layer]
        mean = sum(layer.tokens) / 5
        deviation = math.sqrt(sum((n - mean) ** 2 for n in layer.tokens) / 5)
        assert layer.cv == pytest.approx(deviation / mean)
        assert layer.max_over_mean == pytest.approx(max(layer.tokens) / mean)


def test_weights_of_rounds_are_gone_and_all_else_stays(won: Path) -> None:
    run = won.with_name("out.run")
    assert {file.parent.name for file in run.rglob("*.safetensors*")} <= {"scores"}
    for number in (1, 2):
        folder = run / f"round-{number:02d}"
        record = read_round(folder)
        assert record is not None and record.trained is not None
        assert set(record.seconds) == {"score", "drop", "finetune", "measure"}
        assert record.map_digest == RoutingMap.load(folder / "map").digest()
        assert (folder / "scores").is_dir()


def test_the_rounds_maps_compose_to_the_outcomes(won: Path) -> None:
    run = won.with_name("out.run")
    first, second = (RoutingMap.load(run / f"round-0{n}" / "map") for n in (1, 2))
    assert compose(first, second).digest() == RoutingMap.load(won).digest()


def test_a_tuned_map_is_refused_wherever_it_would_be_applied(
    ground: Ground, won: Path, tmp_path: Path
) -> None:
    made = RoutingMap.load(won)
    with pytest.raises(PruneError, match="were tuned for 5 steps after pruning"):
        build(Checkpoint.open(ground.model), made, tmp_path / "again")
    engine = TransformersEngine(ground.model, dtype="float32")
    with pytest.raises(PruneError, match="were tuned for 5 steps"):
        engine.apply(made)


def test_without_a_finetune_the_result_is_the_base_with_the_composed_map(
    ground: Ground, tmp_path: Path
) -> None:
    out = tmp_path / "iterative"
    result = ground.compress(out, finetune=False)
    made = RoutingMap.load(out)
    assert result.lottery is not None and made.tuned == ()
    assert all(one.tuned is None for one in result.lottery.rounds)
    engine = TransformersEngine(ground.model, dtype="float32")
    engine.apply(made)
    expected = engine.logits(IDS)
    served = TransformersEngine(out, dtype="float32").logits(IDS)
    torch.testing.assert_close(served, expected, rtol=0, atol=1e-5)
    build(Checkpoint.open(ground.model), made, tmp_path / "built")
    one, other = Checkpoint.open(out), Checkpoint.open(tmp_path / "built")
    assert all(one.raw(name) == other.raw(name) for name in one.tensors)


def test_one_round_without_a_finetune_is_one_shot(ground: Ground, tmp_path: Path) -> None:
    ground.compress(tmp_path / "a", finetune=False, rounds=1)
    run = tmp_path / "a.run"
    scores = run / "round-01" / "scores"
    ground.compress(tmp_path / "b", method="oneshot", scores=scores)
    assert RoutingMap.load(tmp_path / "a").digest() == RoutingMap.load(tmp_path / "b").digest()


def test_random_rounds_differ_by_seed_alone_and_score_nothing(
    ground: Ground, tmp_path: Path
) -> None:
    more = {"criterion": "random", "finetune": False}
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ground.compress(tmp_path / name, seed=seed, **more)
        digests.append(RoutingMap.load(tmp_path / name).digest())
        assert not (tmp_path / f"{name}.run" / "round-01" / "scores").exists()
    assert digests[0] == digests[1] != digests[2]


def test_a_base_in_bfloat16_gives_a_result_in_bfloat16(ground: Ground, tmp_path: Path) -> None:
    from tests.tiny import make_tiny_mixtral

    small = make_tiny_mixtral(
        tmp_path / "model", hidden=32, heads=1, kv_heads=1, intermediate=48, dtype="bfloat16"
    )
    out = tmp_path / "out"
    # so small a rate that nothing would change if weights were rounded to bfloat16 in between
    ground.compress(out, model=small, rounds=2, learning_rate=1e-3)
    assert {info.dtype for info in Checkpoint.open(out).tensors.values()} == {"BF16"}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_finetune_that_does_not_fit_is_refused_before_the_first_round(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offline.finetune.memory.free_bytes", lambda device: 2**20)
    with pytest.raises(PruneError, match=r"training needs about .* GiB and 0\.00 GiB are free"):
        ground.compress(tmp_path / "out")
    assert not list(tmp_path.rglob("round-*"))
    ground.compress(tmp_path / "out", finetune=False)


def test_rounds_may_be_taught_by_the_base(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once, of the text of all rounds, also by a run that is begun again."""
    out, kept = tmp_path / "out", tmp_path / "out.run" / "teacher"
    more = {"loss": "distill", "trainable": "router", "learning_rate": 1e-2}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("offline.compress.lottery.play", _interrupted)
        ground.compress(out, **more)
    assert len(list(kept.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("offline.finetune.teaching.Teaching._reader", None)
        result = ground.compress(out, **more)
    assert result.lottery is not None
    for one in result.lottery.rounds:
        assert one.trained is not None and 0 < one.trained.first_loss < 1  # no loss of next tokens
    told = [tuning.data[-1] for tuning in RoutingMap.load(out).tuned]
    assert {(data.split, data.count) for data in told} == {("next tokens", 20 * 31)}
    built, base = Checkpoint.open(out), Checkpoint.open(ground.model)
    shared = [name for name in built.tensors if "experts" not in name and "gate" not in name]
    assert shared and all(built.raw(name) == base.raw(name) for name in shared)


def _interrupted(lottery: Lottery) -> None:
    raise KeyboardInterrupt
