"""An lm-evaluation-harness model on an OpenAI-compatible server: scores what is served."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from offline.data.chat_template import Messages
from offline.engines.encoding import Encoder, Prompt, TokenPair
from offline.engines.local.packing import group
from offline.engines.reading import Ids, Reading
from offline.engines.replies import Message, completion, message, prompt_reading, prompt_score
from offline.engines.server import Body, Endpoint
from vllm_moe_prune.checkpoint import Checkpoint, read_config
from vllm_moe_prune.config_keys import most_tokens
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap

_DEFAULT_LENGTH = 2048  # of a model whose config does not say
_SCORING = {
    "echo": True,
    "logprobs": 1,
    "max_tokens": 1,
    "temperature": 0,
    # vLLM's, and others do without: names that no two tokens share.
    "return_tokens_as_token_ids": True,
}


class Conversation(str):
    """A prompt that a chat template wrote, with the messages that it wrote it from."""

    __slots__ = ("is_open", "messages")
    messages: Messages
    is_open: bool  # the last message is to be continued


class EndpointLM(Encoder):
    """Scores and generates over HTTP what the engines score and generate in process.

    Requests carry token ids of the engines' own encoding, and what a server leaves out of its
    replies or does otherwise is refused (replies.py). lm-evaluation-harness's own client is not
    used: it encodes contexts otherwise, follows proxies to this machine, repeats a refused request
    instead of saying why, and takes whatever log-probabilities there are for those of the prompt.
    ``tokens`` counts those sent and those generated.

    Answers to conversations are asked for as a chat, whose messages the *server* puts through its
    template. A chat gives no log-probabilities of choices: these are asked for as completions of
    the conversation in the tokenizer's own template.

    A prompt that is too long for the model loses its beginning, as in the engines, but two tokens
    sooner: a server that is asked for log-probabilities generates a token as well.

    :param own_length: tokens that the model can look at
    :raises PruneError: while running, if the server takes less and a prompt needs more
    """

    def __init__(self, endpoint: Endpoint, tokenizer: Any, own_length: int) -> None:
        served = endpoint.max_model_len or own_length
        super().__init__(tokenizer, min(own_length, served - 2))
        self.endpoint, self.own_length = endpoint, own_length

    @classmethod
    def connect(cls, url: str, folder: Path, model: str | None = None) -> EndpointLM:
        """Find the server and read the tokenizer of a checkpoint of the model that it serves.

        :param folder: the checkpoint served, or the base that it was made from
        :param model: as requests must spell it; None takes the first that is served
        :raises PruneError: if there is no such server, model or tokenizer, or the server says that
            it serves a checkpoint of another base
        """
        config = read_config(folder)
        tokenizer = _tokenizer(folder)
        endpoint = Endpoint.find(url, model)
        if endpoint.root is not None and (Path(endpoint.root) / "config.json").is_file():
            _check_same(folder, Path(endpoint.root), endpoint.url)
        text = config.get("text_config") or config  # a server may serve any family
        return cls(endpoint, tokenizer, most_tokens(text) or _DEFAULT_LENGTH)

    def apply_chat_template(
        self, chat_history: Messages, add_generation_prompt: bool = True
    ) -> Conversation:
        """Return a conversation in the tokenizer's template, which remembers its messages.

        :raises PruneError: as `Encoder.apply_chat_template`
        """
        made = Conversation(super().apply_chat_template(chat_history, add_generation_prompt))
        made.messages, made.is_open = chat_history, not add_generation_prompt
        return made

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding gives it) of each request."""
        return self._score(self.encode_pairs([request.args for request in requests]))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(request[1], request[2]) for request in requests])

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """Return the log-likelihood in nats of each request's whole text."""
        for request in requests:
            self._check_room(len(self.tok_encode(*request.args)))
        return super().loglikelihood_rolling(requests)

    def score_apart(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs, each a request of its own as all are here."""
        return self._score(pairs) if pairs else []

    def readings(
        self, texts: Sequence[Sequence[int]], count: int = 0, wanted: Sequence[Ids] | None = None
    ) -> list[Reading]:
        """Read texts, each a request of its own (see `Encoder.readings`).

        Servers tell the likeliest tokens only, so that some of ``wanted`` may stay unknown.
        """
        self._check_room(max(map(len, texts)) - 1)
        self.tokens += sum(map(len, texts))
        return self.endpoint.ask(
            "completions",
            [
                (
                    {"prompt": list(text), **_SCORING, "logprobs": max(count, 1)},
                    partial(
                        prompt_reading,
                        prompt=list(text),
                        count=count,
                        wanted=None if wanted is None else wanted[place],
                        tokenizer=self.tokenizer,
                    ),
                )
                for place, text in enumerate(texts)
            ],
        )

    def _score(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        self._check_room(max(len(context) + len(rest) for context, rest in pairs) - 1)
        prompts: list[list[int]] = [[]] * len(pairs)
        begins = [0] * len(pairs)
        for question in group(pairs, self.max_length):  # cuts as the engines do
            for place, continuation in zip(question.places, question.continuations, strict=True):
                prompts[place] = [*question.context, *continuation]
                begins[place] = len(question.context)
        self.tokens += sum(map(len, prompts))

        return self.endpoint.ask(
            "completions",
            [
                (
                    {"prompt": prompt, **_SCORING},
                    partial(prompt_score, prompt=prompt, begin=begin, tokenizer=self.tokenizer),
                )
                for prompt, begin in zip(prompts, begins, strict=True)
            ],
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Return what is generated after each context, up to its stop strings.

        A context that is a `Conversation` is asked as a chat.
        """
        prompts = self.prompts(requests)
        found: dict[int, str] = {}
        for kind, generate in ((True, self._chats), (False, self._completions)):
            places = [
                place
                for place, request in enumerate(requests)
                if isinstance(request.args[0], Conversation) is kind
            ]
            texts = generate([requests[p].args[0] for p in places], [prompts[p] for p in places])
            found |= dict(zip(places, texts, strict=True))
        return [self.answer(prompt, found[place]) for place, prompt in enumerate(prompts)]

    def _completions(self, contexts: Sequence[str], prompts: Sequence[Prompt]) -> list[str]:
        for context, prompt in zip(contexts, prompts, strict=True):
            self._check_room(len(self.tok_encode(context)) + prompt.max_tokens)
        replies = self.endpoint.ask(
            "completions",
            [
                (
                    {"prompt": list(prompt.ids), **_generation(prompt)},
                    partial(completion, prompt=prompt.ids, max_tokens=prompt.max_tokens),
                )
                for prompt in prompts
            ],
        )
        self.tokens += sum(len(prompt.ids) for prompt in prompts)
        self.tokens += sum(generated for _, generated in replies)
        return [text for text, _ in replies]

    def _chats(self, contexts: Sequence[Any], prompts: Sequence[Prompt]) -> list[str]:
        for context, prompt in zip(contexts, prompts, strict=True):
            self._check_chat(len(self.tok_encode(context)) + prompt.max_tokens)
        replies = self.endpoint.ask(
            "chat/completions",
            [
                (
                    {"messages": context.messages, **_turn(context), **_generation(prompt)},
                    partial(message, max_tokens=prompt.max_tokens),
                )
                for context, prompt in zip(contexts, prompts, strict=True)
            ],
        )
        self.tokens += sum(reply.tokens for reply in replies)
        apart = any(reply.thought for reply in replies)  # the server takes thinking out of answers
        return [
            self._said(reply, prompt.decoding.think_end, apart)
            for reply, prompt in zip(replies, prompts, strict=True)
        ]

    def _said(self, reply: Message, think_end: str | None, apart: bool) -> str:
        """Return what a model wrote, thinking and answer together if the former matters."""
        if think_end is None:
            self.unfinished += bool(reply.thought and not reply.content)
            return reply.content
        if not apart or think_end in reply.content:
            return reply.content
        return reply.thought + think_end + reply.content if reply.content else reply.thought

    def _check_room(self, needed: int) -> None:
        """Refuse to cut what the model could look at whole: scores would not be the engines'."""
        served = self.endpoint.max_model_len
        if served is not None and served < self.own_length and needed > self.max_length:
            raise PruneError(
                f"an item needs {needed + 2} tokens and {self.endpoint.url} takes {served}",
                hint=f"serve with --max-model-len {min(needed + 2, self.own_length)}",
            )

    def _check_chat(self, needed: int) -> None:
        """Refuse a conversation that does not fit: a server cuts none, nor could it well."""
        served = self.endpoint.max_model_len or self.own_length
        if needed > served:
            raise PruneError(
                f"a conversation and its answer need {needed} tokens and {self.endpoint.url} "
                f"takes {served}",
                hint="give a smaller --max-gen-tokens, or serve with a larger --max-model-len",
            )


def _generation(prompt: Prompt) -> Body:
    """Return how a prompt is to be continued.

    vLLM takes what is left out from the model's generation_config.json; the engines know none.
    """
    decoding = prompt.decoding
    body = {
        "max_tokens": prompt.max_tokens,
        "stop": list(decoding.engine_stops),
        "temperature": decoding.temperature,
        "repetition_penalty": 1.0,
    }
    if decoding.think_end is not None:
        body["skip_special_tokens"] = False  # what ends thinking may be one
    if prompt.seed is None:
        return body
    names = ("top_p", "top_k", "min_p")
    return body | {name: getattr(decoding, name) for name in names} | {"seed": prompt.seed}


def _turn(conversation: Conversation) -> Body:
    """Return whose turn it is, where that is not the model's as usual."""
    if not conversation.is_open:
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}


def base_of(folder: Path) -> BaseFingerprint:
    """Identify the base of a checkpoint: what its routing map says, or else the checkpoint itself.

    :raises PruneError: if the folder cannot be read
    """
    if (folder / MAP_FILE).is_file():
        return RoutingMap.load(folder).base
    return Checkpoint.open(folder).fingerprint()


def _check_same(folder: Path, served: Path, url: str) -> None:
    if not base_of(folder).matches(base_of(served)):
        raise PruneError(
            f"{url} serves {served}, which does not have the base of {folder}",
            hint="give --model the checkpoint that is served, or its base",
        )


def _tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise PruneError(f"no tokenizer in {folder}: {str(error).partition(chr(10))[0]}") from None
