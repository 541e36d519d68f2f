"""`PromptingSettings`: the flags about how tasks are put to a model; descriptions are the help."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offline.tasks.generation_options import LENGTHS
from offline.tasks.prompting import Prompting, gen_kwargs_of
from vllm_moe_prune.checkpoint import read_config
from vllm_moe_prune.config_keys import most_tokens
from vllm_moe_prune.errors import PruneError

CONFIG_FILE = "config.json"


class PromptingSettings(BaseModel):
    """How prompts are made and answers generated; what is not given is lm-evaluation-harness's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    apply_chat_template: bool | None = Field(
        default=None, description="put every prompt through the tokenizer's chat template"
    )
    system_instruction: str | None = Field(
        default=None, description="text that the conversation, or the prompt, begins with"
    )
    fewshot_as_multiturn: bool | None = Field(
        default=None,
        description="examples are turns of their own in a conversation (so unless --no-...)",
    )
    think_end: str | None = Field(
        default=None,
        min_length=1,
        description="text that ends a model's thinking, such as </think>: only what a generation "
        "has after it counts",
    )
    gen_kwargs: str | None = Field(
        default=None,
        description="options of generation, KEY=VALUE,... or a JSON object: temperature, top_p, "
        "top_k, min_p, seed, do_sample, until",
    )
    max_gen_tokens: int | None = Field(
        default=None, ge=1, description="tokens of an answer, thinking included, for every task"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("--fewshot-as-multiturn needs --apply-chat-template")
        try:
            self.prompting  # noqa: B018  # refuses what is wrong
        except PruneError as error:
            flag = "" if error.message.startswith("--gen-kwargs ") else "--gen-kwargs: "
            raise ValueError(f"{flag}{error}") from None
        given = gen_kwargs_of(self.gen_kwargs or "{}")
        length = next((name for name in LENGTHS if name in given), None)
        if self.max_gen_tokens is not None and length is not None:
            raise ValueError(
                f"--max-gen-tokens and {length} of --gen-kwargs both say how long answers are"
            )
        return self

    @property
    def prompting(self) -> Prompting:
        """Return the same as tasks carry it."""
        return Prompting(
            apply_chat_template=bool(self.apply_chat_template),
            system_instruction=self.system_instruction,
            fewshot_as_multiturn=self.fewshot_as_multiturn is not False,
            think_end=self.think_end,
            gen_kwargs=self.gen_kwargs or "{}",
            max_gen_tokens=self.max_gen_tokens,
        )


def check_chat(settings: PromptingSettings, folder: Path) -> None:
    """Refuse, before a model is loaded, what it or its tokenizer cannot do.

    :raises PruneError: if the tokenizer in ``folder`` has no chat template, or one that drops the
        system instruction; if an answer would take all tokens that the model sees
    """
    if settings.max_gen_tokens is not None and (folder / CONFIG_FILE).is_file():
        config = read_config(folder)
        text = config.get("text_config") or config
        sees = most_tokens(text) or settings.max_gen_tokens + 1
        if settings.max_gen_tokens >= sees:
            raise PruneError(
                f"--max-gen-tokens {settings.max_gen_tokens}: {folder} sees {sees} tokens, prompt "
                "and answer together"
            )
    if settings.apply_chat_template and folder.is_dir():
        from offline.data.chat_template import check_template

        check_template(folder, settings.system_instruction)
