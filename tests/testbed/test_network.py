from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks.testbed.mixture import same_document
from benchmarks.testbed.model import configs, make_testbed
from benchmarks.testbed.network import Network, Shape, checkpoint_tensors
from benchmarks.testbed.train import Data, Settings, export, run

_SMALL = Shape(vocab=96, hidden=64, layers=2, heads=2, intermediate=32, experts=4)


def _network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    network = Network(_SMALL).eval()
    with torch.no_grad():
        for block in network.blocks:
            block.gate.mul_(20)  # so that tokens choose clearly
            block.norm2.uniform_(0.5, 1.5)
    return network


def test_logits_equal_those_of_transformers(tmp_path: Path) -> None:
    network = _network()
    export(network, tmp_path / "weights.safetensors", {})
    (tmp_path / "tokenizer.json").write_text("{}")
    options = {
        "weights": tmp_path / "weights.safetensors",
        "tokenizer": tmp_path / "tokenizer.json",
    }
    folder = make_testbed(tmp_path / "model", tasks=False, **options)
    config = MixtralConfig(**configs(_SMALL)["config.json"])
    with torch.no_grad():  # the file is in bf16: compare what it holds
        for _, weight in checkpoint_tensors(network):
            weight.copy_(weight.bfloat16())
    other = MixtralForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    ids = torch.randint(0, 96, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(
            network.logits(network(ids)[0]), other(ids).logits, atol=2e-5, rtol=1e-4
        )


def test_documents_of_a_block_do_not_see_each_other() -> None:
    network = _network()
    one, two = torch.randint(1, 96, (1, 7)), torch.randint(1, 96, (1, 9))
    end = torch.zeros(1, 1, dtype=torch.long)
    block = torch.cat([one, end, two, end], dim=1)
    with torch.no_grad():
        whole, _ = network(block, same_document(block))
        alone, _ = network(two)
    torch.testing.assert_close(whole[:, 8:17], alone, atol=1e-5, rtol=1e-4)


def test_even_routing_costs_one_and_a_single_expert_more() -> None:
    network = _network()
    ids = torch.randint(0, 96, (2, 20))
    even = network(ids)[1].item()
    with torch.no_grad():
        for block in network.blocks:
            block.share.copy_(torch.tensor([1.0, 0, 0, 0]))
            block.gate.zero_()
            block.gate[0] = block.norm2  # expert 0 is liked by what points that way
    assert even == pytest.approx(1.0, abs=1e-4)  # a fresh network believes in even shares
    assert network(ids)[1].item() != pytest.approx(even, abs=1e-4)


def test_a_killed_training_continues_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 96, (12, 32), generator=generator).short()
    data = Data(ids, torch.ones(12, 32).half(), {}, {}, {})
    settings = Settings(steps=6, rows=2, warmup=2)
    straight, _ = run(tmp_path, _SMALL, settings, data)

    class Killed(Exception):
        pass

    monkeypatch.setattr("benchmarks.testbed.train._SAVE_SECONDS", -1)
    rates = Settings.rate_at

    def rate_or_death(self: Settings, step: int) -> float:
        if step == 4 and not (tmp_path / "again/killed").exists():
            (tmp_path / "again/killed").touch()
            raise Killed
        return rates(self, step)

    (tmp_path / "again").mkdir()
    monkeypatch.setattr(Settings, "rate_at", rate_or_death)
    with pytest.raises(Killed):
        run(tmp_path / "again", _SMALL, settings, data)
    resumed, _ = run(tmp_path / "again", _SMALL, settings, data)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
