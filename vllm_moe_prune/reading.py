"""The one place where files are read that this program, or anybody else, wrote.

Sizes and depths are bounded, a pipe is no file, and whatever is wrong is one line that names file,
place and rule. What is given back is plain: no lone surrogates, no number of thousands of digits.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vllm_moe_prune.errors import PruneError, one_line

Model = TypeVar("Model", bound=BaseModel)
MOST_BYTES = 1 << 28  # of a file that is read whole: the largest index known has 30 MB
_DEEPEST = 64  # brackets within one another
_MOST_NODES = 1 << 22  # of a YAML file, with what its aliases repeat
_MOST_BRACKETS, _MOST_YAML = 200, 1 << 23  # of a YAML file: open at once, letters
_BRACKET = re.compile(r"[\[\]{}]")
_INDENTED = re.compile(r"(?:[-?] ){100}|^ {1000}", re.MULTILINE)
_LONGEST = 40  # digits
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, ArithmeticError)


class MissingFileError(PruneError):
    """There is no such file."""


@contextmanager
def opened(file: Path, what: str = "") -> Iterator[BufferedReader]:
    """Open a file for reading.

    :param what: it is, in what is said of a mistake, with a space behind it
    :raises MissingFileError: if it is absent
    :raises PruneError: if it is a folder, a pipe or a device, or may not be read
    """
    try:
        number = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{what}{file} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise PruneError(f"{what}{file} cannot be read: {reason(error)}") from None
    if not stat.S_ISREG(mode := os.fstat(number).st_mode):
        os.close(number)
        kind = "a folder" if stat.S_ISDIR(mode) else "not a file"
        raise PruneError(f"{what}{file} is {kind}")
    with os.fdopen(number, "rb") as stream:
        yield stream


def check_file(file: Path, what: str = "") -> None:
    """Refuse what another library is to open and would hang or stumble over.

    :raises PruneError: as `opened`
    """
    with opened(file, what):
        pass


def read_bytes(file: Path, what: str = "", *, most: int = MOST_BYTES) -> bytes:
    """Return what a file holds.

    :raises PruneError: as `opened`, or if it is larger than ``most``
    """
    with opened(file, what) as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise PruneError(f"{what}{file} is larger than {most >> 20} MiB")
        try:
            return stream.read()
        except OSError as error:
            raise PruneError(f"{what}{file} cannot be read: {reason(error)}") from None


def read_text(file: Path, what: str = "", *, most: int = MOST_BYTES, errors: str = "strict") -> str:
    """Return a text in UTF-8.

    :param errors: ``replace`` for what is only shown
    :raises PruneError: as `read_bytes`, or if it is not UTF-8
    """
    try:
        return read_bytes(file, what, most=most).decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise PruneError(f"{what}{file} is not UTF-8 (byte {error.start})") from None


def read_json(file: Path, what: str = "") -> Any:
    """Return what a JSON file says.

    :raises PruneError: as `read_bytes` and `parse_json`
    """
    return parse_json(read_bytes(file, what), f"{what}{file}")


def read_object(file: Path, what: str = "") -> dict[str, Any]:
    """Return the entries of a JSON file that is an object.

    :raises PruneError: as `read_json`, or if it is something else
    """
    fields = read_json(file, what)
    if not isinstance(fields, dict):
        raise PruneError(f"{what}{file} is not a JSON object")
    return fields


def read_model(file: Path, model: type[Model], what: str = "") -> Model:
    """Return what a JSON file says, by its schema.

    :raises PruneError: as `read_json`, or naming the first field that is not as it should be
    """
    return validated(read_json(file, what), model, f"{what}{file}")


def read_list(file: Path, model: type[Model], what: str = "") -> list[Model]:
    """Return the entries of a JSON file that is a list, each by its schema.

    :raises PruneError: as `read_model`
    """
    fields = read_json(file, what)
    if not isinstance(fields, list):
        raise PruneError(f"{what}{file} is not a JSON list")
    return [
        validated(entry, model, f"{what}{file} entry {number}")
        for number, entry in enumerate(fields, 1)
    ]


def validated(fields: Any, model: type[Model], place: str) -> Model:
    """Return values by their schema.

    :raises PruneError: naming the first field that is not as it should be
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise PruneError(f"{place}: {one_line(error)}") from None


def parse_json(text: str | bytes, place: str, pairs: Any = None) -> Any:
    """Return what a JSON text says.

    :param place: where it stands: begins what is said of a mistake
    :param pairs: makes something of an object's entries, as json's ``object_pairs_hook``
    :raises PruneError: if it is no JSON in UTF-8, too deep, or has a number of too many digits
    """
    try:  # json itself would take UTF-16 as well
        text = text.decode() if isinstance(text, bytes) else text
        fields = json.loads(text, parse_int=_integer, object_pairs_hook=pairs)
    except PruneError:  # of `pairs`
        raise
    except RecursionError:
        raise PruneError(f"{place} is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise PruneError(f"{place} is not JSON: not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise PruneError(f"{place} is not JSON: {error}") from None
    _check_nodes(fields, place)
    return fields


def parse_yaml(text: str | bytes, place: str, loader: Any = None) -> Any:
    """Return what a YAML text says.

    :param loader: PyYAML's; its safe one if not given
    :raises PruneError: if it is no YAML, too deep, or grows too large by its aliases
    """
    import yaml

    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise PruneError(f"{place} is not YAML: not UTF-8 (byte {error.start})") from None
    _check_brackets(text, place)
    try:
        fields = yaml.load(text, loader or yaml.SafeLoader)  # only safe ones are given
    except RecursionError:
        raise PruneError(f"{place} is nested too deeply") from None
    except yaml.YAMLError as error:
        raise PruneError(f"{place} is not YAML: {yaml_reason(error)}") from None
    except DAMAGED as error:  # of dates and numbers that there are not
        raise PruneError(f"{place} is not YAML: {error}") from None
    _check_nodes(fields, place)
    return fields


def _check_brackets(text: str, place: str) -> None:
    """Refuse what PyYAML takes minutes for, or its parser in C the whole process.

    Its time grows with the square of the depth; brackets in texts count as well.
    """
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += 1 if found[0] in "[{" else -1
        if depth > _MOST_BRACKETS:
            raise PruneError(f"{place} is nested too deeply")
    if len(text) > _MOST_YAML or _INDENTED.search(text):
        raise PruneError(f"{place} is too long, or nested too deeply")


def yaml_reason(error: Any) -> str:
    """Return in one line what is wrong with YAML, and in which line of the file if that is known.

    :param error: PyYAML's
    """
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or (str(error).splitlines() or ["damaged"])[0]
    return f"{problem} (line {mark.line + 1})" if mark is not None else str(problem)


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check_nodes(fields: Any, place: str) -> None:
    """Refuse what recursive code would fail on, and texts that no file can be written with."""
    level, count = [fields], 0
    for _ in range(_DEEPEST):
        count += sum(len(node) for node in level if isinstance(node, dict | list | tuple | set))
        if count > _MOST_NODES:  # before all of them stand in a list
            raise PruneError(f"{place} has more than {_MOST_NODES:,} entries")
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below += node.values()
                below += (key for key in node if isinstance(key, str) and not key.isascii())
            elif isinstance(node, list | tuple | set):
                below += node
            elif isinstance(node, str) and not node.isascii():
                _check_text(node, place)
        if not below:
            return
        level = below
    raise PruneError(f"{place} is nested too deeply")


def _check_text(text: str, place: str) -> None:
    with suppress(UnicodeEncodeError):
        text.encode()
        return
    raise PruneError(f"{place} has a text with half a character (a lone surrogate)")


def reason(error: Exception) -> str:
    """Return what an error says, without the number and the name of the system's ones."""
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP:
            return "its links lead in a circle"
        return error.strerror or str(error)
    return str(error) or type(error).__name__
