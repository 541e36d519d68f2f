"""EEP's tasks as lm-eval YAML files: the paper's prompts, answers and held-out items."""
