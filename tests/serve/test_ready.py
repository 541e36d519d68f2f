from __future__ import annotations

import os
import subprocess

import pytest

from serve.process import python_module
from serve.ready import answered
from serve.server import free_port
from tests.serve.keyed import KEY, keyed_server
from vllm_moe_prune.errors import PruneError


def test_ready_is_who_makes_a_token() -> None:
    with keyed_server() as url:
        assert answered(url + "/", KEY) == "m"
        with pytest.raises(PruneError, match="401"):
            answered(url, "another")


@pytest.mark.parametrize(("tokens", "said"), [(None, "HTTP Error 500"), (0, "with 0 tokens")])
def test_a_server_whose_model_is_silent_is_not_ready(tokens: int | None, said: str) -> None:
    with keyed_server(tokens=tokens) as url, pytest.raises(PruneError, match=said):
        answered(url, KEY)


def test_a_probe_ends_with_a_status_and_one_line() -> None:
    probe = python_module("serve.ready")
    with keyed_server() as url:
        env = {**os.environ, "VLLM_API_KEY": KEY}
        done = subprocess.run([*probe, url], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "m\n", "")
    nobody = f"http://127.0.0.1:{free_port()}"
    done = subprocess.run([*probe, nobody], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"{nobody} does not answer")
    assert done.stderr.count("\n") == 1
