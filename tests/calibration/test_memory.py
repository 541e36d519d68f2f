"""What a pass takes: the estimate from headers, and a model larger than the memory it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from offline.calibration.memory import MemoryEstimate, estimate
from offline.texts.spec import Part
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint

PARTS = (Part("a", "code", 3), Part("b", "maths", 5))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(make_tiny_mixtral(tmp_path_factory.mktemp("tiny") / "m", layers=3))


def expected(
    checkpoint: Checkpoint,
    parts: tuple[Part, ...] = PARTS,
    *,
    item_bytes: int | None = None,
    gradients: bool = False,
    offload: bool = False,
) -> MemoryEstimate:
    return estimate(
        checkpoint,
        parts,
        length=10,
        tokens_per_batch=40,
        item_bytes=item_bytes,
        gradients=gradients,
        offload=offload,
    )


def test_weights_are_those_of_the_files(checkpoint: Checkpoint) -> None:
    whole = expected(checkpoint).memory["weights"]
    assert whole == checkpoint.num_bytes
    assert expected(checkpoint, item_bytes=2).memory["weights"] == whole // 2


def test_offloading_holds_one_layer_and_writes_all(checkpoint: Checkpoint) -> None:
    found = expected(checkpoint, offload=True)
    layers = found.disk["offloaded layers"]
    assert found.memory["weights"] == checkpoint.num_bytes - layers + layers // 3
    assert layers > checkpoint.expert_bytes()


def test_hidden_states_are_on_the_disk_and_of_all_layers_with_gradients(
    checkpoint: Checkpoint,
) -> None:
    tokens, width = 80, 64 * 4
    outputs = {"outputs of a layer's experts": 50 * 2 * width}  # of the larger domain, top-2
    assert expected(checkpoint).disk == {"hidden states": tokens * width, **outputs}
    found = expected(checkpoint, gradients=True).disk
    assert found == {"hidden states": 5 * tokens * width, **outputs}
    assert expected(checkpoint, item_bytes=2).written == (tokens + 100) * width // 2


def test_memory_does_not_grow_with_tokens(checkpoint: Checkpoint) -> None:
    more = tuple(Part(p.name, p.source, 10 * p.sequences) for p in PARTS)
    assert expected(checkpoint, more).memory == expected(checkpoint).memory
    assert expected(checkpoint, gradients=True).peak > expected(checkpoint).peak


# What scoring an offloaded model adds to a process that has the libraries. The peak (VmHWM) is
# reset after loading: until then pages of the checkpoint's files are mapped, which count as
# resident but which the kernel drops when memory is short.
_SCORE = """
import sys
from pathlib import Path
import psutil, torch
from benchmarks.calibration import random_domain
from offline.calibration.calibrate import calibrate
from offline.engines.local.transformers import TransformersEngine
from offline.finetune.peak import PeakMemory
import transformers.models.mixtral.modeling_mixtral

before = psutil.Process().memory_info().rss
engine = TransformersEngine(Path(sys.argv[1]), dtype="float32", tokens_per_batch=256,
                            offload=Path(sys.argv[2]))
with PeakMemory(torch.device("cpu")) as peak:
    calibrate(engine, (random_domain(engine, 8, 64),), gradients=sys.argv[3] == "1")
print(peak.found - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [False, True])
def test_a_model_larger_than_what_it_takes(tmp_path: Path, gradients: bool) -> None:
    model = make_tiny_mixtral(
        tmp_path / "model", layers=32, hidden=256, intermediate=768, heads=8, shards=8
    )
    weights = Checkpoint.open(model).num_bytes
    assert weights > 580 * 1024**2
    offload = tmp_path / "offload"
    offload.mkdir()
    given = [sys.executable, "-c", _SCORE, str(model), str(offload), str(int(gradients))]
    done = subprocess.run(given, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout.split()[-1]) < 0.7 * weights
