"""Quantization methods: AWQ, GPTQ, compressed-tensors, SqueezeLLM, and int8 and int4 while loading."""
