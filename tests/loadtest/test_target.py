"""What is compared, and with which flags its server is started."""

from __future__ import annotations

from typing import Any

import click
import pytest

from loadtest.configurations import parse_size
from loadtest.target import ServerFlags, Target


def test_both_servers_get_the_same_flags() -> None:
    flags = ServerFlags(dtype="bfloat16", max_model_len=512, enforce_eager=True)
    sides = [Target("org/a"), Target("org/b", load_format="pruned_moe")]
    specs = [flags.spec(side).arguments(1) for side in sides]
    differing = [pair for pair in zip(*specs, strict=True) if pair[0] != pair[1]]
    assert differing == [("org/a", "org/b"), ("auto", "pruned_moe")]
    shown = " ".join(flags.shown())
    assert "--dtype bfloat16" in shown and "--no-enable-prefix-caching" in shown
    flags = ServerFlags(extra=("--seed", "0"))
    assert flags.shown()[-2:] == ("--seed", "0")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kv_cache_bytes": 2**30}, ["--kv-cache-memory-bytes", "1073741824"]),
        ({"memory_share": 0.25}, ["--gpu-memory-utilization", "0.25"]),
    ],
)
def test_equal_memory_is_said_to_every_server_and_nothing_else_may_say_it(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], words: list[str]
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    flags = ServerFlags(**given)
    for side in (Target("org/a"), Target("org/b", arguments=("--seed", "1"))):
        spec = flags.spec(side)
        assert " ".join(words) in " ".join(spec.arguments(1))
        assert "VLLM_CPU_KVCACHE_SPACE" not in spec.environment()
    assert " ".join(words) in " ".join(flags.shown())
    assert ServerFlags().spec(side).environment()["VLLM_CPU_KVCACHE_SPACE"] == "7"


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 2**30), ("1.5g", 1_500_000_000), ("512 MiB", 2**29), ("1000", 1000)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GiB", "-1G", "4 apples", "0.0001"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as 4GiB"):
        parse_size(text)


def test_keys_among_the_server_s_arguments_are_not_shown() -> None:
    words = ("--api-key", "one", "two", "--seed", "0")
    assert ServerFlags(extra=words).shown()[-5:] == ("--api-key", "***", "***", "--seed", "0")
