"""From names to tasks: the built-in ones, lm-evaluation-harness's, and a user's own.

Imports no torch, no lm-eval: a wrong name is said at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from offline.tasks.builtin import TASKS
from offline.tasks.definition import Definition, check_usable, fields_of, find, read_file
from offline.tasks.index import Index, closest, folders, read_index
from offline.tasks.prompting import PLAIN, Prompting
from offline.tasks.task import (
    SPLITS,
    Generation,
    Kind,
    Metric,
    Source,
    Split,
    Task,
    check_split,
)
from offline.tasks.yaml_fields import generation_of, is_plain, read_fields
from offline.texts.files import KINDS, kind_of, stem_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import read_text

__all__ = [
    "DEFAULT",
    "SPLITS",
    "TASKS",
    "Generation",
    "Kind",
    "Library",
    "Metric",
    "Source",
    "Split",
    "Task",
    "check_split",
    "get_task",
    "get_tasks",
]
TEXT_PREFIX = "text:"
LM_EVAL_PREFIX = "lm-eval:"
_YAML = (".yaml", ".yml")
_PLACES = {"dataset_path", "custom_dataset", "class", "group"}  # one says where data are


@dataclass(frozen=True, slots=True)
class Library:
    """Where names are looked up and how the tasks are asked: what a run says once of all tasks.

    :param include: folders of the user's own lm-eval YAML files; their names go before others
    :param allow_code: whether tasks may execute what the model wrote
    """

    include: tuple[Path, ...] = ()
    allow_code: bool = False
    prompting: Prompting = PLAIN

    def __post_init__(self) -> None:
        if self.include:
            folders(self.include)  # refuses what is no folder, whatever the names are


DEFAULT = Library()


def get_task(name: str, library: Library = DEFAULT) -> Task:
    """Return the one task that a name stands for (see `get_tasks`).

    :raises PruneError: as `get_tasks`, and for the name of several tasks
    """
    found = get_tasks(name, library)
    if len(found) != 1:
        some = ", ".join(task.name for task in found[:3])
        raise PruneError(f"{name} is {len(found)} tasks", hint=f"give one of them: {some}, ...")
    return found[0]


def get_tasks(name: str, library: Library = DEFAULT) -> tuple[Task, ...]:
    """Return what ``NAME[:METRIC][@EXAMPLES]`` stands for: a task, or those of a group or tag.

    A name is that of a built-in task, of lm-evaluation-harness (``lm-eval:NAME`` where a built-in
    one has it), the path of an lm-eval YAML file, or ``text:FILE``.

    :raises PruneError: if there is no such task, naming the nearest; if it cannot be asked
    """
    stem, at, shots = name.rpartition("@")
    if at and shots.isdigit():
        return tuple(task.with_shots(int(shots)) for task in get_tasks(stem, library))
    if name.startswith(TEXT_PREFIX):
        return (_own_text(Path(name.removeprefix(TEXT_PREFIX))),)
    stem, metric = _split_metric(name)
    if stem in TASKS:
        return (replace(_with_metric(TASKS[stem], metric), prompting=library.prompting),)
    if stem.endswith(_YAML):
        return _own_tasks(Path(stem), metric, library)
    return _named(stem, metric, library)


def _split_metric(name: str) -> tuple[str, str | None]:
    """Return a name without its metric, and the metric."""
    prefix = LM_EVAL_PREFIX if name.startswith(LM_EVAL_PREFIX) else ""
    rest = name.removeprefix(prefix)
    for suffix in _YAML:  # a path may hold colons
        before, found, after = rest.partition(f"{suffix}:")
        if found:
            return f"{prefix}{before}{suffix}", after
    if rest.endswith(_YAML):
        return name, None
    stem, colon, metric = rest.partition(":")
    return prefix + stem, metric if colon else None


def _with_metric(task: Task, metric: str | None) -> Task:
    if metric is None or metric == task.metric:
        return task
    raise PruneError(
        f"task {task.name} has no metric {metric!r}", hint=f"it is scored by {task.metric}"
    )


def _named(name: str, metric: str | None, library: Library) -> tuple[Task, ...]:
    index = read_index(folders(library.include))
    bare = name.removeprefix(LM_EVAL_PREFIX)
    if bare.partition("/")[0] not in index:
        raise _unknown(name, bare, index)
    found = find(bare, index)
    return tuple(_of(one, metric, library, _shown(one, name, bare)) for one in found)


def _unknown(name: str, bare: str, index: Index) -> PruneError:
    if Path(name).is_file():
        return PruneError(
            f"unknown task {name!r}",
            hint=f"as plain text it is text:{name}; the file of a task ends in .yaml",
        )
    near = list(dict.fromkeys([*closest(bare, TASKS), *closest(bare, index)]))
    meant = f"did you mean {' or '.join(near[:4])}? " if near else ""
    return PruneError(
        f"unknown task {name!r}",
        hint=f"{meant}`vmprune tasks {bare[:4] or 'PATTERN'}` lists names; or the path of an "
        "lm-eval YAML file; or text:FILE for plain text; @5 behind a name gives five examples",
    )


def _shown(definition: Definition, name: str, bare: str) -> str:
    """Return a task's name here: a built-in one's belongs to that."""
    if definition.name in TASKS or (name != bare and definition.name == bare):
        return LM_EVAL_PREFIX + definition.name
    return definition.name


def _of(definition: Definition, metric: str | None, library: Library, name: str) -> Task:
    check_usable(definition, fields_of(definition), library.prompting)
    if definition.runs_code and not library.allow_code:
        raise PruneError(
            f"task {name} executes what the model writes, on this machine",
            hint="--allow-code-execution allows it; better in a container without network",
        )
    return Task(
        f"{name}:{metric}" if metric else name,
        definition.metric(metric),
        kind=definition.kind,
        shots=definition.shots,
        prompting=library.prompting,
        lm_eval=definition,
    )


def _own_text(path: Path) -> Task:
    if not path.is_file():
        raise PruneError(f"no text file at {path}")
    if kind_of(path) is None:
        raise PruneError(
            f"cannot tell what {path} holds", hint=f"name it by what it holds: {KINDS}"
        )
    return Task(stem_of(path), "agreement", kind="text", text=path)


def _own_tasks(path: Path, metric: str | None, library: Library) -> tuple[Task, ...]:
    if not path.is_file():
        raise PruneError(f"no task file at {path}")
    plain = is_plain(path)  # which refuses what is no YAML
    from offline.data.yaml_file import given_twice

    if (twice := given_twice(read_text(path, "task "))) is not None:
        raise PruneError(f"task {path}: {twice}")
    if not _PLACES & read_fields(path).keys():
        raise PruneError(
            f"task {path} has no dataset_path",
            hint="a data set of the hub, or json with data_files (docs/tasks.md)",
        )
    if not plain:
        return tuple(_of(one, metric, library, one.name) for one in read_file(path))
    found = generation_of(path)
    if found is None:
        task = Task(path.stem, "acc", yaml=path)
    else:
        generation = Generation(found.until, found.max_tokens, filters=found.filters)
        task = Task(path.stem, "exact_match", yaml=path, kind="generate", generation=generation)
    return (replace(_with_metric(task, metric), prompting=library.prompting),)
