// Last phase: one query head's result out of the partial ones of all splits.
#pragma once

#include <cstdint>

#include "decode/cuda/decode_arguments.h"
#include "decode/cuda/unit.h"
#include "device.h"

namespace sift {

// The splits of one head that hold partial results, and the weights to add these up with.
struct Parts {
  const DecodePlan& plan;
  int64_t first_item;
  int stride;  // items from one part to the next
  int count;
  int head;       // of the unit
  bool is_exact;  // weighted by the softmax of each split; else by 1, p being final
  float lse;

  SIFT_DEVICE int64_t item(int part) const { return first_item + part * stride; }

  SIFT_DEVICE float weight(int part) const {
    if (!is_exact) return plan.workspace.num_loaded[item(part)] > 0 ? 1.0f : 0.0f;
    return dev::exp2(plan.workspace.softmax[item(part) * plan.unit_heads + head].max - lse);
  }
};

// What a head kept, over all parts; by one warp.
struct Kept {
  float mass;
  int num_loaded;
};

SIFT_DEVICE Kept kept_by(const Parts& parts) {
  Kept kept = {0.0f, 0};
  for (int part = dev::lane(); part < parts.count; part += 32) {
    const int64_t item = parts.item(part);
    const int num_loaded = parts.plan.workspace.num_loaded[item];
    if (num_loaded == 0) continue;
    kept.mass += parts.plan.workspace.kept_mass[item * parts.plan.unit_heads + parts.head];
    kept.num_loaded += num_loaded;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    kept.mass += dev::shuffle_xor(kept.mass, lanes);
    kept.num_loaded += dev::shuffle_xor(kept.num_loaded, lanes);
  }
  return kept;
}

// How the kept rows' sum and the mean row make the result: out = factor * sum + mean * v_sum.
struct Residue {
  float factor = 1;
  float mean = 0;
};

SIFT_DEVICE Residue residue_of(Residual residual, const Kept& kept, int num_attended,
                               float sink_mass) {
  const float dropped = 1.0f - kept.mass - sink_mass;
  if (kept.num_loaded == num_attended || !(dropped > 0)) return {};
  if (residual == Residual::kMean) return {1.0f, dropped / static_cast<float>(num_attended)};
  if (residual == Residual::kNone) return {};
  return {kept.mass == 0 ? 0.0f : (1.0f - sink_mass) / kept.mass, 0.0f};
}

// Head h of sequence b; `first_item`: the slot item of its unit's first split. `parts_out`: shared
// memory for one row of D floats per stripe of threads.
template <class T, int kHeadDim>
SIFT_DEVICE void combine_head(const DecodeArguments& arguments, int64_t b, int64_t h, int length,
                              int64_t first_item, bool is_exact, float* parts_out) {
  const DecodeParams& params = arguments.params;
  const DecodePlan& plan = arguments.plan;
  const auto hk = static_cast<int>(h / plan.group_size);
  const auto g = static_cast<int>(h % plan.group_size);
  const Splits scored = score_splits(length);
  const int head = g % plan.unit_heads;
  const HeadTotal total = head_total(plan, first_item, scored.count, head);
  const float sink = sink_of(params.sinks, h);
  const float lse = log_sum_exp(total.softmax, sink);
  const Parts parts = {.plan = plan,
                       .first_item = first_item,
                       .stride = is_exact ? 1 : kScoreSplitsPerLoadSplit,
                       .count = total.is_empty() ? 0
                                : is_exact       ? scored.count
                                                 : load_splits(length).count,
                       .head = head,
                       .is_exact = is_exact,
                       .lse = lse};

  // A thread adds up 4 columns of every kStripes-th part; the rest of the threads are idle.
  constexpr int kColumns = kHeadDim / 4;
  constexpr int kStripes = kThreads / kColumns;
  const int stripe = dev::thread() / kColumns;
  const int d = dev::thread() % kColumns * 4;
  float sum[4] = {};
  for (int part = stripe; part < parts.count && stripe < kStripes; part += kStripes) {
    const float* out =
        plan.workspace.partial + (parts.item(part) * plan.unit_heads + head) * kHeadDim + d;
    const float values[4] = {out[0], out[1], out[2],
                             out[3]};  // asked for with the weight, not after
    const float weight = parts.weight(part);
    SIFT_UNROLL
    for (int i = 0; i < 4; ++i) sum[i] += weight == 0 ? 0.0f : weight * values[i];
  }
  if (stripe < kStripes) {
    for (int i = 0; i < 4; ++i) parts_out[stripe * kHeadDim + d + i] = sum[i];
  }

  Kept kept = {0.0f, 0};
  if (is_exact && !total.is_empty()) {
    kept = {total.softmax.sum * dev::exp2(total.softmax.max - lse), total.num_attended};
  } else if (!is_exact) {
    kept = kept_by(parts);
  }
  const Residue residue =
      residue_of(params.residual, kept, total.num_attended, dev::exp2(sink - lse));
  dev::sync_block();
  for (int column = dev::thread(); column < kHeadDim; column += kThreads) {
    float out = 0;
    for (int i = 0; i < kStripes; ++i) out += parts_out[i * kHeadDim + column];
    if (!total.is_empty()) {
      out *= residue.factor;
      if (residue.mean != 0) {
        out += residue.mean * params.v_sum[(b * params.num_kv_heads + hk) * kHeadDim + column];
      }
    }
    static_cast<T*>(params.out)[(b * params.num_q_heads + h) * kHeadDim + column] =
        dev::from_float<T>(out);
  }
  if (dev::thread() == 0) {
    const int64_t i = b * params.num_q_heads + h;
    params.lse[i] = lse * kLn2;
    params.kept_mass[i] = kept.mass;
    if (g == 0) params.num_loaded[b * params.num_kv_heads + hk] = kept.num_loaded;
  }
  dev::sync_block();
}

}  // namespace sift
