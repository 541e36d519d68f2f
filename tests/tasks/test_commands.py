"""Commands on tasks of lm-evaluation-harness: `eval`, `compress`, `recover`, `tasks`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from offline.results.compression import RunResult
from offline.results.recovery import Recovery
from tests.command import invoke, one_error, run
from tests.tiny import make_tiny_mixtral

_HEAD = """\
task: {name}
tag: own_colours
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
training_split: train
test_split: test
fewshot_split: train
num_fewshot: 2
doc_to_text: "{{{{question}}}}"
"""
_CHOSEN = """\
output_type: multiple_choice
doc_to_choice: ["red", "green", "blue stone", "old"]
doc_to_target: right
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}
"""
_WRITTEN = """\
output_type: generate_until
doc_to_target: colour
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 3}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: word, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
"""
WHERE = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base") / "tiny", experts=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two tasks of a user, of one tag, over 80 questions."""
    folder = tmp_path_factory.mktemp("own")
    nouns = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "king")
    colours = ("red", "green", "blue", "old")
    docs = [
        {"question": f"which {noun} is {place} ? the", "right": n % 4, "colour": colours[n % 4]}
        for place in ("here", "big", "small", "good", "new", "one", "old", "red", "top", "far")
        for n, noun in enumerate(nouns)
    ]
    for split, part in (("train", docs[:60]), ("test", docs[60:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in part))
    for name, kind in (("own_chosen", _CHOSEN), ("own_written", _WRITTEN)):
        (folder / f"{name}.yaml").write_text(_HEAD.format(name=name, folder=folder) + kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMPRUNE_CACHE", str(folder / "cache"))
        yield folder


def test_eval_says_all_metrics_of_all_tasks_of_a_tag(model: Path, folder: Path) -> None:
    done = invoke(
        "eval", "--model", model, "--task", "own_colours", "--include-path", folder, *WHERE
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("own_chosen (acc), all: test: 0.")
    assert {line.split(":")[0].strip() for line in lines[1:4]} == {"acc", "acc_norm", "mcc"}
    assert lines[4].startswith("own_written (exact_match/whole), all: test: ")
    assert [line.partition(":")[0].strip() for line in lines[5:7]] == [
        "exact_match/whole",
        "exact_match/word",
    ]
    assert lines[7].startswith("all 2 tasks: 0.")
    assert "40 items" in lines[7]


def test_eval_takes_a_metric_and_writes_json(model: Path, folder: Path) -> None:
    done = invoke(
        *("eval", "--model", model, "--task", "own_chosen", "--include-path", folder, *WHERE),
        *("--metric", "acc_norm", "--split", "search", "--limit", "5", "--json"),
    )
    found = json.loads(done.stdout)
    assert found["task"] == "own_chosen:acc_norm"
    assert found["source"] == "train"
    assert found["accuracy"] == found["metrics"]["acc_norm"]
    assert len(found["items"]) == 5
    assert {item["item"].split("-")[0] for item in found["items"]} == {"train"}


def test_compress_and_its_report_name_splits_and_metrics(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = invoke(
        *("compress", "--model", model, "--task", "own_chosen:acc_norm:2,own_written"),
        *("--include-path", folder, "--keep", "2", "--method", "frequency", "--compare", "none"),
        *("--search-items", "6", "--test-items", "8", "--out", out, "--quiet", *WHERE),
    )
    assert done.exit_code == 0, done.output
    result = RunResult.load(out)
    assert result.tasks == ("own_chosen:acc_norm", "own_written")
    assert {data.split for data in result.provenance.data} >= {"search (train)"}
    for quality in result.quality:
        assert (quality.data_split, quality.items) == ("test", 8)
        names = {"acc", "acc_norm", "mcc"} if "chosen" in quality.task else None
        assert set(quality.metrics) == (names or {"exact_match/whole", "exact_match/word"})
    page = (out / "report.html").read_text()
    assert "exact_match/word" in page and "All metrics of the tasks" in page


def test_recover_trains_on_a_task_of_lm_eval(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = invoke(
        *("recover", "--model", model, "--task", "own_chosen", "--include-path", folder),
        *("--steps", "2", "--shots", "1", "--test-items", "4", "--out", out, *WHERE),
    )
    assert done.exit_code == 0, done.output
    recovery = Recovery.load(out)
    assert [cell.mode for cell in recovery.cells] == ["zero-shot", "k-shot", "sft"]
    assert all(cell.task == "own_chosen" and cell.metrics for cell in recovery.cells)
    assert (recovery.lessons, recovery.cells[0].data_split) == (30, "test")


def test_scores_are_calibrated_on_the_items_of_a_task(folder: Path) -> None:
    from offline.tasks.catalog import Library, get_task
    from offline.tasks.splits import load_items

    items = load_items(get_task("own_chosen", Library((folder,))), "search")
    assert {item.answer for item in items} == {"red", "green", "blue stone", "old"}
    assert all(item.query.startswith("which ") and item.query.endswith("the") for item in items)


def test_a_wrong_name_is_said_within_two_seconds_of_work_and_without_torch() -> None:
    code = (
        "import sys, time; from offline.tasks.catalog import get_tasks\n"
        "try: get_tasks('gsm9k')\n"
        "except Exception as error: print(error)\n"
        "get_tasks('mmlu')\n"
        "print(time.process_time() < 4, {'torch', 'lm_eval', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, facts = done.stdout.splitlines()
    assert "unknown task 'gsm9k'" in said and "gsm8k" in said and len(said) < 300
    assert facts == "True set()"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("humaneval", "task humaneval executes what the model writes, on this machine"),
        ("gsm8k:acc", "task gsm8k has no metric 'acc'"),
        ("wikitext:word_perplexity", "word_perplexity is reported but cannot be"),
        ("mmmu_val_art", "pictures or sounds"),
        ("truthfulqa_mc1@5", "task truthfulqa_mc1 is asked without examples"),
        ("openllm/none", "unknown task 'openllm/none'"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(
    task: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = one_error(*run("eval", "--model", tmp_path, "--task", task, capsys=capsys))
    assert said in error


def test_tasks_lists_names_by_a_pattern(folder: Path) -> None:
    own = invoke("tasks", "own_[cw]*", "--include-path", folder).stdout.splitlines()
    assert [line.split()[:2] for line in own] == [
        ["own_chosen", "choice"],
        ["own_colours", "tag"],
        ["own_written", "generate"],
    ]
    assert "acc, acc_norm, mcc  train, test  2 examples" in own[0]
    found = json.loads(invoke("tasks", "humaneval", "--json").stdout)
    assert found[0] == {
        "name": "humaneval",
        "kind": "generate",
        "metrics": ["pass_at_k"],
        "splits": ["test"],
        "executes code": True,
    }
    built_in = invoke("tasks").stdout.splitlines()
    assert len(built_in) == 17 and built_in[0].startswith("sciq ")


def test_a_group_changes_its_tasks_also_by_functions(folder: Path) -> None:
    from offline.tasks.catalog import Library, get_tasks
    from offline.tasks.splits import load_items

    (folder / "words.py").write_text("def asked(doc):\n    return doc['question'].upper()\n")
    (folder / "family.yaml").write_text(
        "group: own_family\ndoc_to_text: !function words.asked\n"
        "task:\n  - own_written\n  - {task: own_chosen, num_fewshot: 0}\n"
    )
    found = get_tasks("own_family", Library((folder,)))
    assert [(task.name, task.shots) for task in found] == [
        ("own_family/own_written", 2),
        ("own_family/own_chosen", 0),
    ]
    for task in found:
        assert load_items(task, "test")[0].query.startswith("WHICH ")
    by_path = get_tasks(str(folder / "family.yaml"))
    assert by_path == found


def test_a_perplexity_is_reported_and_no_fitness(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = 'output_type: loglikelihood_rolling\ndoc_to_target: "{{question}}"\n'
    text = _HEAD.replace('"{{{{question}}}}"', '""').replace("num_fewshot: 2\n", "")
    (folder / "own_text.yaml").write_text(text.format(name="own_text", folder=folder) + fields)
    asked = ("--model", model, "--task", "own_text", "--include-path", folder, *WHERE)
    lines = invoke("eval", *asked, "--limit", "4").stdout.splitlines()
    assert lines[0] == "own_text, all: test (4 items)"
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    values = {line.split(":")[0].strip(): float(line.split(":")[1]) for line in lines[1:]}
    assert set(values) == set(names) and min(values.values()) > 0
    found = json.loads(invoke("eval", *asked, "--limit", "4", "--json").stdout)
    assert found["accuracy"] is None and found["items"][0]["correct"] is None
    words = ("compress", *asked, "--keep", "2", "--out", tmp_path / "out")
    error = one_error(*run(*words, capsys=capsys))
    assert error.startswith("task own_text has no metric with a value for every item: word_perp")
