// The provider names this library and calls none of its functions.
int standin_curand;
