"""Every family scored by transformers, against what its model does in a plain forward pass.

With ``--matrix`` the outcomes are written into docs/families.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.dummy_model import write_tokenizer
from offline.calibration.calibrate import calibrate
from offline.engines.local.transformers import TransformersEngine
from tests.calibration.test_walk import domain
from tests.families.matrix import Matrix
from tests.families.models import ALWAYS, CONFIGS, load, make_family
from tests.families.more_configs import UNREAD
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

TEXT = domain("a", 6, length=32)
LIMIT = 1e-5
# What the engine says of families that it does not score.
_STREAMS = "the layers of this model hand on more than one stream: not to be taken one by one"
REFUSED: dict[str, str] = {
    "kimi_k2": "has model type `kimi_k2` but Transformers does not recognize this architecture",
    "qwen4_exp": _STREAMS,
    "qwen4_exp_text": _STREAMS,
}
CASES = [
    pytest.param(family, marks=() if family in ALWAYS[::4] else pytest.mark.slow)
    for family in CONFIGS
]


class Plain:
    """What the router and the experts of one layer do in a plain forward pass."""

    def __init__(self, base: Checkpoint, layer: int, block: Any) -> None:
        self.base, self.layer, self.experts = base, layer, block.experts
        self.hidden = self.ids = self.weights = torch.empty(0)
        self.hook = block.experts.register_forward_pre_hook(self._given)

    def _given(self, _: Any, given: tuple[torch.Tensor, ...]) -> None:
        self.hidden, self.ids, self.weights = given[:3]
        self.hook.remove()

    def sums(self) -> dict[str, np.ndarray]:
        """Counts, and sums over each expert's tokens of weights, norms and weighted norms."""
        count = self.base.expert_counts()[self.layer]
        found = {name: np.zeros(count) for name in ("counts", "weights", "norms", "weighted_norms")}
        for expert in range(count):
            rows, slots = torch.where(self.ids == expert)
            one = self.ids.new_full((len(rows), 1), expert)
            weights = self.weights[rows, slots].double()
            ones = self.weights.new_ones(len(rows), 1)
            norms = self.experts(self.hidden[rows], one, ones).double().norm(dim=-1)
            found["counts"][expert] = len(rows)
            found["weights"][expert] = weights.sum()
            found["norms"][expert] = norms.sum()
            found["weighted_norms"][expert] = (weights * norms).sum()
        return found


class Dense(Plain):
    """Of a block in which every expert computes every token, those not chosen times 0."""

    def __init__(self, base: Checkpoint, layer: int, block: Any) -> None:
        super().__init__(base, layer, block)
        block.experts.register_forward_hook(lambda _, __, output: setattr(self, "outputs", output))

    def _given(self, _: Any, given: tuple[torch.Tensor, ...]) -> None:
        pass

    def sums(self) -> dict[str, np.ndarray]:
        count = self.base.expert_counts()[self.layer]
        norms = self.outputs.view(count, -1, self.outputs.shape[-1]).double().norm(dim=-1)
        return {"counts": (norms > 0).sum(1).numpy(), "norms": norms.sum(1).numpy()}


@torch.no_grad()
def plain(base: Checkpoint) -> dict[int, dict[str, np.ndarray]]:
    """Decoder layer -> what its experts do with the text, all of it at once."""
    model, kind = load(base.folder), Dense if base.layout.weights_on_input else Plain
    seen: dict[int, Plain] = {}
    for name, module in model.named_modules():
        experts = getattr(module, "experts", None)
        if isinstance(getattr(experts, "down_proj", None), torch.nn.Parameter):
            number = int(name.partition(".layers.")[2].partition(".")[0])
            seen[number] = kind(base, number, module)
    model(input_ids=torch.from_numpy(TEXT.token_ids), use_cache=False)
    return {number: one.sums() for number, one in seen.items()}


@pytest.mark.parametrize("family", CASES)
def test_scores_are_those_of_a_plain_forward_pass(
    family: str, tmp_path: Path, matrix: Matrix
) -> None:
    base = Checkpoint.open(make_family(family, tmp_path))
    write_tokenizer(tmp_path, 60)
    if family in REFUSED:
        with pytest.raises(PruneError) as caught:
            calibrate(TransformersEngine(tmp_path, dtype="float32"), [TEXT])
        assert REFUSED[family] in caught.value.message
        matrix.add(family, "transformers", "TP1", f"score: {REFUSED[family]}")
        return
    found = calibrate(TransformersEngine(tmp_path, dtype="float32"), [TEXT]).domains["a"]
    expected = plain(base)
    assert found.keys() == expected.keys() == base.expert_counts().keys()
    worst = 0.0
    for layer, sums in expected.items():
        for name, values in sums.items():
            apart = float(np.abs(getattr(found[layer], name) - values).max() / values.max())
            assert apart <= (0 if name == "counts" else LIMIT), (layer, name)
            worst = max(worst, apart)
    matrix.add(family, "transformers", "TP1", worst)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["step3p5", "qwen3_omni_moe"])
def test_a_part_of_another_model_is_not_opened(family: str, tmp_path: Path, matrix: Matrix) -> None:
    said = "Unrecognized configuration class"
    write_tokenizer(make_family(family, tmp_path / "model"), 60)
    with pytest.raises(PruneError, match=f"transformers cannot open .*{said}"):
        TransformersEngine(tmp_path / "model", dtype="float32")
    matrix.add(family, "transformers", "TP1", f"transformers cannot open it: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("family", UNREAD)
def test_what_is_not_scored_says_why(family: str, tmp_path: Path, matrix: Matrix) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields, said = UNREAD[family]
    auto: Any = AutoModelForCausalLM
    auto.from_config(AutoConfig.for_model(family, **fields)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, 60)
    with pytest.raises(PruneError) as caught:
        calibrate(TransformersEngine(tmp_path, dtype="float32"), [TEXT])
    assert said in caught.value.message
    matrix.add(family, "transformers", "TP1", f"score: {said}")
