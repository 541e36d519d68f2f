"""Run prompts through vLLM in a process of its own and print what it answered as JSON.

    python -m tests.vllm_probe MODEL '{"load_format": "pruned_moe", "dtype": "float32"}' PROMPTS

PROMPTS is a JSON list of lists of token ids. The answer is, per prompt, the greedy tokens and the
log-probabilities of the whole vocabulary at each step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
_MARK = "PROBE-RESULT "


def probe(
    model: Path,
    prompts: list[list[int]],
    *,
    steps: int = 16,
    env: dict[str, str] | None = None,
    **arguments: Any,
) -> list[tuple[list[int], list[list[float]]]]:
    """Return greedy tokens and log-probabilities [steps][vocabulary] for each prompt.

    :raises RuntimeError: with the end of vLLM's output, if the engine does not answer
    """
    command = [sys.executable, "-m", "tests.vllm_probe", str(model)]
    command += [json.dumps(arguments), json.dumps(prompts), str(steps)]
    result = subprocess.run(
        command,
        env={**os.environ, **ENVIRONMENT, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    for line in result.stdout.splitlines():
        if line.startswith(_MARK):
            return [(tokens, logprobs) for tokens, logprobs in json.loads(line[len(_MARK) :])]
    raise RuntimeError(result.stdout[-6000:] + result.stderr[-6000:])


def _main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    model, arguments, prompts, steps = sys.argv[1:]
    llm = LLM(
        model,
        **{
            "max_model_len": 128,
            "max_logprobs": -1,
            "enforce_eager": True,
            "disable_log_stats": True,
            **json.loads(arguments),
        },
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=int(steps), logprobs=-1, ignore_eos=True, detokenize=False
    )
    answers = []
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in json.loads(prompts)]
    for output in llm.generate(inputs, sampling, use_tqdm=False):
        completion = output.outputs[0]
        assert completion.logprobs is not None
        table = [
            [step[token].logprob for token in range(len(step))] for step in completion.logprobs
        ]
        answers.append((list(completion.token_ids), table))
    print(_MARK + json.dumps(answers), flush=True)


if __name__ == "__main__":
    _main()
