// Checks in the order dtype, rank, shape, stride, value; q first, the others against it.
#include "binding/checks.h"

#include <algorithm>
#include <array>
#include <limits>

#include "binding/checker.h"

namespace sift {
namespace {

constexpr std::array<int64_t, 6> kHeadDims{32, 64, 80, 96, 128, 256};

// Everything that attention needs of q and K, apart from where q lies.
struct Attention {
  KVLayout k;
  AttendedKeys keys;
  const float* sinks;
  int64_t batch;
  int64_t num_q_heads;
  int64_t num_kv_heads;
  int64_t capacity;
  int64_t head_dim;
  DType dtype;
};

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

DType check_q_dtype(const Checker& checker, const Tensor& q) {
  switch (q.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      checker.require(false, "q must have dtype float32, bfloat16 or float16, got ",
                      dtype_name(q.scalar_type()));
      return DType::kFloat32;
  }
}

KVLayout layout(const Tensor& cache, bool paged) {
  const int64_t head_axis = paged ? 2 : 1;
  return {.data = cache.const_data_ptr(),
          .stride_b = cache.stride(0),
          .stride_h = cache.stride(head_axis),
          .stride_n = cache.stride(3 - head_axis)};
}

void check_sinks(const Checker& checker, const std::optional<Tensor>& sinks, int64_t num_q_heads) {
  if (!sinks) return;
  checker.dtype("sinks", *sinks, ScalarType::Float);
  checker.shape("sinks", *sinks, {num_q_heads}, "[HQ]");
  checker.contiguous("sinks", *sinks);
}

AttendedKeys check_keys(const Checker& checker, int64_t batch, int64_t capacity,
                        const std::optional<Tensor>& seq_lens,
                        const std::optional<Tensor>& key_mask) {
  AttendedKeys keys;
  if (seq_lens) {
    checker.dtype("seq_lens", *seq_lens, ScalarType::Int);
    checker.shape("seq_lens", *seq_lens, {batch}, "[B]");
    checker.contiguous("seq_lens", *seq_lens);
    keys.seq_lens = data<int32_t>(*seq_lens);
  }
  if (key_mask) {
    checker.dtype("key_mask", *key_mask, ScalarType::Bool);
    checker.shape("key_mask", *key_mask, {batch, capacity}, "[B, N]");
    checker.last_stride_is_one("key_mask", *key_mask);
    keys.key_mask = data<bool>(*key_mask);
    keys.key_mask_stride_b = key_mask->stride(0);
  }
  return keys;
}

// The rank of q has been checked: it is [B, HQ, D] or [B, HQ, R, D].
Attention check_attention(const Checker& checker, const Tensor& q, const Tensor& k, double scale,
                          const std::optional<Tensor>& seq_lens,
                          const std::optional<Tensor>& key_mask, double softcap,
                          const std::optional<Tensor>& sinks,
                          const std::optional<Tensor>& block_table) {
  const bool paged = block_table.has_value();
  const int64_t batch = q.size(0);
  const int64_t num_q_heads = q.size(1);
  const int64_t head_dim = q.size(q.dim() - 1);
  checker.require(std::ranges::find(kHeadDims, head_dim) != kHeadDims.end(),
                  "head_dim must be 32, 64, 80, 96, 128 or 256, got ", head_dim);
  checker.last_stride_is_one("q", q);

  checker.dtype("k", k, q.scalar_type());
  const char* letters = paged ? "[num_blocks, block_size, HK, D]" : "[B, HK, N, D]";
  checker.rank("k", k, 4, letters);
  const int64_t num_kv_heads = k.size(paged ? 2 : 1);
  int64_t capacity = k.size(paged ? 1 : 2);
  if (paged) {
    checker.shape("k", k, {k.size(0), k.size(1), num_kv_heads, head_dim}, letters);
    checker.dtype("block_table", *block_table, ScalarType::Int);
    checker.rank("block_table", *block_table, 2, "[B, max_blocks]");
    checker.shape("block_table", *block_table, {batch, block_table->size(1)}, "[B, max_blocks]");
    checker.last_stride_is_one("block_table", *block_table);
    capacity *= block_table->size(1);
  } else {
    checker.shape("k", k, {batch, num_kv_heads, capacity, head_dim}, letters);
  }
  checker.require(num_kv_heads > 0 && num_q_heads > 0 && num_q_heads % num_kv_heads == 0,
                  "the heads of q must be a positive multiple of the heads of k, got ", num_q_heads,
                  " and ", num_kv_heads);
  checker.require(capacity <= std::numeric_limits<int32_t>::max(),
                  "k must hold at most 2147483647 keys per sequence, got ", capacity);
  checker.last_stride_is_one("k", k);

  AttendedKeys keys = check_keys(checker, batch, capacity, seq_lens, key_mask);
  if (paged) {
    keys.block_table = data<int32_t>(*block_table);
    keys.block_table_stride_b = block_table->stride(0);
    keys.num_blocks = k.size(0);
    keys.block_size = k.size(1);
  }
  check_sinks(checker, sinks, num_q_heads);
  checker.require(std::isfinite(scale), "scale must be finite, got ", scale);
  checker.at_least_zero("softcap", softcap);
  return {.k = layout(k, paged),
          .keys = keys,
          .sinks = data<float>(sinks),
          .batch = batch,
          .num_q_heads = num_q_heads,
          .num_kv_heads = num_kv_heads,
          .capacity = capacity,
          .head_dim = head_dim,
          .dtype = check_q_dtype(checker, q)};
}

void check_law(const Checker& checker, const char* name, const Tensor& factor,
               const Attention& attention) {
  checker.dtype(name, factor, ScalarType::Float);
  checker.shape(name, factor, {attention.batch, attention.num_q_heads}, "[B, HQ]");
  checker.contiguous(name, factor);
}

}  // namespace

DecodeParams check_decode(const Tensor& q, const Tensor& k, const Tensor& v,
                          const Tensor& log_alpha, const Tensor& beta, double scale,
                          const std::optional<Tensor>& seq_lens,
                          const std::optional<Tensor>& key_mask, const std::optional<Tensor>& v_sum,
                          int64_t residual, double softcap, const std::optional<Tensor>& sinks,
                          const std::optional<Tensor>& block_table) {
  const Checker checker("decode");
  check_q_dtype(checker, q);
  checker.rank("q", q, 3, "[B, HQ, D]");
  const Attention attention =
      check_attention(checker, q, k, scale, seq_lens, key_mask, softcap, sinks, block_table);
  const std::span<const int64_t> k_sizes = shape_of(k).sizes;
  checker.dtype("v", v, q.scalar_type());
  checker.require(std::ranges::equal(shape_of(v).sizes, k_sizes),
                  "v must have the shape of k = ", Shape{k_sizes}, ", got ", shape_of(v));
  checker.last_stride_is_one("v", v);
  check_law(checker, "log_alpha", log_alpha, attention);
  check_law(checker, "beta", beta, attention);
  checker.require(residual >= 0 && residual <= 2,
                  "residual must be 0 (mean), 1 (renormalize) or 2 (none), got ", residual);
  const auto chosen_residual = static_cast<Residual>(residual);
  if (v_sum) {
    checker.dtype("v_sum", *v_sum, ScalarType::Float);
    checker.shape("v_sum", *v_sum, {attention.batch, attention.num_kv_heads, attention.head_dim},
                  "[B, HK, D]");
    checker.contiguous("v_sum", *v_sum);
  }
  checker.require(v_sum || chosen_residual != Residual::kMean,
                  "v_sum must be given for the mean residual, got None");
  return {.q = q.const_data_ptr(),
          .k = attention.k,
          .v = layout(v, block_table.has_value()),
          .keys = attention.keys,
          .log_alpha = data<float>(log_alpha),
          .beta = data<float>(beta),
          .v_sum = data<float>(v_sum),
          .sinks = attention.sinks,
          .q_stride_b = q.stride(0),
          .q_stride_h = q.stride(1),
          .batch = attention.batch,
          .num_q_heads = attention.num_q_heads,
          .num_kv_heads = attention.num_kv_heads,
          .capacity = attention.capacity,
          .head_dim = attention.head_dim,
          .scale = static_cast<float>(scale),
          .softcap = static_cast<float>(softcap),
          .residual = chosen_residual,
          .dtype = attention.dtype};
}

ScoreQuantileParams check_score_quantile(const Tensor& q, const Tensor& k, const Tensor& lengths,
                                         double quantile, double scale,
                                         const std::optional<Tensor>& key_mask, double softcap,
                                         const std::optional<Tensor>& sinks,
                                         const std::optional<Tensor>& block_table) {
  const Checker checker("score_quantile");
  check_q_dtype(checker, q);
  checker.rank("q", q, 4, "[B, HQ, R, D]");
  const Attention attention =
      check_attention(checker, q, k, scale, std::nullopt, key_mask, softcap, sinks, block_table);
  checker.dtype("lengths", lengths, ScalarType::Int);
  checker.shape("lengths", lengths, {attention.batch, q.size(2)}, "[B, R]");
  checker.contiguous("lengths", lengths);
  checker.require(quantile >= 0.0 && quantile <= 1.0, "quantile must be in [0, 1], got ", quantile);
  return {.q = q.const_data_ptr(),
          .k = attention.k,
          .keys = attention.keys,
          .lengths = data<int32_t>(lengths),
          .sinks = attention.sinks,
          .q_stride_b = q.stride(0),
          .q_stride_h = q.stride(1),
          .q_stride_r = q.stride(2),
          .batch = attention.batch,
          .num_q_heads = attention.num_q_heads,
          .num_kv_heads = attention.num_kv_heads,
          .num_rows = q.size(2),
          .capacity = attention.capacity,
          .head_dim = attention.head_dim,
          .quantile = quantile,
          .scale = static_cast<float>(scale),
          .softcap = static_cast<float>(softcap),
          .dtype = attention.dtype};
}

void check_fit_power_law(const Tensor& lengths, const Tensor& quantiles,
                         const std::optional<double>& beta) {
  const Checker checker("fit_power_law");
  const ScalarType lengths_dtype = lengths.scalar_type();
  if (lengths_dtype != ScalarType::Int && lengths_dtype != ScalarType::Float) {
    checker.require(false, "lengths must have dtype int32 or float32, got ",
                    dtype_name(lengths_dtype));
  }
  checker.rank("lengths", lengths, 2, "[B, R]");
  checker.contiguous("lengths", lengths);
  checker.dtype("quantiles", quantiles, ScalarType::Float);
  checker.rank("quantiles", quantiles, 3, "[B, HQ, R]");
  checker.shape("quantiles", quantiles, {lengths.size(0), quantiles.size(1), lengths.size(1)},
                "[B, HQ, R]");
  checker.contiguous("quantiles", quantiles);
  if (beta) checker.at_least_zero("beta", *beta);
}

}  // namespace sift
