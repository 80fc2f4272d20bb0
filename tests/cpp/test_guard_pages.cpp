// decode and score_quantile touch nothing before or behind their inputs, outputs and workspace, at
// every level: all lie between pages that stop the program.
#include <cstring>
#include <vector>

#include "catch2.h"
#include "decode/cpu/at_level.h"
#include "decode/cpu/element.h"
#include "decode_case.h"
#include "guarded_memory.h"
#include "quantile_case.h"

namespace sift {
namespace {

constexpr int kNumThreads = 3;

NamedLevel any_level() {
  return GENERATE(from_range(testable_levels().begin(), testable_levels().end()));
}

// Up to the last element of the last row.
int64_t num_elements(const KVLayout& kv, const AttendedKeys& keys, int64_t batch,
                     int64_t num_kv_heads, int64_t capacity, int64_t head_dim) {
  const bool is_paged = keys.block_table != nullptr;
  return ((is_paged ? keys.num_blocks : batch) - 1) * kv.stride_b +
         (num_kv_heads - 1) * kv.stride_h +
         ((is_paged ? keys.block_size : capacity) - 1) * kv.stride_n + head_dim;
}

void guard_keys(GuardedArrays& arrays, AttendedKeys& keys, int64_t batch, int64_t capacity) {
  arrays.guard(keys.seq_lens, batch);
  arrays.guard(keys.key_mask, (batch - 1) * keys.key_mask_stride_b + capacity);
  if (keys.block_table == nullptr) return;
  arrays.guard(keys.block_table, batch * keys.block_table_stride_b);
}

DecodeOutputs decode_guarded(const DecodeProblem& problem, const Level& level, Edge edge) {
  GuardedArrays arrays(edge);
  DecodeParams p = problem.params;
  const int64_t bytes = element_bytes(p.dtype);
  const int64_t num_heads = p.batch * p.num_q_heads;
  const int64_t num_groups = p.batch * p.num_kv_heads;
  arrays.guard(p.q, (p.batch - 1) * p.q_stride_b + (p.num_q_heads - 1) * p.q_stride_h + p.head_dim,
               bytes);
  for (KVLayout* kv : {&p.k, &p.v}) {
    arrays.guard(kv->data,
                 num_elements(*kv, p.keys, p.batch, p.num_kv_heads, p.capacity, p.head_dim), bytes);
  }
  guard_keys(arrays, p.keys, p.batch, p.capacity);
  arrays.guard(p.log_alpha, num_heads);
  arrays.guard(p.beta, num_heads);
  arrays.guard(p.v_sum, num_groups * p.head_dim);
  arrays.guard(p.sinks, p.num_q_heads);
  auto* out = arrays.fill<uint8_t>(num_heads * p.head_dim * bytes);
  p.out = out;
  p.lse = arrays.fill<float>(num_heads);
  p.kept_mass = arrays.fill<float>(num_heads);
  p.num_loaded = arrays.fill<int32_t>(num_groups);
  void* workspace = arrays.fill(decode_cpu_workspace_bytes(p, kNumThreads));
  decode_cpu_at_level(level, p, workspace, kNumThreads, random_threads(kNumThreads));
  return {{out, out + num_heads * p.head_dim * bytes},
          {p.lse, p.lse + num_heads},
          {p.kept_mass, p.kept_mass + num_heads},
          {p.num_loaded, p.num_loaded + num_groups}};
}

std::vector<float> score_quantile_guarded(const QuantileProblem& problem, const Level& level,
                                          Edge edge) {
  GuardedArrays arrays(edge);
  ScoreQuantileParams p = problem.params;
  const int64_t bytes = element_bytes(p.dtype);
  const int64_t num_quantiles = p.batch * p.num_q_heads * p.num_rows;
  arrays.guard(p.q,
               (p.batch - 1) * p.q_stride_b + (p.num_q_heads - 1) * p.q_stride_h +
                   (p.num_rows - 1) * p.q_stride_r + p.head_dim,
               bytes);
  arrays.guard(p.k.data, num_elements(p.k, p.keys, p.batch, p.num_kv_heads, p.capacity, p.head_dim),
               bytes);
  guard_keys(arrays, p.keys, p.batch, p.capacity);
  arrays.guard(p.lengths, p.batch * p.num_rows);
  arrays.guard(p.sinks, p.num_q_heads);
  p.quantiles = arrays.fill<float>(num_quantiles);
  void* workspace = arrays.fill(score_quantile_cpu_workspace_bytes(p, kNumThreads));
  score_quantile_cpu_at_level(level, p, workspace, kNumThreads, random_threads(kNumThreads));
  return {p.quantiles, p.quantiles + num_quantiles};
}

// Problems of all element types and head sizes, paged ones without the pages that no table names.
template <typename Check>
void for_each_case(const Check& check) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t head_dim : {32, 64, 80, 96, 128, 256}) {
      for (const int64_t block_size : {0, 5}) {
        for (const int64_t capacity : {1, 15, 1035}) {
          check(DecodeCase{.batch = 2,
                           .num_kv_heads = 2,
                           .group_size = 3,
                           .capacity = capacity,
                           .head_dim = head_dim,
                           .dtype = dtype,
                           .mask = capacity > 1 ? Mask::kHoles : Mask::kNone,
                           .block_size = block_size,
                           .has_sinks = true});
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("decode stays within its inputs, outputs and workspace") {
  const NamedLevel level = any_level();
  for_each_case([&](const DecodeCase& c) {
    DecodeProblem problem(c);
    if (c.block_size > 0) problem.params.keys.num_blocks -= 2;
    const DecodeOutputs expected = problem.run(*level.level, 1, one_thread());
    for (const Edge edge : {Edge::kFront, Edge::kBack}) {
      CAPTURE(level.name, c.describe());
      REQUIRE(decode_guarded(problem, *level.level, edge) == expected);
    }
  });
}

TEST_CASE("score_quantile stays within its inputs, outputs and workspace") {
  const NamedLevel level = any_level();
  for_each_case([&](const DecodeCase& c) {
    QuantileProblem problem(c, {1, 14, 1035, 20, 0, 1030}, 0.9);
    if (c.block_size > 0) problem.params.keys.num_blocks -= 2;
    const std::vector<float> expected = problem.run([&](const ScoreQuantileParams& p) {
      std::vector<float> workspace = make_workspace(score_quantile_cpu_workspace_bytes(p, 1));
      score_quantile_cpu_at_level(*level.level, p, workspace.data(), 1, one_thread());
    });
    for (const Edge edge : {Edge::kFront, Edge::kBack}) {
      CAPTURE(level.name, c.describe());
      const std::vector<float> got = score_quantile_guarded(problem, *level.level, edge);
      REQUIRE(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    }
  });
}

}  // namespace sift
