// Memory of the device and pinned memory of the host: both are host memory here, and each address knows which it is.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum memory_kind { MEMORY_PAGEABLE = 0, MEMORY_PINNED = 1, MEMORY_DEVICE = 2 };

int memory_allocate(void **pointer, size_t bytes, enum memory_kind kind);  // 0: no memory left
int memory_free(void *pointer, enum memory_kind kind);                    // 0: no such memory
enum memory_kind memory_of(const void *pointer, size_t bytes);            // of the whole range; pageable if none has it
size_t memory_total(void);
size_t memory_free_bytes(void);
