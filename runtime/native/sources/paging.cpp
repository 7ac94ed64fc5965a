#include "paging.h"

#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

namespace qwonnx {
namespace {

// By number: a C library may be older than the system.
constexpr int RANDOM = 1, WILLNEED = 3, DONTNEED = 4, PAGEOUT = 21, POPULATE_READ = 22;

uintptr_t page() {
  static uintptr_t bytes = 0;
  if (!bytes) bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// Advice that the system does not take costs time and no result: nothing is done about it.
void advise(uintptr_t begin, uintptr_t end, int advice) {
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

uintptr_t down(uintptr_t address) { return address / page() * page(); }
uintptr_t up(uintptr_t address) { return down(address + page() - 1); }
uintptr_t of(const void* address) { return reinterpret_cast<uintptr_t>(address); }

}  // namespace

bool can_page() { return true; }

bool is_in_memory(const void* data, size_t bytes) {
  unsigned char pages[512];
  const uintptr_t end = up(of(data) + bytes);
  for (uintptr_t begin = down(of(data)); begin < end;) {
    uintptr_t length = end - begin;
    if (length > sizeof pages * page()) length = sizeof pages * page();
    if (mincore(reinterpret_cast<void*>(begin), length, pages)) return true;
    for (uintptr_t i = 0; i < length / page(); i++)
      if (!(pages[i] & 1)) return false;
    begin += length;
  }
  return true;
}

void expect_no_order(const void* begin, size_t bytes) { advise(down(of(begin)), up(of(begin) + bytes), RANDOM); }

void read_ahead(const void* begin, size_t bytes) { advise(down(of(begin)), up(of(begin) + bytes), WILLNEED); }

void map_now(const void* begin, size_t bytes) { advise(down(of(begin)), up(of(begin) + bytes), POPULATE_READ); }

void let_go(const void* data, size_t bytes) {
  const uintptr_t begin = up(of(data)), end = down(of(data) + bytes);
  advise(begin, end, PAGEOUT);
  advise(begin, end, DONTNEED);  // pages that others use too, and systems that refuse the first
}

}  // namespace qwonnx

#else

namespace qwonnx {

bool can_page() { return false; }
bool is_in_memory(const void*, size_t) { return true; }
void expect_no_order(const void*, size_t) {}
void read_ahead(const void*, size_t) {}
void map_now(const void*, size_t) {}
void let_go(const void*, size_t) {}

}  // namespace qwonnx

#endif
