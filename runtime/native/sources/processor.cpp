#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qwonnx {
namespace {

#if !defined(QWONNX_EMULATED)

struct Leaf {
  unsigned a, b, c, d;
};

// Zeros if the processor has no such leaf.
Leaf leaf_of(unsigned number) {
  Leaf leaf = {};
  if (!__get_cpuid_count(number, 0, &leaf.a, &leaf.b, &leaf.c, &leaf.d)) return {};
  return leaf;
}

bool all_of(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

// The parts of the state that the system saves when it changes to another thread.
unsigned saved_states() {
  constexpr unsigned OSXSAVE = 1u << 27;
  if (!all_of(leaf_of(1).c, OSXSAVE)) return 0;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// A process may use tiles after it has asked, with all its threads. Linux refuses before 5.16, under some filters of
// system calls, and when a thread has a stack for signals that is too small for the larger state.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long GET_PERMITTED = 0x1022, REQUEST = 0x1023, TILE_DATA = 18;
  unsigned long permitted = 0;
  if (syscall(SYS_arch_prctl, REQUEST, TILE_DATA)) return false;
  return !syscall(SYS_arch_prctl, GET_PERMITTED, &permitted) && (permitted >> TILE_DATA & 1);
#else
  return false;
#endif
}

#endif

}  // namespace

#if defined(QWONNX_EMULATED)  // infra/native_emulation: the instructions are functions, which every processor has

bool has_avx512_vnni() { return true; }
bool has_amx_int8() { return true; }

#else

bool has_avx512_vnni() {
  constexpr unsigned FMA = 1u << 12;                                                        // leaf 1, ecx
  constexpr unsigned AVX2 = 1u << 5, F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31;  // leaf 7, ebx
  constexpr unsigned VNNI = 1u << 11;                                                       // leaf 7, ecx
  constexpr unsigned VECTORS = 0xe6;  // of 128, 256 and 512 bits, and masks
  const Leaf seven = leaf_of(7);
  return all_of(leaf_of(1).c, FMA) && all_of(saved_states(), VECTORS) && all_of(seven.b, AVX2 | F | DQ | BW | VL) &&
         all_of(seven.c, VNNI);
}

bool has_amx_int8() {
  constexpr unsigned TILE = 1u << 24, INT8 = 1u << 25;  // leaf 7, edx
  constexpr unsigned TILES = 3u << 17;                  // their configuration and their data
  if (!has_avx512_vnni() || !all_of(leaf_of(7).d, TILE | INT8) || !all_of(saved_states(), TILES)) return false;
  static int permitted = -1;  // threads that race write the same
  int known = __atomic_load_n(&permitted, __ATOMIC_ACQUIRE);
  if (known < 0) {
    known = may_use_tiles();
    __atomic_store_n(&permitted, known, __ATOMIC_RELEASE);
  }
  return known == 1;
}

#endif

}  // namespace qwonnx
#endif
