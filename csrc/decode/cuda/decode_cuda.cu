// decode on CUDA: plans workspace and waves, and picks the kernel.
#include "decode/cuda/decode_cuda.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "decode/cuda/decode_arguments.h"
#include "decode/cuda/row_copies.h"
#include "decode/cuda/score_scale.h"
#include "launch.h"

namespace sift {

template <int kHeadDim>
void launch_decode(DecodeArguments arguments, dev::Stream stream);  // see launch_decode.h

namespace {

constexpr int64_t kElementBytes = 2;
// The accumulators of a unit's heads have to fit the registers.
int max_unit_heads(int64_t head_dim) { return head_dim > 128 ? 8 : 16; }
// Of the L2 cache, for one wave's scores; up to three waves are under way.
constexpr int64_t kWaveShareOfL2 = 4;
constexpr int kPieceScoreBytes = 16 * 1024;
constexpr int kMaxPieceKeys = 1024;  // one word of the selection per lane

// How many sequences one launch takes: counts of keys and items stay within 32 bits.
int64_t batch_per_launch(const DecodeParams& params) {
  const int64_t fitting = (int64_t{1} << 30) / std::max<int64_t>(padded_keys(params.capacity), 1);
  return std::min({params.batch, int64_t{kMaxBatch}, std::max<int64_t>(fitting, 1)});
}

// All but the workspace's addresses and what depends on the head dimension.
DecodePlan make_plan(const DecodeParams& params, int64_t batch) {
  DecodePlan plan;
  plan.group_size = static_cast<int>(params.num_q_heads / params.num_kv_heads);
  plan.units_per_head =
      static_cast<int>(divide_up(plan.group_size, max_unit_heads(params.head_dim)));
  plan.unit_heads = static_cast<int>(divide_up(plan.group_size, plan.units_per_head));
  const int64_t wave_keys =
      dev::l2_bytes() / kWaveShareOfL2 / (params.num_q_heads * int64_t{sizeof(float)});
  plan.wave_keys = static_cast<int>(std::clamp<int64_t>(wave_keys, kMinSplitKeys, 1 << 30));
  const int64_t sequence_keys = padded_keys(params.capacity);
  const int64_t all_keys = batch * sequence_keys;
  plan.num_slots = all_keys <= plan.wave_keys ? 1 : 3;
  plan.slot_keys = std::min(all_keys, plan.wave_keys + sequence_keys);
  plan.slot_items = plan.slot_keys / kMinSplitKeys * params.num_kv_heads * plan.units_per_head;
  plan.piece_keys =
      std::clamp(kPieceScoreBytes / (4 * plan.group_size) / 32 * 32, 32, kMaxPieceKeys);
  plan.is_aligned = is_aligned(params.k) && is_aligned(params.v);
  plan.is_q_aligned = is_aligned(params.q, params.q_stride_b | params.q_stride_h);
  plan.score_scale = make_score_scale(params.scale, params.softcap);
  return plan;
}

// Points the workspace's arrays into `memory`; returns the bytes they take.
int64_t place_workspace(const DecodeParams& params, char* memory, DecodePlan& plan) {
  int64_t offset = 0;
  const auto take = [&](auto*& array, int64_t count) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(
        reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(offset));
    offset += divide_up(count * static_cast<int64_t>(sizeof(*array)), 16) * 16;
  };
  const int64_t items = plan.num_slots * plan.slot_items;
  DecodeWorkspace& workspace = plan.workspace;
  take(workspace.scores, plan.num_slots * plan.slot_keys * params.num_q_heads);
  take(workspace.softmax, items * plan.unit_heads);
  take(workspace.num_attended, items);
  take(workspace.partial, items * plan.unit_heads * params.head_dim);
  take(workspace.kept_mass, items * plan.unit_heads);
  take(workspace.num_loaded, items);
  return offset;
}

template <class T>
const T* advance(const T* pointer, int64_t count) {
  return pointer == nullptr ? nullptr : pointer + count;
}

const void* advance_elements(const void* pointer, int64_t count) {
  return static_cast<const char*>(pointer) + count * kElementBytes;
}

// Sequences [first, first + count) of a call.
DecodeParams sequences(DecodeParams params, int64_t first, int64_t count) {
  const int64_t heads = first * params.num_q_heads;
  params.q = advance_elements(params.q, first * params.q_stride_b);
  if (params.keys.block_table == nullptr) {
    params.k.data = advance_elements(params.k.data, first * params.k.stride_b);
    params.v.data = advance_elements(params.v.data, first * params.v.stride_b);
  }
  params.keys.seq_lens = advance(params.keys.seq_lens, first);
  params.keys.key_mask = advance(params.keys.key_mask, first * params.keys.key_mask_stride_b);
  params.keys.block_table =
      advance(params.keys.block_table, first * params.keys.block_table_stride_b);
  params.log_alpha += heads;
  params.beta += heads;
  params.v_sum = advance(params.v_sum, first * params.num_kv_heads * params.head_dim);
  params.out = const_cast<void*>(advance_elements(params.out, heads * params.head_dim));
  params.lse += heads;
  params.kept_mass += heads;
  params.num_loaded += first * params.num_kv_heads;
  params.batch = count;
  return params;
}

void launch(const DecodeArguments& arguments, dev::Stream stream) {
  switch (arguments.params.head_dim) {
    case 64:
      return launch_decode<64>(arguments, stream);
    case 80:
      return launch_decode<80>(arguments, stream);
    case 96:
      return launch_decode<96>(arguments, stream);
    case 128:
      return launch_decode<128>(arguments, stream);
    case 256:
      return launch_decode<256>(arguments, stream);
    default:
      throw std::runtime_error("decode: head_dim must be 64, 80, 96, 128 or 256 on CUDA, got " +
                               std::to_string(arguments.params.head_dim));
  }
}

}  // namespace

int64_t decode_cuda_workspace_bytes(const DecodeParams& params) {
  if (params.batch == 0 || params.num_q_heads == 0) return 0;
  DecodePlan plan = make_plan(params, batch_per_launch(params));
  return place_workspace(params, nullptr, plan);
}

void decode_cuda(const DecodeParams& params, void* workspace, void* stream) {
  if (params.batch == 0 || params.num_q_heads == 0) return;
  const int64_t batch = batch_per_launch(params);
  DecodePlan plan = make_plan(params, batch);
  place_workspace(params, static_cast<char*>(workspace), plan);
  for (int64_t first = 0; first < params.batch; first += batch) {
    const int64_t count = std::min(batch, params.batch - first);
    launch({.params = sequences(params, first, count), .plan = plan}, stream);
  }
}

}  // namespace sift
