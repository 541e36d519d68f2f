"""From a plain checkpoint and examples to the checkpoint that training on them makes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from offline.build.companions import copy_companions
from offline.build.quantised import check_unquantised
from offline.finetune.examples import Examples
from offline.finetune.job import Job, JobResult, StoredDtype
from offline.finetune.launch import Launch
from offline.finetune.memory import check_memory, memory_need
from offline.finetune.parts import FLOAT32
from offline.finetune.schedule import micro_batch
from offline.finetune.settings import FinetuneSettings
from offline.finetune.teacher import Teacher
from offline.finetune.where import Where
from offline.runs.output import check_output, staged
from offline.runs.resume import check_run, remove_run, run_folder
from vllm_moe_prune.checkpoint import COMPACT_FOLDER, Checkpoint
from vllm_moe_prune.config_keys import most_tokens
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.reading import read_model
from vllm_moe_prune.tuning import Tuning

if TYPE_CHECKING:
    from offline.runs.progress import Reporter

FINETUNE_FILE = "finetune.json"


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What a finetune did.

    :param losses: mean loss per token of each optimizer step
    :param seconds: of training, without loading and saving
    :param peak_bytes: largest resident set of a process, or memory of its GPU, while training
    :param trained_bytes: of the weights that were trained, in float32
    """

    tuning: Tuning
    losses: tuple[float, ...]
    seconds: float
    peak_bytes: int
    trained_bytes: int

    def save(self, folder: Path) -> None:
        """Write finetune.json."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["tuning"] = self.tuning.model_dump(mode="json")
        write_atomic(folder / FINETUNE_FILE, json.dumps(fields, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Finetuned:
        """Read what `save` wrote.

        :raises PruneError: if the folder has none
        """
        return read_model(folder / FINETUNE_FILE, _Told).finetuned()


class _Told(BaseModel):
    """``finetune.json``."""

    model_config = ConfigDict(extra="forbid")

    tuning: Tuning
    losses: tuple[float, ...]
    seconds: float
    peak_bytes: int
    trained_bytes: int

    def finetuned(self) -> Finetuned:
        return Finetuned(**dict(self))


def finetune(
    model: Path,
    examples: Examples,
    settings: FinetuneSettings,
    out: Path,
    *,
    seed: int,
    where: Where,
    reporter: Reporter | None = None,
    dtype: StoredDtype = "base",
    teacher: Teacher | None = None,
    force: bool = False,
) -> Finetuned:
    """Train ``model`` on the examples and write the result to ``out``, whole or not at all.

    The result has the tensors of ``model`` by name and shape, its config.json and its tokenizer,
    and finetune.json beside them. Weights are in float32 while they are trained. On a CPU the
    same arguments give the same bytes, and a killed call that is made again does too.

    :param model: a plain checkpoint; a routing map in it is not read and not copied
    :param seed: of the order of the examples, and of LoRA's matrices
    :param dtype: of the weights as they are stored; "base": of each tensor as in ``model``
    :param teacher: what a base expects at each place that has a loss: its distribution is learnt
        in place of the token that is there
    :param force: replace what is at ``out``
    :raises PruneError: if ``model`` cannot be trained, the batch cannot be shared out, memory is
        too small (before anything is loaded), ``out`` exists, or training fails
    """
    inputs = (model, where.accelerate_config)
    check_output(out, force=force, inputs=inputs)
    if where.save_every is not None:
        check_run(_states_of(out), inputs=inputs)
    launch, base = Launch.of(where), _open(model)
    _check(base, examples, settings, where, teacher)
    states = _states(out, _identity(base, examples, settings, seed, teacher), where)
    with staged(out, force=force) as partial:
        job = Job(
            model=model.resolve(),
            out=partial.resolve(),
            settings=settings,
            seed=seed,
            device=where.device,
            dtype=dtype,
            states=states,
            save_every=where.save_every,
            parent=None if launch.in_this_process else os.getpid(),
            teacher=None if teacher is None else teacher.folder.resolve(),
            first_place=0 if teacher is None else teacher.first,
        )
        trained = _train(launch, job, examples, reporter)
        copy_companions(model, partial)
        shutil.copyfile(model / "config.json", partial / "config.json")
        _verify(partial, base, dtype)
        result = _finetuned(trained, examples, settings, teacher)
        result.save(partial)
    if states is not None:
        remove_run(states)
    return result


def _train(launch: Launch, job: Job, examples: Examples, reporter: Reporter | None) -> JobResult:
    if not launch.in_this_process:
        return launch.run(job, examples, reporter)
    from offline.finetune.trainer import train

    return train(job, examples, reporter)


def _open(model: Path) -> Checkpoint:
    if (model / COMPACT_FOLDER).is_dir():
        raise PruneError(
            f"{model} is a compact checkpoint, which transformers cannot open",
            hint="train its base, or prune to the same count in every layer (plain form)",
        )
    return Checkpoint.open(model)


def _check(
    base: Checkpoint,
    examples: Examples,
    settings: FinetuneSettings,
    where: Where,
    teacher: Teacher | None,
) -> None:
    """Refuse before loading what could only fail later."""
    length, longest = examples.input_ids.shape[1], most_tokens(base.text_config)
    if longest is not None and length > longest:
        raise PruneError(
            f"the examples are {length} tokens long and the model takes at most {longest}",
            hint=f"--length {longest}",
        )
    if examples.num_tokens == 0:
        raise PruneError("no token of the examples has a loss: there is nothing to learn from")
    check_fits(base, settings, length=length, where=where, distilled=teacher is not None)


def check_fits(
    base: Checkpoint,
    settings: FinetuneSettings,
    *,
    length: int,
    where: Where,
    distilled: bool = False,
) -> None:
    """Refuse a finetune for which there is too little memory; reads headers only.

    :param length: tokens of a sequence
    :param distilled: whether a teacher's distributions are learnt
    :raises PruneError: with the numbers, or as `check_possible`
    """
    launch, micro = check_possible(base, settings, where=where)
    need = memory_need(
        base,
        settings,
        length=length,
        micro=micro,
        processes=launch.processes,
        fsdp=launch.fsdp,
        distilled=distilled,
    )
    check_memory(need, where.device, processes=launch.processes)


def check_possible(
    base: Checkpoint, settings: FinetuneSettings, *, where: Where
) -> tuple[Launch, int]:
    """Refuse a finetune that no machine could run; imports no torch.

    :returns: how processes are started, and how many sequences each has in memory at once
    :raises PruneError: if a batch cannot be shared out among the processes, for LoRA with FSDP,
        or for a quantised base
    """
    check_unquantised(base.folder)
    launch = Launch.of(where)
    if launch.fsdp and settings.trainable == "lora":
        raise PruneError(
            "LoRA on fused experts is not supported with FSDP, which shards what it adapts",
            hint="--trainable router+experts with FSDP, or LoRA with --processes",
        )
    return launch, micro_batch(settings, launch.processes)


def _identity(
    base: Checkpoint,
    examples: Examples,
    settings: FinetuneSettings,
    seed: int,
    teacher: Teacher | None,
) -> dict[str, Any]:
    """Return what the weights after each step depend on."""
    files = sorted({stored.file for stored in base.stored.values()})
    return {
        "base": base.fingerprint().model_dump(mode="json"),
        # two models may share what a fingerprint looks at: rounds of one lottery do
        "weights": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
        "examples": examples.digest(),
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        **({} if teacher is None else {"teacher": [teacher.identity.sha256, teacher.first]}),
    }


def _states(out: Path, identity: dict[str, Any], where: Where) -> Path | None:
    """Return the folder for states, if any are wanted; what another finetune left is removed."""
    if where.save_every is None:
        return None
    return run_folder(_states_of(out), identity, force=True).resolve()


def _states_of(out: Path) -> Path:
    """Return the name of the run that keeps the states."""
    return out.with_name(out.name + ".finetune")


def _verify(folder: Path, base: Checkpoint, dtype: StoredDtype) -> None:
    """Check that every tensor of ``base`` is there, with its shape and the wanted dtype."""
    known = {"float32": "F32", "bfloat16": "BF16"}
    written = Checkpoint.open(folder).tensors
    for name, info in base.tensors.items():
        wanted = replace(info, dtype=known.get(dtype, info.dtype))
        assert written.get(name) == wanted, f"{name} is not as planned"
    assert len(written) == len(base.tensors), "tensors too many"


def _finetuned(
    trained: JobResult, examples: Examples, settings: FinetuneSettings, teacher: Teacher | None
) -> Finetuned:
    taught = () if teacher is None else (teacher.identity,)
    return Finetuned(
        tuning=Tuning(
            trainable=settings.trainable,
            parameters=trained.parameters,
            steps=len(trained.losses),
            tokens=trained.tokens,
            learning_rate=settings.learning_rate,
            data=(*examples.identity, *taught),
        ),
        losses=trained.losses,
        seconds=trained.seconds,
        peak_bytes=trained.peak_bytes,
        trained_bytes=trained.parameters * FLOAT32,
    )
