from __future__ import annotations

import pytest

from serve.logs import last_error

TWO_PROCESSES = """\
(APIServer pid=10) INFO 11-22 02:30:48 [api_server.py:1] starting
(EngineCore pid=20) ERROR 11-22 02:30:50 [core.py:1018] Traceback (most recent call last):
(EngineCore pid=20) ERROR 11-22 02:30:50 [core.py:1018]   File "loader.py", line 3, in load
(EngineCore pid=20) ERROR 11-22 02:30:50 [core.py:1018] ValueError: layer 3: top_k 4 > 2 experts
(EngineCore pid=20) Process EngineCore:
(EngineCore pid=20) Traceback (most recent call last):
(EngineCore pid=20) vllm_moe_prune.errors.PruneError: layer 3: top_k 4 > 2 experts
(APIServer pid=10) Traceback (most recent call last):
(APIServer pid=10) RuntimeError: Engine core initialization failed. See root cause above.
"""
PYDANTIC = """\
(APIServer pid=10) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
(APIServer pid=10)   Value error, no model type `abc` [type=value_error, input_value=x]
(APIServer pid=10)     For further information visit https://errors.pydantic.dev
"""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (TWO_PROCESSES, "vllm_moe_prune.errors.PruneError: layer 3: top_k 4 > 2 experts"),
        (PYDANTIC, "no model type `abc`"),
        ("usage: x\nlaunch.py: error: unrecognized arguments: --abc\n", "launch.py: error: "
         "unrecognized arguments: --abc"),
        ("\x1b[31mOSError: disk full\x1b[0m\nbye\n", "OSError: disk full"),
        ("RuntimeError: Engine core initialization failed\n", "RuntimeError: Engine core "
         "initialization failed"),
        ("Killed\n\n", "Killed"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_line_that_says_most(log: str, line: str) -> None:
    assert last_error(log) == line
