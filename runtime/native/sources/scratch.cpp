#include "scratch.h"

#include <stdint.h>
#include <stdlib.h>

namespace qwonnx {
namespace {

constexpr size_t LINE = 64;
constexpr size_t KEPT = 4;

struct Kept {
  size_t capacity;  // in front of the memory that is handed out
};

void* kept[KEPT];

char* memory_of(void* allocation) { return static_cast<char*>(allocation) + LINE; }

}  // namespace

void Scratch::reserve(size_t count, size_t size) {
  size_t bytes = 0;
  if (__builtin_mul_overflow(count, size, &bytes) || __builtin_add_overflow(bytes, LINE - 1, &bytes) ||
      __builtin_add_overflow(needed_, bytes / LINE * LINE, &needed_))
    too_much_ = true;
}

bool Scratch::allocate() {
  if (too_much_ || needed_ > SIZE_MAX / 2) return false;
  for (void*& slot : kept) {
    void* allocation = __atomic_exchange_n(&slot, static_cast<void*>(nullptr), __ATOMIC_ACQ_REL);
    if (!allocation) continue;
    if (static_cast<Kept*>(allocation)->capacity >= needed_) {
      memory_ = memory_of(allocation);
      capacity_ = static_cast<Kept*>(allocation)->capacity;
      return true;
    }
    free(allocation);
  }
  void* allocation = nullptr;
  if (posix_memalign(&allocation, LINE, needed_ + LINE)) return false;
  static_cast<Kept*>(allocation)->capacity = capacity_ = needed_;
  memory_ = memory_of(allocation);
  return true;
}

void* Scratch::next(size_t bytes) {
  void* at = memory_ + used_;
  used_ += (bytes + LINE - 1) / LINE * LINE;
  return at;
}

Scratch::~Scratch() {
  if (!memory_) return;
  void* allocation = memory_ - LINE;
  for (void*& slot : kept) {
    void* expected = nullptr;
    if (__atomic_compare_exchange_n(&slot, &expected, allocation, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return;
  }
  free(allocation);
}

}  // namespace qwonnx
