"""What a user did that cannot work, said in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LINE = 300  # letters of what is said of one mistake


class PruneError(ValueError):
    """A mistake in the user's input or surroundings.

    The message names the thing that is wrong; ``hint`` says what to do about it.
    Command-line tools print both and exit with status 1, without a traceback.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        message = shown(message)
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else shown(hint)

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


def shown(text: str, most: int = LINE) -> str:
    """Return a text as one line that a terminal may be given: nothing in it acts on one.

    Line ends are spaces, other control characters and halves of characters are escapes, and of a
    text that is too long the middle is left out.

    :param most: letters
    """
    if not text.isprintable():
        joined = " ".join(text.split()) if "\n" in text or "\r" in text else text
        text = "".join(c if c.isprintable() else _escaped(c) for c in joined)
    if len(text) <= most:
        return text
    head = 2 * most // 3
    return f"{text[:head]} ... {text[len(text) - most + head + 5 :]}"


def harmless(text: str) -> str:
    """Return a text of any number of lines without what acts on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def one_line(error: ValidationError) -> str:
    """Return the first complaint of pydantic as one line that names the field."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return f"{place}: {text}" if place and "layer" not in text else text
