"""What a pruned model must not lose: limits, and whether what was measured keeps to them."""
