"""`vmprune recover`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from offline.cli.models import model_folder
from offline.cli.options import options_of
from offline.cli.prompting import prompting_options, unfinished_note
from offline.cli.quiet import QUIET_SETTINGS
from offline.cli.verify import VERIFY_SETTINGS
from offline.recover.recipe import RecoverRecipe, SftSettings, training_of
from offline.tasks.prompting_settings import PromptingSettings

if TYPE_CHECKING:
    from offline.results.recovery import Recovery

_EPILOG = """\b
Example:
  vmprune recover --model pruned --base base --task sciq,arc_easy --out recovered
  vmprune recover --model pruned --base base --distill router --data wiki --out taught
  vmprune recover --model pruned --data chats.jsonl --measure sciq --trainable lora --out tuned
"""


@cloup.command(epilog=_EPILOG)
@options_of(RecoverRecipe, without=PromptingSettings)
@prompting_options
@options_of(SftSettings)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON on stdout")
@cloup.option("--verify", **VERIFY_SETTINGS)
@cloup.option("-q", "--quiet", **QUIET_SETTINGS)
def recover(out: Path, force: bool, as_json: bool, **flags: Any) -> None:
    """Give a pruned checkpoint back what it lost: finetune it on tasks or on instructions.

    Trains on questions and their answers, and puts zero-shot, k-shot (examples in the prompt) and
    the finetune side by side on held-out items, with --base also for what it was pruned from.
    With --distill it learns what --base expects of every next token instead, of any text.
    OUT is the trained checkpoint with its routing map, recovery.json and report.html. A run that
    was killed continues when the same command is given again.
    """
    from offline.runs.resume import check_outputs

    training = {name: flags.pop(name) for name in SftSettings.model_fields}
    recipe = RecoverRecipe.of(flags)
    settings = training_of(training, recipe.steps, recipe.distill)
    check_outputs(out, force=force, inputs=recipe.inputs)
    if recipe.data is not None and recipe.distill is None:
        from offline.recover.instructions import parse_data

        parse_data(recipe.data)
    elif recipe.data is not None:
        from offline.recover.plain_text import parse_text

        parse_text(recipe.data)
    base = recipe.base and model_folder(recipe.base)
    recipe = recipe.model_copy(update={"model": model_folder(recipe.model), "base": base})
    from offline.cli.progress import progress
    from offline.recover.recover import recover as run_recover

    with progress() as reporter:
        result = run_recover(recipe, settings, out, reporter=reporter, force=force)
    if as_json:
        click.echo(result.model_dump_json())
    else:
        _show(result, out)


def _show(result: Recovery, out: Path) -> None:
    """Print the tables that a run ends with."""
    from rich.table import Table

    from offline.cli.console import stdout
    from offline.report.recovery_tables import recovery_table, training_table

    console = stdout()
    for made in (recovery_table(result) if result.cells else None, training_table(result)):
        if made is None:
            continue
        table = Table(title=made.caption)
        for place, heading in enumerate(made.head):
            table.add_column(heading, justify="left" if place in made.text else "right")
        for row in made.rows:
            table.add_row(*row)
        console.print(table)
    if result.left_out:
        console.print(f"{result.left_out} examples left out: held-out items ask the same")
    if count := sum(cell.unfinished for cell in result.cells):
        note = unfinished_note(count, result.provenance.settings.get("think_end"))
        console.print(note, soft_wrap=True)
    console.print(f"written to {out}: checkpoint, recovery.json, report.html", soft_wrap=True)
