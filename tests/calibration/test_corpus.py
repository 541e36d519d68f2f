"""Text to calibrate on: which parts, how it is cut, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.calibration.corpus import Domain, load_domains, parse_calibration
from offline.data import domains as demo
from offline.tasks.catalog import get_task
from offline.tasks.splits import load_items
from tests.sample_files import write_task
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.errors import PruneError

WORDS = ("cat dog bird fish tree sun", "one two three four five six red", "king queen child")
EOS = 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tiny_mixtral(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    file = tmp_path / "prose.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
    return file


def load(spec: str, tokenizer: Any, **options: Any) -> tuple[Domain, ...]:
    return load_domains(parse_calibration(spec, 2), tokenizer, **options)


def test_documents_are_joined_by_the_end_of_text_and_cut_without_loss(
    lines: Path, tokenizer: Any
) -> None:
    (domain,) = load(f"{lines}:3", tokenizer, length=6)
    assert domain.name == "prose" and domain.token_ids.shape == (3, 6)
    documents = [tokenizer.encode(text, add_special_tokens=False) for text in WORDS]
    flat, found = domain.token_ids.flatten().tolist(), []
    while flat:  # every document is there whole, but the last may be cut
        end = flat.index(EOS) if EOS in flat else len(flat)
        found.append(flat[:end])
        flat = flat[end + 1 :]
    assert len(found) == 3
    for piece in found[:2]:
        assert piece in documents
    assert any(document[: len(found[2])] == found[2] for document in documents)


def test_the_seed_gives_the_order_and_the_identity(lines: Path, tokenizer: Any) -> None:
    orders = {}
    for seed in range(12):
        (domain,) = load(f"{lines}:3", tokenizer, length=6, seed=seed)
        (again,) = load(f"{lines}:3", tokenizer, length=6, seed=seed)
        assert np.array_equal(domain.token_ids, again.token_ids)
        assert domain.identity == again.identity and domain.identity.count == 3
        orders[domain.token_ids.tobytes()] = domain.identity.sha256
    assert 2 <= len(orders) <= 6
    assert len(set(orders.values())) == len(orders)


def test_a_plain_text_file_is_one_document(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "own.txt").write_text("\n\n".join(WORDS))
    (domain,) = load(f"story={tmp_path / 'own.txt'}:4", tokenizer, length=4)
    whole = tokenizer.encode(" ".join(WORDS), add_special_tokens=False)
    assert domain.name == "story"
    assert domain.token_ids.flatten().tolist() == whole[:16]


def test_a_task_gives_its_search_items_with_their_right_answers(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    file = write_task(tmp_path)
    (domain,) = load(f"task:{file}:2", tokenizer, length=20)
    assert domain.name == "colours" and domain.identity.split == "search"
    items = load_items(get_task(str(file)), "search")
    texts = [
        tokenizer.encode(f"{item.query} {item.choices[item.gold]}", add_special_tokens=False)
        for item in items
    ]
    flat = domain.token_ids.flatten().tolist()
    assert flat[: flat.index(EOS)] in texts


def test_a_demo_domain_is_its_train_side(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = demo.Corpus(train=list(WORDS), heldout=["green blue"])
    asked: list[Any] = []

    def load_corpora(seed: int = 0, names: Any = demo.DOMAINS) -> dict[str, demo.Corpus]:
        asked.extend(names)
        return dict.fromkeys(names, corpus)

    monkeypatch.setattr(demo, "load_corpora", load_corpora)
    (domain,) = load("code:3", tokenizer, length=6)
    green = tokenizer.encode("green", add_special_tokens=False)[0]
    assert asked == ["code"] and domain.identity.split == "train"
    assert green not in domain.token_ids


def test_mixtures_and_defaults(lines: Path) -> None:
    parts = parse_calibration(f"code:256, {lines} ,x=task:sciq:4", 7)
    assert [(p.name, p.sequences) for p in parts] == [("code", 256), ("prose", 7), ("x", 4)]
    default = parse_calibration("default:5")
    assert [p.name for p in default] == [
        *("code", "maths", "everyday", "stories", "science", "encyclopedia")
    ]
    assert {p.sequences for p in default} == {5}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cod", "unknown source 'cod'"),
        ("task:sci", "unknown task 'sci'"),
        ("nowhere.txt", "no text file at nowhere.txt"),
        ("code:0", "at least one sequence"),
        ("code,code:5", "two domains are called code"),
        ("mine=default", "several domains"),
        ("", "cannot read ''"),
        ("code,,maths", "cannot read ''"),
        ("a=b=c", "cannot read 'a=b=c'"),
    ],
)
def test_what_is_no_calibration_is_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(PruneError, match=message) as caught:
        parse_calibration(spec)
    explains_itself = message.startswith(("no text file", "at least one", "several domains"))
    assert (caught.value.hint is None) == explains_itself


def test_a_task_that_executes_answers_is_text_like_any_other() -> None:
    (part,) = parse_calibration("task:humaneval")
    assert (part.name, part.source) == ("humaneval", "task:humaneval")


def test_too_little_text_says_how_much_there_is(lines: Path, tokenizer: Any) -> None:
    with pytest.raises(PruneError, match="domain prose has text for 3 sequences of 6 tokens") as e:
        load(f"{lines}:4", tokenizer, length=6)
    assert e.value.hint is not None and e.value.hint.endswith(":3")
    with pytest.raises(PruneError, match="for 0 sequences of 100 tokens"):
        load(f"{lines}:1", tokenizer, length=100)
