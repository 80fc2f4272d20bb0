// What all phases ask about the heads that they work on.
#pragma once

#include <cstdint>

#include "decode/cuda/decode_arguments.h"
#include "decode/cuda/tile_products.h"
#include "device.h"

namespace sift {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;

// NaN never counts as larger: it reaches a softmax by its sum.
SIFT_DEVICE float larger(float x, float y) { return y > x ? y : x; }

struct Unit {
  int hk;
  int first_in_group;  // its first query head, counted within the group
  int first_head;      // the same, counted from the first of all
  int num_heads;
};

SIFT_DEVICE Unit unit_at(const DecodePlan& plan, int index) {
  const int hk = index / plan.units_per_head;
  const int first = index % plan.units_per_head * plan.unit_heads;
  const int left = plan.group_size - first;
  return {.hk = hk,
          .first_in_group = first,
          .first_head = hk * plan.group_size + first,
          .num_heads = left < plan.unit_heads ? left : plan.unit_heads};
}

// Whether a head of the group keeps every key: then the group loads all rows, and is decoded in one
// pass over K and V. The same for every thread.
SIFT_DEVICE bool keeps_all(const DecodeArguments& arguments, int64_t b, int hk) {
  const int group_size = arguments.plan.group_size;
  const float* log_alpha =
      arguments.params.log_alpha + b * arguments.params.num_q_heads + hk * group_size;
  uint32_t exact = 0;
  for (int first = 0; first < group_size; first += 32) {
    const int g = first + dev::lane();
    exact |= dev::ballot(g < group_size && log_alpha[g] == -dev::infinity());
  }
  return exact != 0;
}

// Where a wave's results lie in the workspace.
struct Slot {
  float* scores;
  int64_t first_item;
};

SIFT_DEVICE Slot slot_at(const DecodeArguments& arguments, int wave) {
  const DecodePlan& plan = arguments.plan;
  const int64_t slot = wave % plan.num_slots;
  return {.scores = plan.workspace.scores + slot * plan.slot_keys * arguments.params.num_q_heads,
          .first_item = slot * plan.slot_items};
}

// The scores of a group, [keys, G]; rounds up to 16 bytes at multiples of 32 keys.
SIFT_DEVICE float* group_scores(const DecodeArguments& arguments, const Schedule& schedule,
                                const Slot& slot, const Wave& wave, int64_t b, int hk) {
  const int64_t first_key = schedule.first_key[b] - schedule.first_key[wave.begin];
  const int64_t padded = schedule.first_key[b + 1] - schedule.first_key[b];
  return slot.scores + first_key * arguments.params.num_q_heads +
         hk * padded * arguments.plan.group_size;
}

// A head's softmax over all splits, by one warp. `item`: that of its unit's first split.
struct HeadTotal {
  Softmax softmax;
  int num_attended;

  // No key has a score above -inf.
  SIFT_DEVICE bool is_empty() const { return softmax.max == -dev::infinity() && softmax.sum == 0; }
};

SIFT_DEVICE HeadTotal head_total(const DecodePlan& plan, int64_t item, int num_splits, int head) {
  Softmax total = {-dev::infinity(), 0.0f};
  int num_attended = 0;
  for (int split = dev::lane(); split < num_splits; split += 32) {
    total.max =
        larger(total.max, plan.workspace.softmax[(item + split) * plan.unit_heads + head].max);
    num_attended += plan.workspace.num_attended[item + split];
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    total.max = larger(total.max, dev::shuffle_xor(total.max, lanes));
    num_attended += dev::shuffle_xor(num_attended, lanes);
  }
  const float base = total.max == -dev::infinity() ? 0.0f : total.max;
  for (int split = dev::lane(); split < num_splits; split += 32) {
    const Softmax part = plan.workspace.softmax[(item + split) * plan.unit_heads + head];
    total.sum += part.sum * dev::exp2(part.max - base);
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) total.sum += dev::shuffle_xor(total.sum, lanes);
  return {total, num_attended};
}

// In log2 units; -inf: none.
SIFT_DEVICE float sink_of(const DecodeParams& params, int64_t h) {
  return params.sinks == nullptr ? -dev::infinity() : params.sinks[h] * kLog2E;
}

// log2 of the sum of exp2 over keys and sink.
SIFT_DEVICE float log_sum_exp(const Softmax& keys, float sink) {
  const float max = larger(keys.max, sink);
  if (max == -dev::infinity()) return keys.sum == 0 ? max : dev::nan();
  return max + dev::log2(keys.sum * dev::exp2(keys.max - max) + dev::exp2(sink - max));
}

// Adds up the warps' out^T in shared memory and writes the unit's partial result, [heads, D].
// factor(warp, head) applies to the out of a warp. All threads; the rings must be idle.
template <int kHeadDim, int kHeadBlocks, class Factor>
SIFT_DEVICE void store_partial(const SharedMemory<kHeadDim, kHeadBlocks>& shared,
                               const OutBlocks<kHeadDim, kHeadBlocks>& out, int num_heads,
                               float* partial, Factor factor) {
  float* mine = shared.out_of_warp(dev::warp());
  for (int d = 0; d < kHeadDim / 16; ++d) {
    for (int block = 0; block < kHeadBlocks; ++block) {
      for (int i = 0; i < 4; ++i) {
        mine[(block * 8 + Block::column(i)) * kHeadDim + d * 16 + Block::row(i)] =
            out.block[d][block].x[i];
      }
    }
  }
  dev::sync_block();
  for (int i = dev::thread(); i < num_heads * kHeadDim; i += kThreads) {
    float sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += shared.out_of_warp(warp)[i] * factor(warp, i / kHeadDim);
    }
    partial[i] = sum / kWeightScale;
  }
}

}  // namespace sift
