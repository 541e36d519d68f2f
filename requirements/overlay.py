"""Lay the Python of a vLLM over the compiled kernels of the CPU build that is installed.

    python requirements/overlay.py 0.33.0 build/vllm-0.33.0

For a version that has no CPU build (yet): `make window WINDOW=0.33.0` puts the folder first on
PYTHONPATH. What runs then is the version's Python, all that a plugin touches, with the kernels and
the torch of the installed one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

# vLLM asks for a distribution of this name, and takes itself for a CPU build by the "+cpu".
_METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"


def overlay(version: str, out: Path) -> None:
    """Write the folder; nothing is left of it if that fails."""
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None, "no vLLM is installed"
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", scratch, f"vllm=={version}"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            python = [n for n in names if n.startswith("vllm/") and not n.endswith(".so")]
            archive.extractall(partial, python)
    for kernels in Path(spec.origin).parent.glob("*.so"):
        shutil.copy(kernels, partial / "vllm")
    information = partial / f"vllm-{version}+cpu.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(_METADATA.format(version=version))
    partial.rename(out)


if __name__ == "__main__":
    overlay(sys.argv[1], Path(sys.argv[2]))
