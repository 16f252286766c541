"""The route of the GPU kernels: Triton, compiled for CUDA and ROCm on first use."""
