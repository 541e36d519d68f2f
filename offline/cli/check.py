"""`vmprune check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import click

from offline.cli.models import NAMES, model_folder
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import parse


@click.command(epilog="Example: vmprune check pruned --base base")
@click.argument("out", type=click.Path(path_type=Path, exists=False))
@click.option(
    "--base", type=click.Path(path_type=Path), help=f"base that OUT was made from: {NAMES}"
)
@click.option(
    "--dtype", default="auto", show_default=True, help="float32 gives the tightest parity"
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="where the reference is computed: cpu, cuda, cuda:1, ...; auto takes a GPU",
)
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="of the reference; vllm: for a base that only vLLM can hold, quantised or on several GPUs",
)
@click.option(
    "--tensor-parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="ranks that share the model in vLLM",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def check(
    out: Path,
    base: Path | None,
    dtype: str,
    device: str,
    engine: Literal["transformers", "vllm"],
    tensor_parallel: int,
    as_json: bool,
) -> None:
    """Serve OUT with vLLM and verify it: parity with the reference, and no collapse.

    OUT is a pruned checkpoint or a routing map, here or on the hub (Org/Name[@revision]; then
    nothing is written but the server's log, into the current folder). With --base the reference is
    the base with the dropped experts' scores removed. Ends with status 1 if a check fails.
    """
    is_here = parse(str(out)) is None
    if is_here and not out.is_dir():
        raise PruneError(f"no such folder: {out}", hint="give a pruned checkpoint or a map")
    folder = model_folder(out)
    base = base and model_folder(base)
    from offline.check.check import check as run_check
    from offline.check.check import check_free, save
    from offline.cli.progress import progress

    log = (out if is_here else Path(out.name)).with_name(out.name + ".check.log")
    check_free(folder, log)
    with progress() as reporter:
        result = run_check(
            folder,
            base,
            dtype=dtype,
            device=device,
            engine=engine,
            tensor_parallel=tensor_parallel,
            log=log,
            reporter=reporter,
        )
        reporter.step()
    if is_here:
        save(result, folder)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        for finding in result.checks:
            mark = "ok  " if finding.ok else "FAIL"
            numbers = f"{finding.value:.3g} (limit {finding.limit:.3g})"
            click.echo(f"{mark} {finding.name}: {numbers}; {finding.detail}")
    if not result.ok:
        sys.exit(1)
