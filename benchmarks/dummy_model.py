"""A model folder without weights: config and tokenizer, for `--load-format dummy`.

Speed does not depend on the values of the weights, so a model of any shape can be measured
without one being downloaded or stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from loadtest.workload import Lengths, save_workload


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Mixtral; the default's experts hold 97% of its weights outside the embedding."""

    hidden: int = 1024
    intermediate: int = 3584
    layers: int = 8
    heads: int = 16
    kv_heads: int = 4
    experts: int = 8
    top_k: int = 2
    vocab: int = 32000


def write_model(folder: Path, shape: Shape) -> Path:
    """Write config.json and a tokenizer for ``shape`` into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, shape.vocab)
    return folder


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Write a word-level tokenizer: every id is one printable word, so every token is seen.

    A byte-level one would hold back tokens that are no whole character, and random weights
    produce many of those.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, vocab))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def prompt_ids(number: int, tokens: int) -> list[int]:
    """Return the token ids of the prompt of a number; neighbours begin differently."""
    return [3 + (number * 131 + i * 17) % 30000 for i in range(tokens)]


def write_workload(path: Path, prompt_tokens: int, output_tokens: int) -> Path:
    """Write prompts of one length for answers of one length, always the same, and return ``path``.

    :param prompt_tokens: words of the tokenizer that `write_tokenizer` writes
    """
    prompts = [
        " ".join(f"w{token}" for token in prompt_ids(number, prompt_tokens)) for number in range(64)
    ]
    length = Lengths(distribution="constant", median=output_tokens, min=1, max=output_tokens)
    save_workload(path, prompts, length)
    return path
