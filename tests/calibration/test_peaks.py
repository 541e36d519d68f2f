"""What `vmprune score` prints of memory against what it and its children really take."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tiny import _WORDS, make_tiny_mixtral

_SCORE = "from offline.cli.main import main; main()"
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """55 million parameters in bfloat16, most of them in experts."""
    sizes = {"layers": 6, "experts": 32, "top_k": 4, "hidden": 384, "intermediate": 192}
    folder = tmp_path_factory.mktemp("model") / "model"
    return make_tiny_mixtral(folder, **sizes, heads=4, kv_heads=4, vocab=8000, dtype="bfloat16")


def texts(folder: Path, count: int) -> str:
    """Write texts, and return them as --calibration takes them, 16 sequences of each."""
    found = []
    for number in range(count):
        words = random.Random(number).choices(_WORDS.split(), k=20_000)
        file = folder / f"text-{number}.txt"
        file.write_text("\n\n".join(" ".join(words[i : i + 400]) for i in range(0, 20_000, 400)))
        found.append(f"d{number}={file}:16")
    return ",".join(found)


def measured(*words: str) -> tuple[int, int]:
    """Run `vmprune score`; return the bytes that it said, and took with its children at most."""
    given = [sys.executable, "-c", _SCORE, "score", *words, "--length", "256", "--json"]
    environment = {**os.environ, **_THREADS}
    with subprocess.Popen(given, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        peak = 0
        while child.poll() is None:
            peak = max(peak, _resident(psutil.Process(child.pid)))
            time.sleep(0.01)
        said = json.loads(child.stdout.read())
    assert child.returncode == 0
    return sum(said["estimate"]["memory"].values()), peak


def _resident(process: psutil.Process) -> int:
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.Error:  # which has ended meanwhile
            continue
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domains", "more"),
    [
        (1, ()),
        (1, ("--dtype", "bfloat16")),
        (8, ("--dtype", "float32")),
        (1, ("--dtype", "float32", "--gradients")),
        (8, ("--dtype", "bfloat16", "--gradients")),
        (2, ("--dtype", "float32", "--gradients", "--offload", ".")),
    ],
)
def test_the_estimate_is_within_a_third_of_the_peak(
    domains: int, more: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    more = tuple(str(tmp_path) if word == "." else word for word in more)
    text, out = texts(tmp_path, domains), str(tmp_path / "scores")
    said, peak = measured("--model", str(model), "--calibration", text, "--out", out, *more)
    assert 1 / 1.3 <= said / peak <= 1.3, (said >> 20, peak >> 20)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("domains", [1, 8])
def test_the_estimate_of_vllm_is_within_a_third_of_the_peak(
    domains: int, model: Path, tmp_path: Path
) -> None:
    text, out = texts(tmp_path, domains), str(tmp_path / "scores")
    more = ("--engine", "vllm", "--dtype", "bfloat16")
    said, peak = measured("--model", str(model), "--calibration", text, "--out", out, *more)
    assert 1 / 1.3 <= said / peak <= 1.3, (said >> 20, peak >> 20)
