// Checks in the order device, dtype, rank, shape, stride, value; q first, the others against it.
#include "binding/checks.h"

#include <algorithm>
#include <array>
#include <limits>

#include "binding/checker.h"

namespace sift {
namespace {

constexpr std::array<int64_t, 6> kHeadDims{32, 64, 80, 96, 128, 256};  // the first on the CPU only

constexpr int64_t kMaxKeys = std::numeric_limits<int32_t>::max();
constexpr double kLeastFloat = std::numeric_limits<float>::min();
constexpr double kLargestFloat = std::numeric_limits<float>::max();

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

bool is_on_cuda(const Argument& q) { return q.device_type == aoti_torch_device_type_cuda(); }

DType check_q_dtype(const Checker& checker, const Argument& q) {
  if (q.dtype == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  if (q.dtype == aoti_torch_dtype_float16()) return DType::kFloat16;
  const bool on_cuda = is_on_cuda(q);
  if (q.dtype == aoti_torch_dtype_float32() && !on_cuda) return DType::kFloat32;
  checker.require(false, "q must have dtype ",
                  on_cuda ? "bfloat16 or float16 on CUDA" : "float32, bfloat16 or float16",
                  ", got ", dtype_name(q.dtype));
  return DType::kFloat32;
}

int64_t check_head_dim(const Checker& checker, const Argument& q) {
  const int64_t head_dim = q.sizes.back();
  const bool on_cuda = is_on_cuda(q);
  const auto* first = kHeadDims.begin() + (on_cuda ? 1 : 0);
  checker.require(std::find(first, kHeadDims.end(), head_dim) != kHeadDims.end(),
                  "head_dim must be ",
                  on_cuda ? "64, 80, 96, 128 or 256 on CUDA" : "32, 64, 80, 96, 128 or 256",
                  ", got ", head_dim);
  return head_dim;
}

KVLayout layout(const Argument& cache, bool paged) {
  const int64_t head_axis = paged ? 2 : 1;
  // The stride of a single row may be any number, also one that overflows in bytes.
  const auto stride = [&](int64_t axis) { return cache.sizes[axis] > 1 ? cache.strides[axis] : 0; };
  return {.data = cache.data<void>(),
          .stride_b = stride(0),
          .stride_h = stride(head_axis),
          .stride_n = stride(3 - head_axis)};
}

// The numbers of a contiguous float32 argument.
const float* check_floats(const Checker& checker, const Argument& argument,
                          std::initializer_list<int64_t> shape, const char* letters) {
  checker.device_and_dtype(argument, aoti_torch_dtype_float32());
  checker.shape(argument, shape, letters);
  checker.contiguous(argument);
  return argument.data<float>();
}

AttendedKeys check_keys(const Checker& checker, int64_t batch, int64_t capacity,
                        const std::optional<Argument>& seq_lens,
                        const std::optional<Argument>& key_mask) {
  AttendedKeys keys;
  if (seq_lens) {
    checker.device_and_dtype(*seq_lens, aoti_torch_dtype_int32());
    checker.shape(*seq_lens, {batch}, "[B]");
    checker.contiguous(*seq_lens);
    keys.seq_lens = seq_lens->data<int32_t>();
  }
  if (key_mask) {
    checker.device_and_dtype(*key_mask, aoti_torch_dtype_bool());
    checker.shape(*key_mask, {batch, capacity}, "[B, N]");
    checker.last_stride_is_one(*key_mask);
    keys.key_mask = key_mask->data<bool>();
    keys.key_mask_stride_b = key_mask->strides[0];
  }
  return keys;
}

// The dtype and rank of q have been checked: it is [B, HQ, D] or [B, HQ, R, D].
Attention check_attention(const Checker& checker, const Argument& q, DType dtype, const Argument& k,
                          double scale, const std::optional<Argument>& seq_lens,
                          const std::optional<Argument>& key_mask, double softcap,
                          const std::optional<Argument>& sinks,
                          const std::optional<Argument>& block_table) {
  const bool paged = block_table.has_value();
  const int64_t batch = q.sizes[0];
  const int64_t num_q_heads = q.sizes[1];
  const int64_t head_dim = check_head_dim(checker, q);
  checker.last_stride_is_one(q);

  checker.device_and_dtype(k, q.dtype);
  const char* letters = paged ? "[num_blocks, block_size, HK, D]" : "[B, HK, N, D]";
  checker.rank(k, 4, letters);
  const int64_t num_kv_heads = k.sizes[paged ? 2 : 1];
  int64_t capacity = k.sizes[paged ? 1 : 2];
  if (paged) {
    checker.shape(k, {k.sizes[0], k.sizes[1], num_kv_heads, head_dim}, letters);
    checker.device_and_dtype(*block_table, aoti_torch_dtype_int32());
    checker.rank(*block_table, 2, "[B, max_blocks]");
    checker.shape(*block_table, {batch, block_table->sizes[1]}, "[B, max_blocks]");
    checker.last_stride_is_one(*block_table);
    const int64_t max_blocks = block_table->sizes[1];
    checker.require(max_blocks == 0 || capacity <= kMaxKeys / max_blocks,
                    "k must hold at most 2147483647 keys per sequence, got ", max_blocks,
                    " blocks of ", capacity);
    capacity *= max_blocks;
  } else {
    checker.shape(k, {batch, num_kv_heads, capacity, head_dim}, letters);
  }
  checker.require(num_kv_heads > 0 && num_q_heads > 0 && num_q_heads % num_kv_heads == 0,
                  "the heads of q must be a positive multiple of the heads of k, got ", num_q_heads,
                  " and ", num_kv_heads);
  checker.require(capacity <= kMaxKeys, "k must hold at most 2147483647 keys per sequence, got ",
                  capacity);
  checker.last_stride_is_one(k);

  AttendedKeys keys = check_keys(checker, batch, capacity, seq_lens, key_mask);
  if (paged) {
    keys.block_table = block_table->data<int32_t>();
    keys.block_table_stride_b = block_table->strides[0];
    keys.num_blocks = k.sizes[0];
    keys.block_size = k.sizes[1];
  }
  const float* sink_logits = sinks ? check_floats(checker, *sinks, {num_q_heads}, "[HQ]") : nullptr;
  // The kernels have them as float32: what overflows there would make every score NaN, and a softcap
  // that underflows would be none.
  checker.require(std::abs(scale) <= kLargestFloat, "scale must be a finite float32, got ", scale);
  checker.require(softcap == 0 || (softcap >= kLeastFloat && softcap <= kLargestFloat),
                  "softcap must be 0 or a positive normal float32, got ", softcap);
  return {.k = layout(k, paged),
          .keys = keys,
          .sinks = sink_logits,
          .batch = batch,
          .num_q_heads = num_q_heads,
          .num_kv_heads = num_kv_heads,
          .capacity = capacity,
          .head_dim = head_dim,
          .dtype = dtype};
}

}  // namespace

DecodeParams check_decode(const Tensor& q_, const Tensor& k_, const Tensor& v_,
                          const Tensor& log_alpha_, const Tensor& beta_, double scale,
                          const std::optional<Tensor>& seq_lens,
                          const std::optional<Tensor>& key_mask,
                          const std::optional<Tensor>& v_sum_, int64_t residual, double softcap,
                          const std::optional<Tensor>& sinks,
                          const std::optional<Tensor>& block_table) {
  const Argument q("q", q_);
  const Argument k("k", k_);
  const Argument v("v", v_);
  const Checker checker("decode", q);
  const DType dtype = check_q_dtype(checker, q);
  checker.rank(q, 3, "[B, HQ, D]");
  const Attention attention =
      check_attention(checker, q, dtype, k, scale, Argument::of("seq_lens", seq_lens),
                      Argument::of("key_mask", key_mask), softcap, Argument::of("sinks", sinks),
                      Argument::of("block_table", block_table));
  checker.device_and_dtype(v, q.dtype);
  checker.require(std::ranges::equal(v.sizes, k.sizes),
                  "v must have the shape of k = ", Shape{k.sizes}, ", got ", Shape{v.sizes});
  checker.last_stride_is_one(v);
  const std::initializer_list<int64_t> heads = {attention.batch, attention.num_q_heads};
  const float* log_alpha =
      check_floats(checker, Argument("log_alpha", log_alpha_), heads, "[B, HQ]");
  const float* beta = check_floats(checker, Argument("beta", beta_), heads, "[B, HQ]");
  checker.require(residual >= 0 && residual <= 2,
                  "residual must be 0 (mean), 1 (renormalize) or 2 (none), got ", residual);
  const auto chosen_residual = static_cast<Residual>(residual);
  const float* v_sum = nullptr;
  if (v_sum_) {
    v_sum =
        check_floats(checker, Argument("v_sum", *v_sum_),
                     {attention.batch, attention.num_kv_heads, attention.head_dim}, "[B, HK, D]");
  }
  checker.require(v_sum_ || chosen_residual != Residual::kMean,
                  "v_sum must be given for the mean residual, got None");
  return {.q = q.data<void>(),
          .k = attention.k,
          .v = layout(v, block_table.has_value()),
          .keys = attention.keys,
          .log_alpha = log_alpha,
          .beta = beta,
          .v_sum = v_sum,
          .sinks = attention.sinks,
          .q_stride_b = q.strides[0],
          .q_stride_h = q.strides[1],
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

ScoreQuantileParams check_score_quantile(const Tensor& q_, const Tensor& k_, const Tensor& lengths_,
                                         double quantile, double scale,
                                         const std::optional<Tensor>& key_mask, double softcap,
                                         const std::optional<Tensor>& sinks,
                                         const std::optional<Tensor>& block_table) {
  const Argument q("q", q_);
  const Argument k("k", k_);
  const Argument lengths("lengths", lengths_);
  const Checker checker("score_quantile", q);
  const DType dtype = check_q_dtype(checker, q);
  checker.rank(q, 4, "[B, HQ, R, D]");
  const Attention attention = check_attention(
      checker, q, dtype, k, scale, std::nullopt, Argument::of("key_mask", key_mask), softcap,
      Argument::of("sinks", sinks), Argument::of("block_table", block_table));
  checker.device_and_dtype(lengths, aoti_torch_dtype_int32());
  checker.shape(lengths, {attention.batch, q.sizes[2]}, "[B, R]");
  checker.contiguous(lengths);
  checker.require(quantile >= 0.0 && quantile <= 1.0, "quantile must be in [0, 1], got ", quantile);
  return {.q = q.data<void>(),
          .k = attention.k,
          .keys = attention.keys,
          .lengths = lengths.data<int32_t>(),
          .sinks = attention.sinks,
          .q_stride_b = q.strides[0],
          .q_stride_h = q.strides[1],
          .q_stride_r = q.strides[2],
          .batch = attention.batch,
          .num_q_heads = attention.num_q_heads,
          .num_kv_heads = attention.num_kv_heads,
          .num_rows = q.sizes[2],
          .capacity = attention.capacity,
          .head_dim = attention.head_dim,
          .quantile = quantile,
          .scale = static_cast<float>(scale),
          .softcap = static_cast<float>(softcap),
          .dtype = attention.dtype};
}

}  // namespace sift
