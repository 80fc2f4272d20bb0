// First phase: the scores of one split of keys for the heads of one unit, and their softmax so far.
//
// Scores go to the workspace for the second phase. A unit that keeps every key needs none: it takes
// V along, a tile after each tile of K, and leaves its part of the result.
#pragma once

#include <cstdint>

#include "decode/cuda/decode_arguments.h"
#include "decode/cuda/row_copies.h"
#include "decode/cuda/tile_products.h"
#include "decode/cuda/unit.h"
#include "device.h"

namespace sift {

// Whose scores a running maximum covers: one thread's, or those of all threads of a warp that hold
// the same head, so that they can add up products with the weights.
enum class MaxOf { kThread, kWarp };

// A running softmax, of the two heads per block that a thread holds. Until reduce() its sums are
// those of the thread.
template <int kHeadBlocks, MaxOf kMaxOf>
struct RunningSoftmax {
  float max[kHeadBlocks][2];
  float sum[kHeadBlocks][2];

  SIFT_DEVICE RunningSoftmax() {
    for (int i = 0; i < kHeadBlocks * 2; ++i) {
      max[i / 2][i % 2] = -dev::infinity();
      sum[i / 2][i % 2] = 0;
    }
  }

  // Takes in a block of scores in log2 units, and makes them exp2(score - max). Returns, by column,
  // what earlier results must be multiplied with.
  SIFT_DEVICE void add(int block, Block& scores, float (&factor)[2]) {
    for (int column = 0; column < 2; ++column) {
      float& first = scores.x[column];
      float& second = scores.x[column + 2];
      float new_max = larger(max[block][column], larger(first, second));
      if constexpr (kMaxOf == MaxOf::kWarp) new_max = max_of_rows(new_max);
      const float base = base_of(new_max);
      factor[column] = dev::exp2(max[block][column] - base);
      first = dev::exp2(first - base);
      second = dev::exp2(second - base);
      sum[block][column] = sum[block][column] * factor[column] + (first + second);
      max[block][column] = new_max;
    }
  }

  // Afterwards all of it covers the scores of the warp.
  SIFT_DEVICE void reduce() {
    for (int i = 0; i < kHeadBlocks * 2; ++i) {
      float& my_max = max[i / 2][i % 2];
      float& my_sum = sum[i / 2][i % 2];
      const float warp_max = max_of_rows(my_max);
      my_sum *= dev::exp2(my_max - base_of(warp_max));
      for (int lanes = 4; lanes < 32; lanes *= 2) my_sum += dev::shuffle_xor(my_sum, lanes);
      my_max = warp_max;
    }
  }

 private:
  SIFT_DEVICE static float max_of_rows(float x) {
    for (int lanes = 4; lanes < 32; lanes *= 2) x = larger(x, dev::shuffle_xor(x, lanes));
    return x;
  }
};

// `slot_item`: of this item, in the workspace. `scores`: of the group, not used when kKeepsAll.
template <bool kKeepsAll, class T, int kHeadDim, int kHeadBlocks>
SIFT_DEVICE void score_split(const DecodeArguments& arguments, const Item& item, const Unit& unit,
                             int64_t slot_item, float* scores,
                             const SharedMemory<kHeadDim, kHeadBlocks>& shared) {
  const DecodeParams& params = arguments.params;
  const DecodePlan& plan = arguments.plan;
  auto& fixed = shared.fixed;
  scores += static_cast<int64_t>(item.begin) * plan.group_size + unit.first_in_group;
  start_rows<T, kHeadDim, 8 * kHeadBlocks>(fixed.q, plan.is_q_aligned, [&](int head) {
    if (head >= unit.num_heads) return static_cast<const T*>(nullptr);
    return static_cast<const T*>(params.q) + item.b * params.q_stride_b +
           (unit.first_head + head) * params.q_stride_h;
  });

  const int warp = dev::warp();
  const SequenceKeys keys{params.keys, item.b, item.end};
  const int num_keys = item.end - item.begin;
  const int my_tiles = divide_up(divide_up(num_keys, kTileRows) - warp, kWarps);
  const auto first_row = [&](int tile) { return (tile * kWarps + warp) * kTileRows; };

  RunningSoftmax<kHeadBlocks, kKeepsAll ? MaxOf::kWarp : MaxOf::kThread> softmax;
  OutBlocks<kHeadDim, kHeadBlocks> out;
  Weights weights[kHeadBlocks];
  int num_attended = 0;

  const bool stores_pairs = (plan.group_size | plan.unit_heads) % 2 == 0;
  const auto store_scores = [&](int tile_row, int block, const Block& of_block) {
    struct alignas(8) Pair {
      float x[2];
    };
    const int head = block * 8 + Block::column(0);
    SIFT_UNROLL
    for (int i = 0; i < 4; i += 2) {
      const int key = tile_row + Block::row(i);
      if (key >= num_keys || head >= unit.num_heads) continue;
      float* target = scores + key * plan.group_size + head;
      if (stores_pairs) {
        *reinterpret_cast<Pair*>(target) = {{of_block.x[i], of_block.x[i + 1]}};
      } else {
        target[0] = of_block.x[i];
        if (head + 1 < unit.num_heads) target[1] = of_block.x[i + 1];
      }
    }
  };

  const auto use_k = [&](int tile_idx, const char* tile, RowMask mask) {
    if (kKeepsAll && mask == 0) return;  // nor has the tile of V a row
    Block blocks[kHeadBlocks];
    if (mask != 0) score_tile<T, kHeadDim>(tile, fixed.q, blocks);
    num_attended += dev::population_count(mask);
    SIFT_UNROLL
    for (int block = 0; block < kHeadBlocks; ++block) {
      plan.score_scale.apply(blocks[block].x);
      SIFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (!(mask >> Block::row(i) & 1)) blocks[block].x[i] = -dev::infinity();
      }
      if constexpr (!kKeepsAll) store_scores(first_row(tile_idx), block, blocks[block]);
      float factor[2];
      softmax.add(block, blocks[block], factor);
      if constexpr (kKeepsAll) {
        weights[block] = weights_of<T>(blocks[block]);
        if (dev::ballot(factor[0] != 1.0f || factor[1] != 1.0f) != 0) {
          SIFT_UNROLL
          for (int d = 0; d < kHeadDim / 16; ++d) {
            SIFT_UNROLL
            for (int i = 0; i < 4; ++i) out.block[d][block].x[i] *= factor[i % 2];
          }
        }
      }
    }
  };

  TileRing<T, kHeadDim, kRingStages<kHeadDim>, Reads::kOnce> ring(shared.ring_of_warp(),
                                                                  plan.is_aligned);
  const auto stream = [&](int count, auto row_of, auto use) {
    ring.start(count, row_of);
    dev::wait_copies<kRingStages<kHeadDim> - 1>();  // the group of q is the oldest
    dev::sync_block();
    ring.finish(count, row_of, use);
  };
  if constexpr (kKeepsAll) {
    stream(
        2 * my_tiles,
        [&](int i, int row) {
          return keys.row<T>(i % 2 == 0 ? params.k : params.v, unit.hk,
                             item.begin + first_row(i / 2) + row);
        },
        [&](int i, const char* tile, RowMask mask) {
          if (i % 2 == 0) {
            use_k(i / 2, tile, mask);
          } else if (mask != 0) {
            accumulate_tile<T>(tile, weights, out);
          }
        });
  } else {
    stream(
        my_tiles,
        [&](int i, int row) {
          return keys.row<T>(params.k, unit.hk, item.begin + first_row(i) + row);
        },
        use_k);
  }

  softmax.reduce();
  if (dev::lane() < 4) {
    for (int i = 0; i < kHeadBlocks * 2; ++i) {
      fixed.softmax[warp][i / 2 * 8 + dev::lane() * 2 + i % 2] = {softmax.max[i / 2][i % 2],
                                                                  softmax.sum[i / 2][i % 2]};
    }
  }
  if (dev::lane() == 0) fixed.count[warp] = num_attended;
  dev::sync_block();

  const auto max_of = [&](int head) {
    float max = fixed.softmax[0][head].max;
    for (int i = 1; i < kWarps; ++i) max = larger(max, fixed.softmax[i][head].max);
    return max;
  };
  const auto factor = [&](int of_warp, int head) {
    return dev::exp2(fixed.softmax[of_warp][head].max - base_of(max_of(head)));
  };
  if (dev::thread() < unit.num_heads) {
    const int head = dev::thread();
    float sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += fixed.softmax[i][head].sum * factor(i, head);
    plan.workspace.softmax[slot_item * plan.unit_heads + head] = {max_of(head), sum};
  }
  if (dev::thread() == 0) {
    int sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += fixed.count[i];
    plan.workspace.num_attended[slot_item] = sum;
  }
  if constexpr (kKeepsAll) {
    store_partial(shared, out, unit.num_heads,
                  plan.workspace.partial + slot_item * plan.unit_heads * kHeadDim, factor);
  }
  dev::sync_block();
}

}  // namespace sift
