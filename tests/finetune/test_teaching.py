"""A base teaches: what is kept of it, that it is asked once, and what is learnt of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from offline.build.build import build
from offline.engines.encoding import Encoder
from offline.finetune.examples import NO_LOSS, Examples
from offline.finetune.finetune import Finetuned
from offline.finetune.memory import memory_need
from offline.finetune.teacher import TEACHER_FILE, Teacher
from offline.finetune.teaching import LISTED, Teaching
from offline.finetune.where import Where
from tests.finetune.samples import (
    SETTINGS,
    assert_alike,
    bytes_of,
    listed_of,
    ragged,
    text,
    tiny,
    tune,
)
from tests.sample_maps import uniform_map
from tests.sample_runs import Listener
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

KEPT = [(0, 2, 5, 7)] * 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("base") / "b")


@pytest.fixture(scope="module")
def pruned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "p"
    build(Checkpoint.open(base), uniform_map(base, KEPT), out)
    return out


def teaching(base: Path, folder: Path, **changes: Any) -> Teaching:
    return replace(Teaching(base, folder, "cpu", "float32"), **changes)


@pytest.fixture(scope="module")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """What the base says of `text()`."""
    return teaching(base, tmp_path_factory.mktemp("taught") / "t").teacher_of(text())


def logits_of(model: Path, examples: Examples) -> torch.Tensor:
    """Return [P, V] of all places that have a loss, one row at a time."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        with torch.no_grad():
            logits = network(torch.tensor(ids[None]).long()).logits[0, :-1]
        found.append(logits[torch.from_numpy(labels[1:] != NO_LOSS)])
    return torch.cat(found)


def without_loss(examples: Examples, row: int) -> Examples:
    labels = examples.labels.copy()
    labels[row] = NO_LOSS
    return replace(examples, labels=labels)


@pytest.mark.parametrize("examples", [text(), without_loss(ragged(), 4)], ids=["text", "ragged"])
def test_what_is_kept_is_what_the_base_expects(
    examples: Examples, base: Path, tmp_path: Path
) -> None:
    listener = Listener()
    found = teaching(base, tmp_path / "t").teacher_of(examples, listener)
    tokens, log_probs = listed_of(logits_of(base, examples), LISTED)
    assert found.tokens.shape == (examples.num_tokens, LISTED)
    assert (found.tokens == tokens.numpy()).mean() > 0.999  # ties
    np.testing.assert_allclose(found.log_probs, log_probs, atol=1e-5)
    (title, total, steps), *others = listener.stages
    assert not others and total == steps
    said = f"64 likeliest of {examples.num_tokens:,} next tokens, "
    assert said in title and title.endswith(" MiB")
    assert found.identity.name == "b" and found.identity.count == examples.num_tokens


def test_the_base_is_asked_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "t"
    teaching(base, folder).teacher_of(text())
    with monkeypatch.context() as patch:
        patch.setattr(Teaching, "_reader", None)  # nothing can be asked
        listener = Listener()
        again = teaching(base, folder).teacher_of(text(), listener)
        assert not listener.stages
        for other in (text(seed=1), ragged()):
            with pytest.raises(TypeError):
                teaching(base, folder).teacher_of(other)
        with pytest.raises(TypeError):
            teaching(base, folder, dtype="bfloat16").teacher_of(text())
    assert len(list(folder.iterdir())) == 1
    other = teaching(base, tmp_path / "other").teacher_of(text())
    assert other.identity == again.identity  # by its content, which is the same bit by bit


def test_it_is_whole_or_not_there(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails:
        def readings(self, *given: Any) -> None:
            raise KeyboardInterrupt

    @contextmanager
    def failing(one: Teaching) -> Iterator[Encoder]:
        yield Fails()  # type: ignore[misc]  # stands for a base that is killed

    monkeypatch.setattr(Teaching, "_reader", failing)
    with pytest.raises(KeyboardInterrupt):
        teaching(base, tmp_path / "t").teacher_of(text())
    assert list((tmp_path / "t").iterdir()) == []


def test_a_disk_without_room_is_said_before_the_base_is_asked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    monkeypatch.setattr(Teaching, "_reader", None)
    with pytest.raises(PruneError, match=r"will have 0\.09 MiB and the disk of .* has 0\.00 MiB"):
        teaching(base, tmp_path / "t").teacher_of(text())


@pytest.mark.parametrize("name", ["tokens.npy", "log_probs.npy", TEACHER_FILE])
@pytest.mark.parametrize("content", [b"", b"{}", "another", "shorter"])
def test_what_is_damaged_is_refused(
    name: str, content: bytes | str, taught: Teacher, tmp_path: Path
) -> None:
    folder = tmp_path / "t"
    shutil.copytree(taught.folder, folder)
    if content == "another":
        np.save(folder / "other.npy", np.zeros((3, 2), np.float64))
        content = (folder / "other.npy").read_bytes()
    elif content == "shorter":
        content = (folder / name).read_bytes()[:-2]
    assert isinstance(content, bytes)
    (folder / name).write_bytes(content)
    with pytest.raises(PruneError, match=rf"{name}[: ]"):
        Teacher.load(folder)


@pytest.mark.parametrize("trainable", ["router", "all"])
def test_gates_alone_or_all_weights_learn_what_the_base_expects(
    trainable: str, taught: Teacher, pruned: Path, tmp_path: Path
) -> None:
    more = {"trainable": trainable, "teacher": taught, "epochs": 4}
    found = tune(pruned, tmp_path / "out", **more)
    assert np.mean(found.losses[-3:]) < np.mean(found.losses[:3]) * 0.98
    before, after = bytes_of(pruned), bytes_of(tmp_path / "out")
    changed = {name for name in before if before[name] != after[name]}
    gates = {name for name in before if name.endswith("gate.weight")}
    assert changed == gates if trainable == "router" else changed > gates
    assert found.tuning.data[-1] == taught.identity
    tune(pruned, tmp_path / "again", **more)
    tune(pruned, tmp_path / "other", **more, seed=4)
    assert bytes_of(tmp_path / "again") == after != bytes_of(tmp_path / "other")


def test_the_loss_is_the_mean_divergence_from_the_base(
    base: Path, pruned: Path, tmp_path: Path
) -> None:
    """Of ragged examples, in any micro-batches; and nothing where the base teaches itself."""
    examples = ragged(count=6)
    teacher = teaching(base, tmp_path / "t").teacher_of(examples)
    p, q = (logits_of(model, examples).double().log_softmax(-1) for model in (base, pruned))
    tokens, listed = listed_of(p, LISTED)
    own = q.gather(1, tokens)
    rest = [(1 - one.exp().sum(1)).clamp_min(1e-12) for one in (listed, own)]
    each = (listed.exp() * (listed - own)).sum(1) + rest[0] * (rest[0].log() - rest[1].log())
    common = {"batch": 6, "teacher": teacher, "trainable": "router"}
    whole = tune(pruned, tmp_path / "out", examples, **common)
    assert whole.losses[0] == pytest.approx(float(each.mean()), rel=1e-4)
    single = tune(pruned, tmp_path / "single", examples, **common, micro_batch=1)
    assert single.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)
    assert_alike(tmp_path / "single", tmp_path / "out")
    itself = tune(base, tmp_path / "itself", examples, **common)
    assert itself.losses[0] == pytest.approx(0, abs=1e-5)


def test_a_teacher_of_all_rounds_is_one_of_each(
    base: Path, taught: Teacher, tmp_path: Path
) -> None:
    whole = text()
    behind = replace(whole, input_ids=whole.input_ids[5:], labels=whole.labels[5:])
    own = teaching(base, tmp_path / "t").teacher_of(behind)
    places = np.array([0, 3, behind.num_tokens - 1])
    for found, wanted in zip(taught.after(5 * 15).at(places), own.at(places), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert Teacher.load(taught.folder, 5 * 15).first == taught.after(2 * 15).after(3 * 15).first


def test_an_interrupted_one_goes_on_and_another_teacher_begins_anew(
    taught: Teacher, pruned: Path, tmp_path: Path
) -> None:
    class Stop(Listener):
        def step(self, amount: int = 1, note: str = "") -> None:
            super().step(amount, note)
            if self.stages[-1][2] == 4:
                raise KeyboardInterrupt

    more = {"trainable": "router", "epochs": 2, "where": Where(save_every=3)}
    whole = tune(pruned, tmp_path / "whole", teacher=taught, **more)
    with pytest.raises(KeyboardInterrupt):
        tune(pruned, tmp_path / "out", teacher=taught, reporter=Stop(), **more)
    listener = Listener()
    found = tune(pruned, tmp_path / "out", teacher=taught, reporter=listener, **more)
    assert found.losses == whole.losses and listener.stages == [["training", 6, 6]]
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tune(pruned, tmp_path / "plain", teacher=taught, reporter=Stop(), **more)
    plain: Finetuned = tune(pruned, tmp_path / "plain", **more)
    assert plain.losses[0] > whole.losses[0]  # of next tokens, from the first step on


def test_memory_counts_what_distilling_adds(pruned: Path) -> None:
    checkpoint = Checkpoint.open(pruned)
    plain, distilled = (
        memory_need(checkpoint, SETTINGS, length=16, micro=2, distilled=one).memory["logits"]
        for one in (False, True)
    )
    assert distilled == 1.5 * plain == 6 * 2 * 16 * 128 * 4


@pytest.mark.slow
def test_two_processes_learn_the_same(taught: Teacher, pruned: Path, tmp_path: Path) -> None:
    more = {"trainable": "router", "teacher": taught}
    tune(pruned, tmp_path / "one", **more)
    tune(pruned, tmp_path / "two", **more, where=Where(processes=2))
    assert_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.vllm
def test_either_engine_says_it(tmp_path: Path) -> None:
    base = tiny(tmp_path / "b")
    examples = ragged()
    one, other = (
        teaching(base, tmp_path / "t", engine=engine).teacher_of(examples)
        for engine in ("transformers", "vllm")
    )
    assert one.folder != other.folder
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-3)
    assert (one.tokens == other.tokens).mean() > 0.95  # near ties change places
