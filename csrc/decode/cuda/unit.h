// What all phases ask about the heads that they work on.
#pragma once

#include <cstdint>

#include "decode/cuda/block_reduce.h"
#include "decode/cuda/decode_arguments.h"
#include "decode/cuda/score_scale.h"
#include "decode/cuda/tile_products.h"
#include "device.h"

namespace sift {

constexpr float kLn2 = 0.69314718f;

// NaN never counts as larger: it reaches a softmax by its sum.
SIFT_DEVICE float larger(float x, float y) { return y > x ? y : x; }

// What scores are taken relative to: exp2(score - base) is 0, not NaN, where all are -inf.
SIFT_DEVICE float base_of(float max) { return max == -dev::infinity() ? 0.0f : max; }

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

// Whether a head of a group keeps every key: then the group loads all rows, and is decoded in one
// pass over K and V.
SIFT_DEVICE bool head_keeps_all(const DecodeArguments& arguments, int64_t group) {
  const float* log_alpha = arguments.params.log_alpha + group * arguments.plan.group_size;
  bool any = false;
  for (int g = 0; g < arguments.plan.group_size; ++g) any |= log_alpha[g] == -dev::infinity();
  return any;
}

// Answers that once for all groups of the launch. Returns whether any has rows to select. By all
// threads; the same for every thread of the grid.
template <class Fixed>
SIFT_DEVICE bool find_exact_groups(const DecodeArguments& arguments, Fixed& fixed) {
  const int64_t num_groups = arguments.params.batch * arguments.params.num_kv_heads;
  bool selects = false;
  for (int64_t first = dev::warp() * 32; first < num_groups; first += kThreads) {
    const int64_t group = first + dev::lane();
    const bool is_exact = group < num_groups && head_keeps_all(arguments, group);
    const uint32_t exact = dev::ballot(is_exact);
    if (first < kKnownGroups && dev::lane() == 0) fixed.exact_groups[first / 32] = exact;
    selects |= group < num_groups && !is_exact;
  }
  return sum_block(static_cast<int>(selects), fixed.count).total != 0;
}

// After find_exact_groups.
template <class Fixed>
SIFT_DEVICE bool keeps_all(const DecodeArguments& arguments, int64_t b, int64_t hk,
                           const Fixed& fixed) {
  const int64_t group = b * arguments.params.num_kv_heads + hk;
  if (group >= kKnownGroups) return head_keeps_all(arguments, group);
  return fixed.exact_groups[group / 32] >> (group % 32) & 1;
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
  constexpr int kSplitsPerLane = kMaxSplits / 32;
  Softmax parts[kSplitsPerLane];
  Softmax total = {-dev::infinity(), 0.0f};
  int num_attended = 0;
  SIFT_UNROLL
  for (int i = 0; i < kSplitsPerLane; ++i) {
    const int split = dev::lane() + i * 32;
    parts[i] = {-dev::infinity(), 0.0f};
    if (split < num_splits) {
      parts[i] = plan.workspace.softmax[(item + split) * plan.unit_heads + head];
      num_attended += plan.workspace.num_attended[item + split];
    }
  }
  SIFT_UNROLL
  for (const Softmax& part : parts) total.max = larger(total.max, part.max);
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    total.max = larger(total.max, dev::shuffle_xor(total.max, lanes));
    num_attended += dev::shuffle_xor(num_attended, lanes);
  }
  const float base = base_of(total.max);
  SIFT_UNROLL
  for (const Softmax& part : parts) total.sum += part.sum * dev::exp2(part.max - base);
  for (int lanes = 16; lanes > 0; lanes /= 2) total.sum += dev::shuffle_xor(total.sum, lanes);
  return {total, num_attended};
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
