"""`Teaching`: a base reads examples once, and what it expects of each next token is kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pydantic import JsonValue

from offline.engines.opened import EngineName, loaded, served
from offline.finetune.examples import NO_LOSS, Examples
from offline.finetune.teacher import (
    LOG_PROBS_FILE,
    TEACHER_FILE,
    TOKENS_FILE,
    Teacher,
    TeacherTold,
)
from offline.runs.device import DType
from offline.runs.memory import give_back
from offline.runs.output import check_room, staged
from offline.runs.units import gib
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance, write_atomic
from vllm_moe_prune.reading import read_model

if TYPE_CHECKING:
    from offline.engines.encoding import Encoder
    from offline.runs.progress import Reporter

LISTED = 64  # tokens of each place that are kept one by one
_AT_ONCE = 1 << 14  # tokens that are handed to an engine at the same time
_NUMBER = 4  # bytes of a token and of a log-probability


@dataclass(frozen=True, slots=True)
class Teaching:
    """Who teaches, and where what it says is kept.

    :param base: a checkpoint that the engine can open
    :param folder: keeps a teacher for each set of examples, by a name that follows from both
    :param device: of the transformers engine
    """

    base: Path
    folder: Path
    device: str
    dtype: DType
    engine: EngineName = "transformers"
    tensor_parallel: int = 1

    def teacher_of(self, examples: Examples, reporter: Reporter | None = None) -> Teacher:
        """Return what the base expects of the examples, asked now or before.

        How much will be kept is said before the base is loaded.

        :raises PruneError: if the disk has no room for it, the base cannot be loaded, or what is
            kept is damaged or something else
        """
        base = Checkpoint.open(self.base)
        made_of = self._made_of(base, examples)
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        folder = self.folder / digest[:16]
        if not folder.is_dir():
            self.folder.mkdir(exist_ok=True)
            self._ask(base, examples, made_of, folder, reporter)
            give_back(self.device)
        if read_model(folder / TEACHER_FILE, TeacherTold).made_of != made_of:
            raise PruneError(f"{folder} is of another base or text", hint="delete it")
        return Teacher.load(folder)

    def _made_of(self, base: Checkpoint, examples: Examples) -> dict[str, JsonValue]:
        return {
            "base": base.fingerprint().model_dump(mode="json", exclude={"name"}),
            "examples": examples.digest(),
            "listed": min(LISTED, base.vocab_size),
            "engine": self.engine,
            "dtype": self.dtype,
        }

    def _ask(
        self,
        base: Checkpoint,
        examples: Examples,
        made_of: dict[str, JsonValue],
        folder: Path,
        reporter: Reporter | None,
    ) -> None:
        listed = min(LISTED, base.vocab_size)
        num_bytes = 2 * _NUMBER * examples.num_tokens * listed
        check_room(folder, num_bytes)
        if reporter is not None:
            title = f"asking the base: {listed} likeliest of {examples.num_tokens:,} next tokens"
            rows = int(np.count_nonzero(examples.tokens_of_each()))
            reporter.stage(f"{title}, {gib(num_bytes)}", rows)
        with staged(folder) as partial:
            begin = time.perf_counter()
            with self._reader() as reader:
                sha256 = _written(reader, examples, listed, partial, reporter)
            name = base.fingerprint().name
            told = TeacherTold(
                made_of=made_of,
                identity=DataIdentity(
                    name=name, split="next tokens", count=examples.num_tokens, sha256=sha256
                ),
                listed=listed,
                seconds=round(time.perf_counter() - begin, 3),
                provenance=Provenance.now(
                    "teacher", settings={"model": name, **made_of}, data=examples.identity
                ),
            )
            write_atomic(partial / TEACHER_FILE, told.model_dump_json(indent=1) + "\n")

    @contextmanager
    def _reader(self) -> Iterator[Encoder]:
        if self.engine == "vllm":
            with served(self.base, None, self.dtype, self.tensor_parallel, 0) as live:
                yield live.reader
        else:
            yield loaded(self.base, None, self.device, self.dtype).reader


def _written(
    reader: Encoder, examples: Examples, listed: int, folder: Path, reporter: Reporter | None
) -> str:
    """Write what the base says of all places; returns ``sha256:...`` of it."""
    shape = (examples.num_tokens, listed)
    tokens = _new(folder / TOKENS_FILE, "int32", shape)
    log_probs = _new(folder / LOG_PROBS_FILE, "float32", shape)
    at, digest = 0, hashlib.sha256()
    for rows in _parts(examples):
        places = [np.flatnonzero(examples.labels[row, 1:] != NO_LOSS) for row in rows]
        texts = [
            examples.input_ids[row, : own[-1] + 2].tolist()
            for row, own in zip(rows, places, strict=True)
        ]
        found = reader.readings(texts, listed)
        for own, reading in zip(places, found, strict=True):
            end = at + len(own)
            tokens[at:end], log_probs[at:end] = reading.tokens[own], reading.listed[own]
            digest.update(tokens[at:end].tobytes())
            digest.update(log_probs[at:end].tobytes())
            at = end
        if reporter is not None:
            reporter.step(len(rows))
    assert at == len(tokens), "places that nothing was said of"
    for array in (tokens, log_probs):
        array.flush()
    return "sha256:" + digest.hexdigest()


def _new(file: Path, dtype: str, shape: tuple[int, int]) -> Any:
    """Return an array on disk, to be filled."""
    return open_memmap(file, "w+", np.dtype(dtype), shape)  # type: ignore[no-untyped-call]


def _parts(examples: Examples) -> Iterator[Sequence[int]]:
    """Yield the rows that have a loss, so many at once as an engine is handed."""
    rows: NDArray[np.int64] = np.flatnonzero(examples.tokens_of_each())
    most = max(_AT_ONCE // examples.input_ids.shape[1], 1)
    for begin in range(0, len(rows), most):
        yield rows[begin : begin + most].tolist()
