// Attention of one layer for programs on LibTorch: a cache, prompts by SDPA, sifted decode steps.
//
//   at::NoGradGuard no_grad;
//   sift::Attention attention(sift::SiftConfig{.c = 2.0});
//   at::Tensor out = attention.forward(q, k, v);  // the prompt: q [B, HQ, R, D], k, v [B, HK, R, D]
//   out = attention.forward(q, k, v);             // a step: R = 1
#pragma once

#include <ATen/ATen.h>
#include <sift_attention/attention_options.h>
#include <sift_attention/attention_stats.h>
#include <sift_attention/calibration.h>
#include <sift_attention/config.h>
#include <sift_attention/dense_attention.h>
#include <sift_attention/kv_cache.h>
#include <sift_attention/sift_attention.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

namespace sift {

// One attention layer for one batch of sequences: its cache, its power law and what it counted.
// Rows of the batch have one length; shorter sequences are padded on the left and masked. From one
// call to the next each sequence keeps its attended keys; one that does not decodes exactly until
// the next prompt. Nothing waits for the device but stats().
class Attention {
 public:
  // layer_index: the layer stays exact where config.skip_layers has it. Throws
  // std::invalid_argument where a field of config is outside its range.
  explicit Attention(SiftConfig config = {}, int64_t layer_index = 0) : config_(std::move(config)) {
    check(config_);
    is_skipped_ = std::ranges::count(config_.skip_layers, layer_index) > 0;
  }

  // Appends k and v [B, HK, R, D] to the cache and attends it with q [B, HQ, R, D], causally. R > 1
  // is a prompt or a part of it: dense, and the power law is fitted to it where it is a quantile's.
  // R = 1 is a decode step: sifted, but exact below min_keys and during the warm-up, and dense in a
  // skipped layer. Returns [B, HQ, R, D] in the dtype of q.
  //
  // Throws std::invalid_argument and, from the operators, std::runtime_error with one sentence;
  // what the call appended is dropped again.
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options = {}) {
    const detail::BelowAutograd below_autograd("Attention", {&q, &k, &v});
    const auto [all_k, all_v] = cache_.append(k, v);
    try {
      const bool is_continued = law_.beta.defined() && cache_.num_keys() > k.size(2);
      detail::check_forward(q, k, options, cache_.num_keys(),
                            is_continued ? std::optional(law_.beta.size(1)) : std::nullopt);
      if (!is_continued) forget();
      allocate_for(q);
      return q.size(2) == 1 ? step(q, all_k, all_v, options) : prompt(q, all_k, all_v, options);
    } catch (...) {
      cache_.crop(k.size(2));
      throw;
    }
  }

  // Keys may also join here, without queries: those of a stored prompt.
  KVCache& cache() { return cache_; }
  const KVCache& cache() const { return cache_; }

  // The threshold in use, float32 [B, HQ]; undefined before the first forward.
  const TensorPowerLaw& law() const { return law_; }

  // What the decode steps did since the beginning; waits for the device.
  AttentionStats stats() {
    AttentionStats stats = counters_.read();
    if (calibration_ && calibration_->unfitted().defined()) {
      stats.unfitted_heads = calibration_->unfitted().item<int64_t>();
    }
    return stats;
  }

  // Drops the newest num_keys keys, as after rejected speculative tokens. A fit that was made when
  // there were more keys than are left is made again from the samples that are left, or is gone.
  void crop(int64_t num_keys) {
    cache_.crop(num_keys);
    if (calibration_ && num_keys > 0) calibration_->crop(cache_.num_summed(), law_);
  }

  // Row b becomes row rows[b]: rows int64 [B], a step of beam search.
  void reorder(const at::Tensor& rows) { select(rows); }

  // Keeps these rows of the batch, in this order: int64 [any number], or bool [B].
  void select(const at::Tensor& rows) {
    if (!law_.beta.defined()) return;
    const c10::InferenceMode writable_in_any_mode(false);
    const at::Tensor taken = detail::row_indices(rows, law_.beta.device());
    cache_.select(taken);
    for (at::Tensor* tensor : {&law_.log_alpha, &law_.beta, &exact_}) {
      *tensor = tensor->index_select(0, taken);
    }
    if (calibration_) calibration_->select(taken);
  }

  // Repeats every row of the batch: 0, 0, 1, 1, ...
  void repeat(int64_t repeats) {
    if (!law_.beta.defined()) return;
    select(at::arange(law_.beta.size(0), at::kLong).repeat_interleave(repeats));
  }

  // Returns to an empty cache, ready for other sequences. Counters stay.
  void reset() {
    cache_.reset();
    forget();
  }

 private:
  // The next sequences begin without a law of their own.
  void forget() {
    law_ = TensorPowerLaw{};
    calibration_.reset();
    num_steps_ = 0;
    is_decoding_ = false;
  }

  void allocate_for(const at::Tensor& q) {
    const at::IntArrayRef heads = q.sizes().slice(0, 2);
    if (law_.beta.defined() && law_.beta.sizes() == heads && law_.beta.device() == q.device()) {
      return;
    }
    const c10::InferenceMode writable_in_any_mode(false);
    const bool is_uniform = config_.threshold == Threshold::kUniform;
    const PowerLaw law = is_uniform ? PowerLaw::uniform(config_.c) : PowerLaw::exact();
    const at::TensorOptions options = at::TensorOptions(q.device()).dtype(at::kFloat);
    law_.log_alpha = at::full(heads, law.log_alpha, options);
    law_.beta = at::full(heads, law.beta, options);
    exact_ = at::full(heads, PowerLaw::exact().log_alpha, options);
    calibration_.reset();
    if (!is_uniform && !is_skipped_) {
      calibration_.emplace(config_, heads[0], heads[1], q.device());
    }
    num_steps_ = 0;
    is_decoding_ = false;
  }

  at::Tensor prompt(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const AttentionOptions& options) {
    at::Tensor out = dense_attention(q, k, v, options);
    if (is_skipped_) return out;
    if (calibration_) {
      const AttendedRows attended = attended_rows(q, k, options);
      calibration_->sample_prompt(q, k, attended);
      calibration_->fit(attended.row_lengths.select(1, -1), !is_decoding_, law_);
    }
    cache_.v_sum(options.key_mask);
    return out;
  }

  at::Tensor step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const AttentionOptions& options) {
    if (is_skipped_) {
      counters_.add_dense();
      return dense_attention(q, k, v, options);
    }
    const at::Tensor& v_sum = cache_.v_sum(options.key_mask);
    const std::optional<at::Tensor> sinks = float_sinks(options);
    const int64_t num_keys = k.size(2);
    at::Tensor log_alpha = num_keys < config_.min_keys ? exact_ : law_.log_alpha;
    std::optional<at::Tensor> count;
    if (options.key_mask) {
      count = options.key_mask->sum(-1, true);
      const at::Tensor sifts = (*count >= config_.min_keys) & (*count == cache_.num_summed());
      log_alpha = at::where(sifts, law_.log_alpha, exact_);
    }
    if (num_steps_ < config_.warmup_steps) log_alpha = exact_;
    const DecodeResult result = decode(q.select(2, 0), k, v, {log_alpha, law_.beta},
                                       {.scale = options.scale,
                                        .key_mask = options.key_mask,
                                        .v_sum = v_sum,
                                        .residual = config_.residual,
                                        .softcap = options.softcap,
                                        .sinks = sinks});
    // From here on nothing is refused: a step that was may be repeated.
    if (num_steps_ < config_.warmup_steps) warm_up(q, k, options);
    is_decoding_ = true;
    counters_.add(result, num_keys, count, sinks);
    return result.out.unsqueeze(2);
  }

  // Samples an exact step, and renews the fit after the last one.
  void warm_up(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
    if (calibration_) {
      const AttendedRows attended = attended_rows(q, k, options);
      calibration_->sample_step(num_steps_, q, k, attended);
      calibration_->fit(attended.row_lengths.select(1, -1), num_steps_ + 1 == config_.warmup_steps,
                        law_);
    }
    ++num_steps_;
  }

  static AttendedRows attended_rows(const at::Tensor& q, const at::Tensor& k,
                                    const AttentionOptions& options) {
    const int64_t num_keys = k.size(2);
    const int64_t first = num_keys - q.size(2);
    const at::Tensor lengths =
        options.key_mask
            ? options.key_mask->cumsum(1).narrow(1, first, q.size(2))
            : at::arange(first + 1, num_keys + 1, at::TensorOptions(q.device()).dtype(at::kLong))
                  .expand({q.size(0), -1});
    return {.num_keys = num_keys,
            .row_lengths = lengths,
            .scores = {.scale = options.scale,
                       .key_mask = options.key_mask,
                       .softcap = options.softcap,
                       .sinks = float_sinks(options)}};
  }

  static at::Tensor dense_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const AttentionOptions& options) {
    return detail::dense_attention(q, k, v, options.key_mask,
                                   detail::scale_or_default(options.scale, q), options.softcap,
                                   float_sinks(options));
  }

  static std::optional<at::Tensor> float_sinks(const AttentionOptions& options) {
    return options.sinks ? std::optional(options.sinks->to(at::kFloat)) : std::nullopt;
  }

  SiftConfig config_;
  bool is_skipped_ = false;
  KVCache cache_;
  TensorPowerLaw law_;
  at::Tensor exact_;  // float32 [B, HQ], -inf
  std::optional<Calibration> calibration_;
  Counters counters_;
  int64_t num_steps_ = 0;     // decode steps, up to the end of the warm-up
  bool is_decoding_ = false;  // from here on, a prompt leaves finished fits alone
};

}  // namespace sift
