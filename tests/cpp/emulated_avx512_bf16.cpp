// The AVX-512-BF16 level, emulated.
#include "simde_avx512.h"

#define kAvx512Bf16Level kEmulatedAvx512Bf16Level
#include "decode/cpu/level_avx512_bf16.cpp"
