"""Rows in the shapes of data sets that lm-evaluation-harness's tasks read, by the hub's name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import datasets

Row = Mapping[str, Any]
_ROWS = {"train": 9, "validation": 5, "test": 6, "dev": 5}
_THINGS = ("river", "Castle", "bread roll", "green lamp", "engine", "moon", "tax law", "violin")
_LETTERS = "ABCD"


def thing(number: int) -> str:
    return f"{_THINGS[number % len(_THINGS)]} {number}"


def four(number: int) -> list[str]:
    return [thing(number + step) + " stands" * step for step in range(4)]


def gsm8k(n: int) -> Row:
    return {
        "question": f"Tom has {n} apples, and buys {n % 7} more. How many has he?",
        "answer": f"He has {n}+{n % 7}=<<{n}+{n % 7}={n + n % 7}>>{n + n % 7}.\n#### {n + n % 7}",
    }


def ifeval(n: int) -> Row:
    return {
        "key": n,
        "prompt": f"Write about the {thing(n)} without any comma, in capital letters.",
        "instruction_id_list": ["punctuation:no_comma", "detectable_content:number_placeholders"],
        "kwargs": [{"num_placeholders": None}, {"num_placeholders": 1 + n % 2}],
    }


def mmlu(n: int) -> Row:
    question = f" Which group has order {n}? "
    return {"question": question, "subject": "s", "choices": four(n), "answer": n % 4}


def arc(n: int) -> Row:
    return {
        "id": str(n),
        "question": f"What is hotter than a {thing(n)}?",
        "choices": {"text": four(n), "label": list(_LETTERS)},
        "answerKey": _LETTERS[n % 4],
    }


def hellaswag(n: int) -> Row:
    return {
        "ind": n,
        "activity_label": "Cooking",
        "ctx_a": f"A cook takes the {thing(n)}. [header] Then",
        "ctx_b": "she",
        "endings": [f"{choice} [title] slowly." for choice in four(n)],
        "label": str(n % 4),
    }


def winogrande(n: int) -> Row:
    return {
        "sentence": f"The {thing(n)} did not fit because _ was too large for it.",
        "option1": f"the {thing(n)}",
        "option2": "the case",
        "answer": str(1 + n % 2),
    }


def truthful(n: int) -> Row:
    return {
        "question": f"Do people eat a {thing(n)}?",
        "mc1_targets": {"choices": four(n), "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": four(n), "labels": [1, 1, 0, 0]},
    }


def triviaqa(n: int) -> Row:
    return {
        "question": f"Who made the {thing(n)}",
        "answer": {"aliases": ["Ada", f"Ada {n}", "yes"], "value": "Ada"},
    }


def drop(n: int) -> Row:
    blank = {"day": "", "month": "", "year": ""}
    spans = [] if n % 2 else [thing(n), "yes"]
    answer = {"number": str(n) if n % 2 else "", "date": blank, "spans": spans}
    return {
        "passage": f"In year {n} the {thing(n)} was sold.",
        "question": "What was sold?",
        "query_id": str(n),
        "answer": answer,
        "validated_answers": {"number": [answer["number"]], "date": [blank], "spans": [spans]},
    }


def hendrycks_math(n: int) -> Row:
    return {
        "problem": f"What is ${n} + 1$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": f"One more is $\\boxed{{{n + 1}}}$.",
    }


def humaneval(n: int) -> Row:
    return {
        "task_id": f"HumanEval/{n}",
        "prompt": f"def add{n}(a):\n    # adds {n}\n",
        "canonical_solution": f"    return a + {n}\n",
        "test": f"def check(f):\n    assert f(1) == {n + 1}\n",
        "entry_point": f"add{n}",
    }


def mbpp(n: int) -> Row:
    return {
        "task_id": n,
        "text": f"Write a function that adds {n}.",
        "code": f"def add(a):\n    return a + {n}",
        "test_list": [f"assert add({k}) == {n + k}" for k in range(3)],
    }


def race(n: int) -> Row:
    problems = [
        {"question": f"Where is the {thing(n + k)}?", "answer": _LETTERS[(n + k) % 4],
         "options": four(n + k)}
        for k in range(2)
    ]  # fmt: skip
    return {"article": f"The {thing(n)} stood here.", "problems": repr(problems)}


def copa(n: int) -> Row:
    return {
        "premise": f"The {thing(n)} broke.",
        "choice1": "It fell.",
        "choice2": "It was new.",
        "question": ("cause", "effect")[n % 2],
        "label": n % 2,
    }


def wic(n: int) -> Row:
    first, second = f"The bank of the {thing(n)}.", f"A bank lends {n} coins."
    return {
        "word": "bank",
        "sentence1": first,
        "sentence2": second,
        "start1": first.index("bank"),
        "end1": first.index("bank") + 4,
        "label": n % 2,
    }


def wsc(n: int) -> Row:
    return {
        "text": f"Mark told Pete many lies about {n} things , which he believed .",
        "span1_text": "Pete",
        "span2_text": "he",
        "span1_index": 2,
        "span2_index": 10,
        "label": n % 2,
    }


def record(n: int) -> Row:
    return {
        "passage": f"Ada met Bob {n} times.\n@highlight\nAda is glad\n@highlight\nBob is sad",
        "query": "It was @placeholder who smiled.",
        "entities": ["Ada", "Bob", f"Cy {n}"],
        "answers": [("Ada", "Bob")[n % 2]],
    }


def pairs(n: int) -> Row:
    """The nine data sets of GLUE and SuperGLUE that compare texts."""
    texts = {
        "sentence1": f"The {thing(n)} is old.",
        "sentence2": f"The {thing(n + 1)} is new.",
        "sentence": f"A {thing(n)} for everyone",
        "premise": f"All of the {thing(n)} is gone",
        "hypothesis": "Some of it is left",
        "question": f"is a {thing(n)} heavy",
        "question1": f"How old is a {thing(n)}",
        "question2": f"What is the age of a {thing(n)}",
        "passage": f"A {thing(n)} weighs {n} tons.",
        "paragraph": f"Nobody saw the {thing(n)}.",
        "answer": f"It was {n}.",
    }
    return {**texts, "label": n % 2}


def openbookqa(n: int) -> Row:
    return {
        "question_stem": f"A {thing(n)} is made of",
        "choices": {"text": four(n), "label": list(_LETTERS)},
        "answerKey": f" {_LETTERS[n % 4]}",
    }


def commonsense(n: int) -> Row:
    choices = {"text": [*four(n), "nothing"], "label": [*_LETTERS, "E"]}
    return {"question": f"Where is a {thing(n)}?", "choices": choices, "answerKey": _LETTERS[n % 4]}


def sciq(n: int) -> Row:
    one, two, three, right = four(n)
    return {
        "support": f" A {right} is seen often.",
        "question": f"What is seen {n} times?",
        "distractor1": one,
        "distractor2": two,
        "distractor3": three,
        "correct_answer": right,
    }


def logiqa(n: int) -> Row:
    return {
        "context": f"All of {n} are some.",
        "question": "What follows?",
        "options": four(n),
        "label": _LETTERS[n % 4].lower(),
    }


def mathqa(n: int) -> Row:
    return {
        "Problem": f"what is {n} times 2",
        "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5",
        "correct": "abcde"[n % 5],
    }


def medqa(n: int) -> Row:
    return {
        "sent1": f"A patient has {n} spots.",
        **{f"ending{k}": text for k, text in enumerate(four(n))},
        "label": n % 4,
    }


def medmcqa(n: int) -> Row:
    return {
        "question": f"Which bone is number {n}",
        **dict(zip(("opa", "opb", "opc", "opd"), four(n), strict=True)),
        "cop": n % 4,
    }


def mmlu_pro(n: int) -> Row:
    return {
        "question": f"What is {n} squared?",
        "options": [*four(n), *four(n + 4)],
        "answer": "ABCDEFGH"[n % 8],
        "category": "math",
        "cot_content": f"A: Let's think step by step. It is known. The answer is (B){n}.",
    }


def swag(n: int) -> Row:
    endings = {f"ending{k}": text for k, text in enumerate(four(n))}
    return {"startphrase": f"She opens the {thing(n)} and", **endings, "label": n % 4}


def coqa(n: int) -> Row:
    return {
        "story": f"The {thing(n)} slept.",
        "questions": {"input_text": ["Who slept?", "Where?"]},
        "answers": {"input_text": [thing(n), "yes"]},
        "additional_answers": {"0": {"input_text": [thing(n), "at home"]}},
    }


SHAPES: Mapping[str, Callable[[int], Row]] = {
    "openai/gsm8k": gsm8k,
    "google/IFEval": ifeval,
    "cais/mmlu": mmlu,
    "allenai/ai2_arc": arc,
    "Rowan/hellaswag": hellaswag,
    "allenai/winogrande": winogrande,
    "EleutherAI/lambada_openai": lambda n: {"text": f"The {thing(n)} saw the small {thing(n)}"},
    "cimec/lambada": lambda n: {"text": f"They sold a {thing(n)} for a {thing(n + 1)}"},
    "baber/piqa": lambda n: {
        "goal": f"Clean a {thing(n)}", "sol1": "Use soap.", "sol2": f"Use {n}.", "label": n % 2
    },
    "truthfulqa/truthful_qa": truthful,
    "mandarjoshi/trivia_qa": triviaqa,
    "google-research-datasets/nq_open": lambda n: {
        "question": f"who built the {thing(n)}", "answer": ["Ada", "yes"][: 1 + n % 2]
    },
    "EleutherAI/drop": drop,
    "EleutherAI/wikitext_document_level": lambda n: {
        "page": f" = {thing(n)} = \n\n The {thing(n)} 's age is {n} @,@ 000 years . \n"
    },
    "SaylorTwift/bbh": lambda n: {"input": f"not ( True and {n % 2 > 0} ) is", "target": "yes"},
    "EleutherAI/hendrycks_math": hendrycks_math,
    "openai/openai_humaneval": humaneval,
    "google-research-datasets/mbpp": mbpp,
    "EleutherAI/race": race,
    "aps/super_glue/copa": copa,
    "aps/super_glue/wic": wic,
    "aps/super_glue/wsc.fixed": wsc,
    "aps/super_glue/record": record,
    "aps/super_glue": pairs,
    "nyu-mll/glue": pairs,
    "facebook/anli": pairs,
    "allenai/openbookqa": openbookqa,
    "tau/commonsense_qa": commonsense,
    "allenai/sciq": sciq,
    "EleutherAI/logiqa": logiqa,
    "regisss/math_qa": mathqa,
    "bigbio/pubmed_qa": lambda n: {
        "CONTEXTS": [f"Of {n} mice some slept.", "All ate."],
        "QUESTION": f"Do {n} mice sleep?",
        "final_decision": ("yes", "no", "maybe")[n % 3],
    },
    "GBaker/MedQA-USMLE-4-options-hf": medqa,
    "openlifescienceai/medmcqa": medmcqa,
    "skg/toxigen-data": lambda n: {
        "text": f"a {thing(n)} is bad", "toxicity_ai": float(n % 6), "toxicity_human": 1.0
    },
    "lighteval/siqa": lambda n: {
        "context": f"Kai gave away a {thing(n)}.", "question": "Why?", "answerA": "To help.",
        "answerB": "By error.", "answerC": f"For {n}.", "label": str(1 + n % 3)
    },
    "EleutherAI/asdiv": lambda n: {
        "body": f"Al has {n} nuts.", "question": "How many?", "answer": f"{n} (nuts)"
    },
    "nyu-mll/blimp": lambda n: {
        "sentence_good": f"Who saw the {thing(n)}?", "sentence_bad": f"Who did the {thing(n)} saw?"
    },
    "EleutherAI/coqa": coqa,
    "EleutherAI/headqa": lambda n: {
        "qtext": f"Which cell has {n} parts?", "ra": 1 + n % 4,
        "answers": [{"aid": k, "atext": text} for k, text in enumerate(four(n), 1)],
    },
    "allenai/swag": swag,
    "stanfordnlp/web_questions": lambda n: {
        "question": f"where is the {thing(n)}?", "answers": ["Rome", f"Oslo {n}"]
    },
    "TIGER-Lab/MMLU-Pro": mmlu_pro,
    "json": lambda n: {"context": f"Q: What is {n} + 1?\n\nA:", "completion": f" {n + 1}"},
    "EleutherAI/hendrycks_ethics": lambda n: {"input": f"I sold {n} rats.", "label": n % 2},
    "cambridgeltl/xcopa": copa,
}  # fmt: skip


_SPLITS: Mapping[str, tuple[str, ...]] = {
    "google/IFEval": ("train",),
    "openai/openai_humaneval": ("test",),
    "SaylorTwift/bbh": ("test",),
    "nyu-mll/glue/mnli": ("train", "validation_matched", "validation_mismatched"),
    "nyu-mll/blimp": ("train",),
    "facebook/anli": ("train_r1", "dev_r1", "test_r1"),
    "truthfulqa/truthful_qa": ("validation",),
    "TIGER-Lab/MMLU-Pro": ("validation", "test"),
}


def load_dataset(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
    """Stand in for `datasets.load_dataset`: splits without a common row."""
    return datasets.DatasetDict(_made(path, name))


@functools.cache
def _made(path: str, name: str | None) -> dict[str, datasets.Dataset]:
    whole = f"{path}/{name}"
    shape = SHAPES[whole if whole in SHAPES else path]
    found: dict[str, datasets.Dataset] = {}
    begin = 0
    for split in _SPLITS.get(whole, _SPLITS.get(path, tuple(_ROWS))):
        count = _ROWS[split.partition("_")[0]]
        found[split] = datasets.Dataset.from_list(
            [dict(shape(number)) for number in range(begin, begin + count)]
        )
        begin += count
    return found
