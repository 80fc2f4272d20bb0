// Starts the decode kernel for one head dimension. Each has a translation unit of its own, since
// compiling takes long.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "decode/cuda/decode_arguments.h"
#include "decode/cuda/decode_kernel.h"
#include "launch.h"

namespace sift {

template <int kHeadDim>
void launch_decode(DecodeArguments arguments, dev::Stream stream);

// Places the parts of shared memory whose size depends on the group.
template <int kHeadDim, int kHeadBlocks>
void plan_shared_memory(DecodePlan& plan) {
  int offset = sizeof(typename SharedMemory<kHeadDim, kHeadBlocks>::Fixed);
  const auto take = [&](int bytes) {
    const int begin = offset;
    offset += (bytes + 15) / 16 * 16;
    return begin;
  };
  plan.scores_offset = take(plan.piece_keys * plan.group_size * 4);
  plan.list_offset = take(plan.piece_keys * 2);
  plan.words_offset = take(plan.piece_keys / 32 * 4);
  plan.laws_offset = take(plan.group_size * static_cast<int>(sizeof(HeadLaw)));
  plan.shared_bytes = offset;
}

template <class T, int kHeadDim, int kHeadBlocks>
void launch_decode_of(DecodeArguments& arguments, dev::Stream stream) {
  const DecodeParams& params = arguments.params;
  DecodePlan& plan = arguments.plan;
  plan_shared_memory<kHeadDim, kHeadBlocks>(plan);
  if (plan.shared_bytes > dev::max_shared_bytes()) {
    throw std::runtime_error(
        "decode: num_q_heads / num_kv_heads must be small enough for the device's shared memory, "
        "got " +
        std::to_string(plan.group_size));
  }
  const auto kernel = decode_kernel<T, kHeadDim, kHeadBlocks>;
  const int64_t num_units = params.num_kv_heads * plan.units_per_head;
  const int64_t splits = std::min<int64_t>(kMaxSplits, divide_up(params.capacity, kMinSplitKeys));
  const int64_t items = params.batch * std::max(num_units * splits, params.num_q_heads);
  const int64_t resident = dev::max_resident_blocks(kernel, kThreads, plan.shared_bytes);
  dev::launch_cooperative(
      "decode_kernel", kernel,
      {static_cast<int>(std::min(items, resident)), kThreads, plan.shared_bytes}, stream,
      arguments);
}

template <int kHeadDim>
void launch_decode(DecodeArguments arguments, dev::Stream stream) {
  const auto launch = [&](auto element) {
    using T = decltype(element);
    if constexpr (kHeadDim <= 128) {
      if (arguments.plan.unit_heads > 8) return launch_decode_of<T, kHeadDim, 2>(arguments, stream);
    }
    launch_decode_of<T, kHeadDim, 1>(arguments, stream);
  };
  switch (arguments.params.dtype) {
    case DType::kBFloat16:
      return launch(dev::BFloat16{});
    case DType::kFloat16:
      return launch(dev::Float16{});
    default:
      throw std::runtime_error("decode: q must be float16 or bfloat16 on CUDA, got float32");
  }
}

}  // namespace sift
