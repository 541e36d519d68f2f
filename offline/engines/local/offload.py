"""A model larger than memory: its decoder layers stay on disk and are read one at a time.

accelerate's hooks read a module's weights for each call. Between the calls of one layer for all
batches nothing changes, so `resident` reads them once for all.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import align_module_device, has_offloaded_params

from offline.engines.local.experts import decoder_of


def device_map(folder: Path, device: str) -> dict[str, str]:
    """Return transformers' ``device_map`` that keeps only the decoder layers on disk.

    :param folder: checkpoint, of which only the config is read
    :param device: where the rest is, and where a layer computes
    """
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    decoder = decoder_of(model)
    (prefix,) = (name for name, module in model.named_modules() if module is decoder)
    placed = {name: device for name, module in model.named_children() if module is not decoder}
    for name, module in decoder.named_children():
        placed[f"{prefix}.{name}"] = "disk" if module is decoder.layers else device
    return placed


@contextmanager
def resident(module: torch.nn.Module) -> Iterator[None]:
    """Hold all weights of a module and its submodules in memory; nothing to do if they are."""
    with ExitStack() as stack:
        offloaded = [part for part in module.modules() if has_offloaded_params(part)]
        if offloaded:
            stack.callback(_release)
        for part in offloaded:
            stack.enter_context(align_module_device(part))
            hook: Any = part._hf_hook
            hook.offload = False  # or each call would read the weights again and drop them
            stack.callback(setattr, hook, "offload", True)
        yield


def _release() -> None:
    """Give what is no longer used back to the system.

    Measured: without the first, dropped weights of many layers stay in cycles; without the second,
    glibc keeps their freed pieces, which alignment keeps it from using again, 16 MB more with each
    layer of 20 MB where two threads compute.
    """
    gc.collect()
    trim()


def trim() -> None:
    """Give freed memory of the host back to the system.

    Measured: sums that are kept lie between activations that are freed, and the next ones find no
    room there; of a model of 69 MB and 8 domains that was 200 MB in the end.
    """
    with contextlib.suppress(AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
