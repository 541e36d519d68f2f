"""From a checkpoint to the trained one: what changes, what does not, and that it repeats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from transformers import AutoModelForCausalLM
from transformers.integrations import moe

from offline.finetune.examples import NO_LOSS, Examples
from offline.finetune.finetune import Finetuned
from tests.finetune.samples import IDENTITY, bytes_of, ragged, text, tiny, tune, weights_of
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.tuning import Trainable


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model") / "m", dtype="bfloat16", tie=True, shards=2)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("exact") / "m")


@pytest.mark.parametrize(
    ("trainable", "changed"),
    [
        ("all", ("norm", "embed_tokens", "self_attn", "gate.weight", "experts")),
        ("router", ("gate.weight",)),
        ("router+experts", ("gate.weight", "experts")),
        ("lora", ("self_attn", "gate.weight", "experts")),
    ],
)
def test_the_chosen_weights_learn_and_no_other_changes(
    trainable: Trainable, changed: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    found = tune(model, tmp_path / "out", trainable=trainable, epochs=4)
    assert len(found.losses) == 12
    assert np.mean(found.losses[-3:]) < np.mean(found.losses[:3]) - 0.01
    before, after = bytes_of(model), bytes_of(tmp_path / "out")
    infos, base = Checkpoint.open(tmp_path / "out").tensors, Checkpoint.open(model).tensors
    assert infos == base  # names, shapes and dtypes
    for name in before:
        same = before[name] == after[name]
        if not any(part in name for part in changed):
            assert same, name
        elif "norm" not in name:  # near 1 bfloat16 is coarse
            assert not same, name


def test_what_it_says_is_what_it_did(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = tune(model, out, trainable="router", epochs=1.25)
    tuning = found.tuning
    assert (tuning.trainable, tuning.steps, tuning.tokens) == ("router", 4, 15 * 15)
    assert (tuning.parameters, tuning.learning_rate) == (2 * 8 * 32, 1e-2)
    assert (tuning.data, found.trained_bytes) == (IDENTITY, 4 * tuning.parameters)
    assert found.peak_bytes > 50 * 1024**2
    assert Finetuned.load(out) == found


def test_everything_else_of_the_model_comes_along(model: Path, tmp_path: Path) -> None:
    (model / "routing_map.json").write_text("{}")
    (model / "LICENSE").write_text("free")
    tune(model, tmp_path / "out", trainable="router")
    (model / "routing_map.json").unlink()
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "tokenizer.json", "generation_config.json", "finetune.json"} <= names
    assert "routing_map.json" not in names
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.config.num_local_experts == 8


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_the_same_seed_gives_the_same_bytes(
    trainable: Trainable, model: Path, tmp_path: Path
) -> None:
    random, environment = torch.random.get_rng_state(), dict(os.environ)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tune(model, tmp_path / name, trainable=trainable, seed=seed)
    a, b, c = (bytes_of(tmp_path / name) for name in "abc")
    assert a == b != c
    assert torch.equal(random, torch.random.get_rng_state())
    assert environment == dict(os.environ)
    assert not PartialState._shared_state
    assert not AcceleratorState._shared_state


@pytest.mark.parametrize("examples", [text(), ragged()], ids=["text", "ragged"])
def test_accumulation_and_padding_change_nothing_but_the_last_bits(
    examples: Examples, exact: Path, tmp_path: Path
) -> None:
    """Steps have different numbers of tokens, so a mean of means would differ."""
    whole = tune(exact, tmp_path / "whole", examples)
    single = tune(exact, tmp_path / "single", examples, micro_batch=1)
    wider = Examples(
        np.pad(examples.input_ids, ((0, 0), (0, 9))),
        np.pad(examples.labels, ((0, 0), (0, 9)), constant_values=NO_LOSS),
        examples.identity,
    )
    padded = tune(exact, tmp_path / "padded", wider, micro_batch=2)
    for other in (single, padded):
        np.testing.assert_allclose(other.losses, whole.losses, rtol=1e-5)
        assert other.tuning == whole.tuning
    weights = weights_of(tmp_path / "whole")
    for name in ("single", "padded"):
        for key, weight in weights_of(tmp_path / name).items():
            np.testing.assert_allclose(weight, weights[key], atol=2e-4, err_msg=key)


def test_checkpointing_changes_nothing_but_the_last_bits(exact: Path, tmp_path: Path) -> None:
    for trainable in ("router", "lora"):
        plain = tune(exact, tmp_path / f"a-{trainable}", trainable=trainable)
        twice = tune(exact, tmp_path / f"b-{trainable}", trainable=trainable, checkpointing=True)
        np.testing.assert_allclose(twice.losses, plain.losses, rtol=1e-5)


def test_mixed_precision_is_near_and_not_the_same(exact: Path, tmp_path: Path) -> None:
    plain = tune(exact, tmp_path / "plain")
    mixed = tune(exact, tmp_path / "mixed", mixed_precision=True)
    np.testing.assert_allclose(mixed.losses, plain.losses, rtol=0.02)
    assert mixed.losses != plain.losses


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_experts_compute_in_the_precision_that_is_asked_for(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainable: str
) -> None:
    """transformers leaves them in the dtype of their weights, which is float32."""
    seen: set[torch.dtype] = set()
    product = moe._grouped_mm

    def spy(rows: torch.Tensor, weight: torch.Tensor, **more: Any) -> torch.Tensor:
        seen.add(weight.dtype)
        return product(rows, weight, **more)

    monkeypatch.setattr(moe, "_grouped_mm", spy)
    tune(exact, tmp_path / "plain", trainable=trainable)
    assert seen == {torch.float32}
    seen.clear()
    tune(exact, tmp_path / "mixed", trainable=trainable, mixed_precision=True)
    assert seen == {torch.bfloat16}


def test_the_loss_is_the_mean_over_answers_alone(exact: Path, tmp_path: Path) -> None:
    """Against a loop over single tokens, for the first step, when weights are the model's."""
    examples = ragged(count=3)
    found = tune(exact, tmp_path / "out", examples, batch=3)
    network = AutoModelForCausalLM.from_pretrained(exact)
    losses = []
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        with torch.no_grad():
            log_probs = network(torch.tensor(ids[None]).long()).logits[0].log_softmax(-1)
        losses += [
            -float(log_probs[at - 1, label])
            for at, label in enumerate(labels)
            if label != NO_LOSS and at > 0
        ]
    assert found.tuning.tokens == len(losses)
    assert found.losses[0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_stored_dtype_is_a_choice(model: Path, tmp_path: Path) -> None:
    for dtype, stored in (("float32", "F32"), ("bfloat16", "BF16")):
        tune(model, tmp_path / dtype, dtype=dtype, learning_rate=1e-6)
        assert {t.dtype for t in Checkpoint.open(tmp_path / dtype).tensors.values()} == {stored}
    base, fine = weights_of(model), weights_of(tmp_path / "float32")
    assert any((base[name] != fine[name]).any() for name in base)  # bfloat16 would lose the rate
    assert max(np.abs(base[name] - fine[name]).max() for name in base) < 1e-4


def test_refusals(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for changes, message in [
        (("micro_batch", 3), "micro-batch of 3 does not divide"),
        (("examples", text(length=513)), "513 tokens long and the model takes at most 512"),
        (("examples", Examples(text().input_ids, text().labels * 0 + NO_LOSS, ())), "no token"),
        (("learning_rate", 1e30), "the loss of step .* is (nan|inf).*--learning-rate"),
    ]:
        with pytest.raises(PruneError, match=message):
            tune(model, out, **dict([changes]))
        assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(PruneError, match="already exists"):
        tune(model, out)
    with pytest.raises(PruneError, match=f"would replace {model}"):
        tune(model, model, force=True)
    (tmp_path / "compact" / "pruned_moe").mkdir(parents=True)
    with pytest.raises(PruneError, match="compact checkpoint"):
        tune(tmp_path / "compact", tmp_path / "new")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(exact: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(exact / "model.safetensors")
    del tensors["model.norm.weight"]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text((exact / "config.json").read_text())
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PruneError, match=r"lacks model\.norm\.weight"):
        tune(tmp_path / "m", tmp_path / "out")


def test_an_index_lists_the_weights(model: Path, tmp_path: Path) -> None:
    """Also of one file: beside it a routing map may put a safetensors file of its own."""
    tune(model, tmp_path / "out", trainable="router")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(Checkpoint.open(model).tensors)
