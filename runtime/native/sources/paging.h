// Pages of mapped files: what the system is told about them. Ranges need not begin or end at a page.
#pragma once

#include <stddef.h>

namespace qwonnx {

// False: this system has no such calls, and the others do nothing.
bool can_page();
// Whether every page is in memory. Only for files that the process owns or may write: others always seem to be.
bool is_in_memory(const void* begin, size_t bytes);
// Reads are small and anywhere: the system reads nothing but what is touched or asked for.
void expect_no_order(const void* begin, size_t bytes);
// Starts to read, and returns.
void read_ahead(const void* begin, size_t bytes);
// Waits until the pages are read.
void map_now(const void* begin, size_t bytes);
// Takes the pages that lie wholly inside from this process, and from memory if no other process uses them.
void let_go(const void* begin, size_t bytes);

}  // namespace qwonnx
