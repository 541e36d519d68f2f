"""A model that is compiled for maps is another one in vLLM's compile cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.vllm


def test_the_compile_cache_has_an_entry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import VllmConfig
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from vllm_moe_prune.live_loader import LiveMoELoader

    monkeypatch.setattr(DefaultModelLoader, "create_model", lambda *_: "made")
    text = SimpleNamespace(to_dict=lambda: {"model_type": "mixtral"})
    model: Any = SimpleNamespace(hf_text_config=text, enforce_eager=False)
    config = VllmConfig(additional_config={"own": 1})
    before = config.compute_hash()
    assert LiveMoELoader(LoadConfig()).create_model(config, model) == "made"
    assert config.compute_hash() != before
    assert config.additional_config == {"own": 1, "live_moe": True}
