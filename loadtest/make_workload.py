"""`python -m loadtest.make_workload FROM.jsonl --out FILE`: a workload from any JSONL."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks first in the caller's folder, where a user may have a `serve.py`.
    sys.path.append(sys.path.pop(0))

from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from loadtest.cli import one_line
from loadtest.workload import Lengths, check_free, questions_from_jsonl, save_workload
from vllm_moe_prune.errors import PruneError

_DISTRIBUTIONS = ("constant", "uniform", "normal", "lognormal", "exponential")


@click.command("workload", context_settings={"show_default": True})
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--field", default="prompt", help="which field of a line is the prompt")
@click.option("--expected", help="which field is what the answer should say  [default: none]")
@click.option("--limit", type=click.IntRange(min=1), help="at most so many prompts")
@click.option("--distribution", type=click.Choice(_DISTRIBUTIONS))
@click.option("--median", type=click.IntRange(min=1), help="of the answers' tokens")
@click.option("--min", "minimum", type=click.IntRange(min=1))
@click.option("--max", "maximum", type=click.IntRange(min=1))
def workload_command(
    source: Path, out: Path, field: str, expected: str | None, limit: int | None, **lengths: Any
) -> None:
    """Make a workload from the prompts in any JSONL file."""
    names = {"minimum": "min", "maximum": "max"}
    given = {names.get(key, key): value for key, value in lengths.items() if value is not None}

    def write() -> int:
        prompts = questions_from_jsonl(source, field, limit, expected)
        check_free(out, source)
        try:
            chosen = Lengths(**given)
        except ValidationError as error:
            raise PruneError(f"lengths: {error.errors()[0]['msg']}") from error
        save_workload(out, prompts, chosen)
        return len(prompts)

    click.echo(f"{one_line(write)} prompts written to {out}")


if __name__ == "__main__":
    workload_command()
