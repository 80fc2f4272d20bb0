// score_quantile on the CPU: K is read once for several query rows of all heads of a group.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "decode/cpu/at_level.h"
#include "decode/cpu/dispatch.h"
#include "decode/cpu/element.h"
#include "decode/cpu/rows.h"
#include "decode/cpu/tasks.h"
#include "decode/cpu/workspace.h"

namespace sift {
namespace {

// Queries that share a reading of K: enough for arithmetic to take longer than memory.
constexpr int64_t kQueriesPerTile = 16;

struct Plan {
  int64_t group_size = 0;
  int64_t rows_per_tile = 0;  // query rows; a tile is these of one group
  int64_t num_tiles = 0;      // of a group
  int64_t num_tasks = 0;
  int64_t max_chunks = 0;
  int64_t num_slots = 0;
};

Plan make_plan(const ScoreQuantileParams& p, int num_threads) {
  Plan plan;
  if (p.batch * p.num_kv_heads * p.num_rows == 0) return plan;
  plan.group_size = p.num_q_heads / p.num_kv_heads;
  plan.rows_per_tile = std::clamp<int64_t>(kQueriesPerTile / plan.group_size, 1, p.num_rows);
  plan.num_tiles = (p.num_rows + plan.rows_per_tile - 1) / plan.rows_per_tile;
  plan.num_tasks = p.batch * p.num_kv_heads * plan.num_tiles;
  plan.max_chunks = num_chunks(p.capacity);
  plan.num_slots = std::clamp<int64_t>(num_threads, 1, plan.num_tasks);
  return plan;
}

struct Scratch {
  float* queries;      // [query][kQueryStride]
  float* chunk;        // [query][kScoreStride]: scores of a chunk
  float* exps;         // [kChunkKeys]
  float* scores;       // [query][max_chunks * kChunkKeys]
  int32_t* positions;  // [kChunkKeys]
  const void** rows;   // [kChunkKeys + kRowPadding]
};

struct Memory {
  Memory(const ScoreQuantileParams& p, const Plan& plan, void* base) {
    Workspace workspace(base);
    sequences = workspace.take<Sequence>(p.batch);
    chunk_starts = workspace.take<int32_t>(p.batch * plan.max_chunks);
    const int64_t queries = plan.rows_per_tile * plan.group_size;
    scratches.resize(plan.num_slots);
    for (Scratch& scratch : scratches) {
      scratch.queries = workspace.take<float>(queries * kQueryStride);
      scratch.chunk = workspace.take<float>(queries * kScoreStride);
      scratch.exps = workspace.take<float>(kChunkKeys);
      scratch.scores = workspace.take<float>(queries * plan.max_chunks * kChunkKeys);
      scratch.positions = workspace.take<int32_t>(kChunkKeys);
      scratch.rows = workspace.take<const void*>(kChunkKeys + kRowPadding);
    }
    bytes = workspace.bytes();
  }

  Sequence* sequences;
  int32_t* chunk_starts;  // [B][max_chunks]
  std::vector<Scratch> scratches;
  int64_t bytes;
};

// A softmax that grows chunk by chunk.
struct RunningSoftmax {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;  // of exp(score - max)

  void add(double chunk_max, double chunk_sum) {
    const double new_max = std::max(max, chunk_max);
    if (new_max == -std::numeric_limits<double>::infinity()) {  // the sums are 0 or NaN
      sum += chunk_sum;
      return;
    }
    sum = sum * std::exp(max - new_max) + chunk_sum * std::exp(chunk_max - new_max);
    max = new_max;
  }
};

// The probability at the rank of the quantile; reorders the scores. Probabilities rise with scores.
float quantile(float* scores, int64_t num_keys, double quantile, RunningSoftmax softmax,
               const float* sink) {
  if (num_keys == 0 || std::isnan(softmax.sum)) return std::numeric_limits<float>::quiet_NaN();
  if (softmax.sum == 0) return 0;
  if (sink != nullptr) softmax.add(*sink, 1);
  const auto rank = static_cast<int64_t>(std::floor(quantile * static_cast<double>(num_keys - 1)));
  std::nth_element(scores, scores + rank, scores + num_keys);
  return static_cast<float>(std::exp(scores[rank] - softmax.max) / softmax.sum);
}

// Query rows [begin, end) of one group.
void score_quantile_tile(const ScoreQuantileParams& p, const Level& level, const Plan& plan,
                         const AttendedKeys& keys, const Sequence& sequence, int64_t b, int64_t hk,
                         int64_t begin, int64_t end, const Scratch& scratch) {
  const RowKernels& kernels = level.rows[static_cast<int>(p.dtype)];
  const int64_t bytes = element_bytes(p.dtype);
  const int64_t num_queries = (end - begin) * plan.group_size;
  const int64_t score_stride = plan.max_chunks * kChunkKeys;
  const auto length = [&](int64_t query) {
    const int64_t r = begin + query / plan.group_size;
    return std::clamp<int64_t>(p.lengths[b * p.num_rows + r], 0, sequence.num_keys);
  };
  const auto head = [&](int64_t query) { return hk * plan.group_size + query % plan.group_size; };

  std::vector<RunningSoftmax> softmax(num_queries);
  int64_t max_length = 0;
  for (int64_t i = 0; i < num_queries; ++i) {
    const int64_t r = begin + i / plan.group_size;
    const int64_t offset = b * p.q_stride_b + head(i) * p.q_stride_h + r * p.q_stride_r;
    kernels.prepare_query(static_cast<const char*>(p.q) + offset * bytes, p.head_dim,
                          scratch.queries + i * kQueryStride);
    max_length = std::max(max_length, length(i));
  }
  for (int64_t c = 0; c * kChunkKeys < max_length; ++c) {
    const int64_t first = c * kChunkKeys;
    key_positions(keys, b, sequence, c, scratch.positions);
    const int64_t count = std::min(kChunkKeys, max_length - first);
    row_addresses(p.k, keys, bytes, b, hk, scratch.positions, count, scratch.rows);
    kernels.score(scratch.rows, count, scratch.queries, num_queries, p.head_dim, p.scale,
                  scratch.chunk);
    for (int64_t i = 0; i < num_queries; ++i) {
      const int64_t num_seen = std::min(count, length(i) - first);
      if (num_seen <= 0) continue;
      float* s = scratch.chunk + i * kScoreStride;
      if (p.softcap != 0) level.softcap(s, num_seen, p.softcap);
      const MaxSum chunk = level.exponentiate(s, num_seen, scratch.exps);
      softmax[i].add(chunk.max, chunk.sum);
      std::copy_n(s, num_seen, scratch.scores + i * score_stride + first);
    }
  }
  for (int64_t i = 0; i < num_queries; ++i) {
    const float* sink = p.sinks == nullptr ? nullptr : p.sinks + head(i);
    const int64_t r = begin + i / plan.group_size;
    p.quantiles[(b * p.num_q_heads + head(i)) * p.num_rows + r] =
        quantile(scratch.scores + i * score_stride, length(i), p.quantile, softmax[i], sink);
  }
}

}  // namespace

int64_t score_quantile_cpu_workspace_bytes(const ScoreQuantileParams& params, int num_threads) {
  return Memory(params, make_plan(params, num_threads), nullptr).bytes;
}

void score_quantile_cpu_at_level(const Level& level, const ScoreQuantileParams& params,
                                 void* workspace, int num_threads,
                                 const ParallelFor& parallel_for) {
  const ScoreQuantileParams& p = params;
  const Plan plan = make_plan(p, num_threads);
  if (plan.num_tasks == 0) return;
  const Memory memory(p, plan, workspace);
  AttendedKeys keys = p.keys;
  keys.seq_lens = nullptr;
  run_tasks(parallel_for, plan.num_slots, p.batch, [&](int64_t, int64_t b) {
    memory.sequences[b] =
        find_attended_keys(keys, b, p.capacity, memory.chunk_starts + b * plan.max_chunks);
  });
  run_tasks(parallel_for, plan.num_slots, plan.num_tasks, [&](int64_t slot, int64_t task) {
    const int64_t group = task / plan.num_tiles;
    const int64_t b = group / p.num_kv_heads;
    const int64_t begin = task % plan.num_tiles * plan.rows_per_tile;
    const int64_t end = std::min(begin + plan.rows_per_tile, p.num_rows);
    score_quantile_tile(p, level, plan, keys, memory.sequences[b], b, group % p.num_kv_heads, begin,
                        end, memory.scratches[slot]);
  });
}

void score_quantile_cpu(const ScoreQuantileParams& params, void* workspace, int num_threads,
                        const ParallelFor& parallel_for) {
  score_quantile_cpu_at_level(active_level(), params, workspace, num_threads, parallel_for);
}

}  // namespace sift
