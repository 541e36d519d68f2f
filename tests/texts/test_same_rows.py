"""The same rows give the same tokens, however they are stored: those of a few naive lines."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.calibration.corpus import Domain, load_domains, parse_calibration
from tests.texts.samples import CHATS, PACKERS, TEXTS, WRITERS, write_rows

LENGTH, COUNT = 24, 6


def load(spec: str, tokenizer: Any, **options: Any) -> Domain:
    (domain,) = load_domains(parse_calibration(f"rows={spec}:{COUNT}"), tokenizer, **options)
    return domain


def naive(documents: list[list[int]], tokenizer: Any, seed: int = 0) -> list[list[int]]:
    """Join documents in the seed's order by the end-of-text token, and cut."""
    random.Random(f"rows {seed}").shuffle(documents)
    ids = [token for document in documents for token in (*document, tokenizer.eos_token_id)]
    return np.array(ids[: LENGTH * COUNT]).reshape(COUNT, LENGTH).tolist()


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_chats(kind: str, packed: str, tmp_path: Path, tokenizer: Any) -> None:
    file = write_rows(tmp_path, CHATS, kind, packed)
    domain = load(str(file), tokenizer, length=LENGTH, seed=4)
    wanted = [
        tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"] for row in CHATS
    ]
    assert domain.token_ids.tolist() == naive(wanted, tokenizer, seed=4)


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_texts(kind: str, packed: str, tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"number": str(n), "text": f"{text} {n}"} for n, text in enumerate(TEXTS * 5)]
    file = write_rows(tmp_path, rows, kind, packed)
    domain = load(str(file), tokenizer, length=LENGTH)
    wanted = [tokenizer.encode(row["text"], add_special_tokens=False) for row in rows]
    assert domain.token_ids.tolist() == naive(wanted, tokenizer)
    other = [{"body": row["text"], "text": "no"} for row in rows]
    file = write_rows(tmp_path, other, kind, packed)
    column = load(f"{file}#body", tokenizer, length=LENGTH)
    assert (column.token_ids == domain.token_ids).all()


@pytest.mark.parametrize("packed", PACKERS)
def test_a_plain_text_is_one_document_and_a_folder_of_them_many(
    packed: str, tmp_path: Path, tokenizer: Any
) -> None:
    texts = [f"{text} {n}" for n, text in enumerate(TEXTS * 5)]
    (tmp_path / "inside").mkdir()
    for number, text in enumerate(texts):
        content = PACKERS[packed](text.encode())
        (tmp_path / "inside" / f"{number:02d}.txt{packed}").write_bytes(content)
    (tmp_path / "inside" / "README.md").write_text("what this is")
    (tmp_path / "inside" / ".hidden.txt").write_text("not this")
    (tmp_path / "inside" / "dataset_info.json").write_text("{}")
    wanted = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    folder = load(str(tmp_path / "inside"), tokenizer, length=LENGTH)
    assert folder.token_ids.tolist() == naive(list(wanted), tokenizer)
    (domain,) = load_domains(
        parse_calibration(f"{tmp_path / 'inside' / f'00.txt{packed}'}:1"), tokenizer, length=5
    )
    assert domain.name == "00" and domain.token_ids.tolist() == [wanted[0][:5]]


def test_a_folder_has_several_kinds_of_files(tmp_path: Path, tokenizer: Any) -> None:
    for number, (kind, packed) in enumerate(zip(WRITERS, [*PACKERS, ""], strict=True)):
        (tmp_path / str(number)).mkdir()
        write_rows(tmp_path / str(number), CHATS, kind, packed)
    domain = load(str(tmp_path), tokenizer, length=LENGTH)
    chats = [tokenizer.apply_chat_template(row["messages"])["input_ids"] for row in CHATS * 4]
    assert domain.token_ids.tolist() == naive(chats, tokenizer)


def test_forms_that_mean_the_same(tmp_path: Path, tokenizer: Any) -> None:
    asked, answered = "which cat runs ?", "the red cat ."
    chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    share = [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
    parts = [{"role": "user", "content": [{"type": "text", "text": asked}]}, chat[1]]
    alike: list[dict[str, Any]] = [
        {"messages": chat},
        {"messages": json.dumps(chat)},
        {"messages": parts},
        {"conversations": share},
        {"conversations": chat},
        {"instruction": asked, "output": answered},
        {"instruction": asked, "input": "", "output": answered},
        {"instruction": asked, "response": answered},
        {"prompt": chat[:1], "completion": chat[1:]},
        {"text": None, "messages": chat},
    ]
    ids = tokenizer.apply_chat_template(chat)["input_ids"] + [tokenizer.eos_token_id]
    for row in alike:
        file = write_rows(tmp_path, [row], ".jsonl")
        (domain,) = load_domains(parse_calibration(f"{file}:1"), tokenizer, length=len(ids), seed=0)
        assert domain.token_ids.tolist() == [ids], row
    plain: list[dict[str, Any]] = [
        {"prompt": f"{asked} ", "completion": answered},
        {"prompt": asked, "response": f" {answered}"},
        {"text": f"{asked} {answered}"},
    ]
    ids = tokenizer.encode(f"{asked} {answered}", add_special_tokens=False)
    for row in plain:
        file = write_rows(tmp_path, [row], ".jsonl")
        (domain,) = load_domains(parse_calibration(f"{file}:1"), tokenizer, length=len(ids))
        assert domain.token_ids.tolist() == [ids], row


def test_an_input_stands_behind_its_instruction(tmp_path: Path, tokenizer: Any) -> None:
    row = {"instruction": "which cat ?", "input": "the red one", "output": "red"}
    chat = [
        {"role": "user", "content": "which cat ?\n\nthe red one"},
        {"role": "assistant", "content": "red"},
    ]
    ids = tokenizer.apply_chat_template(chat)["input_ids"]
    file = write_rows(tmp_path, [row], ".parquet")
    (domain,) = load_domains(parse_calibration(f"{file}:1"), tokenizer, length=len(ids))
    assert domain.token_ids.tolist() == [ids]


TOOLS = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }} : {{ m.reasoning_content or '' }} {{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %} {{ c.function.name }}"
    "{% for key, value in c.function.arguments.items() %} {{ key }} {{ value }}{% endfor %}"
    "{% endfor %} {% endfor %}"
)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_tools_and_thoughts(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    from copy import deepcopy

    templated = deepcopy(tokenizer)
    templated.chat_template = TOOLS
    call = {"type": "function", "function": {"name": "sees", "arguments": {"cat": "red"}}}
    messages = [
        {"role": "user", "content": "which cat ?"},
        {"role": "assistant", "content": None, "reasoning_content": "sun", "tool_calls": [call]},
        {"role": "tool", "content": "one"},
    ]
    tools = [{"type": "function", "function": {"name": "finds", "parameters": {"type": "object"}}}]
    ids = templated.apply_chat_template(messages, tools=tools)["input_ids"]
    words = templated.decode(ids)
    assert all(word in words for word in ("finds", "sun", "sees", "cat red", "one"))
    written = {**call, "function": {"name": "sees", "arguments": '{"cat": "red"}'}}
    thought = {"role": "assistant", "thinking": "sun", "tool_calls": [written]}
    for row in (
        {"messages": messages, "tools": tools},
        {"messages": messages, "tools": json.dumps([tools[0]["function"]])},
        {"messages": [messages[0], thought, messages[2]], "tools": tools},
    ):
        file = write_rows(tmp_path, [row], kind)
        (domain,) = load_domains(parse_calibration(f"{file}:1"), templated, length=len(ids))
        assert domain.token_ids.tolist() == [ids], row
    row = {"query": "which cat ?", "tools": json.dumps(tools), "answers": json.dumps([
        {"name": "sees", "arguments": {"cat": "red"}}
    ])}  # fmt: skip
    file = write_rows(tmp_path, [row], kind)
    asked = [messages[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    ids = templated.apply_chat_template(asked, tools=tools)["input_ids"]
    (domain,) = load_domains(parse_calibration(f"{file}:1"), templated, length=len(ids))
    assert domain.token_ids.tolist() == [ids]


def test_never_takes_what_is_said_as_plain_text(tmp_path: Path, tokenizer: Any) -> None:
    file = write_rows(tmp_path, CHATS[:1], ".jsonl")
    said = "\n\n".join(message["content"] for message in CHATS[0]["messages"])
    ids = tokenizer.encode(said, add_special_tokens=False)
    (domain,) = load_domains(
        parse_calibration(f"{file}:1"), tokenizer, length=len(ids), chat_template="never"
    )
    assert domain.token_ids.tolist() == [ids]


def test_without_packing_a_sequence_is_the_beginning_of_a_document(
    tmp_path: Path, tokenizer: Any
) -> None:
    texts = [" ".join(["the", noun] * size) for size in (2, 8, 3, 9, 40)
             for noun in ("cat", "dog", "sun")]  # fmt: skip
    file = write_rows(tmp_path, [{"text": text} for text in texts], ".csv")
    (domain,) = load_domains(
        parse_calibration(f"rows={file}:9"), tokenizer, length=16, pack=False, seed=1
    )
    random.Random("rows 1").shuffle(texts)
    long = [text for text in texts if len(text.split()) + 1 >= 16]
    wanted = [tokenizer.encode(text, add_special_tokens=False)[:16] for text in long]
    ended = [[*ids, tokenizer.eos_token_id][:16] for ids in wanted]
    assert domain.token_ids.tolist() == ended
    assert domain.use is not None
    before = len(texts[: texts.index(long[-1])])  # in front of the last one that is needed
    assert domain.use.used == 9
    assert domain.use.skipped == {"shorter than 16 tokens": before + 1 - 9}
