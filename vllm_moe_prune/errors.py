"""What a user did that cannot work, said in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class PruneError(ValueError):
    """A mistake in the user's input or surroundings.

    The message names the thing that is wrong; ``hint`` says what to do about it.
    Command-line tools print both and exit with status 1, without a traceback.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


def one_line(error: ValidationError) -> str:
    """Return the first complaint of pydantic as one line that names the field."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return f"{place}: {text}" if place and "layer" not in text else text
