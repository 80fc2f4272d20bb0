// What the decode steps of a layer did. Used by Attention.
#pragma once

#include <ATen/ATen.h>
#include <sift_attention/sift_attention.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace sift {

// Totals of one layer, or of several.
struct AttentionStats {
  int64_t decode_calls = 0;    // decode steps through the operator
  int64_t dense_calls = 0;     // decode steps of skipped layers
  int64_t keys = 0;            // attended, counted for every step, sequence and KV head
  int64_t rows_loaded = 0;     // value rows loaded, counted likewise
  int64_t head_steps = 0;      // decode steps, counted for every sequence and query head
  double dropped = 0.0;        // probability of the value rows not loaded, summed likewise
  int64_t unfitted_heads = 0;  // query heads, over sequences, that decode exactly because no law
                               // could be fitted to the last prompt

  // Value rows loaded per key attended.
  double loaded_fraction() const {
    return keys > 0 ? static_cast<double>(rows_loaded) / static_cast<double>(keys) : 0.0;
  }

  // Probability whose value rows were not loaded, on average.
  double dropped_mass() const {
    return head_steps > 0 ? dropped / static_cast<double>(head_steps) : 0.0;
  }

  AttentionStats& operator+=(const AttentionStats& other) {
    decode_calls += other.decode_calls;
    dense_calls += other.dense_calls;
    keys += other.keys;
    rows_loaded += other.rows_loaded;
    head_steps += other.head_steps;
    dropped += other.dropped;
    unfitted_heads += other.unfitted_heads;
    return *this;
  }
};

// Running totals. Adding never waits for the device; reading does.
class Counters {
 public:
  // Counts one step in which every sequence attends num_keys keys, or count[b] (int64 [B]) where
  // it is given.
  void add(const DecodeResult& result, int64_t num_keys, const std::optional<at::Tensor>& count,
           const std::optional<at::Tensor>& sinks) {
    const int64_t batch = result.num_loaded.size(0);
    const int64_t num_kv_heads = result.num_loaded.size(1);
    ++host_.decode_calls;
    host_.head_steps += result.lse.numel();
    if (count) {
      counts_.push_back(*count * num_kv_heads);
    } else {
      host_.keys += num_keys * batch * num_kv_heads;
    }
    num_loaded_.push_back(result.num_loaded.flatten());
    covered_.push_back(
        (sinks ? result.kept_mass + (*sinks - result.lse).exp() : result.kept_mass).flatten());
    if (num_loaded_.size() == kFoldEvery) fold();
  }

  void add_dense() { ++host_.dense_calls; }

  AttentionStats read() {
    fold();
    AttentionStats stats = host_;
    stats.dropped = static_cast<double>(stats.head_steps);
    if (rows_loaded_.defined()) {
      stats.rows_loaded = rows_loaded_.item<int64_t>();
      stats.dropped -= covered_mass_.item<double>();
    }
    if (keys_.defined()) stats.keys += keys_.item<int64_t>();
    return stats;
  }

 private:
  static constexpr size_t kFoldEvery = 64;  // steps; summing each by itself would cost more

  static void add_sum(at::Tensor& total, std::vector<at::Tensor>& parts, at::ScalarType dtype) {
    if (parts.empty()) return;
    const at::Tensor sum = at::cat(parts).sum(dtype);
    total = total.defined() ? total + sum : sum;
    parts.clear();
  }

  void fold() {
    add_sum(rows_loaded_, num_loaded_, at::kLong);
    add_sum(covered_mass_, covered_, at::kDouble);
    add_sum(keys_, counts_, at::kLong);
  }

  AttentionStats host_;                 // what the host knows
  std::vector<at::Tensor> num_loaded_;  // of the steps not folded yet
  std::vector<at::Tensor> covered_;
  std::vector<at::Tensor> counts_;
  at::Tensor rows_loaded_;   // int64
  at::Tensor covered_mass_;  // float64: probability of loaded keys and sinks
  at::Tensor keys_;          // int64: of masked steps
};

}  // namespace sift
