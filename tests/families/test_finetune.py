"""What a finetune and a lottery do to a model of every family, by transformers' own loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from offline.calibration.corpus import Domain, domain_of
from offline.finetune.where import Where
from offline.lottery.loaded import Loaded
from offline.lottery.lottery import Lottery
from offline.lottery.play import play
from offline.lottery.schedule import schedule, settings_of
from offline.lottery.text import LotteryText
from tests.families.models import CHOOSING, EXPERTS, FAMILIES, make_family
from tests.families.more_configs import MORE
from tests.families.test_build import loaded
from tests.finetune.samples import text, tune
from tests.sample_runs import Listener
from tests.tiny import word_tokenizer
from vllm_moe_prune.checkpoint import Checkpoint


@pytest.fixture(scope="module", params=[one for one in FAMILIES if one.values[0] not in MORE])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param)
    make_family(request.param, folder)
    word_tokenizer(60).save_pretrained(folder)
    return Checkpoint.open(folder)


@torch.no_grad()
def loss_of(folder: Path, ids: np.ndarray[tuple[int, int], np.dtype[np.integer]]) -> float:
    given = torch.from_numpy(ids.astype(np.int64))
    logits = loaded(folder)(given, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), given[:, 1:].flatten())
    return float(loss)


def test_routers_and_experts_alone_change(base: Checkpoint, tmp_path: Path) -> None:
    examples = text(count=4, vocab=60)
    found = tune(base.folder, tmp_path / "out", examples, trainable="router+experts", epochs=2)
    if base.layout.model_type != "phimoe":  # its router draws experts while it is trained
        assert found.losses[0] == pytest.approx(loss_of(base.folder, examples.input_ids), rel=1e-5)
    out = Checkpoint.open(tmp_path / "out")
    changed = {n for n in base.tensors if not torch.equal(out.tensor(n), base.tensor(n))}
    # the bias that only chooses experts is none of the loss: it has no gradient
    assert changed == {
        name
        for name in base.tensors
        if base.layout.classify(name) is not None and not any(one in name for one in CHOOSING)
    }


def test_a_lottery_ends_with_the_model_that_it_measured(base: Checkpoint, tmp_path: Path) -> None:
    settings = settings_of(
        "fast", criterion="min-ean", drop_per_round=2, round_tokens=128, length=16, batch=4,
        learning_rate=1e-2,
    )  # fmt: skip
    lottery = Lottery(
        base=base,
        settings=settings,
        plans=schedule(settings, EXPERTS, 4),
        text=LotteryText(*((words(name, seed),) for seed, name in enumerate(("s", "t", "h")))),
        folder=tmp_path,
        seed=0,
        loaded=Loaded("cpu", "float32"),
        where=Where(),
        reporter=Listener(),
    )
    played = play(lottery)
    assert [len(one.kept[max(one.kept)]) for one in played.rounds] == [6, 4]
    assert all(one.tuned is not None and one.tuned.loss < one.dropped.loss for one in played.rounds)
    assert played.rounds[-1].tuned is not None
    loss = loss_of(played.checkpoint, words("h", 2).token_ids)
    assert math.log(played.rounds[-1].tuned.perplexity) == pytest.approx(loss, rel=1e-5)
    assert set(Checkpoint.open(played.checkpoint).expert_counts().values()) == {4}


def words(name: str, seed: int) -> Domain:
    return domain_of(name, "all", text(count=16, seed=seed).input_ids.astype(np.int64))
