"""`Definition`: what the YAML of one of lm-evaluation-harness's tasks says, read without lm-eval.

Enough to refuse at once what cannot be asked or measured; loading.py makes the task itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offline.tasks.index import Entry, Index, closest
from offline.tasks.prompting import Prompting, sampled
from offline.tasks.yaml_fields import FUNCTION, read_fields
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

DefinedKind = Literal["choice", "generate", "likelihood", "rolling"]
_KINDS: Mapping[str, DefinedKind] = {
    "multiple_choice": "choice",
    "generate_until": "generate",
    "loglikelihood": "likelihood",
    "loglikelihood_rolling": "rolling",
}
# lm-eval's own where a file names no metrics, and how it takes the mean where it names no rule.
_DEFAULT_METRICS: Mapping[DefinedKind, tuple[str, ...]] = {
    "choice": ("acc", "acc_norm"),
    "generate": ("exact_match",),
    "likelihood": ("perplexity", "acc"),
    "rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}
_MEANS = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "exact_match"}
_NO_MEANING = {"task_alias", "group_alias", "tag"}  # names in lm-eval's own tables
_OF_GROUPS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}
_IN_FAMILY = "/"


@dataclass(frozen=True, slots=True)
class Definition:
    """One task of lm-evaluation-harness.

    ``name`` is what it is asked for by: ``GROUP/TASK`` where a group changes the task. ``file``
    and ``changes`` (JSON) are what lm-eval makes it of; without a file the changes are all.

    ``shots`` examples precede every question; ``fixed`` if the file insists that there are none.
    ``metrics`` are all that are known before it runs, those of code may give others
    (``open_metrics``), and ``fit`` are those that can be a fitness: one value per item, of which
    the mean is taken, and higher is better.

    ``kept_out`` (``metadata: {kept_out: true}``) tasks are measured in the end, never searched on.
    """

    name: str
    task: str
    file: Path | None
    changes: str
    kind: DefinedKind
    shots: int = 0
    fixed: bool = False
    metrics: tuple[str, ...] = ()
    fit: tuple[str, ...] = ()
    open_metrics: bool = False
    runs_code: bool = False
    splits: tuple[str, ...] = ()
    kept_out: bool = False

    def metric(self, asked: str | None) -> str:
        """Return the fitness: the one that is asked for, else the first that can be; "" if none.

        :raises PruneError: if the task has no such metric, or it cannot be a fitness
        """
        if asked is None:
            return self.fit[0] if self.fit else ""
        exact = [name for name in self.metrics if asked == name]
        found = exact or [name for name in self.metrics if name.split("/")[0] == asked]
        if not found and not self.open_metrics:
            raise PruneError(
                f"task {self.name} has no metric {asked!r}",
                hint=f"it has {', '.join(self.metrics)}",
            )
        if found and found[0] not in self.fit:
            raise PruneError(
                f"task {self.name}: {asked} is reported but cannot be what is maximised: it is no "
                "mean over items of which higher is better",
                hint=f"these can: {', '.join(self.fit) or 'none of this task'}",
            )
        return found[0] if found else asked


def find(name: str, index: Index) -> tuple[Definition, ...]:
    """Return the tasks that a name stands for: itself, or those of a group or tag.

    :raises PruneError: if there is none, naming the nearest
    """
    family, _, member = name.partition(_IN_FAMILY)
    if family not in index:
        near = ", ".join(closest(family, index))
        raise PruneError(f"unknown task {name!r}", hint=f"did you mean {near}?" if near else None)
    found = {one.name: one for one in _expanded(index[family], family, {}, index)}
    if not member:
        return tuple(found.values())
    if name not in found:
        raise PruneError(
            f"unknown task {name!r}", hint=f"{family} has {', '.join(list(found)[:3])}, ..."
        )
    return (found[name],)


def read_file(path: Path) -> tuple[Definition, ...]:
    """Return the task of a YAML file, or those of a group that is defined in one.

    :raises PruneError: if the file is none
    """
    fields = read_fields(path)
    if "group" in fields and "class" not in fields:
        from offline.tasks.index import folders, read_index

        entry = Entry(str(fields["group"]), "group", str(path))
        index = {**read_index(folders((path.resolve().parent,))), entry.name: entry}
        return find(entry.name, index)
    name = fields.get("task")
    return (_definition(path.stem, name if isinstance(name, str) else path.stem, path, {}),)


def check_usable(definition: Definition, fields: Mapping[str, Any], prompting: Prompting) -> None:
    """Refuse what no engine can be asked as its author meant.

    :raises PruneError: for pictures, sounds and repeated greedy answers
    """
    name = definition.name
    if fields.get("doc_to_image") is not None or fields.get("doc_to_audio"):
        raise PruneError(f"task {name} asks about pictures or sounds; only text can be asked")
    repeats = fields.get("repeats") or 1
    options = {**(fields.get("generation_kwargs") or {}), **prompting.generation}
    if repeats != 1 and not sampled(options):
        raise PruneError(
            f"task {name} asks every question {repeats} times, and greedy answers are the same",
            hint="--gen-kwargs temperature=0.7 samples them",
        )


def fields_of(definition: Definition) -> dict[str, Any]:
    """Return the entries of a task's YAML with what its group changes; functions as their names.

    :raises PruneError: if the file cannot be read
    """
    own = read_fields(definition.file) if definition.file else {}
    return {**own, **parse_json(definition.changes, definition.task)}


def _expanded(
    entry: Entry, family: str, changes: Mapping[str, Any], index: Index, depth: int = 0
) -> Iterable[Definition]:
    if depth > 8:
        raise PruneError(f"group {family} holds itself")
    if entry.kind == "tag":
        for name in sorted(entry.members):
            yield from _expanded(index[name], family, changes, index, depth + 1)
    elif entry.kind == "task":
        assert entry.file is not None
        shown = f"{family}{_IN_FAMILY}{entry.name}" if changes else entry.name
        yield _definition(shown, entry.name, Path(entry.file), changes)
    else:
        assert entry.file is not None
        yield from _members(read_fields(Path(entry.file)), family, changes, index, depth)


def _members(
    group: Mapping[str, Any], family: str, changes: Mapping[str, Any], index: Index, depth: int
) -> Iterable[Definition]:
    """Yield the tasks of a group by lm-eval's rules: the caller's changes go before its own."""
    changes = {**{k: v for k, v in group.items() if k not in _OF_GROUPS}, **changes}
    listed = group.get("task") or []
    for item in [listed] if isinstance(listed, str) else listed:
        own = {} if isinstance(item, str) else dict(item)
        name = item if isinstance(item, str) else own.pop("group", None) or own.pop("task", None)
        inner = {k: v for k, v in {**changes, **own}.items() if k not in _NO_MEANING}
        if isinstance(name, str) and name in index:
            own.pop("task", None)
            inner.pop("task", None)
            yield from _expanded(index[name], family, inner, index, depth + 1)
        elif isinstance(item, dict) and "group" in item:
            yield from _members({**item, **own}, family, changes, index, depth + 1)
        else:
            yield _definition(f"{family}{_IN_FAMILY}{name}", str(name), None, inner)


def _definition(name: str, task: str, file: Path | None, changes: Mapping[str, Any]) -> Definition:
    fields = {**(read_fields(file) if file else {}), **changes}
    output = fields.get("output_type", "generate_until")
    kind = _KINDS.get(output)
    if kind is None:
        raise PruneError(f"task {name} is of type {output!r}", hint=f"one of {', '.join(_KINDS)}")
    metrics, fit = _metrics(fields, kind)
    return Definition(
        name=name,
        task=task,
        file=file,
        changes=json.dumps(changes, sort_keys=True, default=str),
        kind=kind,
        shots=int(fields.get("num_fewshot") or 0),
        fixed=fields.get("num_fewshot") == 0,
        metrics=metrics,
        fit=fit,
        open_metrics="class" in fields
        or FUNCTION
        in json.dumps([fields.get("metric_list"), fields.get("process_results")], default=str),
        runs_code=bool(fields.get("unsafe_code", False)),
        splits=tuple(
            str(fields[key])
            for key in ("training_split", "validation_split", "test_split")
            if fields.get(key) is not None
        ),
        kept_out=bool((fields.get("metadata") or {}).get("kept_out")),
    )


def _metrics(fields: Mapping[str, Any], kind: DefinedKind) -> tuple[tuple[str, ...], ...]:
    """Return the names of all metrics, and of those that can be a fitness."""
    if "class" in fields:
        return (), ()
    listed = fields.get("metric_list") or [{"metric": name} for name in _DEFAULT_METRICS[kind]]
    filters = [str(entry.get("name")) for entry in fields.get("filter_list") or ()]
    every: list[str] = []
    fit: list[str] = []
    for chain in filters or [""]:
        for entry in listed:
            name = _metric_name(entry)
            shown = f"{name}/{chain}" if len(filters) > 1 else name
            every.append(shown)
            fit += [shown] if _is_fit(name, entry) else []
    return tuple(dict.fromkeys(every)), tuple(dict.fromkeys(fit))


def _metric_name(entry: Mapping[str, Any]) -> str:
    """Return a metric's name: of a function that of the function."""
    return str(entry.get("metric")).rpartition(".")[2]


def _is_fit(name: str, entry: Mapping[str, Any]) -> bool:
    mean = entry.get("aggregation", "mean" if name in _MEANS else None) == "mean"
    return mean and bool(entry.get("higher_is_better", name in _MEANS))
