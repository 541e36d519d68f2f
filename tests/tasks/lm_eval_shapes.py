"""Rows in the shapes of data sets that lm-evaluation-harness's tasks read, each by its number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
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


def squad(n: int) -> Row:
    return {
        "id": str(n),
        "title": "Things",
        "context": f"The {thing(n)} was lost in {n}.",
        "question": f"When was the {thing(n)} lost?",
        "answers": {"text": [str(n)] if n % 2 else [], "answer_start": [0] if n % 2 else []},
    }
