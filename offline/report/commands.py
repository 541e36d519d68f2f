"""The commands that a reader of the report may want to run next."""

from __future__ import annotations

import json
import shlex

from offline.results.compression import RunResult


def serve_command(result: RunResult) -> str:
    """How to serve the checkpoint with vLLM."""
    return shlex.join(["vllm", "serve", result.out, *_load_format(result, "--load-format")])


def serve_map_command(result: RunResult) -> str:
    """How to serve the base with the map applied while loading: no second copy on disk."""
    config = json.dumps({"routing_map": result.out})
    words = ["vllm", "serve", result.model, "--load-format", "pruned_moe"]
    return shlex.join([*words, "--model-loader-extra-config", config])


def reproduce_command(result: RunResult) -> str:
    """The same run again: every setting that is a plain value is a flag of `vmprune compress`."""
    settings = {"method": result.method, "task": result.task, **result.provenance.settings}
    if result.provenance.seed is not None:
        settings["seed"] = result.provenance.seed
    words = ["vmprune", "compress", "--model", result.model]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{flag}" if value else f"--no-{flag}"]
        elif isinstance(value, str | int | float):
            words += [f"--{flag}", str(value)]
    return shlex.join([*words, "--out", result.out])


def rebuild_command(result: RunResult) -> str:
    """The same checkpoint again from its map, without a search."""
    out = f"{result.out}-again"
    words = ["vmprune", "build", "--model", result.model, "--map", result.out, "--out", out]
    if isinstance(mtp := result.provenance.settings.get("mtp"), str):
        words += ["--mtp", mtp]
    return shlex.join(words)


def serving_commands(result: RunResult) -> str:
    """How to get the serving section."""
    folder = f"{result.out}.serving"
    compare = ["python", "-m", "loadtest.compare", "--base", result.model]
    compare += ["--candidate", result.out, *_load_format(result, "--candidate-load-format")]
    copy = ["cp", f"{folder}/compare.json", f"{result.out}/serving.json"]
    return "\n".join(
        [
            shlex.join([*compare, "--out", folder]),
            shlex.join(copy),
            shlex.join(["vmprune", "report", result.out]),
        ]
    )


def check_commands(result: RunResult) -> str:
    """How to get the checks section."""
    check = shlex.join(["vmprune", "check", result.out, "--base", result.model])
    return f"{check}\n" + shlex.join(["vmprune", "report", result.out])


def answers_commands(result: RunResult) -> str:
    """How to get what the quality section says of answers."""
    words = ["vmprune", "check", result.out, "--base", result.model, "--no-parity"]
    words += ["--probes", "400", "--", "--max-model-len", "4096"]
    return f"{shlex.join(words)}\n" + shlex.join(["vmprune", "report", result.out])


def _load_format(result: RunResult, flag: str) -> list[str]:
    return [] if result.form == "plain" else [flag, "pruned_moe"]
