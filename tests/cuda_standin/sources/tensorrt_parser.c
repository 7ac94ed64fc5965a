#include <stdlib.h>

void *createNvOnnxParserRefitter_INTERNAL() { return NULL; }
void *createNvOnnxParser_INTERNAL() { return NULL; }
