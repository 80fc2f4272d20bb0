// The operators for C++ programs on LibTorch, with or without Python:
//
//   at::NoGradGuard no_grad;
//   auto [out, lse, kept_mass, num_loaded] =
//       sift::decode(q, k, v, sift::PowerLaw::uniform(2.0), {.v_sum = v.sum(2, false, at::kFloat)});
//
// Compiled by the caller. Arguments that do not fit throw std::runtime_error with one sentence;
// gradients are not supported. Letters of shapes: decode attends with q [B, HQ, D], one token per
// sequence, to k and v [B, HK, N, D], or paged [num_blocks, block_size, HK, D].
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/full.h>
#include <sift_attention/power_law.h>
#include <sift_attention/residual.h>

#include <cmath>
#include <optional>
#include <tuple>

// Referring to the library keeps linkers from dropping it: the operators register themselves when
// it is loaded.
extern "C" void sift_attention_anchor();

namespace sift {
namespace detail {

[[gnu::used]] inline const auto keep_library = &sift_attention_anchor;

inline double scale_or_default(const std::optional<double>& scale, const at::Tensor& q) {
  return scale ? *scale : 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

}  // namespace detail

// One power law per sequence and query head: float32, broadcastable to [B, HQ].
struct TensorPowerLaw {
  at::Tensor log_alpha;  // natural log; -inf keeps every key
  at::Tensor beta;
};

struct DecodeOptions {
  std::optional<double> scale = std::nullopt;         // of the scores; none: 1 / sqrt(D)
  std::optional<at::Tensor> seq_lens = std::nullopt;  // int32 [B]; none: all N keys
  std::optional<at::Tensor> key_mask = std::nullopt;  // bool [B, N]; none: all keys
  std::optional<at::Tensor> v_sum = std::nullopt;     // float32 [B, HK, D]; for Residual::kMean
  std::optional<Residual> residual = std::nullopt;    // none: kMean with v_sum, else kRenormalize
  double softcap = 0.0;                               // of the scores; 0: none
  std::optional<at::Tensor> sinks = std::nullopt;     // float32 [HQ]
  std::optional<at::Tensor> block_table = std::nullopt;  // int32 [B, max_blocks]; k and v are paged
};

struct DecodeResult {
  at::Tensor out;         // [B, HQ, D] in the dtype of q
  at::Tensor lse;         // float32 [B, HQ], natural log, over all attended keys and the sink
  at::Tensor kept_mass;   // float32 [B, HQ], probability of the loaded value rows
  at::Tensor num_loaded;  // int32 [B, HK], value rows loaded
};

// Attention that loads only the value rows whose probability exceeds the law's threshold.
inline DecodeResult decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const TensorPowerLaw& law, const DecodeOptions& options = {}) {
  using OptionalTensor = const std::optional<at::Tensor>&;
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("sift_attention::decode", "")
          .typed<std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
              const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
              const at::Tensor&, double, OptionalTensor, OptionalTensor, OptionalTensor, int64_t,
              double, OptionalTensor, OptionalTensor)>();
  const auto per_head = [&](const at::Tensor& factor) {
    return factor.expand({q.size(0), q.size(1)}).contiguous();
  };
  const Residual residual =
      options.residual.value_or(options.v_sum ? Residual::kMean : Residual::kRenormalize);
  auto [out, lse, kept_mass, num_loaded] =
      op.call(q, k, v, per_head(law.log_alpha), per_head(law.beta),
              detail::scale_or_default(options.scale, q), options.seq_lens, options.key_mask,
              detail::contiguous(options.v_sum), static_cast<int64_t>(residual), options.softcap,
              detail::contiguous(options.sinks), options.block_table);
  return {out, lse, kept_mass, num_loaded};
}

// The same law for every sequence and head.
inline DecodeResult decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const PowerLaw& law, const DecodeOptions& options = {}) {
  const auto float32 = q.options().dtype(at::kFloat);
  return decode(q, k, v,
                TensorPowerLaw{.log_alpha = at::full({1, 1}, law.log_alpha, float32),
                               .beta = at::full({1, 1}, law.beta, float32)},
                options);
}

struct ScoreQuantileOptions {
  std::optional<double> scale = std::nullopt;            // of the scores; none: 1 / sqrt(D)
  std::optional<at::Tensor> key_mask = std::nullopt;     // bool [B, N]; none: all keys
  double softcap = 0.0;                                  // of the scores; 0: none
  std::optional<at::Tensor> sinks = std::nullopt;        // float32 [HQ]
  std::optional<at::Tensor> block_table = std::nullopt;  // int32 [B, max_blocks]; k is paged
};

// The quantile, in [0, 1], of each query row's exact probabilities: q [B, HQ, R, D], lengths int32
// [B, R]. Row r sees the first lengths[b, r] attended keys. Returns float32 [B, HQ, R], NaN where
// a row sees no key.
inline at::Tensor score_quantile(const at::Tensor& q, const at::Tensor& k,
                                 const at::Tensor& lengths, double quantile,
                                 const ScoreQuantileOptions& options = {}) {
  using OptionalTensor = const std::optional<at::Tensor>&;
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("sift_attention::score_quantile", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, double, double,
                            OptionalTensor, double, OptionalTensor, OptionalTensor)>();
  return op.call(q, k, lengths.contiguous(), quantile, detail::scale_or_default(options.scale, q),
                 options.key_mask, options.softcap, detail::contiguous(options.sinks),
                 options.block_table);
}

struct TensorFit {
  TensorPowerLaw law;  // float32 [B, HQ]; keeps every key where ok is false
  at::Tensor ok;       // bool [B, HQ]
};

// Fits a law per sequence and head: lengths int32 or float32 [B, R], 0 for an absent sample;
// quantiles float32 [B, HQ, R]. beta fixes the slope. See fit_power_law in power_law.h.
inline TensorFit fit_power_law(const at::Tensor& lengths, const at::Tensor& quantiles,
                               std::optional<double> beta = std::nullopt) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("sift_attention::fit_power_law", "")
                             .typed<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
                                 const at::Tensor&, const at::Tensor&, std::optional<double>)>();
  auto [log_alpha, slope, ok] = op.call(lengths.contiguous(), quantiles.contiguous(), beta);
  return {.law = {.log_alpha = log_alpha, .beta = slope}, .ok = ok};
}

}  // namespace sift
