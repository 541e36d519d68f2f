"""What was measured of a pruned model, in its model card: tables, and the hub's `model-index`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.report import recovery_tables, tables
from offline.report.judged import Judged, tables_of
from offline.report.tables import Table
from offline.results.check import ALL, MEASURES, TOLD_ONLY, AnswerCheck
from offline.results.compression import RESULT_FILE, RunResult
from offline.results.recovery import RECOVERY_FILE, Recovery
from offline.results.text_quality import TextQuality
from offline.runs.owned import replace_own
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.reading import read_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
_TAG = "vllm-moe-prune"  # of a card of `offline.build.card`
_HEADING = "## What was measured"
_OWN = re.compile(rf"^{_HEADING}\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
_NEXT = re.compile(r"^(?=## )", re.MULTILINE)


def write_card(folder: Path, name: str | None = None) -> None:
    """Put what was measured into the card of an output of ours.

    A card that is not as it was written by us stays as it is: it is somebody's own.

    :param name: what the folder will be called, if it is still being made
    :raises PruneError: if a result is damaged
    """
    file = folder / CARD
    if file.is_file():
        before = read_text(file)
        after = with_measurements(before, folder, name or folder.name)
        if after == before:
            return
        if name is None:
            replace_own(folder, CARD, after)
        else:  # nobody else has it yet, but its bytes may have another name, too
            write_atomic(file, after)


def with_measurements(card: str, folder: Path, name: str) -> str:
    """Return a card with the tables and the `model-index` of what lies in a folder.

    :param card: of `offline.build.card`, perhaps with those of earlier measurements
    :param name: of the model
    """
    from huggingface_hub import ModelCard, ModelCardData

    judged = Judged.beside(folder)
    run = RunResult.load(folder) if (folder / RESULT_FILE).is_file() else None
    recovery = Recovery.load(folder) if (folder / RECOVERY_FILE).is_file() else None
    shown = [*_quality(run, recovery), *tables_of(judged)]
    if not shown:
        return card
    made = ModelCard(card)
    assert isinstance(made.data, ModelCardData)
    if _TAG not in (made.data.tags or ()):
        return card  # of a model that was trained and not pruned: its base's
    results = [*_of_items(run, recovery), *_of_text(judged.text), *_of_answers(judged.answers)]
    # `model_name` is what the index is called; none is written without a result in it.
    made.data.model_name = name if results else None
    made.data.eval_results = results or None
    state = judged.verdict
    parts = [_HEADING, f"**{state.word}** {_plain(state.said)}", *map(markdown, shown)]
    section = "\n\n".join(parts) + "\n\n"
    made.text = _NEXT.sub(lambda _: section, _OWN.sub("", made.text), count=1)
    return str(made)


def markdown(table: Table) -> str:
    """Return a table with its caption in GitHub's Markdown."""

    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(map(_plain, cells))} |"

    rule = line(tuple("---" if n in table.text else "---:" for n in range(len(table.head))))
    caption = f"{_plain(table.caption)}:"
    return "\n".join([caption, "", line(table.head), rule, *map(line, table.rows)])


def _plain(text: str) -> str:
    """Return a text that Markdown takes for nothing else: names are what users call things."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _quality(run: RunResult | None, recovery: Recovery | None) -> Iterator[Table]:
    if run is not None and any(q.split == "test" for q in run.quality):
        yield tables.quality_table(run)
    if recovery is not None and recovery.cells:
        yield recovery_tables.recovery_table(recovery)


def _of_items(run: RunResult | None, recovery: Recovery | None) -> Iterator[EvalResult]:
    """Yield what the model itself has of each task: after a finetune that, else the chosen map."""
    chosen = () if run is None else run.quality
    for q in chosen:
        if run is not None and (q.variant, q.split) == (run.method, "test"):
            yield _result(q.task, q.measure, q.accuracy, (q.low, q.high), f"{q.items} items")
    for cell in () if recovery is None else recovery.cells:
        if cell.subject == "model" and cell.mode not in ("zero-shot", "k-shot"):
            interval = (cell.low, cell.high)
            yield _result(cell.task, cell.metric, cell.accuracy, interval, f"{cell.items} items")


def _of_text(text: TextQuality | None) -> Iterator[EvalResult]:
    for domain in () if text is None else text.domains:
        found, read = domain.perplexity, f"{domain.documents} documents"
        yield _result(domain.name, "perplexity", found.value, (found.low, found.high), read)


def _of_answers(found: AnswerCheck | None) -> Iterator[EvalResult]:
    for measure in () if found is None else MEASURES:
        assert found is not None
        row = found.row(measure, ALL)
        if row is not None and measure not in TOLD_ONLY:
            share, said = row.pruned, f"{row.pruned.n} answers, {row.sampling}"
            name = "probes of vmprune check"
            yield _result(name, measure, share.rate, (share.low, share.high), said)


def _result(
    data: str, metric: str, value: float, interval: tuple[float | None, float | None], of: str
) -> EvalResult:
    from huggingface_hub import EvalResult

    low, high = interval
    known = low is not None and high is not None
    span = f", 95% interval {low:.4g} to {high:.4g}" if known else ""
    fields: dict[str, Any] = {"metric_name": f"{metric.replace('_', ' ')} ({of}{span})"}
    return EvalResult(
        task_type="text-generation",
        dataset_type=data,
        dataset_name=data,
        metric_type=metric,
        metric_value=float(f"{value:.5g}"),
        **fields,
    )
