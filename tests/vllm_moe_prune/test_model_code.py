"""Where vLLM has a family's code: in its folder of models, outside of it, or nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.vllm_compat import moe_layers
from vllm_moe_prune.vllm_compat.moe_layers import built_by_layer

# Families that the installed vLLM runs with transformers' code, or not at all.
ABSENT = ("dots1", "flex_olmo", "hunyuan_v1_moe", "mellum", "solar_open")


def test_modules_are_named_by_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def found(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(
            make_layers=None,
            FusedMoEFactory=None,
            DeepseekV32ForCausalLM=SimpleNamespace(__module__="of.this.device"),
        )

    monkeypatch.setattr(moe_layers, "import_module", found)
    for family in ("mixtral", "glm4_moe_lite", "kimi_k25", "deepseek_v32"):
        with built_by_layer(LAYOUTS[family], {}, {}):
            pass
    inside = "vllm.model_executor.models."
    assert asked == [
        *(inside + name for name in ("mixtral", "mixtral", "glm4_moe", "glm4_moe_lite")),
        *(inside + name for name in ("deepseek_v2", "deepseek_v2", "deepseek_v2")),
        *("vllm.models.deepseek_v32", "of.this.device"),
    ]


def test_a_family_without_code_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(moe_layers, "import_module", absent)
    refused = pytest.raises(PruneError, match="vLLM has no model code of its own for flex_olmo")
    with refused, built_by_layer(LAYOUTS["flex_olmo"], {}, {}):
        pass


def test_a_module_that_fails_for_another_reason_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> Any:
        raise ModuleNotFoundError("No module named 'flashinfer'", name="flashinfer")

    monkeypatch.setattr(moe_layers, "import_module", broken)
    failed = pytest.raises(ModuleNotFoundError, match="flashinfer")
    with failed, built_by_layer(LAYOUTS["mixtral"], {}, {}):
        pass


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(LAYOUTS))
def test_what_is_replaced_is_there(family: str) -> None:
    """In the installed vLLM, on a CPU; code for GPUs only says what it needs."""
    try:
        with built_by_layer(LAYOUTS[family], {}, {}):
            pass
    except PruneError as error:
        assert family in ABSENT, error
    except ImportError as error:
        pytest.skip(f"code for GPUs: {error}")


@dataclass
class Counts:
    """A config of Mixtral's, with what vLLM asks of it."""

    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    def get_text_config(self) -> Counts:
        return self


def made_by_layer(monkeypatch: pytest.MonkeyPatch, asked: Counts) -> list[tuple[int, int]]:
    """Make two layers whose maker asks a config in its closure; returns counts and top-k."""
    from vllm.config import VllmConfig

    given = object.__new__(VllmConfig)
    object.__setattr__(
        given, "model_config", SimpleNamespace(hf_config=asked, hf_text_config=asked)
    )
    current = Counts()
    outer = SimpleNamespace(hf_config=current, hf_text_config=current)
    now = SimpleNamespace(model_config=outer)
    monkeypatch.setattr("vllm.config.get_current_vllm_config", lambda: now)
    made = []

    def factory(*, num_experts: int, top_k: int, prefix: str) -> None:
        made.append((num_experts, top_k))

    code = SimpleNamespace(
        make_layers=lambda count, make, prefix: [
            make(prefix=f"{prefix}.{n}") for n in range(count)
        ],
        FusedMoEFactory=factory,
    )
    monkeypatch.setattr(moe_layers, "import_module", lambda _: code)

    def layer(prefix: str) -> None:
        config = given.model_config.hf_text_config
        counts = (config.num_local_experts, config.num_experts_per_tok)
        code.FusedMoEFactory(num_experts=counts[0], top_k=counts[1], prefix=prefix)

    entries: Any = {1: SimpleNamespace(layer=1, gate_rows=3, top_k=1, num_kept=3)}
    with built_by_layer(LAYOUTS["mixtral"], entries, {}):
        code.make_layers(2, layer, prefix="model.layers")
    assert (current, asked) == (Counts(), Counts())
    return made


def test_a_config_that_a_part_of_a_model_has_as_a_copy_has_the_counts_of_a_layer_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So it is in Qwen3-VL, whose layers were made as those of the base."""
    assert made_by_layer(monkeypatch, Counts()) == [(8, 2), (3, 1)]


def test_a_layer_that_is_made_with_other_counts_than_its_map_s_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moe_layers, "set_counts", lambda *_: None)
    message = "mixtral makes layer 1 with 8 experts and top-2; its map has 3 and top-1"
    with pytest.raises(PruneError, match=message):
        made_by_layer(monkeypatch, Counts())
