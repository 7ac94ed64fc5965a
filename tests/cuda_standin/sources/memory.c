#include "memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "trace.h"

// The last use of an address that was never written shows as this value in every byte.
#define POISON 0xD5

struct block {
    uintptr_t begin, end;
    enum memory_kind kind;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;  // sorted by begin
static size_t num_blocks, capacity, device_bytes;

size_t memory_total(void) {
    const char *text = getenv("CUDA_STANDIN_MEMORY_BYTES");
    return text ? strtoull(text, NULL, 10) : (size_t)80 << 30;
}

size_t memory_free_bytes(void) {
    size_t total = memory_total();
    return device_bytes < total ? total - device_bytes : 0;
}

// Index of the first block that begins after the address.
static size_t after(uintptr_t address) {
    size_t low = 0, high = num_blocks;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (blocks[middle].begin <= address) low = middle + 1;
        else high = middle;
    }
    return low;
}

int memory_allocate(void **pointer, size_t bytes, enum memory_kind kind) {
    *pointer = NULL;
    size_t size = bytes ? bytes : 1;
    pthread_mutex_lock(&lock);
    int fits = kind != MEMORY_DEVICE || size <= memory_free_bytes();
    if (fits && posix_memalign(pointer, 256, size) == 0) {
        // Small blocks only: a poisoned large one would take real memory.
        if (size <= (size_t)16 << 20) memset(*pointer, POISON, size);
        if (num_blocks == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            blocks = realloc(blocks, capacity * sizeof *blocks);
            if (!blocks) abort();
        }
        uintptr_t begin = (uintptr_t)*pointer;
        size_t place = after(begin);
        memmove(blocks + place + 1, blocks + place, (num_blocks - place) * sizeof *blocks);
        blocks[place] = (struct block){begin, begin + size, kind};
        num_blocks++;
        if (kind == MEMORY_DEVICE) device_bytes += size;
    }
    pthread_mutex_unlock(&lock);
    if (*pointer && kind == MEMORY_DEVICE) trace(EVENT_ALLOCATE, NULL, 0, size);
    return *pointer != NULL;
}

int memory_free(void *pointer, enum memory_kind kind) {
    if (!pointer) return 1;
    size_t size = 0;
    pthread_mutex_lock(&lock);
    size_t place = after((uintptr_t)pointer);
    if (place && blocks[place - 1].begin == (uintptr_t)pointer && blocks[place - 1].kind == kind) {
        size = blocks[place - 1].end - blocks[place - 1].begin;
        memmove(blocks + place - 1, blocks + place, (num_blocks - place) * sizeof *blocks);
        num_blocks--;
        if (kind == MEMORY_DEVICE) device_bytes -= size;
        free(pointer);
    }
    pthread_mutex_unlock(&lock);
    if (size && kind == MEMORY_DEVICE) trace(EVENT_FREE, NULL, 0, size);
    return size != 0;
}

enum memory_kind memory_of(const void *pointer, size_t bytes) {
    enum memory_kind kind = MEMORY_PAGEABLE;
    uintptr_t begin = (uintptr_t)pointer;
    pthread_mutex_lock(&lock);
    size_t place = after(begin);
    if (place && begin + bytes <= blocks[place - 1].end) kind = blocks[place - 1].kind;
    pthread_mutex_unlock(&lock);
    return kind;
}
