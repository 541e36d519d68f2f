from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.sse import Delta, events, lines, parse_delta


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[a:b] for a, b in pairwise(borders)]


def test_all_three_line_ends_end_a_line() -> None:
    assert list(lines([b"a\r\nb\nc\rd"])) == ["a", "b", "c", "d"]


def test_crlf_split_between_two_chunks_is_one_line_end() -> None:
    assert list(lines([b"a\r", b"\nb\r", b"\r\n", b"c"])) == ["a", "b", "", "c"]


def test_unicode_line_separator_does_not_end_a_line() -> None:
    text = json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False)
    assert list(events([f"data: {text}\n\n".encode()])) == [text]


def test_comments_and_other_fields_are_skipped_and_data_lines_joined() -> None:
    stream = b": ping\n\nevent: x\nid: 3\ndata: one\ndata:two\n\ndata: [DONE]\n\n"
    assert list(events([stream])) == ["one\ntwo", "[DONE]"]


def test_event_without_its_blank_line_is_not_given() -> None:
    assert list(events([b"data: whole\n\ndata: half"])) == ["whole"]


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), min_size=1),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_cutting_the_stream_anywhere_changes_nothing(
    payloads: list[str], end: str, places: list[int]
) -> None:
    stream = "".join(f"data: {payload}{end}{end}" for payload in payloads).encode()
    # A "\r" at the very end of a stream still ends its line.
    assert list(events(cut(stream, places))) == payloads


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        ({"choices": [{"text": "hi"}]}, Delta("hi")),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, Delta("")),
        ({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}, Delta("hi", "stop")),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, Delta("hm")),
        ({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}]}, Delta("{")),
        (
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}},
            Delta(prompt_tokens=3, output_tokens=7),
        ),
        ({"error": {"message": "boom\nmore"}}, Delta(error="boom")),
        ({"choices": None, "usage": None}, Delta()),
    ],
)
def test_one_event_of_each_shape(event: dict[str, object], delta: Delta) -> None:
    assert parse_delta(json.dumps(event)) == delta


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{not json", "Expecting property name"),
        ("[]", r"not an object: \[\]"),
        ("3", "not an object: 3"),
    ],
)
def test_an_event_of_another_shape_is_an_error(data: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_delta(data)
