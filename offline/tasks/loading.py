"""Makes the tasks of lm-evaluation-harness: its own object, with its data, as a run asks it."""

from __future__ import annotations

import copy
import functools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import _import_fun_from_str, load_yaml
from lm_eval.utils import env

from offline.tasks.definition import Definition, fields_of
from offline.tasks.quiet import quiet_libraries
from offline.tasks.yaml_fields import FUNCTION
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

_ABSENT = ("DatasetNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError")
_UNREACHED = (
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
)
_CODE = "HF_ALLOW_CODE_EVAL"  # what the metrics that run generated code ask for


@functools.lru_cache(maxsize=128)
def load(definition: Definition) -> Any:
    """Return lm-eval's own object of a task, its data set read or fetched from the hub.

    Do not change it: `copied` gives one that a run may.

    :raises PruneError: if the task or its data cannot be had, in one line that names both
    """
    with quiet_libraries(), seeded(), code_may_run(definition.runs_code):
        try:
            (task,) = (
                TaskManager(include_defaults=False).load([_config(definition)])["tasks"].values()
            )
        except Exception as error:  # lm-eval raises whatever YAML, jinja, datasets and imports do
            raise PruneError(*_reason(definition, error)) from error
    if not hasattr(task, "config") or not hasattr(task, "has_test_docs"):
        raise PruneError(f"task {definition.name} is no task that lm-eval's evaluator runs")
    return task


def copied(task: Any) -> Any:
    """Return a task over the same data whose sampler of examples and settings are its own."""
    own = copy.copy(task)
    own._config = copy.copy(task._config)
    own._config.generation_kwargs = copy.deepcopy(task._config.generation_kwargs)
    if hasattr(task, "sampler"):
        own.sampler = copy.copy(task.sampler)
    own.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return own


@contextmanager
def seeded() -> Iterator[None]:
    """Draw random numbers as ``simple_evaluate`` begins; afterwards all is as it was."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


@contextmanager
def templates_kept() -> Iterator[None]:
    """Compile each template once: lm-eval does for every document anew, a millisecond each."""
    compile_text = env.from_string
    env.from_string = functools.lru_cache(maxsize=256)(compile_text)
    try:
        yield
    finally:
        env.from_string = compile_text


@contextmanager
def code_may_run(allowed: bool) -> Iterator[None]:
    """Let metrics execute what a model wrote, where the user has allowed it."""
    before = os.environ.get(_CODE)
    if allowed:
        os.environ[_CODE] = "1"
    try:
        yield
    finally:
        if allowed and before is None:
            del os.environ[_CODE]
        elif before is not None:
            os.environ[_CODE] = before


def _config(definition: Definition) -> dict[str, Any]:
    own = load_yaml(definition.file) if definition.file else {}
    changes = parse_json(definition.changes, definition.task)
    return {**own, **_resolved(changes), "task": definition.task}


def _resolved(value: Any) -> Any:
    """Return what a group changes with its functions imported."""
    if isinstance(value, dict):
        return {key: _resolved(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner) for inner in value]
    if isinstance(value, str) and value.startswith(FUNCTION):
        return _import_fun_from_str(value.removeprefix(FUNCTION))
    return value


def _reason(definition: Definition, error: Exception) -> tuple[str, str | None]:
    """Return one line, and what to do, for what may go wrong between a name and its data."""
    said = " ".join(str(error).split())
    name = definition.name
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"task {name} needs the package {error.name}", f"pip install {error.name}"
    known = _data_reason(error, said)
    if known is not None:
        return f"task {name}: its data set {_dataset(definition)} {known[0]}", known[1]
    return f"task {name} cannot be loaded: {type(error).__name__}: {said[:300]}", None


def _data_reason(error: Exception, said: str) -> tuple[str, str | None] | None:
    """Return what is the matter with a data set, if it is that, and what to do."""
    kind = type(error).__name__
    if "scripts are no longer supported" in said or "trust_remote_code" in said:
        return "runs code of its own (trust_remote_code), which is refused", None
    if kind == "GatedRepoError" or (kind in _ABSENT and "gated" in said.lower()):
        return "is gated", "accept its terms on the hub and log in with `hf auth login`"
    if kind in _ABSENT:
        return "is not on the hub", "look for its name there; a private one needs a token"
    unreached = isinstance(error, ConnectionError) or any(word in said for word in _UNREACHED)
    if unreached or kind in _UNREACHED:
        return (
            f"cannot be reached: {said.rpartition('either: ')[2][:200]}",
            "without a network it must be in the cache (HF_HOME) already",
        )
    return None


def _dataset(definition: Definition) -> str:
    fields = fields_of(definition)
    parts = [str(fields[key]) for key in ("dataset_path", "dataset_name") if fields.get(key)]
    return "/".join(parts[:1]) + (f" ({parts[1]})" if len(parts) > 1 else "") or "of code"
