"""Whatever names a family has for its counts, vLLM's config objects get them under all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.vllm_compat.config_counts import counts_in, put_counts, set_counts

DBRX = transformers.DbrxConfig(ffn_config={"moe_num_experts": 8, "moe_top_k": 2})
BY_LAYER = SimpleNamespace(model_type="hunyuan_v1_moe", num_experts=[8, 8], moe_topk=[2, 2])
TWO_NAMES = transformers.GptOssConfig(num_local_experts=8, num_experts_per_tok=2)


def layout(config: Any) -> Any:
    if isinstance(config, SimpleNamespace):
        return layout_of(vars(config))
    return layout_of(config.to_dict())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (DBRX, lambda c: (c.ffn_config.moe_num_experts, c.ffn_config.moe_top_k)),
        (BY_LAYER, lambda c: (c.num_experts, c.moe_topk)),
        (TWO_NAMES, lambda c: (c.num_local_experts, c.num_experts_per_tok)),
    ],
    ids=["in a section", "a list", "an alias"],
)
def test_other_counts_are_written_everywhere_and_put_back(config: Any, told: Any) -> None:
    before, whole = counts_in(config, layout(config)), told(config)
    set_counts(config, layout(config), 5, 1)
    assert told(config) == (([5, 5], [1, 1]) if isinstance(whole[0], list) else (5, 1))
    set_counts(config, layout(config), 4)
    assert told(config) == (([4, 4], [1, 1]) if isinstance(whole[0], list) else (4, 1))
    put_counts(config, before)
    assert told(config) == whole
