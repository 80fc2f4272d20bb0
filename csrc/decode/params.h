// The seam between the operator's door (binding) and its kernels: plain data, no Torch.
//
// Dimension letters, used everywhere in this project:
//   B  batch                   HQ  query heads            HK  key/value heads     G = HQ / HK
//   N  capacity in keys        S   attended keys (<= N)   D   head dimension      R  query rows
#pragma once

#include <sift_attention/residual.h>

#include <cstdint>
#include <optional>
#include <type_traits>

namespace sift {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

// Where the rows of K or V lie. All strides in elements; the last dimension has stride 1.
// Contiguous or strided [B, HK, N, D]: stride_b, stride_h, stride_n.
// Paged [num_blocks, block_size, HK, D]: stride_b steps over blocks, stride_n within a block.
struct KVLayout {
  const void* data = nullptr;
  int64_t stride_b = 0;
  int64_t stride_h = 0;
  int64_t stride_n = 0;
};

// Which keys a sequence attends: [0, seq_lens[b]) and, where given, key_mask[b, n] != 0.
struct AttendedKeys {
  const int32_t* seq_lens = nullptr;     // [B]              nullptr: N; clamped to [0, N]
  const bool* key_mask = nullptr;        // [B, N]           nullptr: all
  int64_t key_mask_stride_b = 0;         //                  last stride 1
  const int32_t* block_table = nullptr;  // [B, max_blocks]  nullptr: K and V are not paged
  int64_t block_table_stride_b = 0;
  int64_t num_blocks = 0;  // of the paged K and V; ids outside [0, num_blocks) are not attended
  int64_t block_size = 0;
};

struct DecodeParams {
  const void* q = nullptr;  // [B, HQ, D]      dtype
  KVLayout k;               // see KVLayout    dtype
  KVLayout v;               // see KVLayout    dtype
  AttendedKeys keys;
  const float* log_alpha = nullptr;  // [B, HQ]         contiguous; natural log; -inf keeps all
  const float* beta = nullptr;       // [B, HQ]         contiguous
  const float* v_sum = nullptr;      // [B, HK, D]      contiguous; required by Residual::kMean
  const float* sinks = nullptr;      // [HQ]            logits that join the denominator only
  void* out = nullptr;               // [B, HQ, D]      dtype, contiguous
  float* lse = nullptr;              // [B, HQ]         natural log, over all attended keys and sink
  float* kept_mass = nullptr;        // [B, HQ]         sum of p over the rows loaded by the group
  int32_t* num_loaded = nullptr;     // [B, HK]
  int64_t q_stride_b = 0;
  int64_t q_stride_h = 0;
  int64_t batch = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t capacity = 0;  // N; paged: max_blocks * block_size
  int64_t head_dim = 0;
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none; else s = softcap * tanh(s / softcap)
  Residual residual = Residual::kMean;
  DType dtype = DType::kFloat32;
};

struct ScoreQuantileParams {
  const void* q = nullptr;           // [B, HQ, R, D]   dtype
  KVLayout k;                        // see KVLayout    dtype
  AttendedKeys keys;                 //                 seq_lens unused: lengths takes its place
  const int32_t* lengths = nullptr;  // [B, R]          contiguous; row r sees the first
                                     //                 lengths[b, r] attended keys; 0: no sample
  const float* sinks = nullptr;      // [HQ]
  float* quantiles = nullptr;        // [B, HQ, R]      contiguous; NaN where lengths is 0
  int64_t q_stride_b = 0;
  int64_t q_stride_h = 0;
  int64_t q_stride_r = 0;
  int64_t batch = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t num_rows = 0;  // R
  int64_t capacity = 0;
  int64_t head_dim = 0;
  double quantile = 0.0;  // in [0, 1]; order statistic floor(quantile * (S - 1))
  float scale = 1.0f;
  float softcap = 0.0f;
  DType dtype = DType::kFloat32;
};

struct FitPowerLawParams {
  // Of the two one, the other is nullptr: [B, R], contiguous, shared by the heads; 0: no sample
  const int32_t* int_lengths = nullptr;
  const float* float_lengths = nullptr;
  const float* quantiles = nullptr;  // [B, HQ, R]   contiguous; not read where the length is 0
  float* log_alpha = nullptr;        // [B, HQ]      contiguous; natural log; -inf unless ok
  float* beta = nullptr;             // [B, HQ]      contiguous; 0 unless ok
  bool* ok = nullptr;                // [B, HQ]      contiguous; whether the samples carry a fit
  int64_t batch = 0;
  int64_t num_q_heads = 0;
  int64_t num_rows = 0;                             // R
  std::optional<double> fixed_beta = std::nullopt;  // finite, at least 0; none: fitted
};

static_assert(std::is_trivially_copyable_v<DecodeParams>);
static_assert(std::is_trivially_copyable_v<ScoreQuantileParams>);
static_assert(std::is_trivially_copyable_v<FitPowerLawParams>);

}  // namespace sift
