"""Servers here are real child processes, but not vLLM (which takes a minute to start)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from serve.process import group_bytes, group_members
from serve.server import Server, ServerSpec, free_port, split_cpus
from vllm_moe_prune.errors import PruneError

ROOT = Path(__file__).parents[2]

# A server with a helper process that ignores polite requests, as an engine core may.
SERVING = """
import http.server, json, signal, subprocess, sys
subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"" if self.path == "/health" else json.dumps({"data": [{"id": "m"}]}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class ScriptServer(Server):
    """A server whose child runs ``script`` with the arguments of `vllm serve`."""

    script = SERVING

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", self.script, *arguments]


class DyingServer(ScriptServer):
    script = "print('starting'); raise ValueError('no such expert: 9')"


class SilentServer(ScriptServer):
    script = "import time; time.sleep(60)"


def group_of(server: Server) -> int:
    assert server._process is not None
    return server._process.pid


def test_ready_server_answers_and_leaves_nobody_behind(tmp_path: Path) -> None:
    with ScriptServer(ServerSpec("org/model"), tmp_path / "logs" / "s.log") as server:
        group = group_of(server)
        assert server.model_name == "m"
        assert server.url.startswith("http://127.0.0.1:")
        assert 0 < server.startup_seconds < 30
        assert len(group_members(group)) == 2
        assert group_bytes(group) > 2**20
    assert group_members(group) == []


class KeyedServer(ScriptServer):
    script = SERVING.replace(
        "body = b",
        "if self.path != '/health' and self.headers['Authorization'] != 'Bearer k':\n"
        "            self.send_response(401); self.end_headers(); return\n"
        "        body = b",
    )


@pytest.mark.parametrize(
    "spec",
    [
        ServerSpec("org/m", env={"VLLM_API_KEY": "k"}),
        ServerSpec("org/m", extra_args=("--api-key", "k", "other")),
        ServerSpec("org/m", extra_args=("--api_key=k",), env={"VLLM_API_KEY": "other"}),
    ],
    ids=["environment", "arguments", "both"],
)
def test_a_server_that_asks_for_a_key_is_ready(spec: ServerSpec, tmp_path: Path) -> None:
    with KeyedServer(spec, tmp_path / "s.log") as server:
        assert server.model_name == "m"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_inside_ends_the_server(tmp_path: Path, error: type[BaseException]) -> None:
    group = 0
    with pytest.raises(error), ScriptServer(ServerSpec("org/m"), tmp_path / "s.log") as server:
        group = group_of(server)
        raise error
    assert group and group_members(group) == []


def test_a_revision_of_a_model_on_the_hub_is_said_to_vllm() -> None:
    assert ServerSpec("org/m@v1").arguments(1)[:5] == [
        *("org/m", "--revision", "v1", "--tokenizer-revision", "v1"),
    ]
    assert ServerSpec("org/m").arguments(1)[:2] == ["org/m", "--host"]


def test_child_that_dies_is_one_line_with_its_last_error(tmp_path: Path) -> None:
    log = tmp_path / "s.log"
    with pytest.raises(PruneError) as caught, DyingServer(ServerSpec("org/m"), log):
        pass
    assert caught.value.message == "the server ended with status 1: ValueError: no such expert: 9"
    assert caught.value.hint == f"see {log}"


def test_silence_ends_in_a_timeout_and_the_child_is_gone(tmp_path: Path) -> None:
    server = SilentServer(ServerSpec("org/m"), tmp_path / "s.log", startup_timeout=0.5)
    with pytest.raises(PruneError, match="did not answer within"):
        server.start()
    assert server._process is None


def test_taken_port_and_missing_folder_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PruneError, match=f"port {port} is taken"):
            ScriptServer(ServerSpec("org/m", port=port), tmp_path / "s.log").start()
    with pytest.raises(PruneError, match="no model folder"):
        ScriptServer(ServerSpec(tmp_path / "absent"), tmp_path / "s.log").start()
    assert not (tmp_path / "s.log").exists()


def test_arguments_say_what_the_spec_says() -> None:
    spec = ServerSpec(
        "org/m",
        load_format="pruned_moe",
        dtype="bfloat16",
        max_model_len=512,
        tensor_parallel_size=2,
        enforce_eager=True,
        extra_args=("--seed", "1"),
        loader_extra_config={"routing_map": "DIR"},
    )
    assert " ".join(spec.arguments(8001)) == (
        "org/m --host 127.0.0.1 --port 8001 --load-format pruned_moe --dtype bfloat16 "
        "--tensor-parallel-size 2 --max-model-len 512 --enforce-eager "
        '--model-loader-extra-config {"routing_map": "DIR"} --seed 1'
    )


def test_environment_prefers_the_caller_then_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("serve.server.cpu_build", lambda: True)
    local = ServerSpec(tmp_path, env={"DO_NOT_TRACK": "0"}).environment()
    assert local["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert (local["DO_NOT_TRACK"], local["HF_HUB_OFFLINE"]) == ("0", "1")
    assert "HF_HUB_OFFLINE" not in ServerSpec("org/model").environment()
    for routing_map, offline in (("me/map@v1", False), (str(tmp_path), True)):
        spec = ServerSpec(tmp_path, loader_extra_config={"routing_map": routing_map})
        assert ("HF_HUB_OFFLINE" in spec.environment()) == offline


def test_gpu_builds_get_no_cpu_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr("serve.server.cpu_build", lambda: False)
    assert "VLLM_CPU_KVCACHE_SPACE" not in ServerSpec("org/m").environment()


def test_workers_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6})
    assert split_cpus(2) == "0,2,6|1,3"
    assert split_cpus(8) == "nobind"


def test_importing_the_server_imports_neither_torch_nor_vllm() -> None:
    code = "import sys, serve.server; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a promise of Linux only")
def test_server_dies_with_a_parent_that_is_killed() -> None:
    child = "from serve.launch import end_with_parent; import time; end_with_parent(); "
    child += "print(1, flush=True); time.sleep(60)"
    parent = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
    parent += f"{child!r}], stdout=subprocess.PIPE); p.stdout.readline(); "
    parent += "print(p.pid, flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 5
    while _runs(orphan) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(orphan)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_free_port_is_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_serves_a_dummy_model_and_ends_whole(tmp_path: Path, users_folder: Path) -> None:
    from benchmarks.dummy_model import Shape, write_model
    from serve.describe import describe

    shape = Shape(hidden=64, intermediate=64, layers=2, heads=2, kv_heads=1, vocab=200)
    model = write_model(tmp_path / "model", shape)
    spec = ServerSpec(model, load_format="dummy", max_model_len=256, enforce_eager=True)
    with Server(spec, tmp_path / "s.log") as server:
        group = group_of(server)
        info = describe(server.url)
        assert info.models == (server.model_name,) and info.max_model_len == 256
        assert info.version is not None
        assert len(group_members(group)) > 1
    assert server.peak_bytes > 100 * 2**20
    assert group_members(group) == []


@pytest.mark.slow
@pytest.mark.vllm
def test_vllms_refusal_becomes_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with (
        pytest.raises(PruneError, match="no_such_model") as caught,
        Server(ServerSpec(tmp_path), tmp_path / "s.log"),
    ):
        pass
    assert "\n" not in str(caught.value)
