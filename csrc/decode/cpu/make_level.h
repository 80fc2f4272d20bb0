// A level (level.h): its loops, written once over the vectors of a simd_*.h, included before.
#pragma once

#include "decode/cpu/element.h"
#include "decode/cpu/level.h"
#include "decode/cpu/score_rows.h"
#include "decode/cpu/softmax_chunk.h"
#include "decode/cpu/sum_rows.h"
#include "decode/cpu/write_row.h"

namespace sift {
namespace {

template <typename T>
constexpr RowKernels row_kernels() {
  return {prepare_query<T>, score<T>, accumulate<T>, write_row<T>};
}

constexpr Level make_level(const char* name) {
  return {name,
          {row_kernels<float>(), row_kernels<BFloat16>(), row_kernels<Float16>()},
          softcap,
          exponentiate,
          select};
}

}  // namespace
}  // namespace sift
