#include "trace.h"

#include <pthread.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct event *events;
static size_t num_events, capacity;
static int recording;
static int64_t capturing, num_graphs;  // capturing: the graph that is being captured, or 0
static size_t *graph_sizes;

static void append(struct event event) {
    if (!recording) return;
    if (num_events == capacity) {
        capacity = capacity ? 2 * capacity : 1024;
        events = realloc(events, capacity * sizeof *events);
        if (!events) abort();
    }
    events[num_events++] = event;
}

void trace(enum event_kind kind, const char *name, int copy_kind, size_t bytes) {
    pthread_mutex_lock(&lock);
    if (capturing && kind <= EVENT_CLEAR) graph_sizes[capturing]++;
    append((struct event){kind, copy_kind, (int64_t)bytes, capturing, name});
    pthread_mutex_unlock(&lock);
}

void trace_graph(enum event_kind kind, int64_t graph, size_t bytes) {
    pthread_mutex_lock(&lock);
    append((struct event){kind, 0, (int64_t)bytes, graph, NULL});
    pthread_mutex_unlock(&lock);
}

int64_t capture_begin(void) {
    pthread_mutex_lock(&lock);
    capturing = ++num_graphs;
    graph_sizes = realloc(graph_sizes, (num_graphs + 1) * sizeof *graph_sizes);
    if (!graph_sizes) abort();
    graph_sizes[capturing] = 0;
    append((struct event){EVENT_CAPTURE_BEGIN, 0, 0, capturing, NULL});
    pthread_mutex_unlock(&lock);
    return capturing;
}

int64_t capture_end(void) {
    pthread_mutex_lock(&lock);
    int64_t graph = capturing;
    append((struct event){EVENT_CAPTURE_END, 0, (int64_t)graph_sizes[graph], graph, NULL});
    capturing = 0;
    pthread_mutex_unlock(&lock);
    return graph;
}

int is_capturing(void) { return capturing != 0; }

size_t events_of_graph(int64_t graph) { return graph_sizes[graph]; }

// What a test calls, by ctypes.

void standin_record(int on) {
    pthread_mutex_lock(&lock);
    recording = on;
    if (on) num_events = 0;
    pthread_mutex_unlock(&lock);
}

size_t standin_num_events(void) { return num_events; }

void standin_event(size_t index, struct event *event) {
    pthread_mutex_lock(&lock);
    *event = events[index];
    pthread_mutex_unlock(&lock);
}
