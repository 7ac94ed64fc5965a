// Memory for one call: one allocation, handed out from front to back. Up to four allocations are kept for later calls,
// because the pages of a fresh large one cost a fault each.
#pragma once

#include <stddef.h>

namespace qwonnx {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  // First every reserve(), then one allocate(), then take() in the same order.
  void reserve(size_t count, size_t size);
  bool allocate();  // false: there is not so much memory
  template <typename T>
  T* take(size_t count) {
    return static_cast<T*>(next(count * sizeof(T)));
  }

 private:
  void* next(size_t bytes);
  char* memory_ = nullptr;
  size_t capacity_ = 0, needed_ = 0, used_ = 0;
  bool too_much_ = false;
};

}  // namespace qwonnx
