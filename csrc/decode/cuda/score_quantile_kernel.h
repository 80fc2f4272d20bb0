// score_quantile in three kernels: for each query row, the order statistic of its probabilities
//
//   p_j = exp(s_j) / (sum over keys j of exp(s_j) + exp(sink)),   s_j = softcap(scale q . k_j)
//
//   span_kernel    where the keys of each row end, and how many they are
//   score_kernel   s_j, tensor cores: a column is one query head of one row, and the columns of a
//                  KV head share the reading of K, 64 at a time
//   select_kernel  a block per column: the largest score, the sum of exp and the k-th largest score
//
// Probabilities rise with scores, so the statistic is one of the scores. Keeping the scores costs
// little where rows are few (32 of a prompt), and the exact selection needs three passes over them.
// Slabs of columns bound the memory; a launch boundary between the kernels is all the waiting there
// is.
//
// The sum is one of integers (fixed point) and the selection counts, so neither the order of
// threads nor the place of a key (padding, pages, slabs) shows in a bit of the result.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "decode/cuda/block_reduce.h"
#include "decode/cuda/divide_up.h"
#include "decode/cuda/ordered_scores.h"
#include "decode/cuda/row_copies.h"
#include "decode/cuda/rows.h"
#include "decode/cuda/score_scale.h"
#include "decode/cuda/tile_products.h"
#include "decode/cuda/tiles.h"
#include "decode/params.h"
#include "device.h"

namespace sift {

// A query row sees the attended keys before position `end`, num_keys of them.
struct RowSpan {
  int32_t end;
  int32_t num_keys;
};

// Columns of a KV head, [R, G], in tiles; tiles of all KV heads of all sequences in slabs.
struct ScoreQuantilePlan {
  RowSpan* spans = nullptr;  // [B, R]
  uint32_t* scores =
      nullptr;               // [tile of the slab, tile_columns, score_stride]  see ordered_scores.h
  int64_t score_stride = 0;  // N and up to a multiple of 16
  int64_t first_tile = 0;    // of the slab
  int64_t slab_tiles = 0;
  int64_t tiles_per_head = 0;
  int group_size = 0;         // G
  int tile_columns = 0;       // at most max_tile_columns(D)
  int num_segments = 0;       // of keys, kSegmentKeys each
  bool is_q_aligned = false;  // rows begin at multiples of 16 bytes
  bool is_k_aligned = false;
  ScoreScale score_scale;
};

struct ScoreQuantileArguments {
  ScoreQuantileParams params;
  ScoreQuantilePlan plan;
};
static_assert(std::is_trivially_copyable_v<ScoreQuantileArguments>);

// ---- span_kernel: a block per sequence ----------------------------------------------------------

constexpr int kSpanThreads = 512;
constexpr int kSpanWarps = kSpanThreads / 32;

SIFT_KERNEL(kSpanThreads, 1)
span_kernel(SIFT_GRID_CONSTANT const ScoreQuantileArguments arguments) {
  const auto& [p, plan] = arguments;
  const int64_t b = dev::block();
  const int32_t* lengths = p.lengths + b * p.num_rows;
  RowSpan* spans = plan.spans + b * p.num_rows;
  const auto capacity = static_cast<int32_t>(p.capacity);
  const bool all_attended = p.keys.key_mask == nullptr && p.keys.block_table == nullptr;
  int32_t num_attended = all_attended ? capacity : 0;

  // 32 positions per lane and step, as the bits of a word.
  auto* warp_sums = reinterpret_cast<int32_t*>(dev::shared_memory());
  const SequenceKeys keys{p.keys, b, capacity};
  for (int64_t first = 0; first < capacity && !all_attended; first += kSpanThreads * 32) {
    const int64_t first_of_warp = first + dev::warp() * 32 * 32;
    uint32_t word = 0;
    for (int i = 0; i < 32; ++i) {
      const int64_t n = first_of_warp + i * 32 + dev::lane();
      const uint32_t attended = dev::ballot(n < capacity && keys.attends(static_cast<int>(n)));
      if (dev::lane() == i) word = attended;
    }
    const int count = dev::population_count(word);
    const BlockSum<int32_t> sum = sum_block(count, warp_sums);
    const int32_t before = num_attended + sum.before;
    for (int64_t r = 0; r < p.num_rows; ++r) {
      const int32_t length = lengths[r];
      if (length <= before || length > before + count) continue;
      uint32_t rest = word;
      for (int32_t i = before + 1; i < length; ++i) rest &= rest - 1;
      const int64_t last = first_of_warp + dev::lane() * 32 + dev::find_first_set(rest);
      spans[r] = {static_cast<int32_t>(last + 1), length};
    }
    num_attended += sum.total;
  }
  for (int64_t r = dev::thread(); r < p.num_rows; r += kSpanThreads) {
    if (lengths[r] <= 0) {
      spans[r] = {0, 0};
    } else if (lengths[r] > num_attended) {
      spans[r] = {capacity, num_attended};
    } else if (all_attended) {
      spans[r] = {lengths[r], lengths[r]};
    }
  }
}

// ---- score_kernel: a block per tile of columns and segment of keys ------------------------------

constexpr int kScoreThreads = 128;
constexpr int kScoreWarps = kScoreThreads / 32;
constexpr int kSegmentKeys = 512;  // enough to be worth the loading of the queries

// Large heads take half the columns, so that their queries leave shared memory for the rings.
constexpr int max_tile_columns(int64_t head_dim) { return head_dim > 128 ? 32 : 64; }

// A block's shared memory: the queries of its columns, then a ring of K tiles for each warp.
template <class T, int kHeadDim>
struct ScoreMemory {
  static constexpr int kStages = 2;
  using Ring = TileRing<T, kHeadDim, kStages>;
  static constexpr int kColumns = max_tile_columns(kHeadDim);
  static constexpr int kQueryBytes = kColumns * Tile<kHeadDim>::kRowBytes;
  static constexpr int kBytes = kQueryBytes + kScoreWarps * Ring::kBytes;
};

// The columns of one tile: heads of the group and rows, [R, G], those from `first` on.
struct ColumnTile {
  int64_t b;
  int64_t hk;
  int group_size;
  int first;
  int count;

  SIFT_DEVICE ColumnTile(const ScoreQuantileArguments& arguments, int tile_of_slab) {
    const auto& [p, plan] = arguments;
    const int64_t tile = plan.first_tile + tile_of_slab;
    b = tile / plan.tiles_per_head / p.num_kv_heads;
    hk = tile / plan.tiles_per_head % p.num_kv_heads;
    group_size = plan.group_size;
    first = static_cast<int>(tile % plan.tiles_per_head) * plan.tile_columns;
    const int left = static_cast<int>(p.num_rows) * group_size - first;
    count = left < plan.tile_columns ? left : plan.tile_columns;
  }

  SIFT_DEVICE int row(int column) const { return (first + column) / group_size; }
  SIFT_DEVICE int64_t head(int column) const {
    return hk * group_size + (first + column) % group_size;
  }
};

// Where the longest row of a tile ends. Whole warp.
SIFT_DEVICE int end_of(const ScoreQuantileArguments& arguments, const ColumnTile& columns) {
  const auto& [p, plan] = arguments;
  const int last_row = columns.row(columns.count - 1);
  int end = 0;
  for (int r = columns.row(0) + dev::lane(); r <= last_row; r += 32) {
    const int end_of_row = plan.spans[columns.b * p.num_rows + r].end;
    if (end_of_row > end) end = end_of_row;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const int other = dev::shuffle_xor(end, lanes);
    if (other > end) end = other;
  }
  return end;
}

template <class T, int kHeadDim>
SIFT_KERNEL(kScoreThreads, 4)
score_kernel(SIFT_GRID_CONSTANT const ScoreQuantileArguments arguments) {
  using Memory = ScoreMemory<T, kHeadDim>;
  const ScoreQuantileParams& p = arguments.params;
  const ScoreQuantilePlan& plan = arguments.plan;
  const int tile_of_slab = dev::block() / plan.num_segments;
  const ColumnTile columns(arguments, tile_of_slab);
  const int64_t begin = int64_t{dev::block() % plan.num_segments} * kSegmentKeys;
  const int end_of_tile = end_of(arguments, columns);
  if (begin >= end_of_tile) return;
  const int64_t end = begin + kSegmentKeys < end_of_tile ? begin + kSegmentKeys : end_of_tile;

  char* queries = dev::shared_memory();
  start_rows<T, kHeadDim, Memory::kColumns>(queries, plan.is_q_aligned, [&](int column) {
    if (column >= columns.count) return static_cast<const T*>(nullptr);
    return static_cast<const T*>(p.q) + columns.b * p.q_stride_b +
           columns.head(column) * p.q_stride_h + columns.row(column) * p.q_stride_r;
  });

  // The warps take the segment's tiles of keys in turn.
  const int num_tiles = static_cast<int>(divide_up(end - begin, kTileRows));
  const auto first_key = [&](int i) { return begin + (i * kScoreWarps + dev::warp()) * kTileRows; };
  const SequenceKeys keys{p.keys, columns.b, static_cast<int>(end)};
  uint32_t* scores = plan.scores + int64_t{tile_of_slab} * plan.tile_columns * plan.score_stride;
  const int my_tiles = divide_up(num_tiles - dev::warp(), kScoreWarps);
  const auto row_of = [&](int i, int row) {
    return keys.row<T>(p.k, columns.hk, static_cast<int>(first_key(i) + row));
  };
  const auto use = [&](int i, const char* tile, RowMask attended) {
    Block blocks[Memory::kColumns / 8];
    if (attended != 0) score_tile<T, kHeadDim>(tile, queries, blocks);
    SIFT_UNROLL
    for (int block = 0; block < Memory::kColumns / 8; ++block) {
      plan.score_scale.apply(blocks[block].x);
      SIFT_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int row = Block::row(j);
        const int column = block * 8 + Block::column(j);
        if (column >= columns.count) continue;
        scores[column * plan.score_stride + first_key(i) + row] =
            attended >> row & 1 ? ordered_score(blocks[block].x[j]) : kNoScore;
      }
    }
  };
  typename Memory::Ring ring(queries + Memory::kQueryBytes + dev::warp() * Memory::Ring::kBytes,
                             plan.is_k_aligned);
  ring.start(my_tiles, row_of);
  dev::wait_copies<Memory::kStages - 1>();  // the group of the queries is the oldest
  dev::sync_block();
  ring.finish(my_tiles, row_of, use);
}

// ---- select_kernel: a block per column ----------------------------------------------------------

// The quantile's probability out of the column's scores; all threads.
SIFT_DEVICE float quantile_of(const uint32_t* scores, RowSpan span, double quantile, float sink,
                              SelectMemory& memory) {
  if (span.num_keys == 0 || !(sink < dev::infinity())) return dev::nan();
  const auto rank_from_bottom = static_cast<int32_t>(quantile * (span.num_keys - 1));
  LargestScore selected(scores, static_cast<uint32_t>(span.end),
                        static_cast<uint32_t>(span.num_keys - rank_from_bottom), memory);

  uint32_t largest = 0;
  selected.narrow(kDigits[0], [&](uint32_t score) {
    if (score > largest) largest = score;
  });
  largest = max_block(largest, memory.counts);
  if (largest == kInvalidScore) return dev::nan();
  const float max = score_of(largest);
  if (max == -dev::infinity()) return 0.0f;

  // A weight is at most 1, so in these units the sum fits 64 bits. Rounding loses less than one
  // unit per key: of 131,072 keys, at most 2^-29 of a sum of at least 1.
  float units = 0x1p63f;
  for (int64_t room = 1; room < span.num_keys; room *= 2) units /= 2;
  uint64_t sum = 0;
  selected.narrow(kDigits[1], [&](uint32_t score) {
    sum += static_cast<uint64_t>(dev::exp2(score_of(score) - max) * units);
  });
  sum = sum_block(sum, memory.sums).total;
  selected.narrow(kDigits[2], [](uint32_t) {});
  const double total =
      static_cast<double>(sum) / units + std::exp2(static_cast<double>(sink) - max);
  const double weight = std::exp2(static_cast<double>(score_of(selected.score())) - max);
  return static_cast<float>(weight / total);
}

SIFT_KERNEL(kSelectThreads, 2)
select_kernel(SIFT_GRID_CONSTANT const ScoreQuantileArguments arguments) {
  const auto& [p, plan] = arguments;
  const ColumnTile columns(arguments, dev::block() / plan.tile_columns);
  const int column = dev::block() % plan.tile_columns;
  if (column >= columns.count) return;
  const int64_t h = columns.head(column);
  const int64_t r = columns.row(column);
  const float sink = sink_of(p.sinks, h);
  const float quantile = quantile_of(plan.scores + dev::block() * plan.score_stride,
                                     plan.spans[columns.b * p.num_rows + r], p.quantile, sink,
                                     *reinterpret_cast<SelectMemory*>(dev::shared_memory()));
  if (dev::thread() == 0) {
    p.quantiles[(columns.b * p.num_q_heads + h) * p.num_rows + r] = quantile;
  }
}

}  // namespace sift
