"""What `vmprune eval` says of a task's result."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from offline.cli.prompting import unfinished_note

if TYPE_CHECKING:
    from offline.results.text_quality import TextQuality
    from offline.tasks.catalog import Task
    from offline.tasks.results import TaskResult


def say_text(task: Task, result: TaskResult, more: dict[str, Any]) -> None:
    """Print what a task's items scored, and all metrics where there are several."""
    split = result.split if not result.source else f"{result.split}: {result.source}"
    count = f"{len(result.items)} items"
    if math.isfinite(result.accuracy):
        low, high = result.confidence_interval()
        interval = f"95 % {low:.3f} - {high:.3f}, " if math.isfinite(low) else ""
        click.echo(f"{task.title}, {split}: {result.accuracy:.3f} ({interval}{count})")
    else:
        click.echo(f"{task.name}, {split} ({count})")
    for name, value in result.metrics.items():
        click.echo(f"  {name}: {value:.4f}")
    if result.unfinished:
        click.echo(unfinished_note(result.unfinished, task.prompting.think_end))


def say_json(task: Task, result: TaskResult, more: dict[str, Any]) -> None:
    """Print a line of JSON: all that is known of a task's result."""
    low, high = result.confidence_interval()
    facts = {"accuracy": result.accuracy, "low": low, "high": high, **more, **result.to_json()}
    click.echo(json.dumps(_without_nan(facts)))


def say_quality(quality: TextQuality, *, as_json: bool) -> None:
    """Print what plain text said: a line of JSON, or a line for each domain."""
    if as_json:
        click.echo(quality.model_dump_json(exclude_none=True))
        return
    for domain in quality.domains:
        parts = [f"perplexity {domain.perplexity}"]
        if domain.ratio is not None:
            parts.append(f"base {domain.base_perplexity}, ratio {domain.ratio}")
        if domain.same_first is not None:
            least = "at least " if domain.divergence_is_least else ""
            parts.append(f"same first token {domain.same_first}, KL {least}{domain.divergence}")
        what = "pieces" if domain.pieces else "documents"
        parts.append(f"{domain.documents} {what}, {domain.tokens:,} tokens")
        click.echo(f"{domain.name}: {'; '.join(parts)}")


def _without_nan(value: Any) -> Any:
    """Return what JSON can hold: nothing in place of what is no number."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
