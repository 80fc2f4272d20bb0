// The CPU operators as the door calls them. Threads and memory come from the caller.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "decode/params.h"

namespace sift {

// Runs body(begin, end) over pieces of [0, count), on as many threads as the pool likes. Results
// never depend on the pieces.
using ParallelFor =
    std::function<void(int64_t count, const std::function<void(int64_t begin, int64_t end)>& body)>;

// Bytes of scratch that decode_cpu needs: at most 4 * HQ * S per sequence, S rounded up to a multiple
// of 1,024, plus about 1 MB per thread.
int64_t decode_cpu_workspace_bytes(const DecodeParams& params, int num_threads);
void decode_cpu(const DecodeParams& params, void* workspace, int num_threads,
                const ParallelFor& parallel_for);

int64_t score_quantile_cpu_workspace_bytes(const ScoreQuantileParams& params, int num_threads);
void score_quantile_cpu(const ScoreQuantileParams& params, void* workspace, int num_threads,
                        const ParallelFor& parallel_for);

// Instruction-set levels: "avx512_bf16", "avx512", "avx2", "portable", best first. The active one is
// the best that this processor runs, or what SIFT_CPU_ISA asks for; the operators read the variable
// at every call.
// Throws std::invalid_argument for a level that is unknown or that this processor lacks.
std::string cpu_isa();
std::vector<std::string> supported_cpu_isas();

}  // namespace sift
