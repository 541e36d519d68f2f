"""Training in several processes, or by a configuration of `accelerate`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.finetune.examples import Examples
from offline.finetune.job import Job, JobResult
from offline.finetune.worker import EXAMPLES, JOB, PROGRESS, TRAINED
from serve.process import SAFE_PATH, python_module
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json, read_model, read_object, read_text

if TYPE_CHECKING:
    from offline.finetune.where import Where
    from offline.runs.progress import Reporter

_MODULE = "offline.finetune.worker"
_SECONDS_TO_END = 10


@dataclass(frozen=True, slots=True)
class Launch:
    """How processes are started: how many there will be, and whether they share the weights."""

    processes: int
    fsdp: bool = False
    config: Path | None = None

    @classmethod
    def of(cls, where: Where) -> Launch:
        """Read what `Where` and its configuration file ask for.

        :raises PruneError: if the file is absent or not one of ``accelerate config``
        """
        if where.accelerate_config is None:
            return cls(where.processes)
        fields = _read(where.accelerate_config)
        processes = where.processes if where.processes > 1 else int(fields["num_processes"])
        fsdp = str(fields.get("distributed_type", "")).upper() == "FSDP"
        return cls(processes, fsdp, where.accelerate_config.resolve())

    @property
    def in_this_process(self) -> bool:
        """Whether no other process is needed."""
        return self.processes == 1 and self.config is None

    def run(self, job: Job, examples: Examples, reporter: Reporter | None) -> JobResult:
        """Start the processes and wait; the weights are then in the job's folder.

        :raises PruneError: if one fails, with its reason
        """
        with tempfile.TemporaryDirectory(prefix="vmprune-") as name:
            folder = Path(name)
            (folder / JOB).write_text(job.model_dump_json())
            examples.save(folder / EXAMPLES)
            with (folder / "stderr").open("w+") as errors:
                code = _wait(self._command(job, folder), errors, reporter)
            if code != 0 or not (folder / TRAINED).exists():
                raise _failure(folder, code)
            return read_model(folder / TRAINED, JobResult)

    def _command(self, job: Job, folder: Path) -> list[str]:
        """Return `accelerate launch`; "multi_gpu" is its word for processes of one machine.

        They take the job's device, also a CPU, where its own word would need MPI.
        """
        command = python_module("accelerate.commands.launch")
        if self.config is not None:
            command += ["--config_file", str(self.config)]
        else:
            command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            command += ["--multi_gpu"]
        command += ["--num_processes", str(self.processes), "--main_process_port", "0"]
        command += ["--num_cpu_threads_per_process", str(_threads(self.processes))]
        return [*command, "-m", _MODULE, str(folder)]


def _read(file: Path) -> dict[str, Any]:
    from offline.data.yaml_file import read_yaml

    fields = read_yaml(file, "configuration")
    if not isinstance(fields.get("num_processes"), int):
        raise PruneError(
            f"{file} has no num_processes", hint="make it with `accelerate config --config_file`"
        )
    return fields


def _threads(processes: int) -> int:
    given = os.environ.get("OMP_NUM_THREADS")
    return int(given) if given else max((os.cpu_count() or 1) // processes, 1)


def _wait(command: list[str], errors: Any, reporter: Reporter | None) -> int:
    """Run a command, pass its progress on, and return its exit status; never leave it behind."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
        env={**os.environ, **SAFE_PATH},  # the launcher starts the workers with `python -m`
    )
    assert process.stdout is not None
    try:
        for fields in _progress(process.stdout):
            if reporter is None:
                continue
            if "stage" in fields:
                reporter.stage(fields["stage"], fields["total"])
            else:
                reporter.step(fields["step"], fields["note"])
        return process.wait()
    finally:
        _end(process)
        process.stdout.close()


def _progress(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith(PROGRESS):
            yield parse_json(line.removeprefix(PROGRESS), "a line of a training process")


def _end(process: subprocess.Popen[str]) -> None:
    """End the launcher and what it started, politely and then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)


def _failure(folder: Path, code: int) -> PruneError:
    """Return the reason of the process that failed first, or the last line that was written."""
    reasons = sorted(folder.glob("error-*.json"), key=lambda file: file.stat().st_mtime_ns)
    if reasons:
        said = read_object(reasons[0])
        return PruneError(f"training failed: {said['message']}", hint=said["hint"])
    text = read_text(folder / "stderr", errors="replace")
    if code == -signal.SIGKILL or "Signal 9" in text or "SIGKILL" in text:
        return PruneError(
            "training failed: a process was killed, as the system does when memory is short",
            hint="a smaller --micro-batch, --checkpointing, or fewer --processes",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip(" =-")]
    last = lines[-1] if lines else f"exit status {code}"
    return PruneError(f"training failed in a process of its own: {last}")
