"""Where vLLM has a family's code: in its folder of models, outside of it, or nowhere."""

from __future__ import annotations

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
