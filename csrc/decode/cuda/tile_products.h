// The two products of attention on one tile of 16 rows, by tensor cores, heads as the n dimension:
//   scores [16 keys, heads] = K tile [16, D] x q^T [D, heads]
//   out^T  [D, heads]      += V tile^T [D, 16] x weights [16 keys, heads]
//
// Both results have the layout of mma's accumulators: of each 16 x 8 block a thread holds rows
// lane / 4 and lane / 4 + 8, and of each the columns (heads) lane % 4 * 2 and the next. So what a
// thread knows of its two heads, a running maximum say, applies to scores and out alike.
#pragma once

#include <cstdint>

#include "decode/cuda/tiles.h"
#include "device.h"

namespace sift {

// The accumulators of one 16 x 8 block.
struct Block {
  float x[4] = {};

  // The row within the block, and the column, of x[i].
  SIFT_DEVICE static int row(int i) { return dev::lane() / 4 + i / 2 * 8; }
  SIFT_DEVICE static int column(int i) { return dev::lane() % 4 * 2 + i % 2; }
};

// Scores of a tile's 16 keys and 8 * kHeadBlocks heads, not scaled. q_rows: one padded row per head
// like those of a tile.
template <class T, int kHeadDim, int kHeadBlocks>
SIFT_DEVICE void score_tile(const char* tile, const char* q_rows, Block (&scores)[kHeadBlocks]) {
  constexpr int kRowBytes = Tile<kHeadDim>::kRowBytes;
  const int lane = dev::lane();
  const char* k_row = tile + lane % 16 * kRowBytes + lane / 16 * 16;
  const char* q_row = q_rows + lane % 8 * kRowBytes + lane / 8 % 2 * 16;
  // Two blocks at most: even and odd steps add up apart, so that a step need not wait for the one
  // before it. More blocks keep the tensor cores busy as they are.
  constexpr int kChains = kHeadBlocks <= 2 ? 2 : 1;
  Block sums[kChains][kHeadBlocks];
  SIFT_UNROLL
  for (int step = 0; step < kHeadDim / 16; ++step) {
    uint32_t k[4];
    dev::load_matrix_x4(k, k_row + step * 32);
    SIFT_UNROLL
    for (int block = 0; block < kHeadBlocks; ++block) {
      uint32_t q[2];
      dev::load_matrix_x2(q, q_row + block * 8 * kRowBytes + step * 32);
      dev::multiply_add<T>(sums[step % kChains][block].x, k, q[0], q[1]);
    }
  }
  SIFT_UNROLL
  for (int block = 0; block < kHeadBlocks; ++block) {
    scores[block] = sums[0][block];
    for (int i = 0; i < 4 && kChains == 2; ++i) scores[block].x[i] += sums[1][block].x[i];
  }
}

// Weights of 16 keys and 8 heads as mma takes them: each as the sum of two numbers of type T, which
// together keep 16 bits of bfloat16's mantissa and 22 of float16's. A thread holds the keys
// lane % 4 * 2 and the next, the same plus 8, of head lane / 4.
struct Weights {
  uint32_t high[2];
  uint32_t low[2];
};

// Weights are between 0 and 1. This factor keeps float16 out of its subnormal numbers down to 2^-29.
constexpr float kWeightScale = 32768.0f;

template <class T>
SIFT_DEVICE void split_weights(float first, float second, uint32_t& high, uint32_t& low) {
  first *= kWeightScale;
  second *= kWeightScale;
  high = dev::pack<T>(first, second);
  low = dev::pack<T>(first - dev::low_half<T>(high), second - dev::high_half<T>(high));
}

// From where the scores are to where the weights have to be.
template <class T>
SIFT_DEVICE Weights weights_of(const Block& block) {
  Weights weights;
  SIFT_UNROLL
  for (int half = 0; half < 2; ++half) {
    split_weights<T>(block.x[half * 2], block.x[half * 2 + 1], weights.high[half],
                     weights.low[half]);
    weights.high[half] = dev::transpose_matrix(weights.high[half]);
    weights.low[half] = dev::transpose_matrix(weights.low[half]);
  }
  return weights;
}

// out^T of 8 * kHeadBlocks heads, in units of 1 / kWeightScale; block [d / 16][head / 8].
template <int kHeadDim, int kHeadBlocks>
struct OutBlocks {
  Block block[kHeadDim / 16][kHeadBlocks];
};

template <class T, int kHeadDim, int kHeadBlocks>
SIFT_DEVICE void accumulate_tile(const char* tile, const Weights (&weights)[kHeadBlocks],
                                 OutBlocks<kHeadDim, kHeadBlocks>& out) {
  constexpr int kRowBytes = Tile<kHeadDim>::kRowBytes;
  const int lane = dev::lane();
  const char* v_row = tile + (lane % 8 + lane / 16 * 8) * kRowBytes + lane / 8 % 2 * 16;
  SIFT_UNROLL
  for (int d = 0; d < kHeadDim / 16; ++d) {
    uint32_t v[4];
    dev::load_matrix_x4_transposed(v, v_row + d * 32);
    SIFT_UNROLL
    for (int block = 0; block < kHeadBlocks; ++block) {
      const Weights& w = weights[block];
      dev::multiply_add<T>(out.block[d][block].x, v, w.high[0], w.high[1]);
      dev::multiply_add<T>(out.block[d][block].x, v, w.low[0], w.low[1]);
    }
  }
}

}  // namespace sift
