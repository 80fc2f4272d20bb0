// decode in one launch: scores, then V rows above the threshold, then one result per head.
//
//   t_j = scale q . k_j log2(e)            every key, tensor cores, one pass over K for 16 heads
//   lse = log2 sum_j exp2(t_j)             known only when all blocks have scored: a grid barrier
//   load j if t_j - lse > log2 theta       for any head of the group; theta = exp(log_alpha) S^-beta
//   out = sum over loaded j of exp2(t_j - lse) v_j + residual
//
// The scores wait in the workspace, which a wave of sequences keeps small enough for the L2 cache:
// so any split of V can be taken by any block, which evens out heads that look at recent keys only.
// While a wave is scored, the one before is loaded and the one before that combined.
#pragma once

#include <cstdint>

#include "decode/cuda/combine_head.h"
#include "decode/cuda/decode_arguments.h"
#include "decode/cuda/load_split.h"
#include "decode/cuda/schedule.h"
#include "decode/cuda/score_split.h"
#include "decode/cuda/unit.h"
#include "device.h"

namespace sift {

template <class T, int kHeadDim, int kHeadBlocks>
struct DecodeBlock {
  using Shared = SharedMemory<kHeadDim, kHeadBlocks>;

  const DecodeArguments& arguments;
  const Shared& shared;
  Schedule& schedule;

  SIFT_DEVICE Wave wave_at(int index) const {
    return sift::wave_at(schedule, static_cast<int>(arguments.params.batch), index,
                         arguments.plan.wave_keys);
  }

  SIFT_DEVICE void score(int wave_idx) const {
    const DecodePlan& plan = arguments.plan;
    const Wave wave = wave_at(wave_idx);
    const Slot slot = slot_at(arguments, wave_idx);
    const int end = schedule.first_score_item[wave.end];
    for (int i = schedule.first_score_item[wave.begin] + dev::block(); i < end;
         i += dev::num_blocks()) {
      const Item item = item_at<score_splits>(schedule, wave, schedule.first_score_item, i);
      const Unit unit = unit_at(plan, item.unit);
      const int64_t slot_item = slot.first_item + item.first_score_item + item.score_split;
      float* scores = group_scores(arguments, schedule, slot, wave, item.b, unit.hk);
      if (keeps_all(arguments, item.b, unit.hk, shared.fixed)) {
        score_split<true, T>(arguments, item, unit, slot_item, scores, shared);
      } else {
        score_split<false, T>(arguments, item, unit, slot_item, scores, shared);
      }
    }
  }

  SIFT_DEVICE void load(int wave_idx) const {
    const DecodePlan& plan = arguments.plan;
    const Wave wave = wave_at(wave_idx);
    const Slot slot = slot_at(arguments, wave_idx);
    const int end = schedule.first_load_item[wave.end];
    for (int i = schedule.first_load_item[wave.begin] + dev::block(); i < end;
         i += dev::num_blocks()) {
      const Item item = item_at<load_splits>(schedule, wave, schedule.first_load_item, i);
      const Unit unit = unit_at(plan, item.unit);
      if (keeps_all(arguments, item.b, unit.hk, shared.fixed)) continue;
      const int num_splits = score_splits(schedule.length[item.b]).count;
      const int64_t first_item = slot.first_item + item.first_score_item;
      const int unit_in_group = item.unit % plan.units_per_head;
      load_split<T>(arguments, item, unit, first_item - unit_in_group * num_splits, num_splits,
                    first_item + item.score_split,
                    group_scores(arguments, schedule, slot, wave, item.b, unit.hk), shared);
    }
  }

  SIFT_DEVICE void combine(int wave_idx) const {
    const DecodePlan& plan = arguments.plan;
    const auto num_q_heads = static_cast<int>(arguments.params.num_q_heads);
    const Wave wave = wave_at(wave_idx);
    const Slot slot = slot_at(arguments, wave_idx);
    for (int i = wave.begin * num_q_heads + dev::block(); i < wave.end * num_q_heads;
         i += dev::num_blocks()) {
      const int b = i / num_q_heads;
      const int h = i % num_q_heads;
      const int unit =
          h / plan.group_size * plan.units_per_head + h % plan.group_size / plan.unit_heads;
      const int before = schedule.first_score_item[b] - schedule.first_score_item[wave.begin];
      const int length = schedule.length[b];
      combine_head<T, kHeadDim>(
          arguments, b, h, length, slot.first_item + before + unit * score_splits(length).count,
          keeps_all(arguments, b, h / plan.group_size, shared.fixed), shared.out_of_warp(0));
    }
  }
};

// Three blocks per multiprocessor where their registers allow it.
template <int kHeadDim, int kHeadBlocks>
inline constexpr int kMinBlocks = kHeadDim * kHeadBlocks <= 128 ? 3 : 2;

template <class T, int kHeadDim, int kHeadBlocks>
SIFT_KERNEL(kThreads, (kMinBlocks<kHeadDim, kHeadBlocks>))
decode_kernel(const SIFT_GRID_CONSTANT DecodeArguments arguments) {
  const SharedMemory<kHeadDim, kHeadBlocks> shared(arguments.plan);
  Schedule& schedule = shared.fixed.schedule;
  make_schedule(arguments.params,
                static_cast<int>(arguments.params.num_kv_heads) * arguments.plan.units_per_head,
                arguments.plan.wave_keys, schedule);
  const DecodeBlock<T, kHeadDim, kHeadBlocks> block{arguments, shared, schedule};
  const int combine_after = find_exact_groups(arguments, shared.fixed) ? 2 : 1;
  const int num_waves = schedule.num_waves;
  for (int step = 0; step < num_waves + combine_after; ++step) {
    if (step < num_waves) block.score(step);
    if (combine_after == 2 && step >= 1 && step <= num_waves) block.load(step - 1);
    if (step >= combine_after) block.combine(step - combine_after);
    if (step + 1 < num_waves + combine_after) dev::sync_grid();
  }
}

}  // namespace sift
