"""Run prompts through vLLM and return what it answered.

Starting vLLM takes far longer than a tiny model does, so one process answers for one model after
another, with the engine inside of it; another process does for two tensor-parallel ranks, which are
its forks. What else needs processes or an environment of its own (pipeline parallel, compiled
models) gets a process for itself.

A tiny model's time is not its arithmetic: of 4.4 s of CPU per model 3.2 s went into looking for
garbage among a million objects of modules (`Garbage`), 0.7 s into looking through all modules for
kernels again, 0.5 s into zeros in a gibibyte of cache, and 7 s, once, into torch.compile.

Requests and answers are lines of JSON. An answer is, per prompt, the greedy tokens and the
log-probabilities of the whole vocabulary; or nothing, if scores were written.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offline.calibration.scores import Scores

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
_SHARED = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCH_COMPILE_DISABLE": "1",  # all its models are eager
    "OMP_NUM_THREADS": "1",  # tiny tensors lose more to waiting threads than they gain
}
# Of two tensor-parallel ranks, which are forks of the process that asks for them.
RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
CACHE_BYTES = 2**26  # a model of 128 tokens needs far less
_MARK = "PROBE-RESULT "
Answer = tuple[list[int], list[list[float]]]


def probe(
    model: Path | str,
    prompts: list[list[int]],
    *,
    steps: int = 16,
    env: dict[str, str] | None = None,
    adapters: list[Path | None] | None = None,
    **arguments: Any,
) -> list[Answer]:
    """Return greedy tokens and log-probabilities [steps][vocabulary] for each prompt.

    :param adapters: the LoRA adapter of each prompt, None for the model itself
    :param arguments: those of `vllm.LLM`
    :raises RuntimeError: with what vLLM said, if it does not answer
    """
    request = _request(model, prompts, steps, adapters, arguments)
    stages = "pipeline_parallel_size" in arguments
    ranks = "tensor_parallel_size" in arguments and env != RANKS
    alone = stages or ranks or not arguments.get("enforce_eager", True)
    return ask(request, env, alone=alone)


@contextmanager
def hub_probe() -> Iterator[Callable[..., list[Answer]]]:
    """`probe` in a process that may ask the hub of the test, for one model after another."""
    with _Process({**_SHARED, "HF_HUB_OFFLINE": "0"}) as process:

        def ask(model: str, prompts: list[list[int]], *, steps: int, **arguments: Any) -> Any:
            return process.ask(_request(model, prompts, steps, None, arguments))

        yield ask


def probe_scores(
    model: Path,
    domains: Mapping[str, list[list[int]]],
    out: Path,
    *,
    env: dict[str, str] | None = None,
    **arguments: Any,
) -> Scores:
    """Return what `score_live` finds on the token ids of some domains.

    :param out: a folder that the scores go through
    :param arguments: of `score_live` and `vllm.LLM`
    :raises RuntimeError: with what vLLM said, if it does not answer
    """
    from offline.calibration.scores import Scores

    request = {"model": str(model), "domains": domains, "out": str(out), "arguments": arguments}
    ask(request, env, alone=False)
    return Scores.load(out)


def ask(request: dict[str, Any], env: dict[str, str] | None, *, alone: bool) -> list[Answer]:
    if not alone and env in (None, {}, RANKS):
        return _shared_process(ranks=env == RANKS).ask(request)
    with _Process(env or {}) as process:
        return process.ask(request)


def _request(
    model: Path | str,
    prompts: list[list[int]],
    steps: int,
    adapters: list[Path | None] | None,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    return {
        "model": str(model),
        "arguments": arguments,
        "prompts": prompts,
        "steps": steps,
        "adapters": [folder and str(folder) for folder in adapters or []],
    }


@functools.cache
def _shared_process(*, ranks: bool) -> _Process:
    process = _Process({**_SHARED, **RANKS} if ranks else _SHARED)
    atexit.register(process.close)
    return process


class _Process:
    """A child that answers requests until it is closed."""

    def __init__(self, env: dict[str, str]) -> None:
        self.said: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.vllm_probe"],
            env={**os.environ, **ENVIRONMENT, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> list[Answer]:
        assert self.child.stdin and self.child.stdout
        lines: list[str] = []
        if self.child.poll() is None:
            self.child.stdin.write(json.dumps(request) + "\n")
            self.child.stdin.flush()
            for line in self.child.stdout:
                if line.startswith(_MARK):
                    answer = json.loads(line[len(_MARK) :])
                    if isinstance(answer, str):
                        raise RuntimeError(answer)
                    return [(tokens, logprobs) for tokens, logprobs in answer]
                lines.append(line)
        self.said.seek(0)
        raise RuntimeError("".join(lines)[-6000:] + self.said.read()[-6000:])

    def close(self) -> None:
        if self.child.stdin:
            self.child.stdin.close()
        try:
            self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.said.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(
    model: str,
    arguments: dict[str, Any],
    prompts: list[list[int]],
    steps: int,
    adapters: list[str | None],
) -> Any:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    settings = {
        "max_model_len": 128,
        "max_logprobs": -1,
        "enforce_eager": True,
        "disable_log_stats": True,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": CACHE_BYTES,
        **arguments,
    }
    llm = LLM(model, **settings)
    try:
        sampling = SamplingParams(
            temperature=0, max_tokens=steps, logprobs=-1, ignore_eos=True, detokenize=False
        )
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        lora = [
            folder and LoRARequest(folder, 1 + adapters.index(folder), folder)
            for folder in adapters
        ] or None
        answers = []
        for output in llm.generate(inputs, sampling, use_tqdm=False, lora_request=lora):
            completion = output.outputs[0]
            assert completion.logprobs is not None
            table = [
                [step[token].logprob for token in range(len(step))] for step in completion.logprobs
            ]
            answers.append((list(completion.token_ids), table))
        return answers
    finally:
        llm.llm_engine.engine_core.shutdown()


def _score(
    model: str, domains: dict[str, Any], out: str, arguments: dict[str, Any]
) -> list[Answer]:
    import numpy as np

    from offline.calibration.corpus import Domain
    from offline.calibration.live import score_live
    from vllm_moe_prune.provenance import DataIdentity

    corpora = [
        Domain(name, np.array(ids), DataIdentity(name=name, count=len(ids), sha256=""))
        for name, ids in domains.items()
    ]
    settings = {"kv_cache_memory_bytes": CACHE_BYTES, **arguments}
    score_live(Path(model), corpora, **settings).save(Path(out))
    return []


def _main() -> None:
    from vllm import LLM  # noqa: F401 - what it imports is not garbage
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.model_executor.models import registry

    from tests.draft_probe import drafting
    from tests.live_probe import live
    from tests.vllm_process import (
        Garbage,
        fork_ranks,
        let_sigmoids_choose,
        rebind_new_modules_only,
    )

    # vLLM looks at every new model class in a process of its own, which takes longer than all else.
    registry._run_in_subprocess = lambda look: look()
    rebind_new_modules_only()
    let_sigmoids_choose()
    if os.environ.items() >= RANKS.items():
        fork_ranks()
    garbage = Garbage()
    for line in sys.stdin:
        garbage.is_gone()
        try:
            request = json.loads(line)
            kinds: dict[str, Any] = {"out": _score, "maps": live, "drafted": drafting}
            kind = next((kinds[key] for key in kinds if key in request), _answer)
            answer = kind(**request)
        except Exception:
            answer = traceback.format_exc()
        print(_MARK + json.dumps(answer), flush=True)
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    _main()
