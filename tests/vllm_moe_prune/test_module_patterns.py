"""A foreign pattern means what it means to `re`, or is refused in one line within a time."""

from __future__ import annotations

import re
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.build.build import plan_build
from offline.lint.tensors import lint_tensors
from tests.families.test_quantised_config import KEPT, base_with
from tests.sample_maps import uniform_map
from vllm_moe_prune.errors import LINE, PruneError
from vllm_moe_prune.module_patterns import ModulePatterns

NAME = "model.layers.0.block_sparse_moe.experts.1.w1"
HOSTILE = r"(\w|\w\w|\.)+[^\w.]"  # splits a name in as many ways as there are
WHERE = "config.json: quantization_config.ignore"

PIECES = st.one_of(
    st.sampled_from(["model", "layers", "experts", "w1", "proj", "x", r"\.", ".", "_", "{", "{e}"]),
    st.sampled_from([r"\d", r"\w", r"\S", r"[a-w]", r"[^.]", r"[\d.]", "^", "$", r"\b", r"\{e}"]),
)
REGEXES = st.recursive(
    PIECES,
    lambda inner: st.one_of(
        st.builds(
            lambda part, how: f"(?:{part}){how}",
            inner,
            st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{,2}", "{e}"]),
        ),
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.builds(lambda how, part: f"(?{how}{part})", st.sampled_from("=!"), inner),
    ),
    max_leaves=8,
)
NAMES = st.one_of(
    st.sampled_from([NAME, "lm_head", "model.layers.12.mlp.gate", "x{e}"]),
    st.text("mx1._{e}", max_size=8),
)


@settings(max_examples=150, deadline=None)
@given(REGEXES, NAMES, st.sampled_from(["re:", "+:", "-:", ""]))
def test_an_expression_means_what_it_means_to_re(pattern: str, name: str, mark: str) -> None:
    patterns = ModulePatterns()
    try:
        begins = patterns.begins(mark + pattern, WHERE, name)
    except PruneError as error:
        assert "cannot be read" in error.message or "takes too long" in error.message
        assert "cannot be read" not in error.message or not _is_read(pattern)
        return
    assert begins == (re.match(pattern, name) is not None)
    assert patterns.is_in(mark + pattern, WHERE, name) == (re.search(pattern, name) is not None)


def _is_read(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@settings(max_examples=100, deadline=None)
@given(st.text("mx1.[]!-*?", max_size=8), NAMES)
def test_a_wildcard_means_what_it_means_to_fnmatch(pattern: str, name: str) -> None:
    assert ModulePatterns().is_like(pattern, WHERE, name) == fnmatchcase(name, pattern)


@pytest.mark.parametrize("pattern", [HOSTILE, rf"(?=.*experts){HOSTILE}", "(.|..)+$(?=x)"])
def test_a_hostile_one_is_given_up(pattern: str) -> None:
    began = time.thread_time()
    with pytest.raises(PruneError, match="takes too long to match") as caught:
        ModulePatterns().begins(f"re:{pattern}", WHERE, NAME)
    assert time.thread_time() - began < 2
    assert caught.value.message.startswith(f"{WHERE} has the pattern re:")


def test_many_slow_ones_have_one_time() -> None:
    patterns, began, asked = ModulePatterns(), time.thread_time(), 0
    with pytest.raises(PruneError, match="takes too long to match"):
        for asked in range(10_000):
            patterns.begins(HOSTILE, WHERE, NAME[: 20 + asked % 8])
    assert asked and time.thread_time() - began < 2


def test_ordinary_ones_never_come_to_an_end() -> None:
    patterns = ModulePatterns()
    for number in range(20_000):
        patterns.begins(r"re:.*experts\.\d+\.(gate|up|down)_proj$", WHERE, f"{NAME}{number}")
    assert patterns._left > 0.4


UNREADABLE = [
    ("re:(", r"cannot be read: missing \), unterminated"),
    ("re:" + "(" * 900 + ")" * 900, "cannot be read: maximum recursion depth"),
    ("re:a{99999999999999}", "cannot be read: the repetition number is too large|is too long"),
    ("re:(?:a{9999}){9999}", "is too long"),
    (r"re:\p{L}", r"cannot be read: bad escape \\p"),
    ("re:" + "a" * 3000, "is too long"),
    ("*" * 3000, "is too long"),
]


@pytest.mark.parametrize(("entry", "said"), UNREADABLE, ids=[one[:16] for one, _ in UNREADABLE])
def test_what_cannot_be_read_is_said(entry: str, said: str, tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", {"quant_method": "x", "ignore": ["lm_head", entry]})
    with pytest.raises(PruneError, match=said) as caught:
        plan_build(base, uniform_map(base.folder, KEPT, top_k=1))
    assert caught.value.message.startswith(f"{WHERE} has the pattern {entry[:9]}")
    assert len(caught.value.message) <= LINE and caught.value.hint


COMPRESSED: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
GROUP: dict[str, Any] = {"targets": ["re:("], "weights": {"num_bits": 4}}
SETTINGS: list[tuple[dict[str, Any], str]] = [
    (COMPRESSED | {"ignore": ["re:("]}, "ignore"),
    (COMPRESSED | {"config_groups": {"g": GROUP}}, "config_groups.g.targets"),
    ({"quant_method": "gptq", "dynamic": {"-:(": {}}}, "dynamic"),
]


@pytest.mark.parametrize(("told", "key"), SETTINGS, ids=[key for _, key in SETTINGS])
def test_both_readers_of_settings_say_where_it_stands(
    told: dict[str, Any], key: str, tmp_path: Path
) -> None:
    base = base_with(tmp_path / "base", told)
    where = f"config.json: quantization_config.{key} has the pattern "
    with pytest.raises(PruneError, match=where):
        plan_build(base, uniform_map(base.folder, KEPT, top_k=1))
    with pytest.raises(PruneError, match=where):
        lint_tensors(base.tensors, base.layout, base.config)
    with pytest.raises(PruneError, match=where.replace("quant", "text_config.quant")):
        lint_tensors(base.tensors, base.layout, {"text_config": {"quantization_config": told}})


def test_one_entry_may_be_a_wildcard_here_and_an_expression_there() -> None:
    patterns = ModulePatterns()
    assert patterns.is_like("model.*", "a", "model.layers")
    assert patterns.begins("model.*", "b", "model.layers")
    assert not patterns.is_like("model.", "a", "model.layers")
    assert patterns.begins("model.", "b", "model.layers")
