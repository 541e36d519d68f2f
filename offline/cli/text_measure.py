"""What `vmprune eval` reads of plain text: by the model, and by its base."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from offline.cli.models import model_folder
from offline.engines.opened import EngineName, loaded, served
from offline.fitness.documents import (
    LISTED,
    LISTED_BY_SERVERS,
    DomainText,
    TextAsked,
    load_texts,
    parse_texts,
)
from offline.runs.device import DType
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from offline.engines.encoding import Encoder
    from offline.engines.endpoint import EndpointLM
    from offline.engines.live.engine import VllmEngine
    from offline.engines.local.transformers import TransformersEngine
    from offline.engines.reading import Reading
    from offline.results.text_quality import DomainQuality, TextQuality
    from offline.runs.progress import Reporter
    from offline.texts.spec import Part
    from vllm_moe_prune.routing_map import RoutingMap

_SERVERS = ("http://", "https://")


@dataclass(slots=True)
class TextsAsked:
    """What the flags ask for: text, and the base that is no map's.

    :param listed: likeliest tokens that are compared
    """

    text: TextAsked
    base: str | None
    listed: int
    domains: tuple[DomainText, ...] = field(default=(), init=False)
    folder: Path | None = field(default=None, init=False)

    @classmethod
    def of(
        cls,
        perplexity: str | None,
        agreement: str | None,
        base: str | None,
        length: int,
        seed: int,
        *,
        has_map: bool,
    ) -> TextsAsked | None:
        """Read the flags; None where no text is asked for. Reads only the beginning of sources.

        :raises PruneError: if a flag cannot be read, or there is no base to agree with
        """
        if perplexity is None and agreement is None:
            if base is not None:
                raise PruneError("--base needs --perplexity or --agreement")
            return None
        if base is not None and has_map:
            raise PruneError("--base does not go with --map", hint="its base is --model")
        if agreement is not None and base is None and not has_map:
            raise PruneError("--agreement is with a base", hint="give --map or --base")
        found: dict[str, Part] = {}
        asked = (("--perplexity", perplexity), ("--agreement", agreement))
        for flag, spec in asked:
            for part in parse_texts(flag, spec) if spec is not None else ():
                if found.setdefault(part.name, part) != part:
                    raise PruneError(
                        f"--perplexity and --agreement read other text as {part.name}",
                        hint=f"give one another name: other={part.source}",
                    )
        compared = parse_texts("--agreement", agreement) if agreement is not None else ()
        names = frozenset(part.name for part in compared)
        text = TextAsked(tuple(found.values()), names, length, seed)
        return cls(text, base, LISTED_BY_SERVERS if _is_server(base) else LISTED)

    def check_base(self, engine: EngineName, dtype: DType) -> None:
        """Refuse a --base that cannot be opened, before the model is loaded.

        :raises PruneError: naming what can be done instead
        """
        if self.base is None or _is_server(self.base):
            return
        from offline.engines.needs import check_evaluable

        folder = model_folder(Path(self.base))
        check_evaluable(folder, None, allow_other=False, engine=engine, dtype=dtype)
        self.folder = folder

    def read_base(
        self,
        model: Path,
        engine: EngineName,
        device: str,
        dtype: DType,
        tensor_parallel: int,
        reporter: Reporter,
    ) -> dict[str, list[Reading]] | None:
        """Let the base of --base read, before the model is loaded; None where there is none.

        :param model: whose tokenizer a server's model has
        """
        if self.base is None:
            return None
        from offline.data.models import complete

        reporter.stage("reading text with the base", 1)
        if _is_server(self.base):
            from offline.engines.endpoint import EndpointLM

            return self._read(EndpointLM.connect(self.base, model))
        assert self.folder is not None, "check_base comes first"
        complete(self.folder)
        if engine == "vllm":
            with served(self.folder, None, dtype, tensor_parallel, 0) as live:
                return self._read(live.reader)
        return self._read(loaded(self.folder, None, device, dtype).reader)

    def measure(
        self,
        engine: TransformersEngine | VllmEngine,
        routing_map: RoutingMap | None,
        before: dict[str, list[Reading]] | None,
        model: Path,
        reporter: Reporter,
    ) -> TextQuality:
        """Let a loaded model read, and before it its base where a map is applied."""
        reporter.stage("reading text", 1)
        if routing_map is None:
            return self._quality(self._read(engine.reader, before), before, str(model), self.base)
        from offline.fitness.text_quality import TextBench

        bench = TextBench(engine, self.text)
        self.domains = bench.domains
        return self._told(bench.measure(routing_map), f"{model} with a map", str(model))

    def measure_endpoint(self, lm: EndpointLM, model: Path, reporter: Reporter) -> TextQuality:
        """Let a server's model read, and before it the base of --base."""
        self.listed = LISTED_BY_SERVERS
        before = self.read_base(model, "transformers", "auto", "auto", 1, reporter)
        reporter.stage("reading text", 1)
        return self._quality(self._read(lm, before), before, lm.endpoint.model, self.base)

    def _read(
        self, reader: Encoder, base: dict[str, list[Reading]] | None = None
    ) -> dict[str, list[Reading]]:
        from offline.fitness.text_quality import check_lengths, read_texts

        known = self.domains
        self.domains = load_texts(self.text, reader.tokenizer, reader.prefix_token_id)
        if known and known != self.domains:
            raise PruneError(
                "the model and its base make other tokens of the same text",
                hint="they must have the same tokenizer",
            )
        check_lengths(self.domains, reader)
        compared = self.text.compared
        return read_texts(reader, self.domains, listed=self.listed, compared=compared, base=base)

    def _quality(
        self,
        own: dict[str, list[Reading]],
        before: dict[str, list[Reading]] | None,
        model: str,
        base: str | None,
    ) -> TextQuality:
        from offline.fitness.text_quality import qualities

        return self._told(qualities(self.domains, own, before, self.text.seed), model, base)

    def _told(
        self, domains: tuple[DomainQuality, ...], model: str, base: str | None
    ) -> TextQuality:
        from offline.results.text_quality import TextQuality
        from vllm_moe_prune.provenance import Provenance

        sources: list[JsonValue] = [part.source for part in self.text.parts]
        made = Provenance.now(
            "eval",
            settings={"length": self.text.length, "text": sources},
            seed=self.text.seed,
            data=tuple(domain.identity for domain in self.domains),
        )
        return TextQuality(model=model, base=base, domains=domains, provenance=made)


def _is_server(base: str | None) -> bool:
    return base is not None and base.startswith(_SERVERS)
