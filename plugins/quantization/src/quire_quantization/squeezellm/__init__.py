"""SqueezeLLM checkpoints."""
