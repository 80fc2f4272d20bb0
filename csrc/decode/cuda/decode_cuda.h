// The CUDA launchers, torch-free. Pointers in the parameters are device memory of the current
// device; work is queued on `stream` (a cudaStream_t) and nothing waits for it.
#pragma once

#include <cstdint>

#include "decode/params.h"

namespace sift {

// Sequences are decoded in waves whose scores stay in the L2 cache, so this stops growing with the
// batch: about (l2 / 4 + 4 * HQ * N) * 10 bytes. 16-byte aligned memory, contents ignored.
int64_t decode_cuda_workspace_bytes(const DecodeParams& params);
void decode_cuda(const DecodeParams& params, void* workspace, void* stream);

// Query rows are worked through in slabs: at most 64 MiB + 8 B R bytes up to 262,144 keys, beyond
// that 256 N + 8 B R. Memory as above.
int64_t score_quantile_cuda_workspace_bytes(const ScoreQuantileParams& params);
void score_quantile_cuda(const ScoreQuantileParams& params, void* workspace, void* stream);

void fit_power_law_cuda(const FitPowerLawParams& params, void* stream);

}  // namespace sift
