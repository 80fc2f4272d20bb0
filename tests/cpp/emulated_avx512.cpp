// The AVX-512 level, emulated.
#include "simde_avx512.h"

#define kAvx512Level kEmulatedAvx512Level
#include "decode/cpu/level_avx512.cpp"
