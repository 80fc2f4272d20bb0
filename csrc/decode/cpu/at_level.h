// The CPU operators at a level of the caller's choice: how the tests reach every one.
#pragma once

#include "decode/cpu/decode_cpu.h"
#include "decode/cpu/level.h"

namespace sift {

void decode_cpu_at_level(const Level& level, const DecodeParams& params, void* workspace,
                         int num_threads, const ParallelFor& parallel_for);

void score_quantile_cpu_at_level(const Level& level, const ScoreQuantileParams& params,
                                 void* workspace, int num_threads, const ParallelFor& parallel_for);

}  // namespace sift
