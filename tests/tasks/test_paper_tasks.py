"""EEP's tasks as lm-eval reads them, on small data sets of the hub's shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

import offline.tasks.paper
from tests.tasks.paper_data import write_hub

FOLDER = Path(offline.tasks.paper.__file__).parent
# Table 1's order.
TEN = ("copa", "multirc", "wic", "wsc", "rte", "boolq", "cb", "record", "drop", "squad")
_DROP_EXAMPLES = (
    "Text: In the county, the population was spread out with 23.50% under the age of 18, "
    "8.70% from 18 to 24,",
    "23.5%-8.7%=14.8%. So the answer is 14.8.\n\nText: Playing in their second straight",
    "5-3=2. So the answer is 2.\n\nText: ",
)
_MMLU = (
    "There is a single choice question about {}. Answer the question by replying A, B, C or D.\n"
    "Question: Which, {}?\nA. w\nB. x\nC. y\nD. z\nAnswer: "
)
# Task -> the prompt of its first held-out item, its right answers, and the longest answer.
PROMPTS: Mapping[str, tuple[str, list[str], int]] = {
    "copa": (
        "The man broke his toe.\nQuestion: Which may be the cause?\n"
        "A. He got a hole in his sock.\nB. He dropped a hammer on his foot.\nAnswer:",
        ["B"], 20,
    ),
    "multirc": (
        "<b>Sent 1: </b>Susan had a party.<br>\nQuestion: Who had it?\nAnswer: Susan\n"
        "Is it true?\nA. Yes\nB. No\nAnswer:",
        ["A"], 20,
    ),
    "wic": (
        "Sentence 1: Do you want to come to my place?\n"
        "Sentence 2: A political system with no place for it.\n"
        "Are 'place' in the above two sentenses the same?\nA. Yes\nB. No\nAnswer:",
        ["B"], 20,
    ),
    "wsc": (
        "Passage: * Mark * told Pete many lies about himself, which Pete included in # his # "
        "book.\nDoes the pronoun # his # refer to * Mark *?\nA. Yes\nB. No\nAnswer:",
        ["B"], 20,
    ),
    "rte": (
        "Cats sleep.\nCats rest.\nIs the sentence below entailed by the sentence above?\n"
        "A. Yes\nB. No\nAnswer:",
        ["A"], 20,
    ),
    "boolq": (
        "Paint -- It is red.\nQuestion: is it red\nA. Yes\nB. No\nAnswer:",
        ["A"], 20,
    ),
    "cb": (
        "It rains.\nit is wet\nWhat is the relation between the two sentences?\n"
        "A. Contradiction\nB. Entailment\nC. Neutral\nAnswer:",
        ["B"], 20,
    ),
    "record": (
        "Passage: Puerto Rico voted Sunday.\n\nIt favours statehood\n"
        "Result: Few expect ____ to become a state\n"
        "Question: What entity does ____ refer to in the result? Give me the entity name:",
        ["Puerto Rico", "Puerto Ricans"], 50,
    ),
    "drop": (
        "The Eagles scored 21 points, the Lions 45.\nQuestion: How many?\nAnswer:",
        ["24", "24 points"], 30,
    ),
    "squad": (
        "The Normans came from Denmark.\nAccording to the above passage, answer the following "
        "question. If it is impossible to answer according to the passage, answer "
        "`impossible to answer`:\nQuestion: Where from, 0?",
        ["Denmark", "from Denmark"], 50,
    ),
    "mmlu_iid": (_MMLU.format("anatomy", 0), ["C"], 30),
    "mmlu_ood": (_MMLU.format("business ethics", 2), ["D"], 30),
}  # fmt: skip


class _Scripted(LM):
    """Answers each prompt with what a table says of its last words."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        super().__init__()
        self.answers, self.asked = answers, list[tuple[str, dict[str, Any]]]()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.asked += [request.args for request in requests]
        return [
            next(said for end, said in self.answers.items() if request.args[0].endswith(end))
            for request in requests
        ]

    def loglikelihood(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("answers are generated")

    loglikelihood_rolling = loglikelihood


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All tasks, with data sets that lie where one stands: datasets takes those first."""
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        manager = TaskManager(include_defaults=False, include_path=str(FOLDER))
        yield manager.load(["eep", "eep_mmlu"])


def test_the_groups_are_the_papers_ten_tasks_and_mmlu(loaded: dict[str, Any]) -> None:
    assert loaded["group_map"]["eep"] == [f"eep_{name}" for name in TEN]
    assert loaded["group_map"]["eep_mmlu"] == ["eep_mmlu_iid", "eep_mmlu_ood"]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_answers_and_lengths_are_the_papers(loaded: dict[str, Any], name: str) -> None:
    task = loaded["tasks"][f"eep_{name}"]
    prompt, golds, longest = PROMPTS[name]
    doc = next(iter(task.eval_docs))
    context = task.fewshot_context(doc, num_fewshot=0)
    if name == "drop":
        at = 0
        for part in _DROP_EXAMPLES:
            at = context.index(part, at)
        context = context[at + len(_DROP_EXAMPLES[-1]) :]
    assert context == prompt
    assert task.doc_to_target(doc) == golds
    assert task.config.generation_kwargs["max_gen_toks"] == longest
    assert "</s>" in task.config.generation_kwargs["until"]
    assert task.config.generation_kwargs["do_sample"] is False


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_one_message_of_a_user(loaded: dict[str, Any], name: str) -> None:
    task = loaded["tasks"][f"eep_{name}"]
    doc = next(iter(task.eval_docs))
    asked = task.fewshot_context(
        doc, num_fewshot=0, apply_chat_template=True, chat_template=lambda m, **_: repr(m)
    )
    plain = task.fewshot_context(doc, num_fewshot=0)
    assert asked == repr([{"role": "user", "content": plain}])


def test_searching_and_measuring_read_different_splits(loaded: dict[str, Any]) -> None:
    for name in TEN:
        config = loaded["tasks"][f"eep_{name}"].config
        splits = (config.training_split, config.validation_split, config.test_split)
        assert splits == ("train", "validation", None)
    for name in ("mmlu_iid", "mmlu_ood"):
        config = loaded["tasks"][f"eep_{name}"].config
        splits = (config.training_split, config.validation_split, config.test_split)
        assert splits == ("validation", None, "test")


def test_only_numbers_are_asked_of_drop(loaded: dict[str, Any]) -> None:
    task = loaded["tasks"]["eep_drop"]
    assert [doc["question"] for doc in task.training_docs()] == ["How many?"]
    assert [doc["golds"] for doc in task.training_docs()] == [["24"]]
    assert [doc["golds"] for doc in task.eval_docs] == [["24", "24 points"], ["3", "3 May"]]


def test_every_label_has_its_letter(loaded: dict[str, Any]) -> None:
    letters = {
        name: [doc["golds"][0] for doc in loaded["tasks"][f"eep_{name}"].eval_docs]
        for name in TEN[:7]
    }
    assert letters == {
        "copa": ["B", "A"],
        "multirc": ["A", "B"],
        "wic": ["B", "A"],
        "wsc": ["B", "A"],
        "rte": ["A", "B"],
        "boolq": ["A", "B"],
        "cb": ["B", "A", "C"],
    }


def test_lm_eval_scores_what_a_model_answers(loaded: dict[str, Any]) -> None:
    said = {
        "Question: How many?\nAnswer:": "45-21=24. So the answer is 24.",
        "Question: Which day?\nAnswer:": "It was the 13",
        "Question: Where from, 0?": " The answer is Denmark.\nB",
        "Question: Where from, 1?": "Norway",
        "Give me the entity name:": "\n Answer: Puerto Ricans, all of them",
        "B. Entailment\nC. Neutral\nAnswer:": "B. Entailment",
        "the sentence above?\nA. Yes\nB. No\nAnswer:": "Because A. Yes",
        "Answer:": " A. Yes",
        "Answer: ": "I take option C here.",
    }  # fmt: skip
    model = _Scripted(said)
    found = evaluate(model, loaded, bootstrap_iters=0)
    assert found is not None
    acc = {name: found["results"][f"eep_{name}"]["acc,extracted"] for name in TEN}
    assert acc == {
        "copa": 0.5, "multirc": 0.5, "wic": 0.5, "wsc": 0.5, "rte": 0.5, "boolq": 0.5,
        "cb": pytest.approx(1 / 3), "record": 1.0, "drop": 1.0, "squad": 0.5,
    }  # fmt: skip
    exact = {n: found["results"][f"eep_{n}"]["exact_match,extracted"] for n in TEN[7:]}
    assert exact == {"record": 0.0, "drop": 0.5, "squad": 0.5}
    # Table 1's last column: the mean of the scores, however many items each has.
    assert found["groups"]["eep"]["acc,extracted"] == pytest.approx(sum(acc.values()) / 10)
    mmlu = [found["results"][f"eep_mmlu_{part}"]["acc,extracted"] for part in ("iid", "ood")]
    assert mmlu == [0.5, 0.0]
    until = [(prompt, arguments["until"]) for prompt, arguments in model.asked]
    assert {tuple(u) for p, u in until if p.endswith("from, 0?")} == {("</s>", "\n")}
    assert {tuple(u) for p, u in until if p.endswith("day?\nAnswer:")} == {("</s>", "Question:")}
