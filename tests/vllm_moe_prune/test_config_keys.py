"""Counts in config.json: at the top, in sections, under several keys, in lists."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_moe_prune.config_keys import (
    count_at,
    hidden_size_of,
    most_tokens,
    num_layers_of,
    value_at,
    with_value,
)
from vllm_moe_prune.draft_config import without_drafts
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import layout_of

NESTED = {"a": 1, "b": {"c": {"d": 2}, "e": [3, 3]}}


def test_a_dot_leads_into_a_section() -> None:
    assert value_at(NESTED, "b.c.d") == 2
    assert value_at(NESTED, "b.x.d") is None and value_at(NESTED, "a.d") is None


def test_another_value_leaves_the_rest_and_the_original() -> None:
    found = with_value(NESTED, "b.c.d", 5)
    assert found == {"a": 1, "b": {"c": {"d": 5}, "e": [3, 3]}}
    assert NESTED["b"] == {"c": {"d": 2}, "e": [3, 3]}
    assert with_value(NESTED, "b.e", 4)["b"]["e"] == [4, 4]


@pytest.mark.parametrize(("value", "count"), [(8, 8), ([8, 8, 8], 8)])
def test_a_list_of_one_number_is_a_count(value: Any, count: int) -> None:
    assert count_at({"k": value}, "k") == count


@pytest.mark.parametrize("value", [None, 0, [], [8, 4], "8", 2.0])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(PruneError, match="no usable k"):
        count_at({"k": value}, "k")


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 128, "max_seq_len": 64}, 128),
        ({"model_max_length": 1048576}, 1048576),  # Kimi-Linear
        ({"max_seq_len": 32768}, 32768),  # DBRX
        ({"max_position_embeddings": None}, None),
    ],
)
def test_a_length_has_one_of_several_keys(config: dict[str, Any], tokens: int | None) -> None:
    assert most_tokens(config) == tokens


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"hidden_size": 64, "num_hidden_layers": 2}, (64, 2)),
        ({"d_model": 64, "n_layers": 2}, (64, 2)),  # DBRX
        ({"hidden_size": 64, "num_layers": 2}, (64, 2)),  # LongCat-Flash
        ({"hidden_size": 64, "layers_block_type": ["attention", "mamba", "moe"]}, (64, 3)),
    ],
)
def test_sizes_have_one_of_several_keys(config: dict[str, Any], sizes: tuple[int, int]) -> None:
    assert (hidden_size_of(config), num_layers_of(config)) == sizes


@pytest.mark.parametrize("config", [{}, {"hidden_size": "64", "num_hidden_layers": 2.0}])
def test_sizes_that_are_none_are_named(config: dict[str, Any]) -> None:
    with pytest.raises(PruneError, match="no usable hidden_size"):
        hidden_size_of(config)
    with pytest.raises(PruneError, match="no usable num_hidden_layers"):
        num_layers_of(config)


@pytest.mark.parametrize(
    ("config", "after"),
    [
        (
            {"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 4},
            {"num_local_experts": 6, "num_experts_per_tok": 2},
        ),
        (
            {"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 4,
             "experts_per_token": 4},
            {"num_local_experts": 6, "num_experts_per_tok": 2, "experts_per_token": 2},
        ),
        (
            {"model_type": "hunyuan_v1_moe", "num_experts": 8, "moe_topk": [4, 4]},
            {"num_experts": 6, "moe_topk": [2, 2]},
        ),
        (
            {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 8, "moe_top_k": 4, "x": 1}},
            {"ffn_config": {"moe_num_experts": 6, "moe_top_k": 2, "x": 1}},
        ),
        (
            {"model_type": "qwen3_omni_moe", "thinker_config": {"text_config": {
                "num_experts": 8, "num_experts_per_tok": 4}, "y": 1}},
            {"thinker_config": {"text_config": {
                "num_experts": 6, "num_experts_per_tok": 2}, "y": 1}},
        ),
    ],
)  # fmt: skip
def test_a_pruned_config_has_the_counts_under_every_key(
    config: dict[str, Any], after: dict[str, Any]
) -> None:
    layout = layout_of(config)
    assert (layout.num_experts(config), layout.top_k(config)) == (8, 4)
    found = layout.with_counts(config, 6, 2)
    assert found == {"model_type": config["model_type"], **after}


def test_a_count_of_draft_layers_becomes_none_where_it_stands() -> None:
    config = {"model_type": "qwen3_5_moe", "text_config": {"mtp_num_hidden_layers": 1}}
    found = without_drafts(config, layout_of(config), there_were=True)
    assert found == {"model_type": "qwen3_5_moe", "text_config": {"mtp_num_hidden_layers": 0}}
    config = {"model_type": "qwen3_next"}
    found = without_drafts(config, layout_of(config), there_were=True)
    assert found == {"model_type": "qwen3_next", "num_nextn_predict_layers": 0}
