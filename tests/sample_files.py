"""A task and a text for the tiny models, as a user would write them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

_NOUNS = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "star", "king", "queen", "child")


def write_text(file: Path, seed: int = 0) -> Path:
    """Write a few hundred sentences of words that the tiny tokenizer knows."""
    rng = random.Random(seed)
    sentences = [f"the {rng.choice(_NOUNS)} sees a {rng.choice(_NOUNS)} ." for _ in range(400)]
    file.write_text("\n\n".join(sentences))
    return file


_YAML = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "which {{{{noun}}}} is {{{{place}}}} ? the"
doc_to_choice: ["red", "green", "blue", "old"]
doc_to_target: "{{{{right}}}}"
"""


def write_task(folder: Path) -> Path:
    """Write a user's task of 60 items as an lm-eval YAML file; its data needs no download."""
    nouns = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "king", "queen", "child")
    places = ("here", "big", "small", "good", "new", "one")
    docs = [
        {"noun": noun, "place": place, "right": (len(noun) + len(place)) % 4}
        for noun in nouns
        for place in places
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    file = folder / "colours.yaml"
    file.write_text(_YAML.format(folder=folder))
    return file


#: Names of modules that a user may have, too.
OWN_NAMES = ("serve", "offline", "loadtest", "vllm_moe_prune", "torch", "transformers", "vllm")


def write_modules(folder: Path, names: Sequence[str] = OWN_NAMES) -> Path:
    """Write modules that end whoever imports them in place of ours."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text(f"raise SystemExit('imported the user's {name}.py')\n")
    return folder
