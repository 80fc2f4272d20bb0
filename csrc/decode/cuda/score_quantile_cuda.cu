// score_quantile on CUDA: the host's plan, and the launches.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "decode/cuda/decode_cuda.h"
#include "decode/cuda/divide_up.h"
#include "decode/cuda/score_quantile_kernel.h"
#include "launch.h"

namespace sift {
namespace {

// Of scores held at a time; one tile of columns takes more beyond 262,144 keys. A smaller slab
// would leave multiprocessors idle: at 131,072 keys a tile takes 32 MiB.
constexpr int64_t kMaxSlabBytes = int64_t{64} << 20;

int64_t num_tiles(const ScoreQuantileParams& params, const ScoreQuantilePlan& plan) {
  return params.batch * params.num_kv_heads * plan.tiles_per_head;
}

// Points the workspace's arrays into `memory`; returns the bytes they take.
int64_t place_workspace(const ScoreQuantileParams& params, char* memory, ScoreQuantilePlan& plan) {
  const int64_t score_bytes = plan.slab_tiles * plan.tile_columns * plan.score_stride * 4;
  plan.scores = reinterpret_cast<uint32_t*>(memory);
  plan.spans = reinterpret_cast<RowSpan*>(memory + score_bytes);
  return score_bytes + params.batch * params.num_rows * static_cast<int64_t>(sizeof(RowSpan));
}

// All but the workspace's addresses.
ScoreQuantilePlan make_plan(const ScoreQuantileParams& params) {
  ScoreQuantilePlan plan;
  plan.group_size = static_cast<int>(params.num_q_heads / params.num_kv_heads);
  const int64_t columns_per_head = params.num_rows * plan.group_size;
  plan.tile_columns =
      static_cast<int>(std::min<int64_t>(columns_per_head, max_tile_columns(params.head_dim)));
  plan.tiles_per_head = divide_up(columns_per_head, plan.tile_columns);
  plan.score_stride = divide_up(std::max<int64_t>(params.capacity, 1), kTileRows) * kTileRows;
  plan.num_segments = static_cast<int>(divide_up(plan.score_stride, kSegmentKeys));
  plan.slab_tiles = std::clamp<int64_t>(kMaxSlabBytes / (plan.tile_columns * plan.score_stride * 4),
                                        1, num_tiles(params, plan));
  plan.is_q_aligned =
      is_aligned(params.q, params.q_stride_b | params.q_stride_h | params.q_stride_r);
  plan.is_k_aligned = is_aligned(params.k);
  plan.score_scale = make_score_scale(params.scale, params.softcap);
  return plan;
}

template <class T, int kHeadDim>
void launch_scores(const ScoreQuantileArguments& arguments, int num_blocks, dev::Stream stream) {
  dev::launch("score_kernel", score_kernel<T, kHeadDim>,
              {num_blocks, kScoreThreads, ScoreMemory<T, kHeadDim>::kBytes}, stream, arguments);
}

template <class T>
void launch_scores(const ScoreQuantileArguments& arguments, int num_blocks, dev::Stream stream) {
  switch (arguments.params.head_dim) {
    case 64:
      return launch_scores<T, 64>(arguments, num_blocks, stream);
    case 80:
      return launch_scores<T, 80>(arguments, num_blocks, stream);
    case 96:
      return launch_scores<T, 96>(arguments, num_blocks, stream);
    case 128:
      return launch_scores<T, 128>(arguments, num_blocks, stream);
    case 256:
      return launch_scores<T, 256>(arguments, num_blocks, stream);
    default:
      throw std::runtime_error(
          "score_quantile: head_dim must be 64, 80, 96, 128 or 256 on CUDA, got " +
          std::to_string(arguments.params.head_dim));
  }
}

void launch_scores(const ScoreQuantileArguments& arguments, int num_blocks, dev::Stream stream) {
  switch (arguments.params.dtype) {
    case DType::kBFloat16:
      return launch_scores<dev::BFloat16>(arguments, num_blocks, stream);
    case DType::kFloat16:
      return launch_scores<dev::Float16>(arguments, num_blocks, stream);
    default:
      throw std::runtime_error(
          "score_quantile: q must be float16 or bfloat16 on CUDA, got float32");
  }
}

bool is_empty(const ScoreQuantileParams& params) {
  return params.batch * params.num_q_heads * params.num_rows == 0;
}

}  // namespace

int64_t score_quantile_cuda_workspace_bytes(const ScoreQuantileParams& params) {
  if (is_empty(params)) return 0;
  ScoreQuantilePlan plan = make_plan(params);
  return place_workspace(params, nullptr, plan);
}

void score_quantile_cuda(const ScoreQuantileParams& params, void* workspace, void* stream) {
  if (is_empty(params)) return;
  ScoreQuantileArguments arguments = {.params = params, .plan = make_plan(params)};
  ScoreQuantilePlan& plan = arguments.plan;
  place_workspace(params, static_cast<char*>(workspace), plan);
  dev::launch("span_kernel", span_kernel,
              {static_cast<int>(params.batch), kSpanThreads, kSpanWarps * int{sizeof(int32_t)}},
              stream, arguments);
  const int64_t tiles = num_tiles(params, plan);
  for (; plan.first_tile < tiles; plan.first_tile += plan.slab_tiles) {
    const auto slab = static_cast<int>(std::min(plan.slab_tiles, tiles - plan.first_tile));
    launch_scores(arguments, slab * plan.num_segments, stream);
    dev::launch("select_kernel", select_kernel,
                {slab * plan.tile_columns, kSelectThreads, int{sizeof(SelectMemory)}}, stream,
                arguments);
  }
}

}  // namespace sift
