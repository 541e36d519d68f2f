"""Giving a pruned model back what it lost: supervised finetune and examples in the prompt."""
