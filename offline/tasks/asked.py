"""The requests of a task of lm-evaluation-harness, built once by its own object.

A search asks the same items many times, and in ranges: each document's requests are built when
they are first asked for, in order, as examples are drawn from one stream of random numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean

from offline.tasks.documents import Documents, documents, question
from offline.tasks.items import Item
from offline.tasks.loading import copied, load, seeded, templates_kept
from offline.tasks.task import Split, Task
from vllm_moe_prune.errors import PruneError

Template = Callable[..., str]


def template_of(task: Task, lm: Any | None) -> Template | None:
    """Return what writes a conversation in a model's chat template, if the task wants one.

    :raises PruneError: if the model has none
    """
    if not task.prompting.apply_chat_template:
        return None
    template: Template | None = getattr(lm, "apply_chat_template", None)
    if template is None:
        raise PruneError(f"task {task.name}: this model has no chat template to apply")
    return template


def tokenizer_key(lm: Any | None) -> str:
    """Return what tells one model's chat template from another's."""
    return f"{type(lm).__name__} {getattr(lm, 'tokenizer_name', '')}"


class Asked:
    """The documents of a split and their requests, as far as they have been built."""

    def __init__(self, task: Task, split: Split) -> None:
        assert task.lm_eval is not None
        self._task, self.name = task, task.name
        self.documents: Documents = documents(task.lm_eval, split)
        self.object = _configured(task)
        self._examples = _Examples(self.object) if self.documents.apart and task.shots else None
        self._built: list[list[Instance]] = []

    def requests(self, first: int, limit: int | None, template: Template | None) -> list[Instance]:
        """Return new requests of the documents ``first`` to ``limit``, without answers.

        :param template: writes a conversation in the model's chat template, where that is wanted
        :raises PruneError: if a document cannot be asked
        """
        docs = self.documents.docs[:limit]
        with seeded(), templates_kept():
            for number in range(len(self._built), len(docs)):
                self._built.append(self._build(number, docs[number], template))
        built = self._built[first : len(docs)]
        return [_unanswered(request) for requests in built for request in requests]

    def _build(self, number: int, doc: Any, template: Template | None) -> list[Instance]:
        """As lm-eval's ``build_all_requests`` does for one document."""
        task, prompting = self.object, self._task.prompting
        if self._examples is not None:
            self._examples.leave_out(doc)
        chat = bool(prompting.apply_chat_template)
        try:
            context = task.fewshot_context(
                doc,
                num_fewshot=task.config.num_fewshot or 0,
                system_instruction=prompting.system_instruction,
                apply_chat_template=chat,
                fewshot_as_multiturn=prompting.fewshot_as_multiturn,
                chat_template=template if chat else None,
                gen_prefix=task.doc_to_prefix(doc),
            )
            made = task.construct_requests(
                doc=doc,
                ctx=context,
                metadata=(task.config.task, number, task.config.repeats),
                apply_chat_template=chat,
                chat_template=template if chat else None,
            )
        except PruneError:
            raise
        except Exception as error:  # templates and functions of the task, over its data
            said = " ".join(str(error).split())
            raise PruneError(
                f"task {self._task.name}: item {self.documents.names[number]} cannot be asked: "
                f"{type(error).__name__}: {said[:300]}"
            ) from error
        return made if isinstance(made, list) else [made]


class _Examples:
    """Keeps a document's own question, and its twins', out of the examples in its prompt."""

    def __init__(self, task: Any) -> None:
        self._sampler = getattr(task, "sampler", None)
        self._task = task
        pool = self._sampler.fewshot_docs() if self._sampler is not None else []
        self._pool = [(self._key(doc), doc) for doc in pool]

    def leave_out(self, doc: Any) -> None:
        """Draw the next examples from all others."""
        if self._sampler is None:
            return
        own = self._key(doc)
        self._sampler.df = [other for key, other in self._pool if key != own]

    def _key(self, doc: Any) -> str:
        try:
            return Item("", question(self._task, doc)).key
        except Exception:  # an example of another form than the documents
            return ""


class Slice:
    """A range of a split as lm-eval's evaluator takes a task: one that hands out what is built."""

    def __init__(self, asked: Asked, first: int, requests: Sequence[Instance], count: int) -> None:
        self._name = asked.name
        self._inner = copy.copy(asked.object)
        self._inner._instances = list(requests)
        self._docs, self._first = asked.documents.docs[first : first + count], first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def eval_docs(self) -> Sequence[Any]:
        """Return the documents, which nothing must read anew."""
        return self._docs

    def doc_iterator(self, **_: Any) -> Iterator[tuple[int, Any]]:
        """Yield (number in the split, document)."""
        return enumerate(self._docs, start=self._first)

    def build_all_requests(self, **_: Any) -> None:
        """Leave what is built."""

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        """Score one document.

        :raises PruneError: if the task's own code fails
        """
        try:
            found: dict[str, Any] = self._inner.process_results(doc, results)
        except Exception as error:  # the task's own code, over what a model wrote
            said = " ".join(str(error).split())
            raise PruneError(
                f"task {self._name}: an answer cannot be scored: {type(error).__name__}: "
                f"{said[:300]}"
            ) from error
        return found

    def aggregation(self) -> dict[str, Callable[[Any], float]]:
        """Return the task's rules; one that fails on these few items gives no number."""
        rules = self._inner.aggregation()
        return {name: rule if rule is mean else _or_nan(rule) for name, rule in rules.items()}


def _or_nan(rule: Callable[[Any], float]) -> Callable[[Any], float]:
    def value(items: Any) -> float:
        try:
            return rule(items)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return math.nan

    return value


def _configured(task: Task) -> Any:
    """Return lm-eval's task with what ``simple_evaluate`` changes: examples and generation."""
    assert task.lm_eval is not None
    own = copied(load(task.lm_eval))
    if task.shots != task.lm_eval.shots or own.get_config("num_fewshot") is None:
        own.set_config(key="num_fewshot", value=task.shots)
    if own.get_config("output_type") == "generate_until" and task.prompting.generation:
        own.set_config(key="generation_kwargs", value=task.prompting.generation, update=True)
    return own


def _unanswered(request: Instance) -> Instance:
    fresh: Instance = copy.copy(request)
    fresh.resps, fresh.filtered_resps = [], {}
    return fresh
