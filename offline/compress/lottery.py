"""`vmprune compress --method lottery`: all rounds, then the result measured as it is stored."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from offline.analysis.analyse import analyse
from offline.build import trained
from offline.build.build import Finish
from offline.calibration.corpus import parse_calibration, uses_of
from offline.calibration.scores import Scores
from offline.compress.engines import EngineFactory, open_engines
from offline.compress.held_out import in_table_order, measure_as_it_is, measure_quality
from offline.compress.observations import Observations
from offline.compress.prepared import Prepared
from offline.compress.recipe.lottery import LotteryRecipe
from offline.compress.recipe.sections import BaseSection
from offline.compress.rounds import left, plans_of, where_of
from offline.compress.run import Run
from offline.compress.scores import blend_of
from offline.compress.summary import result_of, size_of
from offline.finetune.examples import packed
from offline.finetune.finetune import check_fits
from offline.finetune.teaching import Teaching
from offline.lottery.loaded import Loaded, compute_dtype
from offline.lottery.lottery import Lottery
from offline.lottery.play import Played, measured_result, play
from offline.lottery.text import LotteryText, load_text
from offline.results.analysis import ANALYSIS_FILE
from offline.results.compression import RESULT_FILE, Quality, RunResult
from offline.runs.output import link, staged
from offline.runs.owned import MANIFEST
from offline.runs.progress import Reporter, timed
from offline.runs.resume import delete, run_folder
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance


def compress_lottery(
    prepared: Prepared,
    out: Path,
    make_engine: EngineFactory,
    reporter: Reporter,
    *,
    force: bool = False,
    finish: Finish | None = None,
) -> RunResult:
    """Play the rounds in ``OUT.run``, measure base and result, and write ``out``.

    :param finish: as `compress`
    :raises PruneError: for what the recipe, the base or the text does not allow
    """
    one = _Compression.of(prepared, out, make_engine, reporter, force=force)
    with one.timed("rounds"):
        one = one.taught()
        played = play(one.lottery).made(one.provenance)
    stored = one.stored(played)
    with one.timed("held-out"):
        record = played.record(measured_result(one.lottery, stored, played))
        one.lottery.loaded.release()
        run, seen, quality = one.base_quality()
        quality = in_table_order((*quality, *one.result_quality(stored)))
    run.seconds |= one.seconds
    run.text |= uses_of(one.lottery.text.score)
    size = size_of(Checkpoint.open(stored))
    result = result_of(run, out, played.routing_map, seen.tokens, quality, size, record)
    with staged(out, force=force) as partial:
        own = shutil.ignore_patterns(MANIFEST)
        shutil.copytree(stored, partial, ignore=own, dirs_exist_ok=True, copy_function=link)
        for name, content in {RESULT_FILE: result.to_json(), **one.analysis(played)}.items():
            (partial / name).write_text(content)
        if finish is not None:
            finish(partial)
    delete(played.checkpoint)
    delete(stored)
    return result


@dataclass(frozen=True, slots=True)
class _Compression:
    """A lottery with what surrounds it: the task, the folders, the engines."""

    prepared: Prepared
    lottery: Lottery
    make_engine: EngineFactory
    provenance: Provenance
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        out: Path,
        make_engine: EngineFactory,
        reporter: Reporter,
        *,
        force: bool,
    ) -> _Compression:
        recipe, base = _recipe(prepared), prepared.base
        settings, where = recipe.settings_of_rounds(), where_of(recipe)
        plans = plans_of(recipe, prepared.space, base)
        if settings.finetune:
            first = left(base, plans[0].keep)
            length, distills = settings.length, recipe.distills
            check_fits(first, settings.tuning, length=length, where=where, distilled=distills)
        reporter.stage("reading text", 1)
        text = _text(prepared, sum(plan.tokens for plan in plans))
        told = (f"{name}: {use.told}" for name, use in uses_of(text.score).items())
        reporter.step(note="; ".join(told))
        named = [d.identity.model_dump() for d in (*text.score, *text.tune, *text.held_out)]
        identity = prepared.identity() | {"text": named}
        folder = run_folder(out, identity, force=force, upgrade=prepared.upgrade)
        lottery = Lottery(
            base=base,
            settings=settings,
            plans=plans,
            text=text,
            folder=folder,
            seed=recipe.method.seed,
            loaded=Loaded(recipe.engine.device, compute_dtype(recipe.engine.dtype, base)),
            where=where,
            reporter=reporter,
            blend=blend_of(recipe),
            scores=recipe.data.scores,
        )
        return cls(prepared, lottery, make_engine, _provenance(prepared, text))

    def taught(self) -> _Compression:
        """Return the same with what the base expects of the text of all rounds, if it teaches."""
        recipe, lottery = _recipe(self.prepared), self.lottery
        if not recipe.distills:
            return self
        last, length = lottery.plans[-1], lottery.settings.length
        tokens = last.skip * length + last.tokens
        examples = packed(lottery.text.tune, tokens=tokens, seed=lottery.seed)
        teaching = Teaching(
            lottery.base.folder,
            recipe.lottery.teacher or lottery.folder / "teacher",
            recipe.engine.device,
            lottery.loaded.dtype,
            recipe.lottery.teacher_engine or "transformers",
            recipe.lottery.teacher_tensor_parallel or 1,
        )
        teacher = teaching.teacher_of(examples, lottery.reporter)
        return replace(self, lottery=replace(lottery, teacher=teacher))

    def stored(self, played: Played) -> Path:
        """Return the result in the base's dtypes, written now or before."""
        folder = self.lottery.folder / "result"
        if not folder.exists():
            last, base = Checkpoint.open(played.checkpoint), self.lottery.base
            reporter = self.lottery.reporter
            made = trained.cast_operations(last, base)
            num_bytes = sum(op.target.num_bytes for op in made)
            reporter.stage("writing the checkpoint", num_bytes)
            trained.finish(last, base, played.routing_map, folder, progress=reporter.step)
        return folder

    def base_quality(self) -> tuple[Run, Observations, tuple[Quality, ...]]:
        """Measure the base and the baselines on the task's held-out items."""
        with open_engines(self.prepared.recipe, self.make_engine) as engines:
            run = self.prepared.begin(engines, self.lottery.folder, self.lottery.reporter)
            seen = Observations.of(run)
            return run, seen, measure_quality(run, {}, seen)

    def result_quality(self, stored: Path) -> tuple[Quality, ...]:
        """Measure the result on the task's held-out items."""
        base = BaseSection(model=stored)
        recipe = self.prepared.recipe.model_copy(update={"base": base})
        folder = self.lottery.folder / "on-result"
        folder.mkdir(exist_ok=True)
        with open_engines(recipe, self.make_engine) as engines:
            run = self.prepared.begin(engines, folder, self.lottery.reporter)
            return measure_as_it_is(run, "lottery")

    def analysis(self, played: Played) -> dict[str, str]:
        """Return what the report shows of the base's experts; nothing where none was scored."""
        words, first = _recipe(self.prepared).rounds_by, self.lottery.plans[0].name
        if not words:
            return {}
        scores = Scores.load(self.lottery.scores or self.lottery.folder / first / "scores")
        found = analyse(
            scores, domains=self.lottery.blend, routing_map=played.dropping, criteria=words
        )
        return {ANALYSIS_FILE: found.to_json()}

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add a block's time to ``seconds``."""
        return timed(self.seconds, stage)


def _text(prepared: Prepared, tune_tokens: int) -> LotteryText:
    from transformers import AutoTokenizer

    recipe = _recipe(prepared)
    tokenizer = AutoTokenizer.from_pretrained(recipe.base.model)
    return load_text(
        parse_calibration(recipe.data.calibration),
        tokenizer,
        length=recipe.settings_of_rounds().length,
        held_out=recipe.lottery.held_out,
        tune_tokens=tune_tokens,
        pack=recipe.data.pack,
        chat_template=recipe.data.chat_template or "auto",
        seed=recipe.method.seed,
    )


def _provenance(prepared: Prepared, text: LotteryText) -> Provenance:
    """Say what decided: the text, of which `tuned` names its own part, and not the task."""
    made = prepared.provenance
    scored = tuple(domain.identity for domain in text.score) if _recipe(prepared).rounds_by else ()
    given = tuple(one for one in made.data if one.name == "scores")
    return made.model_copy(update={"data": given or scored})


def _recipe(prepared: Prepared) -> LotteryRecipe:
    assert isinstance(prepared.recipe, LotteryRecipe)
    return prepared.recipe
