// The power law of one layer, fitted to quantiles of the prompt's exact probabilities. Used by
// Attention.
#pragma once

#include <ATen/ATen.h>
#include <sift_attention/config.h>
#include <sift_attention/sift_attention.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace sift {

// Lengths at which prompts are sampled: prompt_rows for every factor of 4. The grid is absolute, so
// that a prompt read in chunks, continued or padded is sampled at the same lengths as one read at
// once.
inline std::vector<int64_t> sample_grid(int64_t prompt_rows) {
  constexpr double kShortest = 32.0;  // keys; the first prompt_rows samples span a factor of 4
  constexpr double kLongest = 1 << 22;
  std::vector<int64_t> grid;
  if (prompt_rows == 0) return grid;
  const double ratio = std::pow(4.0, 1.0 / static_cast<double>(prompt_rows));
  for (double length = kShortest; length < kLongest; length *= ratio) {
    const auto rounded = static_cast<int64_t>(std::nearbyint(length));
    if (grid.empty() || rounded > grid.back()) grid.push_back(rounded);
  }
  return grid;
}

// The keys that the rows of one forward attend.
struct AttendedRows {
  int64_t num_keys;             // N
  at::Tensor row_lengths;       // int64 [B, R]: keys that each query row attends
  ScoreQuantileOptions scores;  // key_mask of the newest row, scale, softcap and sinks
};

// Samples (length, quantile) of one layer and the power law fitted to them.
class Calibration {
 public:
  Calibration(const SiftConfig& config, int64_t batch, int64_t num_q_heads, at::Device device)
      : config_(config), grid_(sample_grid(config.prompt_rows)) {
    const auto num_columns = static_cast<int64_t>(grid_.size()) + config.warmup_steps;
    const c10::InferenceMode writable_in_any_mode(false);
    const at::TensorOptions options(device);
    grid_lengths_ = at::tensor(grid_, at::kLong).to(device);
    lengths_ = at::zeros({batch, num_columns}, options.dtype(at::kInt));
    quantiles_ = at::zeros({batch, num_q_heads, num_columns}, options.dtype(at::kFloat));
    fitted_ = at::zeros({batch, num_q_heads}, options.dtype(at::kBool));
    fitted_count_ = at::zeros({batch}, options.dtype(at::kLong));
  }

  // Samples the query rows q [B, HQ, R, D] of a forward whose lengths lie on the grid; k
  // [B, HK, N, D].
  void sample_prompt(const at::Tensor& q, const at::Tensor& k, const AttendedRows& attended) {
    const int64_t num_lengths = std::ranges::upper_bound(grid_, attended.num_keys) - grid_.begin();
    if (num_lengths == 0) return;
    const at::Tensor grid =
        grid_lengths_.narrow(0, 0, num_lengths).expand({q.size(0), -1}).contiguous();
    const at::Tensor row =
        at::searchsorted(attended.row_lengths.contiguous(), grid).clamp_max_(q.size(2) - 1);
    const at::Tensor found = attended.row_lengths.gather(1, row) == grid;
    const at::Tensor rows =
        q.gather(2, row.unsqueeze(1).unsqueeze(3).expand({-1, q.size(1), -1, q.size(3)}));
    const at::Tensor sampled = score_quantile(rows, k, at::where(found, grid, 0).to(at::kInt),
                                              config_.quantile, attended.scores);
    at::Tensor lengths = lengths_.narrow(1, 0, num_lengths);
    lengths.copy_(at::where(found, grid, lengths));
    at::Tensor quantiles = quantiles_.narrow(2, 0, num_lengths);
    quantiles.copy_(at::where(found.unsqueeze(1), sampled, quantiles));
  }

  // Samples warm-up step `step`, one row q [B, HQ, 1, D].
  void sample_step(int64_t step, const at::Tensor& q, const at::Tensor& k,
                   const AttendedRows& attended) {
    const int64_t column = static_cast<int64_t>(grid_.size()) + step;
    const at::Tensor lengths = attended.row_lengths.to(at::kInt);
    const at::Tensor sampled = score_quantile(q, k, lengths, config_.quantile, attended.scores);
    lengths_.narrow(1, column, 1).copy_(lengths);
    quantiles_.narrow(2, column, 1).copy_(sampled);
  }

  // Fits the power law and gives it to the heads that take it. A finished fit stays, unless asked
  // to renew it or the sequence has doubled since: tokens verified by speculative decoding do not
  // move it, a new long prompt does. count int64 [B]: attended keys now; lost bool [B]: sequences
  // whose finished fits are void.
  void fit(const at::Tensor& count, bool renew, TensorPowerLaw& law,
           const std::optional<at::Tensor>& lost = std::nullopt) {
    const auto [fit, ok] = fit_power_law(lengths_, quantiles_, config_.slope);
    if (lost) {
      const at::Tensor heads = lost->unsqueeze(1);
      law.log_alpha.masked_fill_(heads, -std::numeric_limits<double>::infinity());
      law.beta.masked_fill_(heads, 0.0);
      fitted_.masked_fill_(heads, false);
      fitted_count_.masked_fill_(*lost, 0);
    }
    at::Tensor taken = ok;
    if (!renew) taken = ok & ((count >= 2 * fitted_count_).unsqueeze(1) | ~fitted_);
    law.log_alpha.copy_(at::where(taken, fit.log_alpha, law.log_alpha));
    law.beta.copy_(at::where(taken, fit.beta, law.beta));
    fitted_.logical_or_(ok);
    fitted_count_.copy_(at::where(taken.any(1), count, fitted_count_));
    unfitted_ = (~fitted_).sum();
  }

  // Heads, over sequences, that the last fit left without a law, int64; undefined: no fit yet.
  const at::Tensor& unfitted() const { return unfitted_; }

  // Forgets samples longer than count keys (int64 [B, 1]), and fits that more keys were needed
  // for: these are made anew from the samples that are left, or are gone.
  void crop(const at::Tensor& count, TensorPowerLaw& law) {
    lengths_.masked_fill_(lengths_ > count, 0);
    const at::Tensor left = count.squeeze(1);
    fit(left, false, law, left < fitted_count_);
  }

  void select(const at::Tensor& rows) {
    for (at::Tensor* tensor : {&lengths_, &quantiles_, &fitted_, &fitted_count_}) {
      *tensor = tensor->index_select(0, rows);
    }
  }

 private:
  SiftConfig config_;
  std::vector<int64_t> grid_;
  at::Tensor grid_lengths_;  // int64
  at::Tensor lengths_;       // int32 [B, columns], 0: no sample; the grid's, then warm-up steps
  at::Tensor quantiles_;     // float32 [B, HQ, columns]
  at::Tensor fitted_;        // bool [B, HQ]: heads that have a fit
  at::Tensor fitted_count_;  // int64 [B]: attended keys when the fit was last made
  at::Tensor unfitted_;      // int64
};

}  // namespace sift
