"""Whatever a row holds ends as tokens, as a counted skip, or as one line that names its place."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline.calibration.corpus import Domain, load_domains, parse_calibration
from offline.recover.instructions import Instructions, parse_data
from offline.tasks.catalog import Task
from offline.tasks.texts import read_passages
from tests.texts.samples import PACKERS, WRITERS, as_parquet, write_rows
from vllm_moe_prune.errors import PruneError

LENGTH = 4
# Text: of all characters, half ones among them, and what is a control token elsewhere.
TEXT = st.one_of(
    st.sampled_from(["", " ", "\n\t", "\u3000", "the cat", "</s>", "<|user|> the </s> cat", "\0",
                     "\ud800", "a\udfff b", "\ufeff", "the cat sees a dog . " * 3, "\u2028", "é"]),
    st.text(st.characters(exclude_categories=()), max_size=12),
)  # fmt: skip
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROLE = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "", "king"]) | JUNK
CALLS = st.none() | st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXT, "arguments": JUNK})}),
    max_size=2,
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLE,
        "content": TEXT | JUNK,
        "tool_calls": CALLS | JUNK,
        "reasoning_content": JUNK,
        "from": ROLE,
        "value": TEXT | JUNK,
    },
)
MESSAGES = st.lists(MESSAGE, max_size=4) | JUNK | st.lists(MESSAGE, max_size=2).map(json.dumps)
_NAMES = ("prompt", "completion", "response", "instruction", "input", "output", "query", "answers")
ROW = st.one_of(
    st.fixed_dictionaries({"text": TEXT}),
    st.fixed_dictionaries({"text": TEXT | JUNK}),
    st.fixed_dictionaries({"messages": MESSAGES}, optional={"tools": JUNK}),
    st.fixed_dictionaries({"conversations": MESSAGES}),
    st.dictionaries(st.sampled_from(_NAMES), TEXT | JUNK, max_size=4),
    st.dictionaries(TEXT, JUNK, max_size=3),
    JUNK,
)


def _lines(rows: list[Any], broken: list[bytes]) -> bytes:
    """Write some rows, and what is none, on lines of their own."""
    lines = [json.dumps(row).encode() for row in rows]
    for number, junk in enumerate(broken):
        lines.insert(number * 2, junk)
    return b"\n".join(lines)


def _parquet(rows: list[Any]) -> bytes:
    """Write what Arrow takes of some rows."""
    try:
        return as_parquet([row for row in rows if isinstance(row, dict) and row])
    except (pa.ArrowException, UnicodeError, OverflowError, IndexError, ValueError, TypeError):
        return b"PAR1 what is this PAR1"


def _csv(rows: list[Any]) -> bytes:
    head, *cells = [json.dumps(row, ensure_ascii=False) for row in rows] or [""]
    return "\n".join(["text", head, *cells]).encode(errors="surrogatepass")


ROWS = st.lists(ROW, max_size=6)
BROKEN = st.lists(
    st.binary(max_size=20)
    | st.sampled_from(
        [
            *(
                b"{",
                b"[" * 99_999,
                b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}",
                b"1" * 9999,
                b"\xff",
                b"\xef\xbb\xbf{}",
            ),
            *(b'{"text": "the', b"NaN", b"\r", b"null"),
        ]
    ),
    max_size=2,
)
FILES: dict[str, st.SearchStrategy[bytes]] = {
    ".jsonl": st.builds(_lines, ROWS, BROKEN),
    ".json": st.one_of(
        ROWS.map(lambda rows: json.dumps(rows).encode()), st.builds(_lines, ROWS, BROKEN)
    ),
    ".csv": ROWS.map(_csv) | st.binary(max_size=200),
    ".parquet": ROWS.map(_parquet) | st.binary(max_size=60),
    ".txt": TEXT.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=60),
}
CASES = st.sampled_from(list(FILES)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.sampled_from(["", ".gz"]), FILES[kind])
)


def outcome(read: Callable[[], Any], file: Path) -> Any:
    """Return what was read, or None where one line says why not."""
    try:
        return read()
    except PruneError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1, lines
        assert file.name in str(error) or f"domain {file.name.partition('.')[0]}" in str(error)
        return None


def check(kind: str, packed: str, content: bytes, tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows{kind}{packed}"
        file.write_bytes(gzip.compress(content) if packed else content)

        def domains() -> tuple[Domain, ...]:
            return load_domains(parse_calibration(f"{file}:1"), tokenizer, length=LENGTH)

        found = outcome(domains, file)
        if found is not None:
            (domain,) = found
            use = domain.use
            assert domain.token_ids.shape == (1, LENGTH)
            assert ((domain.token_ids >= 0) & (domain.token_ids < len(tokenizer))).all()
            assert use is not None and use.used >= 1 and use.tokens == LENGTH
            assert use.rows == use.used + sum(use.skipped.values())

        def lessons() -> list[Any]:
            (part,) = parse_data(str(file))
            return list(Instructions(part, tokenizer).read())

        for _, prompt, answer in outcome(lessons, file) or ():
            assert answer.strip()
            (prompt + answer).encode()
        task = Task("rows", "agreement", kind="text", text=file)
        passages = outcome(lambda: read_passages(task), file)
        assert passages is None or all(item.query.strip() for item in passages)


LAW = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@LAW
@given(case=CASES)
def test_every_file_ends_in_one_of_three_ways(case: tuple[str, str, bytes], tokenizer: Any) -> None:
    check(*case, tokenizer)


@pytest.mark.slow
@settings(LAW, max_examples=2000)
@given(case=CASES)
def test_2000_files_end_in_one_of_three_ways(case: tuple[str, str, bytes], tokenizer: Any) -> None:
    check(*case, tokenizer)


def test_empty_rows_are_no_text(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text('{"text": ""}\n{"text": " \\n"}\n{"text": null}\n' * 200)
    with pytest.raises(PruneError) as error:
        load_domains(parse_calibration(f"{file}:1"), tokenizer, length=8)
    assert "600 of 600 rows were skipped" in error.value.message
    assert "empty.jsonl line" in error.value.message and ": empty" in error.value.message


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_rows_are_counted_by_their_reasons(
    kind: str, packed: str, tmp_path: Path, tokenizer: Any
) -> None:
    rows = [{"text": text} for text in ("the cat", "", "a dog", "  ", "the queen")]
    file = write_rows(tmp_path, rows, kind, packed)
    (domain,) = load_domains(parse_calibration(f"{file}:3"), tokenizer, length=3)
    assert domain.use is not None
    assert domain.use.used == 3 and set(domain.use.skipped) <= {"empty"}
    assert domain.use.rows == 3 + sum(domain.use.skipped.values())
    assert "3 rows" in domain.use.told and "9 tokens" in domain.use.told


def test_control_tokens_that_are_written_as_text_are_text(tmp_path: Path, tokenizer: Any) -> None:
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    (tmp_path / "a.txt").write_text("the cat </s> sees <|user|> a <s> dog " * 4)
    rows: list[dict[str, Any]] = [
        {"prompt": "the </s>", "completion": "<|assistant|> cat " * 9},
    ]
    for file in (tmp_path / "a.txt", write_rows(tmp_path, rows, ".jsonl")):
        (domain,) = load_domains(parse_calibration(f"{file}:1"), tokenizer, length=30)
        assert not control & set(domain.token_ids.flatten().tolist())
    assert control & set(tokenizer.encode("the cat </s>", add_special_tokens=False))
    assert tokenizer.split_special_tokens is False
    chat = write_rows(tmp_path, [{"messages": [{"role": "user", "content": "the cat"}]}], ".json")
    (domain,) = load_domains(parse_calibration(f"{chat}:1"), tokenizer, length=4)
    assert tokenizer.convert_tokens_to_ids("<|user|>") in domain.token_ids


def test_a_chat_that_the_template_refuses_is_counted_with_its_reason(
    tmp_path: Path, tokenizer: Any
) -> None:
    from copy import deepcopy

    strict = deepcopy(tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
        "{{ raise_exception('Only user and assistant\nroles are known') }}{% endif %}"
        "{{ m.content }} {% endfor %}"
    )
    good = {"messages": [{"role": "user", "content": "the cat sees a dog"}]}
    bad = {"messages": [{"role": "king", "content": "the cat sees a dog"}]}
    file = write_rows(tmp_path, [bad, good, bad, good, bad], ".parquet")
    (domain,) = load_domains(parse_calibration(f"{file}:2"), strict, length=5)
    assert domain.use is not None and domain.use.used == 2
    assert set(domain.use.skipped) <= {"refused by the chat template"}
    file = write_rows(tmp_path, [bad], ".jsonl")
    with pytest.raises(
        PruneError, match=r"rows\.jsonl line 1: refused by the chat template \(Only"
    ):
        load_domains(parse_calibration(f"{file}:1"), strict, length=5)


def test_roles_without_a_template_are_said_before_anything_else(
    tmp_path: Path, tokenizer: Any
) -> None:
    from copy import deepcopy

    bare = deepcopy(tokenizer)
    bare.chat_template = None
    file = write_rows(tmp_path, [{"instruction": "which cat ?", "output": "red"}], ".csv")
    with pytest.raises(
        PruneError, match=r"rows\.csv row 1 has roles, and .* no chat template"
    ) as e:
        load_domains(parse_calibration(f"{file}:1"), bare, length=2)
    assert e.value.hint is not None and "--chat-template never" in e.value.hint
