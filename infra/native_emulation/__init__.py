"""The native library for processors that lack its widest instruction sets: AVX-512 and AMX instructions are functions.

Read `immintrin.h`, which has the instructions, then `build.py`. Tests use it (tests/runtime/native); it is slow.
"""
