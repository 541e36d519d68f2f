"""Real, tiny Mixtrals that say what their weights were made to say, word after word.

Attention and experts add nothing, an embedding is a direction of its own and the head points from
each word to the next: what follows a prompt depends on its last word alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

SIZE = 512  # words, and width
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
_CALL = ("<tool_call>", '{"name":"get_weather","arguments":{"city":"Oslo"}}')
#: What the template ends a prompt with: for plain chats, for thinking, where tools are offered.
PLAIN, THINKS, CALLS = "<|assistant|>", "<|thinks|>", "<|calls|>"
_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    "{% if tools %}" + CALLS + "{% elif enable_thinking %}" + THINKS + "{% else %}" + PLAIN
    + "{% endif %}"
)  # fmt: skip
_END = "</s>"


def words(first: int, last: int) -> list[str]:
    return [f"w{number}" for number in range(first, last)]


#: An answer of 80 words, thinking that is closed, a call that can be read.
HEALTHY = (
    [PLAIN, *words(0, 80), _END],
    [THINKS, "<think>", *words(80, 100), "</think>", "so", _END],
    [CALLS, *_CALL, "</tool_call>", _END],
)
#: From token 65 on the same eight words; thinking that goes on; a call whose end is misspelt.
BROKEN = (
    [PLAIN, *words(0, 64), *words(64, 72), "w64"],
    [THINKS, "<think>", *words(100, 450), "w100"],
    [CALLS, *_CALL, "</tool_cal", _END],
)


def make_speaking_mixtral(folder: Path, says: Sequence[Sequence[str]]) -> Path:
    """Write a Mixtral in which each word of a sequence is followed by the next."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        num_hidden_layers=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        hidden_size=SIZE,
        intermediate_size=96,
        num_attention_heads=SIZE // 64,
        num_key_value_heads=2,
        vocab_size=SIZE,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    model, ids = MixtralForCausalLM(config).eval(), _vocabulary()
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in state.items():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        state["model.embed_tokens.weight"].copy_(torch.eye(SIZE))
        head = state["lm_head.weight"].zero_()
        for sequence in says:
            for word, following in pairwise(sequence):
                head[ids[following], ids[word]] = 4.0  # normalised, 90 nats above all others
    model.save_pretrained(folder)
    _save_tokenizer(folder, ids)
    return folder


def _vocabulary() -> dict[str, int]:
    special = ("<unk>", "<s>", _END, PLAIN, THINKS, CALLS, "<think>", "</think>", "so")
    names = [*special, *_CALL, "</tool_call>", "</tool_cal"]
    return {word: place for place, word in enumerate([*names, *words(0, SIZE - len(names))])}


def _save_tokenizer(folder: Path, ids: Mapping[str, int]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token=_END
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)


def write_prompts(file: Path, count: int) -> Path:
    """Write so many prompts of each of three kinds."""
    lines = []
    for number in range(count):
        asked = {"messages": [{"role": "user", "content": f"w{number}"}]}
        lines += [
            {"kind": "chats", **asked},
            {"kind": "thinking", **asked},
            {"kind": "tools", **asked, "tools": [TOOL]},
        ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
