// Which instruction set is used: the fastest of the processor, found once, or one chosen by name for a test.
#include <string.h>

#include "blocks.h"

namespace qwonnx {
namespace {

const InstructionSet* const sets[] = {
#if defined(__x86_64__)
#if !defined(QWONNX_WITHOUT_AMX)
    &amx_set,
#endif
#if !defined(QWONNX_WITHOUT_AVX512)
    &avx512_set,
#endif
    &avx2_set,
#elif defined(__aarch64__)
    &neon_set,
#endif
    &scalar_set,
};

const InstructionSet* chosen = nullptr;  // a pointer is written whole; two threads that race write the same one

}  // namespace

bool select(const char* name) {
  for (const InstructionSet* set : sets)
    if ((!*name || !strcmp(name, set->name)) && set->supported()) {
      __atomic_store_n(&chosen, set, __ATOMIC_RELEASE);
      return true;
    }
  return false;
}

const InstructionSet& instructions() {
  const InstructionSet* set = __atomic_load_n(&chosen, __ATOMIC_ACQUIRE);
  if (set) return *set;
  select("");
  return *__atomic_load_n(&chosen, __ATOMIC_ACQUIRE);
}

}  // namespace qwonnx
