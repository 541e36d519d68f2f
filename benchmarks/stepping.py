"""Engines of vLLM in one process, whose steps are taken in turn: differences down to a percent.

A server is several processes that poll while they wait, and what a machine does changes from one
second to the next: two servers that are loaded in turn differ by a fifth from round to round.
Here all engines compute on the same thread, a step of one after a step of the other, so that
whatever else happens happens to all. What a server adds, HTTP and tokenizing, is the same for all.

The child reads a line of JSON, `Asked`, and writes one, engine -> seconds of each round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.dummy_model import prompt_ids
from vllm_moe_prune.errors import PruneError

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_MARK = "STEPPING "


@dataclass(frozen=True, slots=True)
class Work:
    """What every engine does in a round: ``users`` prompts at once, answered together."""

    users: int
    prompt_tokens: int
    output_tokens: int


def step_in_turn(
    engines: Mapping[str, Mapping[str, Any]], work: Work, rounds: int, threads: int
) -> dict[str, list[float]]:
    """Return name -> seconds of each round.

    :param engines: name -> arguments of `vllm.LLM`; they are loaded in this order
    :raises PruneError: with the last of what vLLM said, if it fails
    """
    asked = {"engines": engines, "work": asdict(work), "rounds": rounds}
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.stepping"],
            env={**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": str(threads)},
            input=json.dumps(asked),
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        for line in child.stdout.splitlines():
            if line.startswith(_MARK):
                found: dict[str, list[float]] = json.loads(line[len(_MARK) :])
                return found
        said.seek(0)
        raise PruneError(f"vLLM ended with {child.returncode}: {said.read()[-3000:]}")


class _Engine:
    """One engine in this process."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        from vllm import LLM

        self._engine = LLM(**arguments, disable_log_stats=True).llm_engine
        self.seconds = 0.0

    def ask(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """Take requests, all of which end in the same step."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        sampling = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        for number, prompt in enumerate(prompts):
            self._engine.add_request(
                str(number), TokensPrompt(prompt_token_ids=list(prompt)), sampling
            )

    def step(self) -> bool:
        """Compute one step, if there is one, and add its time; say whether there are more."""
        begun = time.perf_counter()
        if self._engine.has_unfinished_requests():
            self._engine.step()
        self.seconds += time.perf_counter() - begun
        return bool(self._engine.has_unfinished_requests())

    def take(self) -> float:
        """Return the time since it was taken last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def _rounds(engines: Mapping[str, _Engine], work: Work, rounds: int) -> dict[str, list[float]]:
    """Do the work ``rounds`` times, and once before that to warm up."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    turn = list(engines)
    for number in range(rounds + 1):
        first = number * work.users
        prompts = [prompt_ids(first + user, work.prompt_tokens) for user in range(work.users)]
        for engine in engines.values():
            engine.ask(prompts, work.output_tokens)
        more = True
        while more:
            more = any([engines[name].step() for name in turn])
            turn = turn[1:] + turn[:1]  # none always follows the same one
        for name, engine in engines.items():
            seconds = engine.take()
            if number:
                found[name].append(seconds)
    return found


def main() -> None:
    """Answer one request."""
    asked = json.loads(sys.stdin.read())
    engines = {name: _Engine(arguments) for name, arguments in asked["engines"].items()}
    found = _rounds(engines, Work(**asked["work"]), asked["rounds"])
    print(_MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
