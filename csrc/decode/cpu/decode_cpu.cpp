// decode on the CPU, portable: one group of query heads at a time, as the formula reads.
#include "decode/cpu/decode_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "decode/cpu/element.h"
#include "decode/cpu/rows.h"

namespace sift {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One query head: its softmax over the attended keys.
struct Head {
  double max = -kInfinity;
  double sum = 0;  // of exp(score - max), sink included
  double sink_mass = 0;
  double kept_mass = 0;
  double theta = 0;

  bool is_empty() const { return max == -kInfinity && sum == 0; }
  double probability(float score) const { return std::exp(score - max) / sum; }
  bool keeps(double p) const { return theta == 0 || !(p <= theta); }
};

Head softmax(const float* scores, int64_t num_keys, const float* sink) {
  Head head;
  for (int64_t i = 0; i < num_keys; ++i) head.max = std::max<double>(head.max, scores[i]);
  const bool has_key = head.max != -kInfinity;
  if (sink != nullptr) head.max = std::max<double>(head.max, *sink);
  if (head.max == -kInfinity) head.max = 0;
  for (int64_t i = 0; i < num_keys; ++i) head.sum += std::exp(scores[i] - head.max);
  if (!has_key && head.sum == 0) {
    head.max = sink != nullptr ? *sink : -kInfinity;
    return head;
  }
  if (sink != nullptr) {
    const double sink_weight = std::exp(*sink - head.max);
    head.sum += sink_weight;
    head.sink_mass = sink_weight / head.sum;
  }
  return head;
}

template <typename T>
void decode_group(const DecodeParams& p, int64_t b, int64_t hk, float* scores) {
  const int64_t group_size = p.num_q_heads / p.num_kv_heads;
  const Rows rows(p.keys, b, p.capacity);
  std::vector<int64_t> keys;
  for (int64_t n = 0; n < rows.length; ++n) {
    if (rows.is_attended(n)) keys.push_back(n);
  }
  const auto num_keys = static_cast<int64_t>(keys.size());
  std::vector<Head> heads;
  for (int64_t g = 0; g < group_size; ++g) {
    const int64_t h = hk * group_size + g;
    const T* q = static_cast<const T*>(p.q) + b * p.q_stride_b + h * p.q_stride_h;
    float* s = scores + g * p.capacity;
    for (int64_t i = 0; i < num_keys; ++i) {
      const T* k = rows.row<T>(p.k, hk, keys[i]);
      float dot = 0;
      for (int64_t d = 0; d < p.head_dim; ++d) dot += to_float(q[d]) * to_float(k[d]);
      s[i] = dot * p.scale;
      if (p.softcap != 0) s[i] = p.softcap * std::tanh(s[i] / p.softcap);
    }
    Head head = softmax(s, num_keys, p.sinks != nullptr ? p.sinks + h : nullptr);
    const int64_t row = b * p.num_q_heads + h;
    const double log_theta = p.log_alpha[row] - p.beta[row] * std::log(double(num_keys));
    head.theta = std::min(1.0, std::exp(log_theta));
    if (std::isnan(log_theta)) head.theta = 0;
    heads.push_back(head);
  }

  // The union over the group, or its one largest key.
  std::vector<int64_t> loaded;
  int64_t largest = -1;
  double largest_p = -1;
  for (int64_t i = 0; i < num_keys; ++i) {
    bool load = false;
    for (int64_t g = 0; g < group_size; ++g) {
      if (heads[g].is_empty() || heads[g].sum == 0) continue;
      const double prob = heads[g].probability(scores[g * p.capacity + i]);
      load = load || heads[g].keeps(prob);
      if (prob > largest_p) {
        largest_p = prob;
        largest = i;
      }
    }
    if (load) loaded.push_back(i);
  }
  if (loaded.empty() && largest >= 0) loaded.push_back(largest);
  p.num_loaded[b * p.num_kv_heads + hk] = static_cast<int32_t>(loaded.size());

  for (int64_t g = 0; g < group_size; ++g) {
    const int64_t row = b * p.num_q_heads + hk * group_size + g;
    T* out = static_cast<T*>(p.out) + row * p.head_dim;
    Head& head = heads[g];
    if (head.sum == 0) {
      std::fill(out, out + p.head_dim, from_float<T>(0));
      p.lse[row] = static_cast<float>(head.max);
      p.kept_mass[row] = 0;
      continue;
    }
    std::vector<double> acc(p.head_dim, 0.0);
    for (int64_t i : loaded) {
      const double prob = head.probability(scores[g * p.capacity + i]);
      head.kept_mass += prob;
      const T* v = rows.row<T>(p.v, hk, keys[i]);
      for (int64_t d = 0; d < p.head_dim; ++d) acc[d] += prob * to_float(v[d]);
    }
    const bool all_loaded = static_cast<int64_t>(loaded.size()) == num_keys;
    double dropped = 1 - head.kept_mass - head.sink_mass;
    if (dropped < 0 || all_loaded) dropped = 0;
    double factor = 1;
    if (p.residual == Residual::kRenormalize && !all_loaded) {
      factor = head.kept_mass == 0 ? 0 : (1 - head.sink_mass) / head.kept_mass;
    }
    for (int64_t d = 0; d < p.head_dim; ++d) {
      double x = acc[d] * factor;
      if (p.residual == Residual::kMean && !all_loaded) {
        x += dropped * p.v_sum[(b * p.num_kv_heads + hk) * p.head_dim + d] / num_keys;
      }
      out[d] = from_float<T>(static_cast<float>(x));
    }
    p.lse[row] = static_cast<float>(head.max + std::log(head.sum));
    p.kept_mass[row] = static_cast<float>(head.kept_mass);
  }
}

template <typename T>
void quantile_row(const ScoreQuantileParams& p, int64_t b, int64_t h, int64_t r,
                  std::vector<float>& scores) {
  const int64_t hk = h / (p.num_q_heads / p.num_kv_heads);
  const Rows rows(p.keys, b, p.capacity);
  const T* q =
      static_cast<const T*>(p.q) + b * p.q_stride_b + h * p.q_stride_h + r * p.q_stride_r;
  const int64_t length = p.lengths[b * p.num_rows + r];
  scores.clear();
  for (int64_t n = 0; n < rows.length && static_cast<int64_t>(scores.size()) < length; ++n) {
    if (!rows.is_attended(n)) continue;
    const T* k = rows.row<T>(p.k, hk, n);
    float dot = 0;
    for (int64_t d = 0; d < p.head_dim; ++d) dot += to_float(q[d]) * to_float(k[d]);
    float s = dot * p.scale;
    if (p.softcap != 0) s = p.softcap * std::tanh(s / p.softcap);
    scores.push_back(s);
  }
  float& result = p.quantiles[(b * p.num_q_heads + h) * p.num_rows + r];
  result = std::numeric_limits<float>::quiet_NaN();
  if (scores.empty()) return;
  const auto num_keys = static_cast<int64_t>(scores.size());
  const Head head = softmax(scores.data(), num_keys, p.sinks != nullptr ? p.sinks + h : nullptr);
  if (std::isnan(head.sum)) return;
  const auto rank = static_cast<int64_t>(std::floor(double(p.quantile) * double(num_keys - 1)));
  std::nth_element(scores.begin(), scores.begin() + rank, scores.end());
  result = head.sum == 0 ? 0 : static_cast<float>(head.probability(scores[rank]));
}

}  // namespace

int64_t decode_cpu_workspace_bytes(const DecodeParams& params, int num_threads) {
  const int64_t slots = std::min<int64_t>(num_threads, params.batch * params.num_kv_heads);
  return slots * params.num_q_heads / std::max<int64_t>(1, params.num_kv_heads) *
         params.capacity * static_cast<int64_t>(sizeof(float));
}

void decode_cpu(const DecodeParams& p, void* workspace, int num_threads,
                const ParallelFor& parallel_for) {
  const int64_t num_groups = p.batch * p.num_kv_heads;
  if (num_groups == 0) return;
  const int64_t slots = std::min<int64_t>(num_threads, num_groups);
  const int64_t slot_floats = p.num_q_heads / p.num_kv_heads * p.capacity;
  dispatch_dtype(p.dtype, [&](auto element) {
    parallel_for(slots, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        for (int64_t i = slot; i < num_groups; i += slots) {
          decode_group<decltype(element)>(p, i / p.num_kv_heads, i % p.num_kv_heads,
                                          static_cast<float*>(workspace) + slot * slot_floats);
        }
      }
    });
  });
}

int64_t score_quantile_cpu_workspace_bytes(const ScoreQuantileParams&, int) { return 0; }

void score_quantile_cpu(const ScoreQuantileParams& p, void*, int,
                        const ParallelFor& parallel_for) {
  dispatch_dtype(p.dtype, [&](auto element) {
    parallel_for(p.batch * p.num_q_heads, [&](int64_t begin, int64_t end) {
      std::vector<float> scores;
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t r = 0; r < p.num_rows; ++r) {
          quantile_row<decltype(element)>(p, i / p.num_q_heads, i % p.num_q_heads, r, scores);
        }
      }
    });
  });
}

std::string cpu_isa() { return "portable"; }
std::vector<std::string> supported_cpu_isas() { return {"portable"}; }

}  // namespace sift
