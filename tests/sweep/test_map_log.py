"""What was measured of a map is read again; of the same map the last line counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline.results.decode_speed import DecodeSpeed
from offline.results.estimate import Estimate
from offline.sweep.map_log import MapLog, SpeedLine
from vllm_moe_prune.errors import PruneError


def line(digest: str, tokens: int) -> SpeedLine:
    speed = DecodeSpeed(
        engine="vllm", batch=8, tokens=tokens, rounds=2, tokens_per_second=9.0,
        base_tokens_per_second=8.0, ratio=Estimate(value=1.125),
    )  # fmt: skip
    return SpeedLine(digest=digest, speed=speed)


def test_lines_come_back_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    log = MapLog(tmp_path / "speeds.jsonl", SpeedLine)
    for one in (line("a", 4), line("b", 4), line("a", 8)):
        log.add(one)
    again = MapLog(log.file, SpeedLine)
    assert again.found == log.found == {"a": line("a", 8), "b": line("b", 4)}
    log.file.write_text('{"digest": "a"}\n' + log.file.read_text())
    with pytest.raises(PruneError, match="line 1 is damaged"):
        MapLog(log.file, SpeedLine)
