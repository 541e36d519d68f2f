"""What may be shown of a command line: no key, no token, no password in an address."""

from __future__ import annotations

import pytest

from serve.secrets import without_secrets


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--api-key", "one", "two", "--seed", "0"], ["--api-key", "***", "***", "--seed", "0"]),
        (["--api-key=three"], ["--api-key=***"]),
        (["--api_key", "k"], ["--api_key", "***"]),
        (["--hf-token", "hf_x", "-q"], ["--hf-token", "***", "***"]),
        (["--hf_token=hf_x"], ["--hf_token=***"]),
        (["--some.password", "p", "--x"], ["--some.password", "***", "--x"]),
        (["--url", "https://me:pw@host/v1"], ["--url", "https://***@host/v1"]),
        (["--url=http://tok@h:8000"], ["--url=http://***@h:8000"]),
    ],
)
def test_secrets_are_left_out(words: list[str], shown: list[str]) -> None:
    assert without_secrets(words) == tuple(shown)


@pytest.mark.parametrize(
    "words",
    [
        ["--max-num-batched-tokens", "8192", "--tokenizer", "a/b", "--tokenizer-mode=auto"],
        ["--ssl-keyfile", "key.pem", "--host", "127.0.0.1", "--served-model-name", "me@home"],
        ["--override-generation-config", '{"max_new_tokens": 5}'],
    ],
)
def test_nothing_else_is(words: list[str]) -> None:
    assert without_secrets(words) == tuple(words)
