"""`vmprune compress`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from offline.cli.findings import findings, say
from offline.cli.gated import GATE_SETTINGS, conclude, judged
from offline.cli.models import model_folder
from offline.cli.options import Command, option_of
from offline.cli.prompting import unfinished_note
from offline.cli.quiet import QUIET_SETTINGS
from offline.cli.verify import VERIFY_SETTINGS
from offline.compress.methods import DEFAULT_METHOD, METHODS
from offline.compress.recipe.reading import read_recipe
from offline.compress.recipe.recipe import sections_of
from offline.results.compression import RunResult

if TYPE_CHECKING:
    from offline.results.gates import GatesResult
    from offline.results.lottery import LotteryRecord

_ORDER = ("base", "method", "data", "prompting", "search", "lottery", "measure", "engine", "output")


def _recipe_options(command: Command) -> Command:
    """Add the flags of all recipes, a group for each section."""
    titles: dict[str, str] = {}
    options: dict[str, dict[str, Callable[[Command], Command]]] = {}
    for method in METHODS.values():
        for name, section in sections_of(method.recipe).items():
            titles[name] = section.title
            for field, info in section.model_fields.items():
                flag = name if field == "name" else field
                options.setdefault(name, {}).setdefault(flag, option_of(flag, info))
    options["method"]["method"] = cloup.option(
        "--method",
        type=click.Choice(list(METHODS)),
        help=f"how the kept experts are chosen  [default: {DEFAULT_METHOD}]",
    )
    for name in reversed(_ORDER):
        group: Any = cloup.option_group(titles[name], *list[Any](options[name].values()))
        command = group(command)
    return command


@cloup.command(
    epilog="""\b
Example:
  vmprune compress --model base --method eep --task sciq --keep 4 --out pruned
  vmprune compress --model base --method lottery --criterion min-ean --keep 4 --out pruned
""",
)
@_recipe_options
@cloup.option_group(
    "Writing",
    cloup.option(
        "--recipe",
        type=click.Path(path_type=Path),
        help="YAML file with the same settings, by sections (docs/recipe.md); flags override it",
    ),
    cloup.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write"),
    cloup.option("--force", is_flag=True, help="replace OUT if it exists"),
    cloup.option("--gate", **GATE_SETTINGS),
    cloup.option("--verify", **VERIFY_SETTINGS),
    cloup.option("--json", "as_json", is_flag=True, help="print the result as JSON on stdout"),
    cloup.option("-q", "--quiet", **QUIET_SETTINGS),  # in a group, as its other options are
)
def compress(
    recipe: Path | None, out: Path, force: bool, gate: Path | None, as_json: bool, **flags: Any
) -> None:
    """Choose which experts to keep, by a task, and write the smaller checkpoint.

    With --keep N a search prunes and then merges; with all experts kept it only merges (tuning
    without gradients); --top-k 1 activates fewer experts. With --method lottery rounds of dropping
    and finetuning on plain text make it, whatever the task. A run that was killed continues when
    the same command is given again.

    Flags of another method than the one that runs are refused.
    """
    from offline.gates.gates import read_gates
    from offline.runs.resume import check_outputs

    gates = None if gate is None else read_gates(gate)
    check_outputs(out, force=force, inputs=(recipe, *flags.values()))
    settings, notes = read_recipe(flags, recipe)
    check_outputs(out, force=force, inputs=(recipe, *settings.inputs))
    found = settings.base.model_copy(update={"model": model_folder(settings.base.model)})
    from offline.cli.progress import progress
    from offline.compress.compress import compress as run_compress
    from offline.compress.size import sized
    from offline.compress.text import text_of
    from offline.report.pages import draw
    from offline.report.render import REPORT_FILE

    settings, changes = sized(settings.model_copy(update={"base": found}))
    for line in (*notes, *changes):
        click.echo(f"note: {line}", err=True)
    texts = None if gates is None else text_of(gates, settings.method.seed)
    verdict: GatesResult | None = None

    def finish(folder: Path) -> None:
        nonlocal verdict
        if gates is not None:
            verdict = judged(gates, folder, out.name)
            verdict.save(folder)
        draw(folder, out.name)

    with progress() as reporter:
        result = run_compress(
            settings, out, reporter=reporter, force=force, texts=texts, finish=finish
        )
    say(findings(out))
    if as_json:
        click.echo(result.model_dump_json())
    else:
        show(result, out, out / REPORT_FILE)
    if verdict is not None:
        conclude(verdict, as_json=as_json)


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


def show(result: RunResult, out: Path, report: Path) -> None:
    """Print the table that a run ends with."""
    from rich.table import Table

    from offline.cli.console import stdout
    from offline.report.lottery import rounds_table
    from offline.report.printed import printed
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
    console = stdout()
    if result.lottery is not None:
        console.print(printed(rounds_table(result.lottery)))
    console.print(table)
    console.print(_cost(result), soft_wrap=True)
    if count := sum(entry.unfinished for entry in result.quality):
        note = unfinished_note(count, result.provenance.settings.get("think_end"))
        console.print(note, soft_wrap=True)
    console.print(f"{result.summary}\nwritten to {out}, report in {report}", soft_wrap=True)
    flag = "" if result.form == "plain" else " --load-format pruned_moe"
    console.print(f"serve it: vllm serve {out}{flag}", soft_wrap=True)
