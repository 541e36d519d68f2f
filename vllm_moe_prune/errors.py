"""What a user did that cannot work, said in one line."""

from __future__ import annotations


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
