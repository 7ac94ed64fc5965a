// What the TensorRT provider's library needs to be loaded, so that its kernels can be listed. Nothing can be built.
#include <stdlib.h>

void *createInferBuilder_INTERNAL() { return NULL; }
void *createInferRefitter_INTERNAL() { return NULL; }
void *createInferRuntime_INTERNAL() { return NULL; }
int getInferLibVersion() { return 101300; }
void *getPluginRegistry() { return NULL; }
