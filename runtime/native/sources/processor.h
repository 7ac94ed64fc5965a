// What the processor has beyond AVX2 and the system lets a process use. Compiled without any of it.
#pragma once

#if defined(__x86_64__)
namespace qwonnx {

// AVX-512 (F, BW, DQ, VL) with the dot products of VNNI, and the system saves its registers.
bool has_avx512_vnni();

// The same, and AMX tiles of 8-bit integers. Linux gives them to a process that asks: this does, once, and a refusal
// means that there are none.
bool has_amx_int8();

}  // namespace qwonnx
#endif
