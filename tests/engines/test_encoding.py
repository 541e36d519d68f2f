"""Conversations and whole texts as tokens: those of lm-evaluation-harness's own model."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from offline.data.chat_template import check_template
from offline.engines.encoding import Encoder
from offline.engines.endpoint import EndpointLM
from offline.engines.local.scoring import PackedLM
from offline.engines.local.transformers import TransformersEngine
from tests.engines.served import Answers, requests
from tests.tiny import word_tokenizer
from vllm_moe_prune.errors import PruneError

TURNS = [
    {"role": "system", "content": "you sing"},
    {"role": "user", "content": "which cat is here ?"},
    {"role": "assistant", "content": "the red"},
    {"role": "user", "content": "and the old one"},
]
NO_SYSTEM = "{{ raise_exception('no system') if messages[0]['role'] == 'system' else 'yes' }}"


class Mute(Encoder):
    """An encoder that neither scores nor generates."""

    def _loglikelihood_tokens(self, *_: Any, **__: Any) -> Any:
        raise AssertionError

    generate_until = _loglikelihood_tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One that begins every text with a token, as Llama's and Mistral's do."""
    made = word_tokenizer(128)
    made._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert made.encode("cat")[0] == 1
    return made


@pytest.fixture
def harness(session_engine: TransformersEngine, tokenizer: Any) -> Any:
    return HFLM(
        pretrained=session_engine.model,
        tokenizer=tokenizer,
        batch_size=4,
        max_length=session_engine.max_length,
        dtype="float32",
    )


def test_a_conversation_has_the_tokens_of_a_naive_script(tokenizer: Any) -> None:
    encoder = Mute(tokenizer, 512)
    text = encoder.apply_chat_template(TURNS)
    naive = tokenizer.apply_chat_template(TURNS, tokenize=True, add_generation_prompt=True)
    assert encoder.encode_text(text) == list(naive["input_ids"])
    assert encoder.encode_text(text).count(1) == 1  # not a second <s>
    assert encoder.encode_text("which cat")[0] == 1


def test_conversations_have_the_tokens_of_lm_eval(harness: Any, tokenizer: Any) -> None:
    encoder = Mute(tokenizer, 512)
    for turns, prompted in ((TURNS, True), (TURNS[:2], True), (TURNS[:3], False)):
        text = encoder.apply_chat_template(turns, add_generation_prompt=prompted)
        assert text == harness.apply_chat_template(turns, add_generation_prompt=prompted)
        assert encoder.tok_encode(text) == harness.tok_encode(text)
        for context in (text, text + " ", "the cat", "", "<s>"):
            for continuation in (" red", "red fish", "<s> red"):
                expected = pair_of(harness, context, continuation)
                assert encoder.encode_pairs([(context, continuation)]) == [expected]
    assert encoder.tokenizer_name == harness.tokenizer_name
    assert encoder.chat_template(True) == harness.chat_template(True)


def pair_of(harness: Any, context: str, continuation: str) -> Any:
    """Return the tokens that lm-eval's model scores."""
    seen = []
    harness = copy.copy(harness)
    harness._loglikelihood_tokens = lambda found, **_: seen.extend(found)
    harness.loglikelihood(requests((context, continuation)), disable_tqdm=True)
    return tuple(seen[0][1:])


WORDS = ("the", "cat", "sees", "red", "fish", "runs", "to", "house", "in", "sun", ",", "sea")


def texts() -> list[str]:
    rng = np.random.default_rng(4)
    lengths = (1, 2, 30, 511, 512, 513, 1024, 1300)
    return ["", *(" ".join(map(str, rng.choice(WORDS, length))) for length in lengths)]


def test_whole_texts_have_the_likelihoods_of_lm_eval(
    engine: TransformersEngine, harness: Any, tokenizer: Any
) -> None:
    lm = PackedLM(engine.model, tokenizer, tokens_per_batch=600, max_length=harness.max_length)
    asked = requests(*((text,) for text in texts()))
    expected = harness.loglikelihood_rolling(asked, disable_tqdm=True)
    assert lm.loglikelihood_rolling(asked) == pytest.approx(expected, rel=1e-5)
    assert len({round(value) for value in expected}) == len(expected)
    tokens = sum(len(tokenizer.encode(text)) for text in texts() if text)
    assert lm.tokens >= tokens  # windows see again what came before them


def test_whole_texts_over_http(url: str, answers: Answers, tiny: Path) -> None:
    lm = EndpointLM.connect(url, tiny)
    asked = requests(*((text,) for text in texts()))
    expected = [-float(sum(lm.tok_encode(text))) for text in texts()]
    assert lm.loglikelihood_rolling(asked) == expected
    answers.length = 100
    with pytest.raises(PruneError, match="takes 100"):
        EndpointLM.connect(url, tiny).loglikelihood_rolling(asked)


def test_a_tokenizer_without_a_template_is_told_at_the_start(tiny: Path, tmp_path: Path) -> None:
    check_template(tiny)
    check_template(tiny, "be brief")
    shutil.copy(tiny / "tokenizer_config.json", tmp_path)
    with pytest.raises(PruneError, match="has no chat template"):
        check_template(tmp_path)
    bare = word_tokenizer(128)
    bare.chat_template = None
    with pytest.raises(PruneError, match="has no chat template"):
        Mute(bare, 512).apply_chat_template(TURNS)


@pytest.mark.parametrize("template", [NO_SYSTEM, "{{ messages[-1]['content'] }}"])
def test_a_template_that_drops_the_instruction_is_told_at_the_start(
    template: str, tmp_path: Path
) -> None:
    named = [{"name": "tool_use", "template": "?"}, {"name": "default", "template": template}]
    for config in (template, named):
        fields = {"chat_template": config}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
        check_template(tmp_path)
        with pytest.raises(PruneError, match="takes no system message"):
            check_template(tmp_path, "be brief")


def test_descriptions_are_dropped_as_lm_eval_drops_them(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = NO_SYSTEM
    assert Mute(own, 512).apply_chat_template(TURNS) == "yes"
    own.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(PruneError, match="refuses a conversation: never"):
        Mute(own, 512).apply_chat_template(TURNS)
