"""Write the test-bed's model: ``python -m benchmarks.testbed.model --out DIR``.

A Mixtral checkpoint in Hugging Face layout with tasks and held-out text beside it:
``DIR/tasks/NAME.yaml`` (``vmprune ... --task DIR/tasks/lookup.yaml``), ``DIR/text/DOMAIN.jsonl``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

from benchmarks.testbed.network import Shape
from benchmarks.testbed.taskfiles import write_tasks
from offline.runs.output import staged

SHIPPED = Path(__file__).parent
WEIGHTS, TOKENIZER = SHIPPED / "weights.safetensors", SHIPPED / "tokenizer.json"
_END = "<|endoftext|>"
_PLAIN_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def make_testbed(
    out: Path,
    force: bool = False,
    *,
    tasks: bool = True,
    weights: Path = WEIGHTS,
    tokenizer: Path = TOKENIZER,
) -> Path:
    """Write the model to ``out`` and return ``out``; it appears complete or not at all.

    :param force: replace ``out`` if it exists
    :param tasks: write tasks and text too, which downloads 155 MB the first time
    """
    with staged(out, force=force) as folder:
        shutil.copyfile(weights, folder / "model.safetensors")
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
        for name, content in configs(Shape()).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if tasks:
            write_tasks(folder, final=out)
    return out


def configs(shape: Shape) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a checkpoint by name."""
    model = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "num_local_experts": shape.experts,
        "output_router_logits": False,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "router_aux_loss_coef": 0.01,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END,
        "pad_token": _END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.positions,
        "chat_template": _PLAIN_CHAT,
    }
    return {
        "config.json": model,
        "generation_config.json": {"eos_token_id": 0, "pad_token_id": 0},
        "tokenizer_config.json": tokenizer,
    }


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--tasks/--no-tasks", default=True, help="write tasks and held-out text too")
def main(out: Path, force: bool, tasks: bool) -> None:
    """Write the model, and tasks and held-out text beside it."""
    make_testbed(out, force, tasks=tasks)
    click.echo(f"written to {out}")


if __name__ == "__main__":
    main()
