"""`vmprune check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from offline.cli.gated import GATE_SETTINGS, conclude, judge_folder
from offline.cli.models import NAMES, model_folder
from offline.cli.probing import probe_options, probing_of
from vllm_moe_prune.errors import PruneError, harmless
from vllm_moe_prune.hub import parse

if TYPE_CHECKING:
    from offline.check.check import CheckResult
    from offline.results.check import AnswerCheck


@click.command(
    epilog="Example: vmprune check pruned --base base --probes 400 -- --max-model-len 8192"
)
@click.argument("out", type=click.Path(path_type=Path, exists=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
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
@click.option(
    "--parity/--no-parity",
    default=True,
    show_default=True,
    help="compare log-probabilities with the reference",
)
@probe_options
@click.option("--gate", **GATE_SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def check(
    out: Path,
    args: tuple[str, ...],
    base: Path | None,
    dtype: str,
    device: str,
    engine: Literal["transformers", "vllm"],
    tensor_parallel: int,
    parity: bool,
    gate: Path | None,
    as_json: bool,
    **probes: Any,
) -> None:
    """Serve OUT with vLLM and verify it: parity with the reference, and how its answers end.

    OUT is a pruned checkpoint or a routing map, here or on the hub (Org/Name[@revision]; then
    the result and the server's log go into the current folder). With --base the reference is the
    base with the dropped experts' scores removed.

    With --probes the base and OUT are served one after the other, both with ARGS of `vllm serve`
    after `--`: the flags that you will serve with. Answers are kept in OUT.check.run, and what is
    there is not asked again. Ends with status 1 if a check fails, or answers are worse than the
    base's; with --gate the gates say whether they are.
    """
    from offline.gates.gates import read_gates

    gates = None if gate is None else read_gates(gate)
    probing = probing_of(args, probes)
    probing.check(
        {
            "--base": base is not None,
            "--dtype": dtype != "auto",
            "--device": device != "auto",
            "--engine": engine != "transformers",
            "--tensor-parallel": tensor_parallel > 1,
        }
    )
    if not (parity or probing.wanted):
        raise PruneError("--no-parity needs probes", hint="add --probes 400")
    is_here = parse(str(out)) is None
    there = probing.endpoint is not None
    if is_here and not there and not out.is_dir():
        raise PruneError(f"no such folder: {out}", hint="give a pruned checkpoint or a map")
    asked = probing.asked() if probing.wanted else None
    if is_here and out.name in ("", ".."):  # the log lies beside it, and is called as it is
        out = out.resolve()
    from offline.check.check import check as run_check
    from offline.check.check import check_free, save
    from offline.check.deployed import targets_of
    from offline.cli.progress import progress

    place = out if is_here else Path(out.name)
    log = place.with_name(f"{place.name}.check.log")
    found: CheckResult | None = None
    answers: AnswerCheck | None = None
    folder = out if there else model_folder(out)
    base = base and model_folder(base)
    targets = probing.endpoints() if there else ()
    if asked is not None and not there:
        targets = targets_of(
            folder, base, args, dtype=dtype, eager=probing.eager, ranks=tensor_parallel
        )
    check_free(folder, log)
    with progress() as reporter:
        if parity and not there:
            found = run_check(
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
                save(found, folder)
        if asked is not None:
            answers = probing.answers(place, targets, asked, reporter)
            if is_here and folder.is_dir():
                answers.save(folder)
    ok = _say(found, answers, as_json)
    if gates is not None and (found is None or found.ok):
        from offline.gates.evidence import of_answers

        own = {} if answers is None else of_answers(answers)
        verdict = judge_folder(gates, folder, own, save=is_here and folder.is_dir())
        conclude(verdict, as_json=as_json)
    elif not ok:
        sys.exit(1)


def _say(found: CheckResult | None, answers: AnswerCheck | None, as_json: bool) -> bool:
    """Print what was found; return whether all is well."""
    ok = (found is None or found.ok) and (answers is None or answers.verdict != "worse")
    if as_json:
        told: dict[str, Any] = {} if found is None else found.to_json()
        if answers is not None:
            told["answers"] = answers.model_dump(mode="json")
        click.echo(json.dumps({**told, "ok": ok}))
        return ok
    for finding in found.checks if found else ():
        mark = "ok  " if finding.ok else "FAIL"
        numbers = f"{finding.value:.3g} (limit {finding.limit:.3g})"
        click.echo(harmless(f"{mark} {finding.name}: {numbers}; {finding.detail}"))
    if answers is not None:
        from offline.cli.console import stdout
        from offline.report.answers import every_kind, sentences
        from offline.report.printed import printed

        stdout().print(printed(every_kind(answers)))
        for sentence in sentences(answers):
            click.echo(sentence)
    return ok
