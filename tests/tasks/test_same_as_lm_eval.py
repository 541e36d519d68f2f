"""Tasks by lm-eval's names send the requests that its own ``simple_evaluate`` sends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import evaluate as hf_evaluate
import lm_eval.evaluator
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from offline.tasks.catalog import Library, get_task, get_tasks
from offline.tasks.harness import run
from offline.tasks.prompting import PLAIN, Prompting
from offline.tasks.task import Task
from tests.tasks import lm_eval_data
from tests.tasks.conftest import forget
from tests.tasks.lm_eval_model import RecordingLM

NAMES = (
    *("gsm8k", "gsm8k_cot", "boolq", "mmlu_abstract_algebra", "mmlu_anatomy_generative"),
    *("arc_challenge", "lm-eval:arc_easy", "lm-eval:hellaswag", "winogrande", "lambada_openai"),
    *("lambada_standard", "lm-eval:piqa", "truthfulqa_mc1", "truthfulqa_mc2", "triviaqa"),
    *("nq_open", "drop", "wikitext", "bbh_cot_fewshot_boolean_expressions", "race", "copa"),
    *("bbh_zeroshot_boolean_expressions", "hendrycks_math_algebra", "cb", "rte", "wic", "wsc"),
    *("record", "multirc", "openbookqa", "lm-eval:sciq", "logiqa", "mathqa", "pubmedqa"),
    *("medqa_4options", "medmcqa", "toxigen", "sst2", "mrpc", "qqp", "mnli", "qnli", "cola"),
    *("wnli", "commonsense_qa", "social_iqa", "asdiv", "blimp_adjunct_island", "coqa"),
    *("headqa_en", "swag", "webqs", "anli_r1", "mmlu_pro_math", "arithmetic_1dc", "ethics_cm"),
    *("xcopa_it", "humaneval", "mbpp", "squadv2"),
)
# Their packages are those of the extra `tasks`.
MORE = {
    "ifeval": ("langdetect", "immutabledict", "nltk"),
    "minerva_math_algebra": ("math_verify", "antlr4"),
}
SYSTEM = "You answer in one word."


class CodeEval:
    """Stands in for the hub's metric that executes code: says that every program is right."""

    def compute(self, references: Any, predictions: Any, k: Any) -> Any:
        return {f"pass@{n}": float("return" in predictions[0][0]) for n in k}, {}


class Squad:
    """Stands in for the hub's metric of SQuAD 2: the share of predictions without an answer."""

    def compute(self, references: Any, predictions: Any) -> dict[str, float]:
        assert len(references) == len(predictions)
        without = sum(one["no_answer_probability"] > 0.5 for one in predictions)
        return {"exact": 100 * without / len(predictions), "best_f1": float(len(predictions))}


@pytest.fixture(scope="module", autouse=True)
def data() -> Iterator[None]:
    """Give lm-eval small data sets, and no look at this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lm_eval_data.load_dataset)
        metrics = {"code_eval": CodeEval(), "squad_v2": Squad()}
        patch.setattr(hf_evaluate, "load", metrics.__getitem__)
        patch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
        patch.setattr(lm_eval.evaluator, "get_git_commit_hash", lambda: "")
        patch.setenv("HF_ALLOW_CODE_EVAL", "1")
        forget()
        yield
        forget()


def tasks(names: Sequence[str], prompting: Prompting) -> list[Task]:
    library = Library(allow_code=True, prompting=prompting)
    return [get_task(name, library) for name in names]


def manager_of(names: Sequence[str]) -> TaskManager:
    """Return lm-eval's own index of the folders that are needed: of all it takes half a minute."""
    files = [task.lm_eval.file for task in tasks(names, PLAIN) if task.lm_eval]
    folders = sorted({file.parent for file in files if file is not None})
    return TaskManager(include_defaults=False, include_path=list(folders))


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return manager_of(NAMES)


def check_same(
    names: Sequence[str], prompting: Prompting, settings: dict[str, Any], manager: TaskManager
) -> None:
    """Ask both and compare requests, byte by byte and in order, and metrics."""
    asked = tasks(names, prompting)
    theirs, ours = RecordingLM(), RecordingLM()
    own_names = [task.lm_eval.task for task in asked if task.lm_eval]
    report = simple_evaluate(
        theirs,
        tasks=own_names,
        task_manager=manager,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
        **settings,
    )
    assert report is not None
    for task, name in zip(asked, own_names, strict=True):
        result = run(ours, task, "all")
        assert ours.asked[name] == theirs.asked[name], name
        check_metrics(result.metrics, report["results"][name])
        assert len(result.items) == report["n-samples"][name]["original"]


def check_metrics(found: Mapping[str, float], theirs: Mapping[str, Any]) -> None:
    expected = {key: value for key, value in theirs.items() if "," in key and "_stderr," not in key}
    filters = {key.partition(",")[2] for key in expected}
    assert len(found) == len(expected) > 0
    for key, value in expected.items():
        metric, _, chain = key.partition(",")
        ours = found[f"{metric}/{chain}" if len(filters) > 1 else metric]
        assert ours == value or (math.isnan(ours) and math.isnan(value)), key


def test_plain_requests_and_metrics_are_lm_evals(manager: TaskManager) -> None:
    assert len(NAMES) >= 40
    check_same(NAMES, PLAIN, {}, manager)


def test_requests_in_a_chat_are_lm_evals(manager: TaskManager) -> None:
    prompting = Prompting(apply_chat_template=True, system_instruction=SYSTEM)
    settings = {"apply_chat_template": True, "system_instruction": SYSTEM}
    check_same(NAMES, prompting, settings, manager)


def test_requests_in_one_turn_with_other_options_are_lm_evals(manager: TaskManager) -> None:
    prompting = Prompting(
        apply_chat_template=True, fewshot_as_multiturn=False, gen_kwargs="top_k=1", max_gen_tokens=7
    )
    settings = {
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "gen_kwargs": {"top_k": 1, "max_gen_toks": 7},
    }
    check_same(("gsm8k", "gsm8k_cot", "mmlu_pro_math", "triviaqa"), prompting, settings, manager)


def test_another_number_of_examples_is_lm_evals(manager: TaskManager) -> None:
    names = ("gsm8k", "mmlu_abstract_algebra", "boolq", "winogrande", "lm-eval:sciq")
    check_same([f"{name}@2" for name in names], PLAIN, {"num_fewshot": 2}, manager)


@pytest.mark.parametrize(
    "name", ["ifeval", pytest.param("minerva_math_algebra", marks=pytest.mark.slow)]
)
def test_tasks_that_need_packages_are_lm_evals(name: str) -> None:
    for package in MORE[name]:
        pytest.importorskip(package)
    check_same((name,), PLAIN, {}, manager_of((name,)))


def test_members_of_a_group_are_its_tasks_with_its_changes() -> None:
    found = {task.name: task for task in get_tasks("openllm")}
    assert len(found) == 64
    assert found["openllm/arc_challenge"].shots == 25
    assert found["openllm/mmlu_anatomy"].shots == 5
    assert get_task("openllm/mmlu_anatomy") == found["openllm/mmlu_anatomy"]
    ours, theirs = RecordingLM(), RecordingLM()
    task = found["openllm/mmlu_anatomy"]
    assert task.lm_eval is not None and task.lm_eval.file is not None
    run(ours, task, "all", 2)
    manager = TaskManager(include_defaults=False, include_path=task.lm_eval.file.parent)
    simple_evaluate(
        theirs, tasks=["mmlu_anatomy"], num_fewshot=5, limit=2, task_manager=manager,
        bootstrap_iters=0,
    )  # fmt: skip
    assert ours.asked["mmlu_anatomy"] == theirs.asked["mmlu_anatomy"]
