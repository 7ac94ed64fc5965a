"""Kernels of our own for ONNX Runtime's CPU provider: C++ sources, how they are compiled, how the library is loaded.

Read `library.py` first, then `choice.py`, `build.py`, and `sources/`: `register.cpp` is what ONNX Runtime sees,
`linear.cpp` and `experts.cpp` are the operators, `expert_memory.cpp` decides which experts lie in memory, and each
instruction set has files of its own. docs/kernels.md and docs/memory.md explain them. Nothing here knows artifacts,
sessions or settings.
"""
