"""Real servers of pruned models: what they refuse, say and count. They take minutes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serve.describe import ask_json, describe
from serve.process import end_group, python_module
from serve.ready import answered
from serve.server import Server, ServerSpec, free_port
from tests.sample_maps import build_compact, mixed_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.routing_map import RoutingMap

pytest.importorskip("vllm", reason="the plugin side needs vLLM")
pytestmark = [pytest.mark.slow, pytest.mark.vllm]

KEY = "a-key"
PROMPT, OUTPUT = [1, 5, 9, 20, 33, 7], 5


class PruneServer(Server):
    """What `vmprune serve MODEL --map MAP --expert-metrics -- ARGS` becomes."""

    model: Path
    map_path: Path

    def command(self, arguments: Sequence[str]) -> list[str]:
        words = [str(self.model), "--map", str(self.map_path), "--expert-metrics", "--"]
        kept = [*arguments[1:]]
        for flag in ("--host", "--load-format"):
            del kept[kept.index(flag) : kept.index(flag) + 2]
        start = "from offline.cli.main import main; main()"
        return [sys.executable, "-P", "-c", start, "serve", *words, *kept]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("served") / "base", layers=4)


def test_a_map_only_server_says_what_it_is_and_counts_its_experts(
    base: Path, tmp_path: Path
) -> None:
    mixed_map(base).save(tmp_path / "map")
    routing_map = RoutingMap.load(tmp_path / "map")
    more = ("--served-model-name", "pruned", "--max-num-seqs", "4")
    env = {"VLLM_API_KEY": KEY}
    spec = ServerSpec(
        base, dtype="float32", max_model_len=128, enforce_eager=True, extra_args=more, env=env
    )
    server = PruneServer(spec, tmp_path / "s.log")
    server.model, server.map_path = base, tmp_path / "map"
    with server:
        assert describe(server.url, KEY).routing_map == (
            f"19 of 32 experts, map-only, {routing_map.digest()}"
        )
        facts = ask_json(f"{server.url}/v1/pruning", 10, KEY)
        assert facts["digest"] == routing_map.digest() and facts["form"] == "map-only"
        assert answered(server.url, KEY) == "pruned"
        asked = {"model": "pruned", "prompt": PROMPT, "max_tokens": OUTPUT, "ignore_eos": True}
        ask_json(f"{server.url}/v1/completions", 60, KEY, asked)
        # The last token is not computed; the probe's prompt is one token, and maybe a first one.
        counts = _counts_when(server.url, len(PROMPT) + OUTPUT - 1)
        for layer in routing_map.layers:
            tokens = counts[layer.layer]
            assert len(tokens) == layer.num_kept
            extra = sum(tokens) // layer.top_k - (len(PROMPT) + OUTPUT - 1)
            assert sum(tokens) % layer.top_k == 0 and 1 <= extra <= 3
        _prometheus(server.url, tmp_path)
    log = server.log.read_text()
    assert log.count("pruned model (map-only)") == 1


def _counts_when(url: str, tokens: int) -> dict[int, list[int]]:
    """The counter of the metrics, by layer, once it has counted so many tokens."""
    import urllib.request

    deadline = time.monotonic() + 30
    while True:
        text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
        found: dict[int, list[int]] = {}
        for line in text.splitlines():
            if line.startswith("vllm_moe_expert_tokens_total{"):
                layer = int(line.partition('layer="')[2].partition('"')[0])
                found.setdefault(layer, []).append(int(float(line.rpartition(" ")[2])))
        if (found and sum(found[2]) >= tokens) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _prometheus(url: str, folder: Path) -> None:
    """Let a real Prometheus scrape the server, and ask it what the dashboard asks."""
    if not shutil.which("prometheus"):
        return
    from tests.deploy.test_deploy import queries

    port = free_port()
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "vllm", "static_configs": [{"targets": [url.removeprefix("http://")]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    words = ["prometheus", f"--config.file={folder}/prometheus.yml"]
    words += [f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _asked(port, "vllm_moe_expert_tokens_total"):
            time.sleep(1)
        time.sleep(5)  # rates need several scrapes
        silent = [query for query in queries() if not _asked(port, query)]
        # Nothing is to be said of what has not happened.
        calm = ("num_requests_waiting) >", "cache_usage_perc) >", 'up{job="vllm"} ==', "== 0")
        assert [query for query in silent if not any(one in query for one in calm)] == []
    finally:
        end_group(process)


def _asked(port: int, query: str) -> list[Any]:
    from urllib.parse import quote

    try:
        answer = ask_json(f"http://127.0.0.1:{port}/api/v1/query?query={quote(query)}", 10, None)
    except OSError as error:
        if getattr(error, "code", None) in (400, 422):
            raise
        return []
    assert answer["status"] == "success"
    found: list[Any] = answer["data"]["result"]
    return found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["COMPACT"], "is a compact pruned checkpoint"),
        (["BASE", "--model-loader-extra-config", '{"routing_map": "MAP"}'], "--load-format"),
        (["COMPACT", "--load-format", "pruned_moe", "-tp", "2", "-ep"], "of the 2 ranks"),
    ],
    ids=["no-format", "map-without-format", "expert-parallel"],
)
def test_a_refusal_is_the_last_line_and_comes_from_the_first_process(
    arguments: list[str], said: str, base: Path, tmp_path: Path
) -> None:
    mixed_map(base).save(tmp_path / "map")
    compact = build_compact(base, tmp_path / "out")
    places = {"COMPACT": compact, "BASE": base, "MAP": tmp_path / "map"}
    words = []
    for word in arguments:
        for name, place in places.items():
            word = word.replace(name, str(place))
        words.append(word)
    command = [*python_module("serve.launch"), "serve", *words, "--port", str(free_port())]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 1
    assert said in lines[-1] and "hint:" in lines[-1]
    assert not [line for line in lines if "EngineCore" in line]
