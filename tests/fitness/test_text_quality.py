"""Perplexity and agreement on documents: a tiny model, read for itself and beside its base."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from offline.cli import text_flags
from offline.engines.local.transformers import TransformersEngine
from offline.fitness import documents
from offline.fitness.documents import TextAsked, load_texts, parse_texts
from offline.fitness.text_quality import TextBench, qualities, read_texts
from offline.results.text_quality import TextQuality
from tests.sample_maps import uniform_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance

WORDS = ("the", "cat", "sees", "red", "fish", "runs", "to", "house", "in", "sun", "moon", "sea")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    model = make_tiny_mixtral(tmp_path_factory.mktemp("tiny"))
    return TransformersEngine(model, dtype="float32")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Thirty documents of 3 to 60 words."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 60))) for _ in range(30)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def asked(spec: str, length: int = 24, *, compared: bool = True) -> TextAsked:
    parts = parse_texts("--perplexity", spec)
    return TextAsked(parts, frozenset(p.name for p in parts) if compared else frozenset(), length)


def test_the_flags_say_what_the_defaults_are() -> None:
    assert (text_flags.DOCUMENTS, text_flags.LENGTH) == (
        documents.DEFAULT_DOCUMENTS,
        documents.DEFAULT_LENGTH,
    )


def test_documents_are_the_beginnings_of_rows(engine: TransformersEngine, rows: Path) -> None:
    (found,) = load_texts(asked(f"{rows}:20"), engine.tokenizer, 1)
    assert (found.name, len(found.texts), found.pieces) == ("rows", 20, False)
    assert all(text[0] == 1 and 2 <= len(text) <= 25 for text in found.texts)
    assert len({len(text) for text in found.texts}) > 3
    ends = [text[-1] for text in found.texts if len(text) < 25]
    assert set(ends) == {engine.tokenizer.eos_token_id}  # a document that ends says so
    (again,) = load_texts(asked(f"{rows}:20"), engine.tokenizer, 1)
    assert again == found
    (all_of_them,) = load_texts(asked(f"{rows}"), engine.tokenizer, 1)
    assert len(all_of_them.texts) == 30


def test_one_long_document_is_read_in_pieces(engine: TransformersEngine, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text(" ".join(np.random.default_rng(1).choice(WORDS, 300)))
    (found,) = load_texts(asked(f"{file}:10"), engine.tokenizer, 1)
    assert found.pieces
    assert [len(text) for text in found.texts] == [25] * 10
    joined = [token for text in found.texts for token in text[1:]]
    assert joined == engine.tokenizer.encode(file.read_text(), add_special_tokens=False)[:240]


def test_perplexity_and_agreement_are_their_definitions(
    engine: TransformersEngine, rows: Path
) -> None:
    bench = TextBench(engine, asked(f"{rows}"))
    routing_map = uniform_map(engine.folder, [(0, 2, 5)] * len(engine.expert_counts))
    (found,) = bench.measure(routing_map)
    loss, before, same, count = 0.0, 0.0, 0, 0
    for text in bench.domains[0].texts:
        targets = np.array(text[1:])[:, None]
        now = engine.logits([text[:-1]])[0].log_softmax(-1).numpy()
        engine.apply(None)
        base = engine.logits([text[:-1]])[0].log_softmax(-1).numpy()
        engine.apply(routing_map)
        loss -= np.take_along_axis(now, targets, 1).sum()
        before -= np.take_along_axis(base, targets, 1).sum()
        same += int((now.argmax(1) == base.argmax(1)).sum())
        count += len(targets)
    assert found.documents == 30 and found.tokens == count
    assert found.perplexity.value == pytest.approx(math.exp(loss / count), rel=1e-4)
    assert found.base_perplexity is not None and found.ratio is not None
    assert found.base_perplexity.value == pytest.approx(math.exp(before / count), rel=1e-4)
    assert found.ratio.value == pytest.approx(math.exp((loss - before) / count), rel=1e-4)
    assert found.ratio.low is not None and found.ratio.high is not None
    assert found.ratio.low < found.ratio.value < found.ratio.high
    assert found.same_first is not None and found.divergence is not None
    assert found.same_first.value == pytest.approx(same / count)
    assert found.divergence.value > 1e-4
    narrow = found.ratio.high - found.ratio.low
    assert found.perplexity.low is not None and found.perplexity.high is not None
    apart = (found.perplexity.high - found.perplexity.low) / found.perplexity.value
    assert narrow < apart  # of the same documents the ratio is known better


def test_the_base_is_its_own_equal_for_twenty_seeds(engine: TransformersEngine, rows: Path) -> None:
    for seed in range(20):
        bench = TextBench(
            engine, TextAsked(asked(f"{rows}:10").parts, frozenset({"rows"}), 8, seed)
        )
        (found,) = bench.measure(None)
        assert found.ratio is not None and found.same_first is not None
        assert (found.ratio.low, found.ratio.value, found.ratio.high) == (1.0, 1.0, 1.0)
        assert (found.same_first.low, found.divergence and found.divergence.high) == (1.0, 0.0)


def test_only_domains_that_are_compared_are_listed(engine: TransformersEngine, rows: Path) -> None:
    text = asked(f"one={rows}:9,two={rows}:9")
    domains = load_texts(text, engine.tokenizer, 1)
    read = read_texts(engine.reader, domains, listed=4, compared={"two"})
    own = read_texts(engine.reader, domains, listed=4, compared={"two"}, base=read)
    one, two = qualities(domains, own, read)
    assert one.same_first is None and one.ratio is not None
    assert two.same_first is not None and two.listed == 4


def test_a_file_holds_it_all(engine: TransformersEngine, rows: Path, tmp_path: Path) -> None:
    domains = TextBench(engine, asked(f"a={rows}:9,b={rows}:12")).measure(None)
    found = TextQuality(model="m", base="b", domains=domains, provenance=Provenance.now("eval"))
    found.save(tmp_path)
    assert TextQuality.load(tmp_path) == found
    assert found.worst_ratio is not None and found.worst_ratio.high == 1.0


def test_what_is_too_long_for_the_model_is_said(engine: TransformersEngine, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text(" ".join(["the"] * 4000))
    with pytest.raises(PruneError, match="--length 3000: the model takes at most 512 tokens"):
        TextBench(engine, asked(f"{file}", 3000))
