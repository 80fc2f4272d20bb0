// score_quantile problems: the keys of a decode case, seen by query rows of their own.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "catch2.h"
#include "decode_case.h"
#include "reference_decode.h"

namespace sift {

struct QuantileProblem {
  // row_lengths: [B, R]
  QuantileProblem(const DecodeCase& c, std::vector<int32_t> row_lengths, double quantile)
      : keys(c), lengths(std::move(row_lengths)) {
    const DecodeParams& d = keys.params;
    params.k = d.k;
    params.keys = d.keys;
    params.lengths = lengths.data();
    params.sinks = d.sinks;
    params.batch = d.batch;
    params.num_q_heads = d.num_q_heads;
    params.num_kv_heads = d.num_kv_heads;
    params.num_rows = static_cast<int64_t>(lengths.size()) / d.batch;
    params.capacity = d.capacity;
    params.head_dim = d.head_dim;
    params.quantile = quantile;
    params.scale = d.scale;
    params.softcap = d.softcap;
    params.dtype = d.dtype;
    const int64_t gap = c.is_aligned ? 8 : 1;
    params.q_stride_r = d.head_dim + gap;
    params.q_stride_h = params.num_rows * params.q_stride_r + gap;
    params.q_stride_b = d.num_q_heads * params.q_stride_h + gap;
    const int64_t num_elements = d.batch * params.q_stride_b;
    q.resize((keys.lead + num_elements) * element_bytes(d.dtype));
    for (int64_t i = -keys.lead; i < num_elements; ++i) keys.set(q, i, reference::kNaN);
    std::mt19937 random(c.seed + 1);
    std::normal_distribution<float> normal;
    for (int64_t row = 0; row < d.batch * d.num_q_heads * params.num_rows; ++row) {
      const int64_t head = row / params.num_rows;
      const int64_t offset = head / d.num_q_heads * params.q_stride_b +
                             head % d.num_q_heads * params.q_stride_h +
                             row % params.num_rows * params.q_stride_r;
      for (int64_t i = 0; i < d.head_dim; ++i) keys.set(q, offset + i, normal(random));
    }
    params.q = q.data() + keys.lead * element_bytes(d.dtype);
  }

  std::vector<float> run(const std::function<void(const ScoreQuantileParams&)>& score_quantile) {
    std::vector<float> quantiles(lengths.size() * params.num_q_heads, -1.0f);
    params.quantiles = quantiles.data();
    score_quantile(params);
    return quantiles;
  }

  // REQUIREs that the quantiles agree with the reference.
  void check(const std::vector<float>& quantiles) const {
    int64_t i = 0;
    for (int64_t b = 0; b < params.batch; ++b) {
      for (int64_t h = 0; h < params.num_q_heads; ++h) {
        for (int64_t r = 0; r < params.num_rows; ++r, ++i) {
          const double expected = reference::score_quantile(params, b, h, r);
          CAPTURE(b, h, r, expected, quantiles[i]);
          if (std::isnan(expected)) {
            REQUIRE(std::isnan(quantiles[i]));
          } else {
            REQUIRE(std::fabs(quantiles[i] - expected) <= 2e-5 * expected + 1e-37);
          }
        }
      }
    }
  }

  DecodeProblem keys;  // its values and its own queries are not used
  std::vector<int32_t> lengths;
  std::vector<uint8_t> q;
  ScoreQuantileParams params;
};

}  // namespace sift
