"""A stand-in for the CUDA runtime, and tests of the CUDA target under it."""
