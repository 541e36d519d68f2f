"""What is trained on: never what is held out, mixed by a seed, named by content."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from offline.finetune.examples import NO_LOSS, supervised
from offline.recover.instructions import Instructions, parse_data
from offline.recover.lessons import Lesson, instruction_lessons, mix_lessons, task_lessons
from offline.recover.recipe import RecoverRecipe
from offline.recover.session import _lessons
from offline.tasks.catalog import get_task
from offline.tasks.items import Item
from offline.tasks.splits import load_items, training_items
from offline.texts.chat import ChatTemplate
from tests.recover.conftest import documents
from vllm_moe_prune.errors import PruneError


def file_lessons(file: Path, tokenizer: Any, template: ChatTemplate = "auto") -> list[Lesson]:
    (part,) = parse_data(str(file))
    return instruction_lessons(Instructions(part, tokenizer, template))


def words(text: str) -> str:
    return " ".join(re.sub(r"\W", " ", text.lower()).split())


@pytest.mark.parametrize("trained", ["colours", "colours_written"])
@pytest.mark.parametrize("measured", ["colours", "colours_written"])
def test_no_question_of_a_held_out_item_is_trained_on(
    trained: str, measured: str, tasks: dict[str, Path]
) -> None:
    learnt, tested = get_task(str(tasks[trained])), get_task(str(tasks[measured]))
    lessons = mix_lessons(task_lessons(learnt), [learnt, tested], count=None, seed=0)
    asked = {
        words(item.query)
        for task in (learnt, tested)
        for split in ("selection", "test")
        for item in load_items(task, split)
    }
    assert asked >= {words(doc["question"]) for doc in documents()[1]}
    learnt_words = {words(prompt) for prompt, _ in lessons.pairs}
    assert learnt_words and not learnt_words & asked
    assert len(lessons.pairs) + lessons.left_out == len(training_items(learnt))
    if trained != measured:  # their selection splits are ordered by their names
        assert lessons.left_out > 0


def test_training_items_are_the_search_split_and_what_it_has_no_room_for(
    tasks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offline.tasks.splits._SEARCH_ITEMS", 10)
    task = get_task(f"{tasks['colours']}@3")
    items = training_items(task)
    assert len(items) == 25  # 50 that are not in the test file, less half for selection
    assert [item.id for item in items[:7]] == [item.id for item in load_items(task, "search")]


def test_answers_follow_as_evaluations_write_them(tasks: dict[str, Path]) -> None:
    for name in tasks:
        for lesson in task_lessons(get_task(str(tasks[name]))):
            (doc,) = (d for d in documents()[0] if d["question"] == lesson.prompt)
            assert lesson.answer == f" {doc['colour']}"


def test_only_the_answer_and_the_end_of_text_have_a_loss(
    base: Path, tasks: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    task = get_task(str(tasks["colours"]))
    lessons = mix_lessons(task_lessons(task), [task], count=8, seed=0)
    examples = supervised(lessons.pairs, tokenizer, length=64, identity=lessons.identity, seed=0)
    answers = sorted(answer.strip() for _, answer in lessons.pairs)
    found = []
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        learnt = labels != NO_LOSS
        assert (ids[learnt] == labels[learnt]).all()
        assert labels[learnt][-1] == tokenizer.eos_token_id
        found.append(tokenizer.decode(labels[learnt][:-1]))
    assert sorted(found) == answers


def test_the_seed_mixes_the_sources_and_the_count_cuts_the_mixture() -> None:
    found = [Lesson(source, f"{source} {n}", f"{source} {n}", " x")
             for source in "ab" for n in range(50)]  # fmt: skip
    one, again, other = (mix_lessons(found, [], count=40, seed=seed) for seed in (0, 0, 1))
    assert one == again and one.each != other.each
    assert len(one.each) == 40
    names = [lesson.source for lesson in one.each]
    assert 5 < names.count("a") < 35 and names != sorted(names)
    assert {(d.name, d.count) for d in one.identity} == {
        ("a", names.count("a")),
        ("b", names.count("b")),
    }
    assert one.identity != other.identity


def test_nothing_left_to_train_on_is_said(tasks: dict[str, Path]) -> None:
    task = get_task(str(tasks["colours"]))
    query = load_items(task, "test")[0].query
    held = [Lesson("file", query.upper(), query, " red")]
    with pytest.raises(PruneError, match="nothing to train on: all 1 examples"):
        mix_lessons(held, [task], count=None, seed=0)


def test_instructions_and_every_turn_of_the_assistant(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    chat = [
        {"role": "user", "content": "which cat ?"},
        {"role": "assistant", "content": "the red cat"},
        {"role": "user", "content": "which dog ?"},
        {"role": "assistant", "content": "the old dog"},
    ]
    file = tmp_path / "data.jsonl"
    rows = [{"prompt": "one", "response": " two"}, {"messages": chat}]
    file.write_text("\n" + "\n".join(map(json.dumps, rows)) + "\n\n")
    first, *turns = file_lessons(file, tokenizer)
    assert first == Lesson("data.jsonl", "one", "one", " two")
    assert [turn.question for turn in turns] == ["which cat ?", "which dog ?"]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    for turn, said in zip(turns, ("the red cat", "the old dog"), strict=True):
        assert turn.prompt.endswith("<|assistant|>")
        assert turn.answer.strip() == said
        assert whole.startswith(turn.prompt + turn.answer)
    assert "the red cat" in turns[1].prompt


def test_a_token_that_the_tokenizer_adds_itself_is_not_there_twice(
    base: Path, tmp_path: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": " sees"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}))
    (lesson,) = file_lessons(tmp_path / "chat.jsonl", tokenizer)
    assert (lesson.prompt, lesson.answer) == ("the cat", " sees")
    examples = supervised(
        [(lesson.prompt, lesson.answer)], tokenizer, length=9, identity=(), seed=0
    )
    ids = examples.input_ids[0].tolist()
    assert ids.count(tokenizer.bos_token_id) == 1 and ids.count(tokenizer.eos_token_id) == 1


GOOD = '{"prompt": "a", "response": "b"}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no text"),
        ("\n \n", "holds no text"),
        (f"{GOOD}\n\n{{", "line 3 is not JSON"),
        (f"{GOOD}\n[1]", "line 2 is no object"),
        (f'{GOOD}\n{{"prompt": "a"}}', "line 2 has no text: its columns are prompt"),
        ('{"prompt": "a", "response": 3}', "line 1: `response` is no text, but a number"),
        ('{"prompt": "a", "response": " "}', "line 1: empty"),
        ('{"messages": "hello"}', "line 1: no messages with roles"),
        ('{"messages": [{"role": "user"}]}', "line 1: empty"),
        (
            '{"messages": [{"role": "user", "content": "a"}]}',
            "line 1: no turn of the role assistant",
        ),
        (f'{GOOD}\n{{"text": "a"}}', "line 2 has no answer to learn"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(
    content: str, said: str, base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text(content)
    with pytest.raises(PruneError) as error:
        file_lessons(file, AutoTokenizer.from_pretrained(base))
    assert said in error.value.message and str(file) in error.value.message


def test_sources_are_mixed_and_their_rows_counted(base: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "the cat ?"}, {"role": "assistant", "content": "a dog"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n{}\n")
    rows = "prompt,completion\nthe sun, sees\nthe sea,\nthe king, runs\nthe child, sings\n"
    (tmp_path / "pairs.csv").write_text(rows)
    data = f"{tmp_path / 'chats.jsonl'}:1,few={tmp_path / 'pairs.csv'}:3"
    for template, prompt in (("auto", "<|user|> the cat ? <|assistant|>"), ("never", "the cat ?")):
        given = {"model": base, "data": data, "chat_template": template}
        lessons = _lessons(RecoverRecipe.of(given))
        assert len(lessons.each) == 3
        assert {d.name: d.count for d in lessons.identity} == {"chats.jsonl": 1, "pairs.csv": 2}
        assert {lesson.question for lesson in lessons.each} == {"the cat ?", "the sun", "the king"}
        (own,) = (lesson for lesson in lessons.each if lesson.source == "chats.jsonl")
        assert own.prompt.strip().removeprefix("<s>") == prompt and own.answer.strip() == "a dog"
        assert lessons.use["few"].skipped == {"empty": 1} and lessons.use["few"].rows == 3


def test_messages_need_a_chat_template(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}))
    with pytest.raises(PruneError, match=r"line 1 has roles, and .* no chat template"):
        file_lessons(tmp_path / "chat.jsonl", tokenizer)


def test_an_unknown_source_is_not_answered_with_text_that_has_no_answer() -> None:
    with pytest.raises(PruneError, match="unknown source 'nope'") as error:
        parse_data("nope")
    assert error.value.hint is not None
    assert "hf:Org/Name" in error.value.hint and "stories" not in error.value.hint


def test_a_key_is_an_items_key() -> None:
    question = "Which CAT, is:  here?"
    assert Lesson("x", question, "other", " y").key == Item("1", question).key
