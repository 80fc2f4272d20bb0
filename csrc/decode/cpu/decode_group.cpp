#include "decode/cpu/decode_group.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "decode/cpu/element.h"

namespace sift {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void prefetch_rows(const void* const* rows, int64_t num_rows, int64_t row_bytes) {
  for (int64_t i = 0; i < num_rows; ++i) {
    for (int64_t line = 0; line < row_bytes; line += 64) {
      __builtin_prefetch(static_cast<const char*>(rows[i]) + line, 0, 2);
    }
  }
}

// exp(log_alpha - beta ln S), at most 1. NaN counts as 0: that head decodes exactly.
double theta(float log_alpha, float beta, double log_length) {
  const double log_theta = log_alpha - beta * log_length;
  return std::isnan(log_theta) ? 0 : std::exp(std::min(log_theta, 0.0));
}

}  // namespace

GroupDecoder::GroupDecoder(const DecodeParams& params, const Level& level,
                           const Sequence* sequences)
    : p_(params),
      level_(level),
      kernels_(level.rows[static_cast<int>(params.dtype)]),
      sequences_(sequences),
      group_size_(params.num_q_heads / params.num_kv_heads),
      element_bytes_(element_bytes(params.dtype)) {}

int64_t GroupDecoder::num_chunks(int64_t group) const {
  return sift::num_chunks(sequence(group).num_keys);
}

int64_t GroupDecoder::first_head(int64_t group) const { return group * group_size_; }

RowSource GroupDecoder::row_source(const KVLayout& kv, int64_t group) const {
  const int64_t b = group / p_.num_kv_heads;
  const int64_t hk = group % p_.num_kv_heads;
  return {kv, p_.keys, sequence(group), b, hk, element_bytes_};
}

void GroupDecoder::expect(int64_t group, const Scratch& scratch) const {
  const int64_t num_keys = sequence(group).num_keys;
  if (num_keys == 0 || num_keys > kRowsAhead) return;
  for (const KVLayout* kv : {&p_.k, &p_.v}) {
    find_rows(row_source(*kv, group), 0, nullptr, num_keys, scratch.positions, scratch.rows);
    prefetch_rows(scratch.rows, num_keys, p_.head_dim * element_bytes_);
  }
}

void GroupDecoder::score(int64_t group, int64_t chunk, const GroupState& state,
                         Scratch& scratch) const {
  if (scratch.queries_of != group) {
    const int64_t b = group / p_.num_kv_heads;
    const int64_t hk = group % p_.num_kv_heads;
    for (int64_t g = 0; g < group_size_; ++g) {
      const int64_t offset = b * p_.q_stride_b + (hk * group_size_ + g) * p_.q_stride_h;
      kernels_.prepare_query(static_cast<const char*>(p_.q) + offset * element_bytes_, p_.head_dim,
                             scratch.queries + g * kQueryStride);
    }
    scratch.queries_of = group;
  }
  const int64_t count = chunk_size(sequence(group), chunk);
  find_rows(row_source(p_.k, group), chunk, nullptr, count, scratch.positions, scratch.rows);
  float* scores = chunk_scores(state, chunk);
  kernels_.score(scratch.rows, count, scratch.queries, group_size_, p_.head_dim, p_.scale, scores);
  for (int64_t g = 0; g < group_size_; ++g) {
    float* s = scores + g * kScoreStride;
    if (p_.softcap != 0) level_.softcap(s, count, p_.softcap);
    const MaxSum softmax = level_.exponentiate(s, count, s);
    state.max[chunk * group_size_ + g] = softmax.max;
    state.sum[chunk * group_size_ + g] = softmax.sum;
  }
}

void GroupDecoder::merge(int64_t group, const GroupState& state) const {
  const int64_t chunks = num_chunks(group);
  const double log_length = std::log(static_cast<double>(sequence(group).num_keys));
  for (int64_t g = 0; g < group_size_; ++g) {
    Head& head = state.heads[g];
    head.largest_score = -std::numeric_limits<float>::infinity();
    for (int64_t c = 0; c < chunks; ++c) {
      head.largest_score = std::max(head.largest_score, state.max[c * group_size_ + g]);
    }
    const int64_t row = first_head(group) + g;
    double sink = p_.sinks == nullptr ? -kInfinity : p_.sinks[row % p_.num_q_heads];
    if (sink == kInfinity) sink = std::numeric_limits<double>::quiet_NaN();  // as a score of +inf
    head.reference = std::max<double>(head.largest_score, sink);
    if (head.reference == -kInfinity) head.reference = 0;

    double key_sum = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      const double max = state.max[c * group_size_ + g];
      const double sum = state.sum[c * group_size_ + g];
      // A chunk without a score above -inf: 0, or NaN.
      key_sum += max == -kInfinity ? sum : sum * std::exp(max - head.reference);
    }
    const double sink_weight = std::exp(sink - head.reference);
    head.sum = key_sum + sink_weight;
    head.sink_mass = sink_weight / head.sum;
    p_.lse[row] = static_cast<float>(head.reference + std::log(head.sum));
    if (head.largest_score == -kInfinity && key_sum == 0) {  // nothing to want
      head.threshold = kInfinity;
      head.largest_p = -1;
      continue;
    }
    const double theta_h = theta(p_.log_alpha[row], p_.beta[row], log_length);
    head.threshold = theta_h == 0 ? -1 : theta_h * head.sum;
    head.largest_p = std::exp(head.largest_score - head.reference) / head.sum;
  }
}

bool GroupDecoder::keeps_all(const GroupState& state) const {
  return std::all_of(state.heads, state.heads + group_size_,
                     [](const Head& head) { return head.threshold < 0; });
}

void GroupDecoder::select(int64_t group, int64_t chunk, const GroupState& state, Scratch& scratch,
                          RowList& list) const {
  const int64_t count = chunk_size(sequence(group), chunk);
  const float* exps = chunk_scores(state, chunk);
  float* mass = state.mass + chunk * group_size_;
  list = {group, chunk, count, exps, list.own_weights, list.rows};
  const int32_t* selected = nullptr;
  if (keeps_all(state)) {
    std::copy_n(state.sum + chunk * group_size_, group_size_, mass);
  } else {
    for (int64_t g = 0; g < group_size_; ++g) {
      const Head& head = state.heads[g];
      scratch.thresholds[g] = static_cast<float>(
          head.threshold * std::exp(head.reference - state.max[chunk * group_size_ + g]));
    }
    list.count = level_.select(exps, count, group_size_, scratch.thresholds, scratch.selected,
                               list.own_weights, mass);
    list.weights = list.own_weights;
    selected = scratch.selected;
  }
  state.num_loaded[chunk] = static_cast<int32_t>(list.count);
  if (list.count == 0) return;
  find_rows(row_source(p_.v, group), chunk, selected, list.count, scratch.positions, list.rows);
  prefetch_rows(list.rows, std::min(list.count, kRowsAhead), p_.head_dim * element_bytes_);
}

// The sums over the selected rows of V, into the place of the chunk's exponentials.
void GroupDecoder::load(const RowList& list, const GroupState& state,
                        const Scratch& scratch) const {
  if (list.count == 0) return;
  kernels_.accumulate(list.rows, list.count, list.weights, group_size_, p_.head_dim, scratch.sums);
  float* place = chunk_scores(state, list.chunk);
  for (int64_t g = 0; g < group_size_; ++g) {
    std::copy_n(scratch.sums + g * kScoreStride, p_.head_dim, place + g * kScoreStride);
  }
}

// Nothing passed: the one key with the group's largest p, the first of equals.
void GroupDecoder::load_largest(int64_t group, const GroupState& state, Scratch& scratch) const {
  double largest_p = -1;
  for (int64_t g = 0; g < group_size_; ++g) {
    largest_p = std::max(largest_p, state.heads[g].largest_p);
  }
  if (largest_p < 0) return;  // no head has one
  for (int64_t c = 0; c < num_chunks(group); ++c) {
    const float* exps = chunk_scores(state, c);
    int64_t first = kChunkKeys;
    for (int64_t g = 0; g < group_size_; ++g) {
      const Head& head = state.heads[g];
      if (head.largest_p != largest_p) continue;
      if (state.max[c * group_size_ + g] != head.largest_score) continue;
      const float* e = exps + g * kScoreStride;
      first = std::min<int64_t>(first, std::find(e, e + kChunkKeys, 1.0f) - e);
    }
    if (first == kChunkKeys) continue;
    float* weights = scratch.lists[0].own_weights;
    const RowList list = {group, c, 1, weights, weights, scratch.rows};
    for (int64_t g = 0; g < group_size_; ++g) {
      weights[g * kScoreStride] = exps[g * kScoreStride + first];
      state.mass[c * group_size_ + g] = exps[g * kScoreStride + first];
    }
    state.num_loaded[c] = 1;
    scratch.selected[0] = static_cast<int32_t>(first);
    find_rows(row_source(p_.v, group), c, scratch.selected, 1, scratch.positions, list.rows);
    load(list, state, scratch);
    return;
  }
}

void GroupDecoder::combine(int64_t group, const GroupState& state, Scratch& scratch) const {
  const int64_t chunks = num_chunks(group);
  const auto count_loaded = [&] {
    int64_t count = 0;
    for (int64_t c = 0; c < chunks; ++c) count += state.num_loaded[c];
    return count;
  };
  if (count_loaded() == 0) load_largest(group, state, scratch);
  const int64_t num_loaded = count_loaded();
  p_.num_loaded[group] = static_cast<int32_t>(num_loaded);
  for (int64_t g = 0; g < group_size_; ++g) write_head(group, g, num_loaded, state, scratch);
}

void GroupDecoder::write_head(int64_t group, int64_t g, int64_t num_loaded, const GroupState& state,
                              const Scratch& scratch) const {
  const Head& head = state.heads[g];
  const int64_t row = first_head(group) + g;
  const int64_t num_keys = sequence(group).num_keys;
  int64_t num_parts = 0;
  const auto add_part = [&](const float* part, double weight) {
    scratch.parts[num_parts] = part;
    scratch.part_weights[num_parts++] = weight;
  };
  double kept_mass = 0;
  const bool has_key = !(head.largest_p < 0);
  for (int64_t c = 0; has_key && c < num_chunks(group); ++c) {
    if (state.num_loaded[c] == 0) continue;
    const double weight = std::exp(state.max[c * group_size_ + g] - head.reference) / head.sum;
    add_part(chunk_scores(state, c) + g * kScoreStride, weight);
    kept_mass += weight * state.mass[c * group_size_ + g];
  }
  p_.kept_mass[row] = static_cast<float>(kept_mass);

  // What the keys that were not loaded leave behind.
  const double dropped = num_loaded < num_keys ? std::max(1 - kept_mass - head.sink_mass, 0.0) : 0;
  if (has_key && dropped != 0) {
    if (p_.residual == Residual::kMean) {
      add_part(p_.v_sum + group * p_.head_dim, dropped / static_cast<double>(num_keys));
    } else if (p_.residual == Residual::kRenormalize) {
      const double factor = kept_mass == 0 ? 0 : (1 - head.sink_mass) / kept_mass;
      std::for_each_n(scratch.part_weights, num_parts, [=](double& weight) { weight *= factor; });
    }
  }
  char* out = static_cast<char*>(p_.out) + row * p_.head_dim * element_bytes_;
  kernels_.write_row(scratch.parts, scratch.part_weights, num_parts, p_.head_dim, out);
}

}  // namespace sift
