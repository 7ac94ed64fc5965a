// What the stand-in was asked to do, as a list of events that a test reads. One writer at a time: a lock is inside.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum event_kind {
    EVENT_LAUNCH = 0,         // name: the kernel's or the library's function
    EVENT_COPY = 1,           // copy_kind: of cudaMemcpyKind; bytes
    EVENT_CLEAR = 2,          // bytes
    EVENT_GRAPH_LAUNCH = 3,   // graph: which one; bytes: its events
    EVENT_CAPTURE_BEGIN = 4,
    EVENT_CAPTURE_END = 5,    // graph: the new one
    EVENT_SYNCHRONIZE = 6,
    EVENT_ALLOCATE = 7,       // bytes
    EVENT_FREE = 8,           // bytes
    EVENT_REFUSAL = 9,        // name: what was wrong with a call
};

struct event {
    int32_t kind;
    int32_t copy_kind;
    int64_t bytes;
    int64_t graph;      // 0: not in a graph; otherwise captured into it, not done
    const char *name;   // NULL if the kind has none
};

void trace(enum event_kind kind, const char *name, int copy_kind, size_t bytes);
void trace_graph(enum event_kind kind, int64_t graph, size_t bytes);
int64_t capture_begin(void);
int64_t capture_end(void);
int is_capturing(void);
size_t events_of_graph(int64_t graph);
