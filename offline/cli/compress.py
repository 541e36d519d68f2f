"""`vmprune compress`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offline.cli.findings import findings, say
from offline.cli.options import options_of
from offline.compress.recipe import CompressRecipe
from offline.results.compression import RunResult
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from rich.table import Table

    from offline.results.lottery import LotteryRecord


@click.command(
    epilog="""\b
Example:
  vmprune compress --model base --method eep --task sciq --keep 4 --out pruned
  vmprune compress --model base --method lottery --criterion min-ean --keep 4 --out pruned
"""
)
@options_of(CompressRecipe)
@click.option("--recipe", type=click.Path(path_type=Path), help="YAML file with these settings")
@click.option(
    "--ratio",
    type=click.FloatRange(0, 1, max_open=True),
    help="in place of --keep: share of its experts that every layer drops, rounded down",
)
@click.option(
    "--friendly",
    is_flag=True,
    help="round --keep to the nearest number that vLLM's GPU kernels are made for",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON on stdout")
def compress(
    recipe: Path | None,
    ratio: float | None,
    friendly: bool,
    out: Path,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Choose which experts to keep, by a task, and write the smaller checkpoint.

    With --keep N a search prunes and then merges; with all experts kept it only merges (tuning
    without gradients); --top-k 1 activates fewer experts. With --method lottery rounds of dropping
    and finetuning on plain text make it, whatever the task. A run that was killed continues when
    the same command is given again.
    """
    from offline.runs.resume import check_outputs

    check_outputs(out, force=force, inputs=(recipe, *flags.values()))
    if ratio is not None:
        flags["keep"] = _kept(recipe, ratio, flags)
    settings = CompressRecipe.merge(recipe, flags)
    check_outputs(out, force=force, inputs=(recipe, *settings.inputs))
    if friendly:
        settings = _friendly(settings)
    from offline.cli.console import bars
    from offline.compress.compress import compress as run_compress

    with bars() as reporter:
        result = run_compress(settings, out, reporter=reporter, force=force)
    from offline.report.render import write_report

    report = write_report(out)
    say(findings(out))
    if as_json:
        click.echo(result.model_dump_json())
    else:
        show(result, out, report)


def _kept(recipe: Path | None, ratio: float, flags: dict[str, Any]) -> int:
    """Return the E' that a ratio leaves of the model's layers, as `vmprune plan` counts it."""
    from offline.maps.router_groups import RouterGroups
    from offline.plan.recipe import PlanRecipe
    from vllm_moe_prune.checkpoint import Checkpoint

    if flags["keep"] is not None or flags["budget"] is not None:
        raise PruneError("give one of --keep, --ratio and --budget")
    base = Checkpoint.open(CompressRecipe.merge(recipe, flags | {"keep": 1}).model)
    router = RouterGroups.of(base.layout, base.config)
    counts = PlanRecipe(ratio=ratio).counts(base.expert_counts(), router)
    assert isinstance(counts, dict)
    return _one_count("--ratio", counts)


def _one_count(flag: str, counts: Mapping[int, int]) -> int:
    found = set(counts.values())
    if len(found) > 1:
        raise PruneError(
            f"{flag}: layers of different sizes keep different counts",
            hint=f"use vmprune plan {flag}",
        )
    return found.pop()


def _friendly(settings: CompressRecipe) -> CompressRecipe:
    """Round --keep, before anything is computed, and say so."""
    from offline.lint.friendly import friendly
    from offline.maps.map_space import Space
    from offline.maps.moe_shape import MoeShape
    from vllm_moe_prune.checkpoint import Checkpoint

    if settings.keep is None:
        raise PruneError(
            "--friendly rounds --keep; a search spreads --budget expert by expert",
            hint="give --keep, or plan with vmprune plan --budget N --friendly",
        )
    space = Space.of(MoeShape.of(Checkpoint.open(settings.model)), settings.keep, settings.top_k)
    rounded, changes = friendly(space, space.even_counts())
    keep = _one_count("--friendly", rounded.even_counts())
    for line in changes:
        click.echo(f"note: {line}", err=True)
    return settings.model_copy(update={"keep": keep})


def _cost(result: RunResult) -> str:
    """Say what the search cost, in one line."""
    points = result.search
    if result.lottery is not None:
        return _trained(result.lottery)
    if not points:
        return "no search"
    seconds, dropped = sum(p.seconds for p in points), sum(not p.complete for p in points)
    return (
        f"search: {len(points)} candidates ({dropped} dropped by racing), "
        f"{sum(p.items for p in points):,} items, {sum(p.tokens for p in points):,} tokens, "
        f"{seconds:.0f} s, {seconds / len(points):.2f} s per candidate"
    )


def _trained(lottery: LotteryRecord) -> str:
    """Say what all finetunes together trained and took, in one line."""
    done = [one.trained for one in lottery.rounds if one.trained is not None]
    if not done:
        return f"{len(lottery.rounds)} rounds without a finetune"
    from offline.runs.units import gib

    seconds = sum(one.seconds["finetune"] for one in lottery.rounds)
    tokens = sum(one.tuning.tokens for one in done)
    return (
        f"finetune: {done[0].tuning.trainable}, up to {max(t.tuning.parameters for t in done):,} "
        f"parameters ({gib(max(t.trained_bytes for t in done))} in float32), {tokens:,} tokens in "
        f"{len(done)} rounds, {seconds:.0f} s, {tokens / max(seconds, 1e-9):.0f} tokens/s, peak "
        f"{gib(max(t.peak_bytes for t in done))}"
    )


def _rounds(lottery: LotteryRecord) -> Table:
    """Return the table of held-out perplexities by round."""
    from rich.table import Table

    from offline.report.lottery import rounds_table

    found = rounds_table(lottery)
    table = Table(title=found.caption)
    for heading in found.head:
        table.add_column(heading, justify="right")
    for row in found.rows:
        table.add_row(*row)
    return table


def show(result: RunResult, out: Path, report: Path) -> None:
    """Print the table that a run ends with."""
    from rich.console import Console
    from rich.table import Table

    from offline.runs.units import gib

    table = Table(title="held-out items")
    for heading in ("", "task", "experts", "on disk", "accuracy", "95 % interval", "items"):
        table.add_column(heading, justify="left" if heading in ("", "task") else "right")
    for entry in (entry for entry in result.quality if entry.split == "test"):
        size = result.base_size if entry.variant == "base" else result.pruned_size
        name = entry.variant.replace("_", " ")
        table.add_row(
            f"{name} (mean of {entry.maps})" if entry.maps > 1 else name,
            entry.task if entry.measure == "accuracy" else f"{entry.task} ({entry.measure})",
            str(size.experts),
            gib(size.num_bytes),
            f"{entry.accuracy:.3f}",
            f"{entry.low:.3f} - {entry.high:.3f}",
            str(entry.items),
        )
    console = Console()
    if result.lottery is not None:
        console.print(_rounds(result.lottery))
    console.print(table)
    console.print(_cost(result), soft_wrap=True)
    console.print(f"{result.summary}\nwritten to {out}, report in {report}", soft_wrap=True)
    flag = "" if result.form == "plain" else " --load-format pruned_moe"
    console.print(f"serve it: vllm serve {out}{flag}", soft_wrap=True)
