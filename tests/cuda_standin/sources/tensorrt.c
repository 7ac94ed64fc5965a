// What the TensorRT provider's library needs to be loaded: its kernels can be listed, and its options are checked. The
// provider then asks for an object of TensorRT, which nothing here can be: the process says so and ends.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *asked_for(const char *what) {
    fprintf(stderr, "stand-in: asked for TensorRT's %s\n", what);
    _exit(78);
}

void *createInferBuilder_INTERNAL() { return asked_for("builder"); }
void *createInferRefitter_INTERNAL() { return asked_for("refitter"); }
void *createInferRuntime_INTERNAL() { return asked_for("runtime"); }
int getInferLibVersion() { return 101300; }

// A C++ object whose every method returns nothing: a registry without plugins.
static void *nothing() { return NULL; }
static void *methods[64];
static void **registry = methods;

void *getPluginRegistry() {
    for (size_t index = 0; index < sizeof methods / sizeof *methods; index++) methods[index] = (void *)nothing;
    return &registry;
}
