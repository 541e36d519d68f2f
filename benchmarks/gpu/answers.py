"""What vLLM answers, and how far that is from transformers.

Every engine is started in a process of its own, as it is served: with its compile cache, and with
nothing left over from another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import prompts
from benchmarks.gpu.steps import Bench
from offline.engines.local.transformers import TransformersEngine
from serve.logs import last_error
from vllm_moe_prune.routing_map import RoutingMap

STEPS = 16  # tokens that are decoded
_MARK = "ANSWERS "
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}
# An answer that is right is nearer to its own reference than this share of the way to another one.
MOST = 0.2


class NotServedError(Exception):
    """vLLM did not start, or ended."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy tokens and their log-probabilities for each of `prompts`, and the log of vLLM."""

    tokens: list[list[int]]
    log_probs: list[list[float]]
    log: str


def settings(bench: Bench, **more: Any) -> dict[str, Any]:
    """Return arguments of `vllm.LLM` for a tiny model on the device of a step."""
    return {
        "dtype": "bfloat16" if bench.on_gpu else "float32",
        "max_model_len": 256,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 2**27,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "max_logprobs": 1,
        **gpu_share(bench),
        **more,
    }


def gpu_share(bench: Bench) -> dict[str, Any]:
    """Return the argument of `vllm.LLM` that lets it start beside others on the GPU of a step."""
    return {"gpu_memory_utilization": 0.1} if bench.on_gpu else {}


def ask(model: Path, arguments: Mapping[str, Any], cache: Path | None = None) -> Answers:
    """Serve a model in a new process and return its answers.

    :param cache: where vLLM keeps what it compiles
    :raises NotServedError: with the line of vLLM's log that says why
    """
    given = {"model": str(model), "arguments": dict(arguments), "prompts": prompts()}
    environment = {**os.environ, **_ENVIRONMENT}
    if cache is not None:
        environment["VLLM_CACHE_ROOT"] = str(cache)
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu.answers"],
            env=environment,
            input=json.dumps(given),
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        said.seek(0)
        log = child.stdout + said.read()
    for line in child.stdout.splitlines():
        if line.startswith(_MARK):
            found = json.loads(line[len(_MARK) :])
            return Answers(found["tokens"], found["log_probs"], log)
    sys.stderr.write(log[-6000:])
    raise NotServedError(f"vLLM ended with {child.returncode}: {last_error(log)}")


class Reference:
    """transformers on the CPU, in float32, with any map of a base."""

    def __init__(self, base: Path) -> None:
        self._engine = TransformersEngine(base, dtype="float32")

    def distance(self, answers: Answers, routing_map: RoutingMap | None) -> float:
        """Return the mean distance of log-probabilities along vLLM's own tokens."""
        self._engine.apply(routing_map)
        away = []
        for prompt, tokens, found in zip(prompts(), answers.tokens, answers.log_probs, strict=True):
            logits = self._engine.logits([prompt + tokens])[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(dim=-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
            away.append((expected - torch.tensor(found)).abs().mean())
        return float(torch.stack(away).mean())


def check_answers(
    bench: Bench,
    what: str,
    answers: Answers,
    reference: Reference,
    routing_map: RoutingMap | None,
    other: RoutingMap | None,
) -> None:
    """Check that answers are those of a map and not of another one."""
    own, wrong = (reference.distance(answers, one) for one in (routing_map, other))
    bench.note(**{what: {"from_transformers": round(own, 6), "from_other_map": round(wrong, 6)}})
    bench.check(own < MOST * wrong, f"{what}: log-probabilities are {own:.3g} from transformers'")


def _llm_answers(model: str, arguments: dict[str, Any], given: Sequence[list[int]]) -> Any:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(model, **arguments)
    sampling = SamplingParams(
        temperature=0, max_tokens=STEPS, logprobs=0, ignore_eos=True, detokenize=False
    )
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in given]
    outputs = [out.outputs[0] for out in llm.generate(inputs, sampling, use_tqdm=False)]
    return {
        "tokens": [list(one.token_ids) for one in outputs],
        "log_probs": [
            [step[token].logprob for step, token in zip(one.logprobs, one.token_ids, strict=True)]
            for one in outputs
        ],
    }


def _main() -> None:
    asked = json.loads(sys.stdin.read())
    found = _llm_answers(asked["model"], asked["arguments"], asked["prompts"])
    print(_MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    _main()
