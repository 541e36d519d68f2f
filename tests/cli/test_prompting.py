"""Chat templates, thinking and decoding as flags: in process, over HTTP, in recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from transformers import AutoTokenizer

from offline.cli.main import cli
from offline.compress.prepared import Prepared
from offline.compress.recipe.reading import recipe_of
from offline.recover.lessons import task_lessons
from offline.recover.recipe import RecoverRecipe
from offline.tasks.prompting import Prompting
from offline.tasks.splits import training_items
from tests.engines.served import Answers, serving
from tests.sample_files import write_docs, write_task_file
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.errors import PruneError

CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{[answer, 'blue cat']}}"
doc_to_target: 0
"""
WRITTEN = """\
output_type: generate_until
doc_to_text: "{{number}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""
COUNT = 12
CHAT = {
    "apply_chat_template": True,
    "system_instruction": "you sing",
    "think_end": "</think>",
    "gen_kwargs": "temperature=0.6,seed=3",
    "max_gen_tokens": 50,
}


OFTEN = """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
repeats: 3
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: true, temperature: 0.7}
filter_list: [{name: vote, filter: [{function: majority_vote}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tasks")
    docs = [
        {"question": f"which cat is w{90 + n} ?", "number": n, "answer": f"w{40 + n}"}
        for n in range(COUNT)
    ]
    write_docs(folder, docs)
    write_task_file(folder, "choose", CHOICE)
    write_task_file(folder, "write", WRITTEN)
    write_task_file(folder, "often", OFTEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMPRUNE_CACHE", str(folder / "cache"))
        yield folder


def evaluated(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["eval", *map(str, arguments), "--json"], catch_exceptions=False)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def said(*arguments: object) -> str:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)], catch_exceptions=False).output


def refusal(*arguments: object) -> PruneError:
    with pytest.raises(PruneError) as caught:
        evaluated(*arguments)
    return caught.value


CHAT_FLAGS = ("--apply-chat-template", "--think-end", "</think>", "--max-gen-tokens", 50)


def test_a_model_that_thinks_gets_its_points_over_http(model: Path, folder: Path) -> None:
    says = [{"content": f"<think>\nw{39 + n}?</think>\n\nw{40 + n}"} for n in range(COUNT)]
    says[1::2] = [{"content": "<think>\nw40"}] * (COUNT // 2)  # never end their thinking
    answers = Answers(says=says)
    with serving(answers) as url:
        asked = ("--endpoint", url, "--model", model, "--task", folder / "write.yaml")
        found = evaluated(*asked, *CHAT_FLAGS)
        numbers = [int(body["messages"][-1]["content"]) for body in answers.asked]
        assert set(answers.paths) == {"/v1/chat/completions"}
        odd = sum(number % 2 for number in numbers)
        assert 0 < odd == found["unfinished"]
        assert found["accuracy"] == pytest.approx(1 - odd / len(numbers))
        assert {body["max_tokens"] for body in answers.asked} == {50}
        assert found["prompting"] == {
            "apply_chat_template": True,
            "think_end": "</think>",
            "max_gen_tokens": 50,
        }
        plain = evaluated(*asked)
        assert "prompting" not in plain and answers.paths[-1] == "/v1/completions"


def test_how_many_never_ended_their_thinking_is_said(model: Path, folder: Path) -> None:
    with serving(Answers(says=[{"content": "w40"}] * COUNT)) as url:
        asked = ("--endpoint", url, "--model", model, "--task", folder / "write.yaml")
        text = said(*asked, *CHAT_FLAGS)
        assert "generations never ended their thinking (</think>) and count as no answer" in text
        assert "never" not in said(*asked, "--apply-chat-template")


def test_choices_over_http_are_those_of_a_naive_script(model: Path, folder: Path) -> None:
    task = ("--model", model, "--task", folder / "choose.yaml", "--apply-chat-template")
    answers = Answers()
    with serving(answers) as url:
        evaluated("--endpoint", url, *task, "--system-instruction", "you sing")
    assert set(answers.paths) == {"/v1/completions"}
    tokenizer = AutoTokenizer.from_pretrained(model)
    naive = set()
    for n in range(COUNT):
        turns = [
            {"role": "system", "content": "you sing"},
            {"role": "user", "content": f"which cat is w{90 + n} ?"},
        ]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        naive |= {(*ids, *tokenizer.encode(choice)) for choice in (f"w{40 + n}", "blue cat")}
    assert len(answers.asked) > 2
    assert {tuple(body["prompt"]) for body in answers.asked} <= naive


def test_in_process(model: Path, folder: Path) -> None:
    task = ("--model", model, "--task", folder / "write.yaml", "--dtype", "float32")
    plain = evaluated(*task, "--max-gen-tokens", 5)
    chat = evaluated(*task, "--max-gen-tokens", 5, "--apply-chat-template")
    assert plain["items"] != chat["items"]
    assert "unfinished" not in chat
    lost = evaluated(*task, "--max-gen-tokens", 5, "--think-end", "</think>")
    assert lost["unfinished"] == len(lost["items"])
    assert {item["prediction"] for item in lost["items"]} == {""}
    warm = [evaluated(*task, "--gen-kwargs", f"temperature=2,seed={n}")["items"] for n in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gen-kwargs", "presence_penalty=1"), "the generation option 'presence_penalty' is not"),
        (("--gen-kwargs", "temperature"), "'temperature' is no KEY=VALUE"),
        (("--gen-kwargs", "top_p=2"), "top_p is 2"),
        (("--max-gen-tokens", 0), "--max-gen-tokens: "),
        (("--think-end", ""), "think-end"),
        (("--fewshot-as-multiturn",), "--fewshot-as-multiturn needs --apply-chat-template"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: tuple[object, ...], message: str, model: Path, folder: Path
) -> None:
    found = refusal("--model", model, "--task", folder / "write.yaml", *flags).message
    assert message in found and "\n" not in found
    given = {str(flags[0])[2:].replace("-", "_"): flags[1] if len(flags) > 1 else True}
    with pytest.raises(PruneError) as caught:
        recipe_of({"model": model, "keep": 4, **given})
    assert "\n" not in caught.value.message
    assert message.strip("-: ") in caught.value.message.replace("_", "-") or message in str(caught)
    with pytest.raises(PruneError):
        RecoverRecipe.of({"model": model, "task": "sciq", **given})


def test_greedy_answers_to_a_question_that_is_asked_often_are_refused(model: Path) -> None:
    greedy = ("--gen-kwargs", "do_sample=false")
    found = refusal("--model", model, "--task", "humaneval_64", *greedy).message
    assert "asks every question 64 times, and greedy answers are the same" in found
    assert (
        "executes what the model writes"
        in refusal("--model", model, "--task", "humaneval_64").message
    )


def test_an_answer_longer_than_the_model_sees_is_refused_at_the_start(
    model: Path, folder: Path
) -> None:
    task = folder / "write.yaml"
    found = refusal("--model", model, "--task", task, "--max-gen-tokens", 512).message
    assert found.startswith("--max-gen-tokens 512: ") and "sees 512 tokens" in found


def test_a_tokenizer_without_a_template_is_refused_at_the_start(
    folder: Path, tmp_path: Path
) -> None:
    model = make_tiny_mixtral(tmp_path / "model")
    for file in model.glob("*.safetensors"):
        file.unlink()  # nothing may be loaded before
    (model / "chat_template.jinja").unlink()
    task = folder / "write.yaml"
    message = "has no chat template"
    assert message in refusal("--model", model, "--task", task, "--apply-chat-template").message


def test_recipes_carry_the_same_settings(model: Path, folder: Path, tmp_path: Path) -> None:
    task = str(folder / "write.yaml")
    flags = {"model": model, "keep": 4, "method": "random", "task": task}
    file = tmp_path / "recipe.yaml"
    sections = {
        "base": {"model": str(model)},
        "method": {"name": "random", "keep": 4},
        "data": {"task": task},
        "prompting": CHAT,
    }
    file.write_text(yaml.safe_dump(sections))
    by_file, by_flags = recipe_of({}, file), recipe_of({**flags, **CHAT})
    assert by_file == by_flags
    prepared = Prepared.of(by_file)
    expected = Prompting(True, "you sing", think_end="</think>", max_gen_tokens=50,
                         gen_kwargs="temperature=0.6,seed=3")  # fmt: skip
    (entry,) = prepared.objective.tasks
    assert entry.task.prompting == expected
    assert {**prepared.provenance.settings, **CHAT} == prepared.provenance.settings
    assert prepared.identity() != Prepared.of(recipe_of(flags)).identity()
    assert not {*CHAT} & {*recipe_of(flags).settings()}


def test_what_is_trained_on_is_asked_as_what_is_measured(model: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    names = {"model": model, "task": str(folder / "choose.yaml")}
    recipe = RecoverRecipe.of({**names, **CHAT})
    (task,) = recipe.trained
    assert recipe.measured == recipe.trained and task.prompting == recipe.prompting
    item = training_items(task)[0]
    turns = [{"role": "system", "content": "you sing"}, {"role": "user", "content": item.query}]
    lesson = task_lessons(task, tokenizer)[0]
    naive = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert (lesson.prompt, lesson.answer) == (naive, item.answer)
    (plain,) = RecoverRecipe.of(names).trained
    lesson = task_lessons(plain)[0]
    assert (lesson.prompt, lesson.answer) == (item.query, f" {item.answer}")


def test_a_question_that_is_asked_often_is_asked_with_seeds_of_its_own(
    model: Path, folder: Path
) -> None:
    answers = Answers()
    with serving(answers) as url:
        task = ("--model", model, "--task", folder / "often.yaml", "--limit", 1)
        found = evaluated("--endpoint", url, *task)
    assert len(found["items"]) == 1
    assert len({body["seed"] for body in answers.asked}) == len(answers.asked) == 3
    assert {body["temperature"] for body in answers.asked} == {0.7}
