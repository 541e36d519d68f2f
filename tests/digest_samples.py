"""A tiny model, texts and tasks for the digests; what stands here never changes."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.tiny import make_tiny_mixtral


def write_samples(folder: Path) -> None:
    """Write a tiny model, two texts and two tasks (answers chosen, answers written)."""
    small = {"hidden": 32, "heads": 1, "kv_heads": 1, "intermediate": 48}
    make_tiny_mixtral(folder / "model", **small)
    nouns = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "king", "queen", "child", "star")
    for seed, name in enumerate(("prose", "other")):
        rng = random.Random(seed)
        pairs = [(rng.choice(nouns), rng.choice(nouns)) for _ in range(800)]
        text = "\n\n".join(f"the {one} sees a {other} ." for one, other in pairs)
        (folder / f"{name}.txt").write_text(text)
    colours = ("red", "green", "blue", "old")
    items = [
        {"question": f"which {noun} is {place} ? the", "right": n % 4, "colour": colours[n % 4]}
        for place in ("here", "big", "small", "good", "new", "one", "old", "red")
        for n, noun in enumerate(nouns)
    ]
    for split, part in (("train", items[:66]), ("test", items[66:])):
        lines = "".join(json.dumps(item) + "\n" for item in part)
        (folder / f"{split}.jsonl").write_text(lines)
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    common = (
        f"dataset_path: json\ntraining_split: train\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {json.dumps(files)}}}\n"
        'doc_to_text: "{{question}}"\n'
    )
    (folder / "colours.yaml").write_text(
        f"task: colours\noutput_type: multiple_choice\ndoc_to_target: right\n"
        f"doc_to_choice: {json.dumps(colours)}\n{common}"
    )
    (folder / "written.yaml").write_text(
        f"task: written\noutput_type: generate_until\ndoc_to_target: colour\n"
        'generation_kwargs: {until: ["\\n", "."], max_gen_toks: 3}\n'
        f"metric_list: [{{metric: exact_match}}]\n{common}"
    )
