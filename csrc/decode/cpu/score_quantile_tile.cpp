#include "decode/cpu/score_quantile_tile.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

namespace sift {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

}  // namespace

int64_t rank_from_top(double quantile, int64_t num_keys) {
  return num_keys - static_cast<int64_t>(std::floor(quantile * static_cast<double>(num_keys - 1)));
}

QuantileTile::QuantileTile(const ScoreQuantileParams& params, const Level& level,
                           const TileShape& shape, const RowSource& k, int64_t begin, int64_t end)
    : p_(params),
      level_(level),
      kernels_(level.rows[static_cast<int>(params.dtype)]),
      shape_(shape),
      k_(k),
      begin_(begin),
      end_(end) {
  for (int64_t r = begin; r < end; ++r) max_length_ = std::max(max_length_, length(r));
}

int64_t QuantileTile::length(int64_t r) const {
  return std::clamp<int64_t>(p_.lengths[k_.b * p_.num_rows + r], 0, k_.sequence.num_keys);
}

void QuantileTile::score(int64_t piece, const TileState& state, const TileScratch& scratch) const {
  start(piece, state, scratch);
  const int64_t chunks = num_chunks(max_length_);
  const int64_t end = chunks * (piece + 1) / shape_.num_pieces;
  for (int64_t c = chunks * piece / shape_.num_pieces; c < end; ++c) {
    score_chunk(c, piece, state, scratch);
  }
}

void QuantileTile::start(int64_t piece, const TileState& state, const TileScratch& scratch) const {
  for (int64_t r = begin_; r < end_; ++r) {
    for (int64_t g = 0; g < shape_.group_size; ++g) {
      const int64_t offset = k_.b * p_.q_stride_b + head(g) * p_.q_stride_h + r * p_.q_stride_r;
      kernels_.prepare_query(static_cast<const char*>(p_.q) + offset * k_.element_bytes,
                             p_.head_dim, scratch.queries + query(r, g) * kQueryStride);
      const int64_t i = query(r, g) * shape_.num_pieces + piece;
      std::construct_at(&state.largest[i], state.values + i * shape_.capacity, shape_.capacity,
                        rank_from_top(p_.quantile, length(r)));
    }
  }
}

void QuantileTile::score_chunk(int64_t chunk, int64_t piece, const TileState& state,
                               const TileScratch& scratch) const {
  const int64_t first = chunk * kChunkKeys;
  // Rows that have ended usually lie in front, rows without a sample at either end.
  int64_t begin = begin_;
  int64_t end = end_;
  while (length(begin) <= first) ++begin;
  while (length(end - 1) <= first) --end;
  const int64_t count = std::min(kChunkKeys, max_length_ - first);
  find_rows(k_, chunk, nullptr, count, scratch.positions, scratch.rows);
  kernels_.score(scratch.rows, count, scratch.queries + query(begin, 0) * kQueryStride,
                 query(end, 0) - query(begin, 0), p_.head_dim, p_.scale, scratch.scores);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t num_seen = std::min(count, length(r) - first);
    if (num_seen <= 0) continue;
    for (int64_t g = 0; g < shape_.group_size; ++g) {
      const int64_t i = query(r, g);
      float* scores = scratch.scores + (i - query(begin, 0)) * kScoreStride;
      if (p_.softcap != 0) level_.softcap(scores, num_seen, p_.softcap);
      const MaxSum softmax = level_.exponentiate(scores, num_seen, scratch.exps);
      state.softmax[i * shape_.max_chunks + chunk] = softmax;
      if (std::isnan(softmax.sum)) continue;  // then so is the quantile
      state.largest[i * shape_.num_pieces + piece].add(scores, num_seen);
    }
  }
}

void QuantileTile::write_quantiles(const TileState& state) const {
  for (int64_t r = begin_; r < end_; ++r) {
    for (int64_t g = 0; g < shape_.group_size; ++g) {
      const float* sink = p_.sinks == nullptr ? nullptr : p_.sinks + head(g);
      p_.quantiles[(k_.b * p_.num_q_heads + head(g)) * p_.num_rows + r] =
          quantile(query(r, g), length(r), sink, state);
    }
  }
}

// The probability at the rank of the quantile. Probabilities rise with scores.
float QuantileTile::quantile(int64_t query, int64_t length, const float* sink,
                             const TileState& state) const {
  if (length == 0) return kNaN;
  if (sink != nullptr && !(*sink < kInfinity)) return kNaN;
  const MaxSum* begin = state.softmax + query * shape_.max_chunks;
  const MaxSum* end = begin + num_chunks(length);
  double reference = sink == nullptr ? -kInfinity : *sink;
  for (const MaxSum* c = begin; c < end; ++c) reference = std::max<double>(reference, c->max);
  if (reference == -kInfinity) reference = 0;
  double sum = 0;
  for (const MaxSum* c = begin; c < end; ++c) {
    // A chunk without a score above -inf: 0, or NaN.
    sum += c->max == -kInfinity ? c->sum : c->sum * std::exp(c->max - reference);
  }
  if (std::isnan(sum)) return kNaN;
  if (sum == 0) return 0;
  if (sink != nullptr) sum += std::exp(*sink - reference);

  const Largest* pieces = state.largest + query * shape_.num_pieces;
  float* values = state.values + query * shape_.num_pieces * shape_.capacity;
  int64_t count = 0;
  for (int64_t i = 0; i < shape_.num_pieces; ++i) {
    if (i > 0) std::copy_n(pieces[i].values(), pieces[i].count(), values + count);
    count += pieces[i].count();
  }
  const int64_t rank = rank_from_top(p_.quantile, length);
  partition_largest(values, count, rank);
  return static_cast<float>(std::exp(values[rank - 1] - reference) / sum);
}

}  // namespace sift
