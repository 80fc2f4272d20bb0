// decode and score_quantile as the formulas read, in double: the truth of the C++ tests. Written
// apart from the kernels, except for the element conversions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "decode/cpu/element.h"
#include "decode/params.h"

namespace sift::reference {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

inline std::vector<double> row(const void* data, int64_t offset, int64_t size, DType dtype) {
  std::vector<double> x(size);
  dispatch_dtype(dtype, [&](auto element) {
    const auto* elements = static_cast<const decltype(element)*>(data) + offset;
    for (int64_t d = 0; d < size; ++d) x[d] = to_float(elements[d]);
  });
  return x;
}

// Positions that sequence b attends.
inline std::vector<int64_t> attended(const AttendedKeys& keys, int64_t b, int64_t capacity) {
  std::vector<int64_t> positions;
  const auto* mask = reinterpret_cast<const uint8_t*>(keys.key_mask);  // any number but 0 is true
  for (int64_t n = 0; n < capacity; ++n) {
    if (keys.seq_lens != nullptr && n >= keys.seq_lens[b]) break;
    if (mask != nullptr && mask[b * keys.key_mask_stride_b + n] == 0) continue;
    if (keys.block_table != nullptr) {
      const int32_t id = keys.block_table[b * keys.block_table_stride_b + n / keys.block_size];
      if (id < 0 || id >= keys.num_blocks) continue;
    }
    positions.push_back(n);
  }
  return positions;
}

inline int64_t row_offset(const KVLayout& kv, const AttendedKeys& keys, int64_t b, int64_t hk,
                          int64_t n) {
  if (keys.block_table == nullptr) return b * kv.stride_b + hk * kv.stride_h + n * kv.stride_n;
  const int64_t id = keys.block_table[b * keys.block_table_stride_b + n / keys.block_size];
  return id * kv.stride_b + n % keys.block_size * kv.stride_n + hk * kv.stride_h;
}

struct Softmax {
  std::vector<double> p;  // of each attended key
  double lse = -kInfinity;
  double sink_mass = 0;
  double largest_score = -kInfinity;
  double magnitude = 0;  // |scale| * max over keys of sum over d of |q_d k_d|: of rounding errors
};

// q: one query row. sink -inf: none.
inline Softmax softmax(const std::vector<double>& q, const std::vector<std::vector<double>>& k,
                       double scale, double softcap, double sink) {
  Softmax result;
  bool is_nan = false;
  for (const std::vector<double>& key : k) {
    double s = 0;
    double magnitude = 0;
    for (size_t d = 0; d < q.size(); ++d) {
      s += q[d] * key[d];
      magnitude += std::fabs(q[d] * key[d]);
    }
    s *= scale;
    result.magnitude = std::max(result.magnitude, std::fabs(scale) * magnitude);
    if (softcap != 0) s = softcap * std::tanh(s / softcap);
    is_nan = is_nan || std::isnan(s) || s == kInfinity;
    result.p.push_back(s);
    result.largest_score = std::max(result.largest_score, s);
  }
  const double max = std::max(sink, result.largest_score);
  if (is_nan) {
    result.lse = kNaN;
    for (double& p : result.p) p = kNaN;
    return result;
  }
  if (max == -kInfinity) {
    for (double& p : result.p) p = 0;
    return result;
  }
  double sum = std::exp(sink - max);
  for (double& p : result.p) sum += p = std::exp(p - max);
  for (double& p : result.p) p /= sum;
  result.sink_mass = std::exp(sink - max) / sum;
  result.lse = max + std::log(sum);
  return result;
}

// What one group must give, and how far rounding may carry it.
struct DecodedGroup {
  struct Head {
    std::vector<double> out;
    double lse = -kInfinity;
    double kept_mass = 0;
    std::vector<double> out_error;  // allowed, before rounding to the dtype
    double lse_error = 0;
    double kept_mass_error = 0;
  };
  std::vector<Head> heads;
  int64_t num_loaded = 0;
  int64_t num_borderline = 0;  // keys that may be loaded or not
};

// How far float scores may be off: their products are added up in a few sums, D / 4 at a time at most.
inline double score_error(const Softmax& head, int64_t head_dim) {
  return (4 + static_cast<double>(head_dim) / 16) * 0x1p-24 * head.magnitude;
}

// Probabilities so close to another, relatively, may lie on either side of it.
inline double band(const Softmax& head, int64_t head_dim) {
  return 1e-5 + 2 * score_error(head, head_dim);
}

inline DecodedGroup decode_group(const DecodeParams& p, int64_t b, int64_t hk) {
  const int64_t group_size = p.num_q_heads / p.num_kv_heads;
  const std::vector<int64_t> positions = attended(p.keys, b, p.capacity);
  const auto num_keys = static_cast<int64_t>(positions.size());
  std::vector<std::vector<double>> k;
  for (int64_t n : positions) {
    k.push_back(row(p.k.data, row_offset(p.k, p.keys, b, hk, n), p.head_dim, p.dtype));
  }

  std::vector<Softmax> heads;
  std::vector<bool> is_loaded(num_keys, false);
  std::vector<bool> is_borderline(num_keys, false);
  double largest = -1;
  int64_t largest_key = -1;
  for (int64_t g = 0; g < group_size; ++g) {
    const int64_t h = hk * group_size + g;
    const std::vector<double> q =
        row(p.q, b * p.q_stride_b + h * p.q_stride_h, p.head_dim, p.dtype);
    heads.push_back(
        softmax(q, k, p.scale, p.softcap, p.sinks == nullptr ? -kInfinity : p.sinks[h]));
    const Softmax& head = heads.back();
    if (!std::isnan(head.lse) && head.largest_score == -kInfinity) continue;
    const int64_t i = b * p.num_q_heads + h;
    const double log_theta =
        std::min(0.0, p.log_alpha[i] - p.beta[i] * std::log(static_cast<double>(num_keys)));
    const double theta = std::exp(log_theta);
    for (int64_t j = 0; j < num_keys; ++j) {
      if (theta == 0 || !(head.p[j] <= theta)) is_loaded[j] = true;
      if (theta > 0 && std::fabs(std::log(head.p[j]) - log_theta) <= band(head, p.head_dim))
        is_borderline[j] = true;
      if (head.p[j] > largest) {
        largest = head.p[j];
        largest_key = j;
      } else if (head.p[j] == largest) {
        largest_key = std::min(largest_key, j);
      }
    }
  }
  DecodedGroup result;
  result.num_loaded = std::count(is_loaded.begin(), is_loaded.end(), true);
  if (result.num_loaded == 0 && largest >= 0) {
    is_loaded[largest_key] = true;
    result.num_loaded = 1;
    for (const Softmax& head : heads) {  // whose rounding may make another key the largest
      for (int64_t j = 0; j < num_keys; ++j) {
        const bool is_close =
            head.p[j] != largest && std::log(largest / head.p[j]) <= 2 * band(head, p.head_dim);
        // Beside a sink that leaves nothing to any key, all are equal, or the scores decide.
        if (j != largest_key && (is_close || largest == 0)) is_borderline[j] = true;
      }
    }
  }
  result.num_borderline = std::count(is_borderline.begin(), is_borderline.end(), true);

  for (const Softmax& head : heads) {
    DecodedGroup::Head r;
    r.lse = head.lse;
    r.out.assign(p.head_dim, 0.0);
    r.out_error.assign(p.head_dim, 0.0);
    std::vector<double> absolute(p.head_dim, 0.0);
    double borderline = 0;
    double v_max = 0;
    for (int64_t j = 0; j < num_keys; ++j) {
      if (is_borderline[j]) borderline += head.p[j];
      if (!is_loaded[j] && !is_borderline[j]) continue;
      const std::vector<double> v =
          row(p.v.data, row_offset(p.v, p.keys, b, hk, positions[j]), p.head_dim, p.dtype);
      for (const double x : v) v_max = std::max(v_max, std::fabs(x));
      if (!is_loaded[j]) continue;
      r.kept_mass += head.p[j];
      for (int64_t d = 0; d < p.head_dim; ++d) {
        r.out[d] += head.p[j] * v[d];
        absolute[d] += std::fabs(head.p[j] * v[d]);
      }
    }
    const double dropped =
        result.num_loaded == num_keys ? 0 : std::max(0.0, 1 - r.kept_mass - head.sink_mass);
    double factor = 1;
    double v_mean_max = 0;
    for (int64_t d = 0; d < p.head_dim && r.lse != -kInfinity; ++d) {
      if (dropped > 0 && p.residual == Residual::kMean) {
        const double mean = p.v_sum[(b * p.num_kv_heads + hk) * p.head_dim + d] / num_keys;
        v_mean_max = std::max(v_mean_max, std::fabs(mean));
        r.out[d] += dropped * mean;
      }
      if (dropped > 0 && p.residual == Residual::kRenormalize) {
        factor = r.kept_mass == 0 ? 0 : (1 - head.sink_mass) / r.kept_mass;
        r.out[d] *= factor;
      }
    }
    // Errors of float scores carry over to p as relative ones.
    const double relative = 2e-6 + score_error(head, p.head_dim);
    // Of adding up to 1,024 rows to one sum: half a unit in the last place each, at worst.
    const double adding = static_cast<double>(std::min<int64_t>(num_keys, 1024)) * 0x1p-25;
    r.lse_error = relative * (1 + std::fabs(head.lse));
    r.kept_mass_error = relative + borderline;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      r.out_error[d] = relative * (2 * factor * absolute[d] + v_mean_max) +
                       adding * factor * absolute[d] +
                       2 * factor * borderline * (v_max + v_mean_max);
    }
    result.heads.push_back(r);
  }
  return result;
}

// Of query row r and head h, exactly; NaN without a sample.
inline double score_quantile(const ScoreQuantileParams& p, int64_t b, int64_t h, int64_t r) {
  const int64_t hk = h / (p.num_q_heads / p.num_kv_heads);
  AttendedKeys keys = p.keys;
  keys.seq_lens = nullptr;
  std::vector<int64_t> positions = attended(keys, b, p.capacity);
  const int64_t length = std::min<int64_t>(p.lengths[b * p.num_rows + r], positions.size());
  if (length <= 0) return kNaN;
  std::vector<std::vector<double>> k;
  for (int64_t i = 0; i < length; ++i) {
    k.push_back(row(p.k.data, row_offset(p.k, keys, b, hk, positions[i]), p.head_dim, p.dtype));
  }
  const std::vector<double> q =
      row(p.q, b * p.q_stride_b + h * p.q_stride_h + r * p.q_stride_r, p.head_dim, p.dtype);
  Softmax head = softmax(q, k, p.scale, p.softcap, p.sinks == nullptr ? -kInfinity : p.sinks[h]);
  if (std::isnan(head.lse)) return kNaN;
  std::sort(head.p.begin(), head.p.end());
  return head.p[static_cast<size_t>(std::floor(p.quantile * static_cast<double>(length - 1)))];
}

}  // namespace sift::reference
