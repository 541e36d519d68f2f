"""What makes the demo model of vllm-moe-prune out of its dense base: `deltas.safetensors`."""
