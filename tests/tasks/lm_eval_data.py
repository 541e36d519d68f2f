"""Small data sets in the place of those that lm-evaluation-harness's tasks read from the hub."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import datasets

from tests.tasks.lm_eval_shapes import (
    Row,
    arc,
    commonsense,
    copa,
    coqa,
    drop,
    four,
    gsm8k,
    hellaswag,
    hendrycks_math,
    humaneval,
    ifeval,
    logiqa,
    mathqa,
    mbpp,
    medmcqa,
    medqa,
    mmlu,
    mmlu_pro,
    openbookqa,
    pairs,
    race,
    record,
    sciq,
    squad,
    swag,
    thing,
    triviaqa,
    truthful,
    wic,
    winogrande,
    wsc,
)

_ROWS = {"train": 9, "validation": 5, "test": 6, "dev": 5}
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
    "lighteval/squad_v2": squad,
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
