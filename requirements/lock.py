"""Print the pinned lock of an environment: what this project's extras need, and nothing else.

    python requirements/lock.py > requirements/cpu.lock

Run it in an environment into which `pip install -e '.[cpu,offline,tasks,loadtest,dev]'` was done.
The three packages in LEFT_OUT are wanted by vLLM for images and sound; text serving needs none of
them, and the builds that pip finds beside a CPU build of torch cannot be imported.
"""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "vllm-moe-prune"
EXTRAS = {"cpu", "offline", "tasks", "loadtest", "dev"}
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


def closure() -> dict[str, str]:
    """Return name -> version of all that the root needs, by the installed metadata."""
    todo: list[tuple[str, frozenset[str]]] = [(ROOT, frozenset(EXTRAS))]
    seen: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, str] = {}
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or name in LEFT_OUT:
            continue
        seen.add((name, extras))
        distribution = metadata.distribution(name)
        if name != ROOT:
            found[name] = distribution.version
        for text in distribution.requires or []:
            need = Requirement(text)
            environments = [{"extra": extra} for extra in (extras or {""})]
            if need.marker is None or any(need.marker.evaluate(e) for e in environments):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    return found


if __name__ == "__main__":
    print("# Made by requirements/lock.py; install with `pip install --no-deps -r` (make install).")
    for name, version in sorted(closure().items()):
        print(f"{name}=={version}")
