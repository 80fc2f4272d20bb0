// score_quantile on the CPU: who works on what, and where it lies in the caller's memory.
#include <algorithm>
#include <memory>
#include <vector>

#include "decode/cpu/at_level.h"
#include "decode/cpu/dispatch.h"
#include "decode/cpu/element.h"
#include "decode/cpu/rows.h"
#include "decode/cpu/score_quantile_tile.h"
#include "decode/cpu/tasks.h"
#include "decode/cpu/workspace.h"

namespace sift {
namespace {

// Queries that share a reading of K: enough for arithmetic to take longer than memory.
constexpr int64_t kQueriesPerTile = 16;

// Where the tiles are fewer than the threads, they are cut into pieces: this many per thread, so
// that no thread waits long for another.
constexpr int64_t kPiecesPerThread = 4;

struct Plan {
  TileShape shape;
  int64_t num_groups = 0;
  int64_t num_tiles = 0;
  int64_t num_slots = 0;

  bool is_split() const { return shape.num_pieces > 1; }
};

Plan make_plan(const ScoreQuantileParams& p, int num_threads) {
  Plan plan;
  plan.num_groups = p.batch * p.num_kv_heads;
  if (plan.num_groups * p.num_rows == 0) return plan;
  TileShape& shape = plan.shape;
  shape.group_size = p.num_q_heads / p.num_kv_heads;
  shape.num_rows = std::clamp<int64_t>(kQueriesPerTile / shape.group_size, 1, p.num_rows);
  plan.num_tiles = plan.num_groups * ((p.num_rows + shape.num_rows - 1) / shape.num_rows);

  const int64_t longest = *std::max_element(p.lengths, p.lengths + p.batch * p.num_rows);
  const int64_t max_keys = std::clamp<int64_t>(longest, 0, p.capacity);
  shape.max_chunks = num_chunks(max_keys);
  if (plan.num_tiles < num_threads && shape.max_chunks > 1) {
    const int64_t pieces = kPiecesPerThread * num_threads / plan.num_tiles;
    shape.num_pieces = std::min(pieces, shape.max_chunks);
  }
  const int64_t chunks_per_piece = (shape.max_chunks + shape.num_pieces - 1) / shape.num_pieces;
  shape.capacity =
      Largest::capacity(rank_from_top(p.quantile, max_keys), chunks_per_piece * kChunkKeys);
  plan.num_slots = std::clamp<int64_t>(num_threads, 1, plan.num_tiles * shape.num_pieces);
  return plan;
}

struct Memory {
  Memory(const ScoreQuantileParams& p, const Plan& plan, void* base) {
    Workspace workspace(base);
    sequences = workspace.take<Sequence>(p.batch);
    chunk_starts = workspace.take<int32_t>(p.batch * num_chunks(p.capacity));
    const TileShape& shape = plan.shape;
    const int64_t queries = shape.num_queries();
    states.resize(plan.is_split() ? plan.num_tiles : plan.num_slots);
    for (TileState& state : states) {
      state.softmax = workspace.take<MaxSum>(queries * shape.max_chunks);
      state.largest = workspace.take<Largest>(queries * shape.num_pieces);
      state.values = workspace.take<float>(queries * shape.num_pieces * shape.capacity);
      state.remaining = workspace.take<std::atomic<int64_t>>(1);
    }
    scratches.resize(plan.num_slots);
    for (TileScratch& scratch : scratches) {
      scratch.queries = workspace.take<float>(queries * kQueryStride);
      scratch.scores = workspace.take<float>(queries * kScoreStride);
      scratch.exps = workspace.take<float>(kScoreStride);
      scratch.positions = workspace.take<int32_t>(kChunkKeys);
      scratch.rows = workspace.take<const void*>(kChunkKeys + kRowPadding);
    }
    bytes = workspace.bytes();
  }

  Sequence* sequences;                 // [B]
  int32_t* chunk_starts;               // [B][chunks of the capacity]
  std::vector<TileState> states;       // one per tile if split, else one per slot
  std::vector<TileScratch> scratches;  // [slot]
  int64_t bytes;
};

}  // namespace

int64_t score_quantile_cpu_workspace_bytes(const ScoreQuantileParams& params, int num_threads) {
  return Memory(params, make_plan(params, num_threads), nullptr).bytes;
}

void score_quantile_cpu_at_level(const Level& level, const ScoreQuantileParams& params,
                                 void* workspace, int num_threads,
                                 const ParallelFor& parallel_for) {
  const ScoreQuantileParams& p = params;
  const Plan plan = make_plan(p, num_threads);
  if (plan.num_tiles == 0) return;
  const Memory memory(p, plan, workspace);
  AttendedKeys keys = p.keys;
  keys.seq_lens = nullptr;
  run_tasks(parallel_for, plan.num_slots, p.batch, [&](int64_t, int64_t b) {
    memory.sequences[b] =
        find_attended_keys(keys, b, p.capacity, memory.chunk_starts + b * num_chunks(p.capacity));
  });
  const int64_t num_pieces = plan.shape.num_pieces;
  if (plan.is_split()) {
    for (const TileState& state : memory.states) std::construct_at(state.remaining, num_pieces);
  }
  run_tasks(parallel_for, plan.num_slots, plan.num_tiles * num_pieces,
            [&](int64_t slot, int64_t task) {
              // From the last rows, usually the longest: short tasks fill up the end.
              const int64_t i = plan.num_tiles - 1 - task / num_pieces;
              const int64_t b = i % plan.num_groups / p.num_kv_heads;
              const int64_t begin = i / plan.num_groups * plan.shape.num_rows;
              const int64_t end = std::min(begin + plan.shape.num_rows, p.num_rows);
              const RowSource k = {
                  p.k, keys, memory.sequences[b], b, i % p.num_kv_heads, element_bytes(p.dtype)};
              const QuantileTile tile(p, level, plan.shape, k, begin, end);
              const TileState& state = memory.states[plan.is_split() ? i : slot];
              tile.score(task % num_pieces, state, memory.scratches[slot]);
              if (plan.is_split() && state.remaining->fetch_sub(1, std::memory_order_acq_rel) > 1)
                return;
              tile.write_quantiles(state);
            });
}

void score_quantile_cpu(const ScoreQuantileParams& params, void* workspace, int num_threads,
                        const ParallelFor& parallel_for) {
  score_quantile_cpu_at_level(active_level(), params, workspace, num_threads, parallel_for);
}

}  // namespace sift
