"""What tests of many rooms begin with: tiny bases, an engine of one, a task."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import caches, scheduling
from tests.hub.server import Hub
from tests.sample_files import write_modules, write_task
from tests.tiny import make_tiny_mixtral

if TYPE_CHECKING:  # most tests need no engine, and its imports take seconds
    from offline.engines.local.transformers import TransformersEngine

# Before other test files are imported: libraries read where to keep things when they are.
_IS_FIRST = caches.SESSION not in os.environ
caches.redirect()
_HUB = Hub()
os.environ["HF_ENDPOINT"] = _HUB.start()  # nothing here or in a child asks the one on the internet


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries complain of leaks when Python ends
    if _IS_FIRST:
        caches.remove()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors lose more to waiting threads than they gain."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_among_modules() -> None:
    """What is imported by now is never garbage; finetunes look for some after every phase.

    That took 0.3 s each time among a million objects, a third of a tiny lottery's time.
    """
    gc.collect()
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What `make quick` leaves out it does not import either: every process would, for seconds."""
    file = str(collection_path.relative_to(config.rootpath))
    left_out = "not long" in config.option.markexpr and scheduling.is_long(file)
    return True if left_out else None


@pytest.fixture
def parts_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base may have only the tensors that a test is about: no embeddings, two layers of sixty."""
    for look in ("_layers", "_around"):
        monkeypatch.setattr(f"offline.build.whole.{look}", lambda base: [])


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    scheduling.arrange(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return scheduling.scheduler(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--matrix", action="store_true", help="write the families' table into docs/families.md"
    )


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral of 4 layers, 8 experts, in several shards, with what a hub folder has."""
    folder = make_tiny_mixtral(tmp_path_factory.mktemp("base") / "tiny", layers=4, shards=3)
    (folder / "LICENSE").write_text("a licence")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "scaler.pkl").write_bytes(b"a pickle")
    (folder / "README.md").write_text("the card of the base")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral of 2 layers, 8 experts."""
    return make_tiny_mixtral(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def engine(model: Path) -> TransformersEngine:
    from offline.engines.local.transformers import TransformersEngine

    return TransformersEngine(model, device="cpu", dtype="float32")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub on this machine with nothing in it yet, for this process and its children.

    HF_ENDPOINT names it; the cache of what is downloaded is the test's own.
    """
    from huggingface_hub import HfFileSystem, constants

    _HUB.clear(tmp_path / "published")
    HfFileSystem.clear_instance_cache()  # it remembers what it found
    cache = str(tmp_path / "huggingface" / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_HUB_CACHE", cache)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return _HUB


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is one with modules of a user's that are called like ours."""
    folder = write_modules(tmp_path / "user")
    monkeypatch.chdir(folder)
    # children find this checkout, installed or not
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    return folder


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The task of `write_task`, with a cache of its own."""
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    return write_task(tmp_path)
