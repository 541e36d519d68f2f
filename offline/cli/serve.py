"""`vmprune serve`."""

from __future__ import annotations

import shlex

import click


@click.command(epilog="Example: vmprune serve pruned -- --port 8000 --max-model-len 4096")
@click.argument("model")
@click.option("--map", "map_path", help="routing map to apply to MODEL, its base, while it loads")
@click.option("--allow-other-base", is_flag=True, help="apply the map to a base it is not for")
@click.option("--expert-metrics", is_flag=True, help="count the tokens of every expert in /metrics")
@click.option("--dry-run", is_flag=True, help="check, say what would be run, and start nothing")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(
    model: str,
    map_path: str | None,
    allow_other_base: bool,
    expert_metrics: bool,
    dry_run: bool,
    arguments: tuple[str, ...],
) -> None:
    """Check a pruned model in seconds, then become `vllm serve` with the right flags.

    MODEL is what `vmprune build` or `compress` wrote, or with --map its base: a folder, or
    Org/Name[@revision] on the Hugging Face hub. What follows -- goes to `vllm serve`. Without
    --host there it listens on this machine's loopback alone (docs/serving.md).
    """
    from serve.command import ServeCommand
    from vllm_moe_prune.mapped_checkpoint import ALLOW_OTHER, METRICS

    options: dict[str, object] = {}
    if map_path is not None:
        options["routing_map"] = map_path
    if allow_other_base:
        options[ALLOW_OTHER] = True
    if expert_metrics:
        options[METRICS] = True
    command = ServeCommand.checked(model, options, arguments)
    if dry_run:
        click.echo(command.served.block())
    # The user's own arguments may hold a key.
    more = f" and {len(arguments)} more words" if arguments else ""
    click.echo(f"vllm serve {shlex.join(command.own)}{more}", err=not dry_run)
    if not dry_run:
        command.become()
