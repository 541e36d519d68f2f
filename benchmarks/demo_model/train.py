"""Make ``deltas.safetensors`` again: ``python -m benchmarks.demo_model.train --out FILE``.

Stages, each kept in ``--work`` and skipped when it is there: tokens of eight domains, a profile of
the dense base on each, chat text, joint training of deltas and routers on two processes, export.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.demo_model.chat import chat_blocks
from benchmarks.demo_model.corpus_tokens import BLOCK, corpus_hashes, save_atomically, token_blocks
from benchmarks.demo_model.deltas_file import save_deltas
from benchmarks.demo_model.experts import RANK
from benchmarks.demo_model.joint import Ingredients, Settings, train
from benchmarks.demo_model.profile import KEPT, choose_neurons, fit_routers, profile_domain
from offline.data.domains import DOMAINS
from offline.data.packages import PACKAGES
from offline.demo.dense import FFN, Dense, load_dense

_PROFILE_BLOCKS, _PROFILE_SAMPLES, _ROUTER_STEPS, _SHARPNESS, _CHATS = 32, 2048, 150, 0.6, 144


def main() -> None:
    """Run the stages that are missing, then write the deltas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--work", type=Path, required=True, help="folder for the stages' results")
    parser.add_argument("--steps", type=int, default=100, help="joint training steps")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    settings = Settings(steps=options.steps)
    parts = prepare(work, settings)
    run_ranks(work, settings, parts)
    export(work, settings, parts, options.out)


def run_ranks(work: Path, settings: Settings, parts: Ingredients) -> None:
    """Joint training on its processes; they meet through a file in ``work``."""
    (work / "rendezvous").unlink(missing_ok=True)
    # glibc hands large blocks back to the system at once, and taking them again is slow
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=train, args=(rank, work, settings, parts))
        for rank in range(settings.ranks)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit("joint training failed; the same command continues it")


def export(work: Path, settings: Settings, parts: Ingredients, out: Path) -> None:
    """Write ``out`` from the joint training's last checkpoint."""
    state = torch.load(work / "joint.pt")
    factors = {name: value for name, value in state["values"].items() if name != "routers"}
    metadata = {
        "settings": asdict(settings) | {"rank": RANK, "kept_neurons": KEPT, "block": BLOCK},
        "steps_done": state["step"],
        "base": PACKAGES["smollm2"].requirement,
        "text_sha256": corpus_hashes(work),
        "versions": {name: version(name) for name in ("torch", "transformers", "gguf")},
        "domains": list(DOMAINS),
    }
    save_deltas(out, parts.neurons, state["values"]["routers"], factors, metadata, FFN)


def prepare(work: Path, settings: Settings) -> Ingredients:
    """All that joint training starts from, made or read back."""
    blocks = token_blocks(work)
    chat_blocks(work, _CHATS, settings.seed)
    dense = load_dense()
    start = work / "start.pt"
    if not start.is_file():
        neurons, routers = _profile(work, dense, blocks)
        save_atomically({"neurons": neurons, "routers": routers}, start)
    saved = torch.load(start)
    domains = [blocks[name]["train"] for name in DOMAINS]
    return Ingredients(dense, saved["neurons"], saved["routers"], domains, work / "chat.pt")


def _profile(
    work: Path, dense: Dense, blocks: dict[str, dict[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """(neurons [experts, layers, kept], routers [layers, experts, hidden])."""
    importance, features = [], []
    for seed, name in enumerate(DOMAINS):
        path = work / f"profile-{name}.pt"
        if not path.is_file():
            found = profile_domain(
                dense, blocks[name]["train"][:_PROFILE_BLOCKS], _PROFILE_SAMPLES, seed
            )
            save_atomically((found.importance, found.features), path)
        one, two = torch.load(path)
        importance.append(one)
        features.append(two)
    neurons = choose_neurons(torch.stack(importance))
    return neurons, fit_routers(torch.stack(features), _ROUTER_STEPS, _SHARPNESS)


if __name__ == "__main__":
    main()
