"""The training loop, the same in one process and in many (through `accelerate`).

The loss is the sum over all tokens of an optimizer step divided by their number, so that neither
accumulation nor padding nor the number of processes changes what is minimised. There is no
load-balancing loss: the paper names none.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from numpy.typing import NDArray

from offline.engines.local.pretrained import from_pretrained
from offline.finetune import trainable
from offline.finetune.examples import NO_LOSS, Examples
from offline.finetune.heap import give_blocks_back
from offline.finetune.job import Job, JobResult
from offline.finetune.losses import divergence, next_token
from offline.finetune.mixed import autocast_experts
from offline.finetune.peak import PeakMemory
from offline.finetune.save import check_names, save_weights
from offline.finetune.schedule import Indices, batches, learning_rate, micro_batch, shares
from offline.finetune.states import States
from offline.finetune.teacher import Teacher
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.runs.progress import Reporter


def train(job: Job, examples: Examples, reporter: Reporter | None = None) -> JobResult:
    """Train as the job says and put the weights into its folder.

    Every process of a distributed run calls this with the same arguments; the main one writes.

    :raises PruneError: if a batch cannot be shared out, transformers cannot open the model, or
        the loss is no longer a number
    """
    if job.device == "cpu":
        give_blocks_back()
    with _accelerator(job) as accelerator:
        micro = micro_batch(job.settings, accelerator.num_processes)
        base = Checkpoint.open(job.model)
        model = from_pretrained(job.model, "float32")
        check_names(model, base)
        if hasattr(model.config, "output_router_logits"):
            model.config.output_router_logits = False  # it would add a load-balancing loss
        if job.settings.mixed_precision:
            autocast_experts(model)
        if job.settings.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model = trainable.prepare(model, base.layout, job.settings, job.seed).train()
        parameters = sum(parameter.numel() for parameter in trainable.trained(model))
        training = _Training.begin(job, examples, accelerator, model, micro, reporter)
        del model
        with torch.random.fork_rng(_gpus(accelerator)):  # for models with dropout
            torch.manual_seed(job.seed)
            training.run()
        training.save(base)
        return JobResult(
            parameters=parameters,
            tokens=training.tokens(),
            losses=tuple(training.losses),
            seconds=training.seconds,
            peak_bytes=training.peak_bytes,
        )


@contextlib.contextmanager
def _accelerator(job: Job) -> Iterator[Accelerator]:
    """Give an accelerator of our settings, and leave none of its global state behind."""
    _forget()
    place: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if job.device.startswith("cuda:") and job.parent is None:  # several processes have one each
        place = torch.cuda.device(job.device)
    with place:
        accelerator = Accelerator(
            cpu=job.device == "cpu",
            mixed_precision="bf16" if job.settings.mixed_precision else "no",
            # a plugin, so that no configuration file changes how a loss is scaled
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        try:
            yield accelerator
            accelerator.wait_for_everyone()
            accelerator.end_training()  # not after an error: others may never arrive
        finally:
            accelerator.free_memory()
            _forget()
            gc.collect()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _gpus(accelerator: Accelerator) -> list[int]:
    return [] if accelerator.device.type == "cpu" else [torch.cuda.current_device()]


@dataclass(slots=True)
class _Training:
    """One training under way."""

    job: Job
    examples: Examples
    accelerator: Accelerator
    model: Any
    optimizer: Any
    micro: int
    reporter: Reporter | None
    steps: list[Indices]
    states: States | None
    each: NDArray[np.int64]  # tokens of each example that have a loss
    teacher: Teacher | None
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0

    @classmethod
    def begin(
        cls,
        job: Job,
        examples: Examples,
        accelerator: Accelerator,
        model: torch.nn.Module,
        micro: int,
        reporter: Reporter | None,
    ) -> _Training:
        settings = job.settings
        optimizer = torch.optim.AdamW(
            trainable.trained(model),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,  # no temporary tensor of the size of a weight
        )
        model, optimizer = accelerator.prepare(model, optimizer)
        steps = batches(len(examples.input_ids), settings, job.seed)
        states = States(job.states, accelerator) if job.states else None
        each = examples.tokens_of_each()
        teacher = Teacher.load(job.teacher, job.first_place) if job.teacher else None
        own = (job, examples, accelerator, model, optimizer, micro, reporter)
        return cls(*own, steps, states, each, teacher)

    def run(self) -> None:
        """Take all steps that a state on disk does not have yet."""
        self._stage()
        begin = time.perf_counter()
        with PeakMemory(self.accelerator.device) as peak:
            for number in range(len(self.losses), len(self.steps)):
                loss = self._step(number)
                self.losses.append(loss)
                if self.reporter is not None:
                    self.reporter.step(note=f"loss {loss:.3f}")
                self._keep(number + 1)
        self.seconds += time.perf_counter() - begin
        found = torch.tensor([peak.found], device=self.accelerator.device)
        self.peak_bytes = int(self.accelerator.gather(found).max())

    def _stage(self) -> None:
        if self.states is not None:
            self.losses = self.states.load()
        if self.reporter is not None:
            self.reporter.stage("training", len(self.steps))
            if self.losses:
                self.reporter.step(len(self.losses), note="from a saved state")

    def _keep(self, done: int) -> None:
        every = self.job.save_every
        if self.states is not None and every and done % every == 0 and done < len(self.steps):
            self.states.save(self.losses)

    def _step(self, number: int) -> float:
        """Take one optimizer step; returns the mean loss per token of its batch."""
        batch, accelerator = self.steps[number], self.accelerator
        rate = learning_rate(number, len(self.steps), self.job.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tokens = max(int(self.each[batch].sum()), 1)
        processes = accelerator.num_processes
        total = torch.zeros((), device=accelerator.device)
        parts = list(shares(batch, accelerator.process_index, processes, self.micro))
        for at, part in enumerate(parts):
            with self._synchronised(at == len(parts) - 1):
                loss = self._loss(part)
                # gradients are averaged over processes, and each has a part of the sum
                accelerator.backward(loss * (processes / tokens))
            total += loss.detach()
        accelerator.clip_grad_norm_(self.model.parameters(), self.job.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        mean = float(accelerator.reduce(total, "sum")) / tokens
        if not math.isfinite(mean):
            raise PruneError(
                f"the loss of step {number + 1} is {mean}", hint="take a smaller --learning-rate"
            )
        return mean

    def _synchronised(self, last: bool) -> Any:
        """Exchange gradients with the last micro-batch alone, unless they are sharded."""
        if last or self.accelerator.distributed_type is DistributedType.FSDP:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(self.model)

    def _loss(self, part: Indices) -> torch.Tensor:
        """Return the summed loss of the tokens of some examples; -1 is one without any."""
        ids, labels = self.examples.input_ids[part], self.examples.labels[part].copy()
        labels[part < 0] = NO_LOSS
        used = np.flatnonzero((labels != NO_LOSS).any(axis=0))
        width = int(used[-1]) + 1 if len(used) else 2  # attention looks back: the rest is unseen
        device = self.accelerator.device
        given = torch.from_numpy(ids[:, :width].astype(np.int64)).to(device)
        wanted = torch.from_numpy(labels[:, 1:width].astype(np.int64)).to(device)
        logits = self.model(input_ids=given, use_cache=False).logits[:, :-1]
        if self.teacher is None:
            return next_token(logits, wanted)
        counted = torch.from_numpy(np.flatnonzero(labels[:, 1:width] != NO_LOSS)).to(device)
        said = (torch.from_numpy(one).to(device) for one in self.teacher.at(self._places(part)))
        return divergence(logits.flatten(0, 1)[counted].float(), *said)

    def _places(self, part: Indices) -> NDArray[np.int64]:
        """Return the places of some examples among those of all; -1 is one without any."""
        ends = np.cumsum(self.each)
        own = [np.arange(ends[row] - self.each[row], ends[row]) for row in part if row >= 0]
        return np.concatenate([np.empty(0, np.int64), *own])

    def tokens(self) -> int:
        """Tokens that had a loss, over all steps."""
        return sum(int(self.each[batch].sum()) for batch in self.steps)

    def save(self, base: Checkpoint) -> None:
        """Write the weights, gathered to the main process, into the job's folder."""
        accelerator = self.accelerator
        state: dict[str, torch.Tensor] | None = None
        if accelerator.distributed_type is DistributedType.FSDP:
            state = accelerator.get_state_dict(self.model)
        self.optimizer = None  # its moments are not needed again, and large
        if accelerator.is_main_process:
            model = accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            if self.job.settings.trainable == "lora":
                model = trainable.merged(model)
            save_weights(model, state or model.state_dict(), base, self.job.out, self.job.dtype)
        accelerator.wait_for_everyone()
