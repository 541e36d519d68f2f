"""`vmprune check --probes`: how a deployed pruned model's answers end, beside its base's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.check.answer_log import LOG_FILE, AnswerLog
from offline.check.asking import Asked, ask_all
from offline.check.built_in import PER_KIND, built_in
from offline.check.comparison import compare, unit_of
from offline.check.probe import Probe, read_probes
from offline.check.served import Target, as_deployed, spec_of
from offline.results.check import KINDS, AnswerCheck, Served, Side
from offline.runs.owned import run_path
from offline.runs.owner import owned
from offline.runs.resume import run_folder
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import snapshot_of
from vllm_moe_prune.provenance import DataIdentity, Provenance, sha256_text

if TYPE_CHECKING:
    from offline.runs.progress import Reporter

_FORCE = "add --force to ask anew"


def probes_of(file: Path | None, count: int | None) -> tuple[Probe, ...]:
    """Return the probes of a file, or those that are built in.

    :param count: of probes; None takes all of a file
    :raises PruneError: if there are fewer, or the file holds something else
    """
    if file is not None:
        return read_probes(file, count)
    there = PER_KIND * len(KINDS)
    if count is None or count > there:
        raise PruneError(
            f"{there} probes are built in", hint="give --probes N, or --prompts FILE with your own"
        )
    return built_in(count)


def targets_of(
    folder: Path,
    base: Path | None,
    arguments: Sequence[str],
    *,
    dtype: str = "auto",
    eager: bool = False,
    ranks: int = 1,
) -> tuple[Target, ...]:
    """Return what to serve, the base first: both with the flags that the user will serve with.

    :param base: None compares with nothing
    :param arguments: of `vllm serve`
    :param ranks: that share a model
    :raises PruneError: if the pruned model needs its base, or a flag is not the user's to give
    """

    def side(side: Side, path: Path, model_base: Path | None, reads: tuple[Path, ...]) -> Target:
        spec = as_deployed(
            spec_of(path, model_base), arguments, dtype=dtype, eager=eager, ranks=ranks
        )
        there = snapshot_of(path)
        return Target(side, there.repo_id if there else str(path), spec=spec, reads=reads)

    of_base = () if base is None else (side("base", base, None, (base,)),)
    return (*of_base, side("pruned", folder, base, (folder, *([base] if base else []))))


def folder_of(out: Path) -> Path:
    """Return where the answers of a check of ``out`` are kept."""
    return run_path(_named(out))


def check_answers(
    out: Path,
    targets: Sequence[Target],
    asked: Asked,
    *,
    source: str = "built-in",
    force: bool = False,
    reporter: Reporter,
) -> AnswerCheck:
    """Ask base and pruned model the same probes, one server after the other, and compare.

    Answers that an earlier run of the same models with the same flags was given are not asked
    again: more probes or other ways of sampling add to them. The result is kept beside them.

    :param out: names the folder of the run, ``OUT.check.run``
    :param targets: the base first, if there is one
    :param source: of the probes
    :param force: forget answers of other models or flags
    :raises PruneError: if a server does not start or fails; what was answered is kept; or if
        another process asks for the same ``out``
    """
    identity: dict[str, Any] = {"recipe": "answers"}
    identity.update((one.side, one.identity) for one in targets)
    with owned(_named(out)):
        folder = run_folder(_named(out), identity, force=force, otherwise=_FORCE)
        ours = all(one.spec is not None for one in targets)
        log = AnswerLog(folder / LOG_FILE, asked.tokens, keeps_skipped=ours)
        served = {one.side: _ask(one, asked, log, folder, reporter) for one in targets}
        result = _result(served, asked, log, source)
        result.save(folder)
    return result


def _ask(target: Target, asked: Asked, log: AnswerLog, folder: Path, reporter: Reporter) -> Served:
    missing = asked.missing(log, target.side)
    reporter.stage(f"asking the {target.side}{' model' * (target.side == 'pruned')}", len(missing))
    if not missing:
        return target.described
    with target.answering(folder / f"{target.side}.log") as (endpoint, served):
        ask_all(endpoint, target.side, asked, log, reporter)
    return served


def _result(served: dict[Side, Served], asked: Asked, log: AnswerLog, source: str) -> AnswerCheck:
    skipped = {kind: reason for (_, kind), reason in log.skipped.items()}
    probes = [probe for probe in asked.probes if probe.kind not in skipped]
    if not probes:
        kind, reason = next(iter(skipped.items()))
        raise PruneError(f"no probe was answered; {kind}: {reason}")
    wanted = {(s, probe.digest) for s in asked.samplings for probe in probes}
    answers = {key: answer for key, answer in log.answers.items() if key[1:] in wanted}
    rows, lengths, verdict = compare(answers, probes, asked.samplings, has_base="base" in served)
    text = json.dumps([probe.digest for probe in probes])
    return AnswerCheck(
        base=served.get("base"),
        pruned=served["pruned"],
        probes=len(probes),
        source=source,
        tokens=asked.tokens,
        samplings=asked.samplings,
        unit=unit_of(answers),
        skipped={str(kind): reason for kind, reason in skipped.items()},
        rows=rows,
        lengths=lengths,
        verdict=verdict,
        provenance=Provenance.now(
            "check",
            settings={"tokens": asked.tokens, "samplings": list(asked.samplings)},
            data=(DataIdentity(name=source, count=len(probes), sha256=sha256_text(text)),),
        ),
    )


def _named(out: Path) -> Path:
    return out.with_name(f"{out.name}.check")
