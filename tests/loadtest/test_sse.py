from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.sse import Delta, Event, EventParser, parse_delta


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[a:b] for a, b in pairwise(borders)]


def events(chunks: list[bytes]) -> list[bytes]:
    parser = EventParser()
    found = [event for chunk in chunks for event in parser.feed(chunk)]
    return [event.data for event in [*found, *parser.end()]]


def delta_of(data: object, kind: bytes = b"") -> Delta:
    return parse_delta(Event(data if isinstance(data, bytes) else json.dumps(data).encode(), kind))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_given_with_its_blank_line_not_later(end: bytes) -> None:
    parser = EventParser()
    assert parser.feed(b"data: a" + end) == []
    assert parser.feed(end) == [Event(b"a")]
    assert parser.feed(b"data: b" + end + end) == [Event(b"b")]


def test_crlf_split_between_two_chunks_is_one_line_end() -> None:
    assert events([b"data: a\r", b"\ndata: b\r\n\r", b"\ndata: c\n\n"]) == [b"a\nb", b"c"]


def test_unicode_line_separator_does_not_end_a_line() -> None:
    text = json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False).encode()
    assert events([b"data: " + text + b"\n\n"]) == [text]


def test_comments_and_other_fields_are_skipped_and_data_lines_joined() -> None:
    parser = EventParser()
    stream = b": ping\n\nevent: x\nid: 3\ndata: one\ndata:two\n\ndata: [DONE]\n\n"
    assert parser.feed(stream) == [Event(b"one\ntwo", b"x"), Event(b"[DONE]")]


def test_an_event_without_its_blank_line_is_given_at_the_end() -> None:
    assert events([b"data: whole\n\ndata: [DONE]\n"]) == [b"whole", b"[DONE]"]
    assert events([b"data: whole\n\ndata: half"]) == [b"whole", b"half"]
    assert events([b"data: whole\n\n: no event"]) == [b"whole"]


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), min_size=1),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_cutting_the_stream_anywhere_changes_nothing(
    payloads: list[str], end: str, mark: bool, places: list[int]
) -> None:
    stream = "".join(f"data: {payload}{end}{end}" for payload in payloads).encode()
    begin = b"\xef\xbb\xbf" if mark else b""
    assert events(cut(begin + stream, places)) == [payload.encode() for payload in payloads]


def of_delta(**delta: object) -> dict[str, object]:
    return {"choices": [{"delta": delta, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        (
            {"choices": [{"text": "hi"}]},
            Delta(output=True, answer=True, text="hi", choice=True),
        ),
        (of_delta(role="assistant", content=""), Delta(choice=True, opening=True)),
        (of_delta(content="hi"), Delta(output=True, answer=True, text="hi", choice=True)),
        (of_delta(reasoning_content="hm"), Delta(output=True, choice=True)),
        (of_delta(refusal="no"), Delta(output=True, answer=True, choice=True)),
        (of_delta(role="assistant", tool_calls=[{"id": "c"}]), Delta(True, True, choice=True)),
        (of_delta(content=""), Delta(choice=True)),
        (
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}},
            Delta(prompt_tokens=3, output_tokens=7),
        ),
        ({"error": {"message": "boom\nmore"}}, Delta(error="boom")),
        ({"error": {"error": {"detail": "deep"}}}, Delta(error="deep")),
        ({"object": "error", "message": "CUDA"}, Delta(error="CUDA")),
        ({"strange": 1}, Delta(error='{"strange": 1}')),
        ({"type": "ping"}, Delta()),
        ({"choices": None, "usage": None}, Delta()),
    ],
)
def test_one_event_of_each_shape(event: dict[str, object], delta: Delta) -> None:
    assert delta_of(event) == delta


def test_an_error_event_may_hold_text_or_json() -> None:
    assert delta_of(b"it broke", b"error").error == "it broke"
    assert delta_of({"message": "it broke"}, b"error").error == "it broke"


def test_a_reason_that_is_an_error_is_one() -> None:
    for reason in ("error", "abort"):
        event = {"choices": [{"delta": {}, "finish_reason": reason}]}
        assert reason in (delta_of(event).error or "")


@pytest.mark.parametrize(("data", "said"), [(b"{not json", "key must be"), (b"[]", r"\[\]")])
def test_an_event_of_another_shape_is_an_error(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        delta_of(data)
