"""`vmprune eval` of plain text, and `compress --gate`: what they print, write and end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.engines.local.transformers import TransformersEngine
from offline.results.gates import GatesResult
from offline.results.text_quality import TextQuality
from tests.command import invoke
from tests.engines.served import Answers, serving
from tests.sample_files import write_task
from tests.sample_maps import uniform_map

WHERE = ("--device", "cpu", "--dtype", "float32")
KEPT = [(0, 2, 5, 7)] * 4


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ("the", "cat", "sees", "red", "fish", "runs", "to", "house", "in", "sun", "sea")
    texts = [" ".join(rng.choice(words, rng.integers(3, 40))) for _ in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def test_a_map_is_read_beside_its_base(base: Path, rows: Path, tmp_path: Path) -> None:
    uniform_map(base, KEPT).save(tmp_path / "map")
    words = ("eval", "--model", base, "--map", tmp_path / "map", "--agreement", f"prose={rows}")
    done = invoke(*words, "--save", tmp_path / "map", *WHERE)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("prose: perplexity ")
    for part in ("; base ", ", ratio ", "; same first token 0.", ", KL ", "; 20 documents, "):
        assert part in done.stdout
    found = TextQuality.load(tmp_path / "map")
    assert found.base == str(base)
    assert found.domains[0].divergence is not None


def test_two_checkpoints_are_compared_and_json_is_a_line(base: Path, rows: Path) -> None:
    words = ("eval", "--model", base, "--base", base, "--perplexity", f"prose={rows}:12")
    done = invoke(*words, "--length", "9", "--seed", "3", "--json", *WHERE)
    found = json.loads(done.stdout)
    (domain,) = found["domains"]
    assert domain["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert "same_first" not in domain
    assert domain["documents"] == 12 and domain["tokens"] <= 12 * 9
    assert found["provenance"]["settings"] == {"length": 9, "text": [rows.name]}


def test_a_server_is_compared_with_its_base(base: Path, rows: Path) -> None:
    """The server makes the base's own distributions, of which it tells twenty."""
    engine = TransformersEngine(base, dtype="float32")

    def change(reply: dict[str, Any]) -> dict[str, Any]:
        found = reply["choices"][0]["logprobs"]
        ids = [int(name.partition(":")[2]) for name in found["tokens"][:-1]]
        listed, tokens = engine.logits([ids])[0].log_softmax(-1).sort(descending=True)
        for place in range(1, len(ids)):
            names = [f"token_id:{token}" for token in tokens[place - 1].tolist()]
            row = dict(zip(names, listed[place - 1].tolist(), strict=True))
            own = f"token_id:{ids[place]}"
            found["token_logprobs"][place] = row[own]
            kept = {*names[:20], own}
            found["top_logprobs"][place] = {n: v for n, v in row.items() if n in kept}
        return reply

    with serving(Answers(change=change)) as url:
        words = ("eval", "--model", base, "--endpoint", url, "--base", base, "--length", "12")
        done = invoke(*words, "--agreement", f"{rows}:10", "--json")
        other = invoke("eval", "--model", base, "--base", url, "--agreement", f"{rows}:10",
                       "--length", "12", "--json", *WHERE)  # fmt: skip
    (domain,) = json.loads(done.stdout)["domains"]
    assert domain["ratio"]["value"] == pytest.approx(1, abs=1e-4)
    assert domain["same_first"]["value"] > 0.99
    assert domain["divergence"]["value"] < 1e-4
    assert domain["divergence_is_least"] and domain["listed"] == 20
    (domain,) = json.loads(other.stdout)["domains"]
    assert domain["divergence"]["value"] < 1e-4 and not domain["divergence_is_least"]


def compress(base: Path, tmp_path: Path, gates: str) -> Any:
    (tmp_path / "gates.yaml").write_text(gates)
    return invoke(
        *(
            "compress",
            "--model",
            base,
            "--task",
            write_task(tmp_path),
            "--keep",
            "4",
            "--method",
            "frequency",
        ),
        *("--compare", "none", "--search-items", "4", "--test-items", "20", "--out"),
        *(tmp_path / "out", "--force", "--gate", tmp_path / "gates.yaml", *WHERE),
    )


@pytest.mark.parametrize(
    ("limits", "code", "verdict"),
    [
        ("perplexity_ratio: 9\naccuracy_drop: 1", 0, "pass"),
        ("agreement: 1", 1, "fail"),
        ("perplexity_ratio: 9\nloops: 0.1", 3, "undecided"),
    ],
)
def test_compress_ends_with_what_its_gates_say(
    limits: str, code: int, verdict: str, base: Path, rows: Path, tmp_path: Path
) -> None:
    done = compress(base, tmp_path, f"text: prose={rows}\n{limits}\n")
    assert done.exit_code == code, done.output
    assert f"gates: {verdict}" in done.stdout
    result = GatesResult.load(tmp_path / "out")
    assert result.verdict == verdict
    assert (tmp_path / "out" / "text_quality.json").is_file()
    measured = {gate.measure for gate in result.gates if gate.measured is not None}
    assert measured == {line.partition(":")[0] for line in limits.splitlines()} - {"loops"}
