"""Finetuning of checkpoints through accelerate: next-token recovery and supervised."""
