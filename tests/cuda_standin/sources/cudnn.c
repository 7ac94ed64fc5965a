#include <stdlib.h>

int cudnnCreate(void **handle) {
    *handle = calloc(1, 64);
    return 0;
}

int cudnnDestroy() { return 0; }
int cudnnSetStream() { return 0; }
