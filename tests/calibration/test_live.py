"""Scoring inside vLLM: what is asked of it, what is refused, and the whole way to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result

from offline.calibration.corpus import Part
from offline.calibration.live import cache_numbers, engine_settings
from offline.calibration.live_worker import Scoring
from offline.calibration.memory import estimate_live
from offline.calibration.scores import Scores
from offline.cli.main import cli
from tests.calibration.test_walk import domain
from tests.families.quantised import FORMATS, config_of, quantise
from tests.sample_files import write_text
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.vllm_compat.steps import PromptRows
from vllm_moe_prune.vllm_compat.watched_layers import SeenLayer, watch_layers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("tiny") / "model")


def invoke(*words: str | Path, catch: bool = False) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=catch)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--engine", "vllm", "--gradients"), "--gradients: vLLM computes no gradients"),
        (("--engine", "vllm", "--device", "cpu"), "--device is of --engine transformers"),
        (("--tensor-parallel", "2"), "--tensor-parallel is of --engine vllm"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_at_once(
    given: tuple[str, ...], said: str, model: Path, tmp_path: Path
) -> None:
    result = invoke("score", "--model", model, "--out", tmp_path / "out", *given, catch=True)
    assert isinstance(result.exception, PruneError) and said in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_domain_is_one_step_of_vllm(model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    corpora = (domain("a", 5, length=32), domain("b", 3, length=16))
    found = engine_settings(checkpoint, corpora, step_tokens=1000, dtype="float32")
    assert found["max_num_batched_tokens"] == 160 and found["max_num_seqs"] > 5
    assert not found["enable_prefix_caching"] and found["max_model_len"] == 33
    assert engine_settings(checkpoint, corpora, step_tokens=50)["max_num_batched_tokens"] == 50
    longest = int(checkpoint.config["max_position_embeddings"])
    with pytest.raises(PruneError, match=f"at most {longest - 1} tokens in vLLM"):
        engine_settings(checkpoint, [domain("a", 1, length=longest)], step_tokens=50)


class Runner(torch.nn.Module):
    """As vLLM runs experts that transformers' code has chosen: it is given ids and weights."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._moe_state, self.routed_scaling_factor = SimpleNamespace(topk_ids=None), 1.0
        self.moe_config = SimpleNamespace(tp_size=1, ep_size=1)
        self.router = SimpleNamespace(select_experts=self._chosen)
        self.routed_experts = SimpleNamespace(
            global_num_experts=count,
            quant_method=SimpleNamespace(is_monolithic=False),
            apply_router_weight_on_input=False,
            forward_modular=lambda x, weights, ids, *_: x * weights * (1 + ids),
        )

    def _chosen(self, *, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return router_logits, self._moe_state.topk_ids

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self._moe_state.topk_ids = ids
        found: torch.Tensor = self.routed_experts.forward_modular(
            x, *self.router.select_experts(router_logits=weights)
        )
        return found


class Gate(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wg = torch.nn.Linear(4, 6, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.wg(x)
        return (logits, *logits.softmax(-1).topk(2))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts, self.shared = Gate(), Runner(6), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, weights, ids = self.gate(x)
        routed: torch.Tensor = self.experts(x, ids, weights)
        return routed + self.shared(x)


@torch.no_grad()
def test_logits_are_the_gates_where_code_of_transformers_chooses() -> None:
    """Hunyuan's, which vLLM runs so: what its router is given there are the weights."""
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Block()])})
    seen: list[SeenLayer] = []
    found = watch_layers(model, 4, lambda _, one: seen.append(one), lambda: True)
    assert found == {0: 6}
    x = torch.randn(3, 4)
    block: Block = model["layers"][0]
    out = block(x)
    logits, weights, ids = block.gate(x)
    assert torch.equal(seen[0].logits, logits) and torch.equal(seen[0].ids, ids)
    assert torch.equal(seen[0].weights, weights)
    expected = (x * (weights * (1 + ids)).sum(1, keepdim=True)) + block.shared(x)
    torch.testing.assert_close(out, expected)


def test_the_cache_holds_keys_and_values_or_one_latent_vector() -> None:
    config = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 64}
    assert cache_numbers({**config, "num_key_value_heads": 4}, ranks=1) == 3 * 2 * 4 * 8
    assert cache_numbers({**config, "num_key_value_heads": 4}, ranks=8) == 3 * 2 * 8
    latent = {"kv_lora_rank": 16, "qk_rope_head_dim": 4}
    assert cache_numbers({**config, **latent}, ranks=2) == 3 * 20
    assert cache_numbers({"num_layers": 3, **latent}, ranks=2) == 2 * 3 * 20  # LongCat-Flash
    dbrx = {"n_layers": 3, "n_heads": 8, "d_model": 64, "attn_config": {"kv_n_heads": 4}}
    assert cache_numbers(dbrx, ranks=1) == 3 * 2 * 4 * 8


def test_memory_is_shared_by_ranks_but_for_what_the_host_keeps(model: Path) -> None:
    checkpoint, parts = Checkpoint.open(model), (Part("a", "", 3), Part("b", "", 5))

    def expected(ranks: int) -> dict[str, int]:
        sizes = {"length": 10, "step_tokens": 40, "cache": 7}
        return estimate_live(checkpoint, parts, ranks=ranks, **sizes).memory

    one, two = expected(1), expected(2)
    assert two["weights"] == one["weights"] // 2 == checkpoint.num_bytes // 2
    halves = "statistics of all layers at work"
    assert two[halves] * 2 == one[halves]
    kept = "statistics of all domains, kept to the end"
    assert two[kept] == one[kept] == 2 * one[halves]


def seen(rows: int, *, top_k: int = 1) -> SeenLayer:
    """What a layer of 2 experts and 4 dimensions does for some rows, all of them to expert 0."""
    ids, ones = torch.zeros(rows, top_k, dtype=torch.int32), torch.ones(rows, top_k)
    outputs = torch.arange(rows)[:, None, None].expand(rows, top_k, 4).float()
    return SeenLayer(torch.zeros(rows, 2), ones, ids, outputs, ones)


def rows_of(*spans: tuple[int, int, int, int]) -> list[PromptRows]:
    """Rows of sequences of 8 tokens: number, first position, count, first row."""
    return [
        PromptRows({"number": number}, start, count, offset, 8)
        for number, start, count, offset in spans
    ]


def test_what_vllm_computes_again_is_counted_once() -> None:
    scoring = Scoring("softmax", vocab=9, experts={0: 2})
    scoring.begin(16)
    scoring.announce(rows_of((0, 0, 8, 0), (1, 0, 2, 8)), torch.arange(10) % 9)
    scoring.see(0, seen(12))  # two rows of padding
    scoring.announce(rows_of((1, 0, 8, 0)), torch.arange(8))  # was put aside, and comes whole
    scoring.see(0, seen(8))
    sums = scoring.sums[0]
    assert sums.tokens == 16 and sums.counts.tolist() == [16, 0]
    expected = [*range(10), *range(2, 8)]
    torch.testing.assert_close(sums.mean[0, 0].item(), sum(expected) / 16)
    assert scoring.again() and not sums.outliers.any()
    scoring.announce([], torch.empty(0))  # a pass of vLLM's own
    scoring.see(0, seen(3))
    assert sums.tokens == 16


def test_layers_of_other_workers_are_left_to_them() -> None:
    scoring = Scoring("softmax", vocab=9, experts={1: 2})
    scoring.begin(4)
    scoring.announce(rows_of((0, 0, 4, 0)), torch.arange(4))
    scoring.see(0, seen(4))
    scoring.see(1, seen(4))
    assert scoring.take(0) == b"" and scoring.take(1)
    assert not scoring.again()  # all came in one step


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="vLLM's CPU kernels need AMX")
def test_a_quantised_model_becomes_a_checkpoint_without_its_original(tmp_path: Path) -> None:
    original = make_tiny_mixtral(
        tmp_path / "m", dtype="bfloat16", hidden=128, intermediate=128, heads=4, kv_heads=4
    )
    base = quantise(original, tmp_path / "int8", FORMATS["int8"], config_of("int8"))
    text = write_text(tmp_path / "text.txt")
    given = ("--model", base, "--engine", "vllm", "--dtype", "bfloat16", "--length", "16", "--json")
    result = invoke("score", *given, "--calibration", f"{text}:4", "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["domains"]["text"]["tokens"] == 64
    assert "memory: about" in result.stderr and "disk" not in result.stderr
    made = Scores.load(tmp_path / "scores").provenance.settings
    assert made["engine"] == "vllm" and made["tensor_parallel"] == 1
    plan = ("plan", "--scores", tmp_path / "scores", "--keep", "4", "--criterion", "eao")
    assert invoke(*plan, "--out", tmp_path / "map").exit_code == 0
    built = invoke("build", "--model", base, "--map", tmp_path / "map", "--out", tmp_path / "out")
    assert built.exit_code == 0, built.output
    assert set(Checkpoint.open(tmp_path / "out").expert_counts().values()) == {4}
