"""`Session`: one recovery under way: what is measured and trained, and what is known already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offline.engines.local.transformers import TransformersEngine
from offline.finetune.examples import Examples
from offline.finetune.finetune import Finetuned, check_fits, finetune
from offline.finetune.teacher import Teacher
from offline.finetune.teaching import Teaching
from offline.recover.checkpoints import Checkpoints
from offline.recover.instructions import Instructions, parse_data
from offline.recover.lessons import Lessons, instruction_lessons, mix_lessons, task_lessons
from offline.recover.measure import Cells, before_finetune, measure
from offline.recover.needs import where_of
from offline.recover.plain_text import PlainText, parse_text
from offline.recover.recipe import RecoverRecipe, SftSettings
from offline.results.recovery import Mode, Recovery, Subject, SubjectFinetune
from offline.results.text_use import TextUse
from offline.runs.device import pick_device, pick_dtype
from offline.runs.memory import give_back
from offline.runs.progress import Reporter
from offline.runs.resume import delete, run_folder
from offline.tasks.catalog import Task
from offline.tasks.splits import data_identity
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.hub import origin
from vllm_moe_prune.provenance import Provenance, write_atomic
from vllm_moe_prune.reading import read_model
from vllm_moe_prune.tuning import Tuning


@dataclass(frozen=True, slots=True)
class Session:
    """One recovery under way."""

    recipe: RecoverRecipe
    training: SftSettings
    checkpoints: Checkpoints
    lessons: Lessons | PlainText
    provenance: Provenance
    folder: Path  # keeps what lets it continue after a kill
    cells: Cells
    reporter: Reporter

    @classmethod
    def begin(
        cls,
        recipe: RecoverRecipe,
        training: SftSettings,
        out: Path,
        reporter: Reporter,
        *,
        force: bool,
    ) -> Session:
        """Check everything, choose what is learnt, and open the run's folder."""
        device = pick_device(recipe.device)
        recipe = recipe.model_copy(
            update={"device": device, "dtype": pick_dtype(recipe.dtype, device)}
        )
        checkpoints = Checkpoints.open(recipe)
        lessons = _lessons(recipe)
        training = _with_steps(training, recipe.steps, lessons.count)
        provenance = _provenance(recipe, training, lessons)
        identity = {
            "recipe": _settings(recipe, training),
            "seed": recipe.seed,
            "data": [data.model_dump() for data in provenance.data],
            **checkpoints.identity(),
        }
        folder = run_folder(out, identity, force=force)
        cells = Cells(folder / "cells.json")
        return cls(recipe, training, checkpoints, lessons, provenance, folder, cells, reporter)

    def treat(self, subject: Subject, folder: Path) -> None:
        """Train a subject and measure it as it was and as it is, where that is not known.

        Training is first, so that what does not fit into memory is refused before long work. The
        base's trained weights are gone afterwards; a base that teaches is not trained.
        """
        before = list(before_finetune(self.recipe.measured, self.recipe.shots))
        after = [(self.recipe.after, task.bare) for task in self.recipe.measured]
        if subject == "base" and self.recipe.distill is not None:
            self._measure(subject, folder, before, "zero-shot and k-shot")
            return
        treated = self._record(subject) and not self._missing(subject, [*before, *after])
        if subject == "model" or not treated:
            self._train(subject, folder)
        self._measure(subject, folder, before, "zero-shot and k-shot")
        self._measure(subject, self.tuned(subject), after, "after the finetune")
        if subject == "base":
            delete(self.tuned(subject))

    def tuned(self, subject: Subject) -> Path:
        """Return where a subject's trained checkpoint is kept."""
        return self.folder / f"{subject}-tuned"

    def _missing(self, subject: Subject, asked: Sequence[tuple[Mode, Task]]) -> bool:
        return any((subject, mode, task.stem) not in self.cells for mode, task in asked)

    def _measure(
        self, subject: Subject, folder: Path, asked: Sequence[tuple[Mode, Task]], when: str
    ) -> None:
        if not self._missing(subject, asked):
            return
        self.reporter.stage(f"measuring the {subject}, {when}", len(asked))
        engine = TransformersEngine(folder, device=self.recipe.device, dtype=self.recipe.dtype)
        for mode, task in asked:
            if (subject, mode, task.stem) not in self.cells:
                self.cells.add(measure(engine, subject, mode, task, self.recipe.test_items))
            accuracy = self.cells[(subject, mode, task.stem)].accuracy
            self.reporter.step(note=f"{task.name} {accuracy:.3f}")
        del engine
        give_back(self.recipe.device)

    def _train(self, subject: Subject, folder: Path) -> None:
        """Train a subject, unless that was done."""
        out = self.tuned(subject)
        done = Finetuned.load(out) if out.exists() else self._finetune(folder, out)
        write_atomic(self._record_file(subject), _finetune_of(subject, done).model_dump_json())

    def _finetune(self, folder: Path, out: Path) -> Finetuned:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        examples = self.lessons.examples(
            tokenizer, length=self.recipe.length, seed=self.recipe.seed
        )
        done = finetune(
            folder,
            examples,
            self.training,
            out,
            seed=self.recipe.seed,
            where=where_of(self.recipe),
            reporter=self.reporter,
            teacher=self._teacher(folder, examples),
        )
        give_back(self.recipe.device)
        return done

    def _teacher(self, folder: Path, examples: Examples) -> Teacher | None:
        """Return what the base expects of the examples, if it teaches; not for nothing."""
        recipe, base = self.recipe, self.checkpoints.base
        if recipe.distill is None:
            return None
        assert base is not None, "the recipe sees to it"
        length, where = examples.input_ids.shape[1], where_of(recipe)
        model = Checkpoint.open(folder)
        check_fits(model, self.training, length=length, where=where, distilled=True)
        teaching = Teaching(
            base.folder,
            recipe.teacher or self.folder / "teacher",
            recipe.device,
            recipe.dtype,
            recipe.teacher_engine or "transformers",
            recipe.teacher_tensor_parallel or 1,
        )
        return teaching.teacher_of(examples, self.reporter)

    def _record_file(self, subject: Subject) -> Path:
        return self.folder / f"{subject}-trained.json"

    def _record(self, subject: Subject) -> SubjectFinetune | None:
        """Return what a subject's finetune took, if it was done."""
        file = self._record_file(subject)
        return read_model(file, SubjectFinetune) if file.is_file() else None

    @property
    def tuning(self) -> Tuning:
        """Return what the model's weights went through."""
        done = self._record("model")
        assert done is not None, "the model is trained by now"
        return done.tuning

    def result(self, out: Path) -> Recovery:
        """Return the table, base first."""
        recipe, checkpoints = self.recipe, self.checkpoints
        names = [name for name, _ in checkpoints.folders()]
        asked = [
            *((mode, task.stem) for mode, task in before_finetune(recipe.measured, recipe.shots)),
            *((recipe.after, task.stem) for task in recipe.measured),
        ]
        base, routing_map = checkpoints.base, checkpoints.routing_map
        return Recovery(
            model=checkpoints.model.folder.resolve().name,
            base=None if base is None else base.folder.resolve().name,
            out=out.name,
            summary="" if routing_map is None else routing_map.summary(),
            shots=recipe.shots,
            lessons=self.lessons.count,
            left_out=self.lessons.left_out,
            cells=tuple(
                self.cells[(name, mode, task)]
                for mode, task in asked
                for name in names
                if (name, mode, task) in self.cells
            ),
            trained=tuple(done for name in names if (done := self._record(name))),
            text=dict(self.lessons.use),
            provenance=self.provenance,
        )


def _lessons(recipe: RecoverRecipe) -> Lessons | PlainText:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(recipe.model, local_files_only=True)
    template = recipe.chat_template or "auto"
    if recipe.distill is not None and recipe.data is not None:
        return PlainText.read(
            parse_text(recipe.data),
            tokenizer,
            length=recipe.length,
            count=recipe.examples,
            chat_template=template,
            seed=recipe.seed,
        )
    found = [lesson for task in recipe.trained for lesson in task_lessons(task, tokenizer)]
    use: dict[str, TextUse] = {}
    if recipe.data is not None:
        for part in parse_data(recipe.data):
            given = Instructions(part, tokenizer, template)
            found += instruction_lessons(given)
            use[part.name] = given.tally.use(tokens=0)
    held_out = {task.name: task for task in (*recipe.trained, *recipe.measured)}
    mixed = mix_lessons(found, held_out.values(), count=recipe.examples, seed=recipe.seed)
    return replace(mixed, use=use)


def _with_steps(training: SftSettings, steps: int | None, examples: int) -> SftSettings:
    """Say in epochs how long a number of optimizer steps is."""
    if steps is None:
        return training
    return training.model_copy(update={"epochs": steps * training.batch / examples})


def _settings(recipe: RecoverRecipe, training: SftSettings) -> dict[str, Any]:
    return {
        **recipe.model_dump(mode="json", exclude=set(recipe.places), exclude_none=True),
        **training.model_dump(mode="json", exclude_none=True),
    }


def _provenance(
    recipe: RecoverRecipe, training: SftSettings, lessons: Lessons | PlainText
) -> Provenance:
    tests = (data_identity(task, "test", recipe.test_items) for task in recipe.measured)
    return Provenance.now(
        "recover",
        settings=_settings(recipe, training) | _origins(recipe),
        seed=recipe.seed,
        data=(*lessons.identity, *tests),
    )


def _origins(recipe: RecoverRecipe) -> dict[str, str]:
    """Return which models of the hub these are; they are told apart by what they hold."""
    model = {name.removeprefix("base_"): told for name, told in origin(recipe.model).items()}
    return model | (origin(recipe.base) if recipe.base else {})


def _finetune_of(subject: Subject, done: Finetuned) -> SubjectFinetune:
    tenth = max(len(done.losses) // 10, 1)
    first, last = done.losses[:tenth], done.losses[-tenth:]
    return SubjectFinetune(
        subject=subject,
        tuning=done.tuning,
        losses=(sum(first) / len(first), sum(last) / len(last)),
        seconds=round(done.seconds, 3),
        peak_bytes=done.peak_bytes,
        trained_bytes=done.trained_bytes,
    )
