// The operators for C++ programs on LibTorch, with or without Python:
//
//   at::NoGradGuard no_grad;
//   auto [out, lse, kept_mass, num_loaded] =
//       sift::decode(q, k, v, sift::PowerLaw::uniform(2.0), {.v_sum = v.sum(2, false, at::kFloat)});
//
// Compiled by the caller. Arguments that do not fit throw std::runtime_error with one sentence, and
// so do inputs that want gradients. Letters of shapes: decode attends with q [B, HQ, D], one token per
// sequence, to k and v [B, HK, N, D], or paged [num_blocks, block_size, HK, D].
#pragma once

#include <ATen/ExpandUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>
#include <sift_attention/power_law.h>
#include <sift_attention/repr.h>
#include <sift_attention/residual.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

// Referring to the library keeps linkers from dropping it: the operators register themselves when
// it is loaded.
extern "C" void sift_attention_anchor();

namespace sift {
namespace detail {

[[gnu::used]] inline const auto keep_library = &sift_attention_anchor;

inline double scale_or_default(const std::optional<double>& scale, const at::Tensor& q) {
  if (scale) return *scale;
  const int64_t head_dim = q.dim() > 0 ? q.size(-1) : 1;
  return 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(head_dim, 1)));
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

// Refuses inputs that want gradients or carry them forward; none of the others has to pass Torch's
// autograd, which takes a tenth of a short call.
class BelowAutograd {
 public:
  BelowAutograd(const char* op, std::initializer_list<const at::Tensor*> inputs) {
    const bool has_backward = at::GradMode::is_enabled();
    const auto wants_gradient = [&](const at::Tensor* input) {
      return (has_backward && input->requires_grad()) || input->_fw_grad(/*level=*/0).defined();
    };
    if (std::ranges::any_of(inputs, wants_gradient)) {
      throw std::runtime_error(std::string(op) +
                               ": gradients are not supported, call it under at::NoGradGuard or "
                               "detach its inputs");
    }
  }

 private:
  at::AutoDispatchBelowAutograd guard_;
};

}  // namespace detail

// One power law per sequence and query head: float32, broadcastable to [B, HQ].
struct TensorPowerLaw {
  at::Tensor log_alpha;  // natural log; -inf keeps every key
  at::Tensor beta;
};

namespace detail {

// A factor of a law as [B, HQ], contiguous: itself where it is that already.
inline at::Tensor per_head(const char* name, const at::Tensor& factor, const at::Tensor& q) {
  if (q.dim() != 3) return factor;  // the operator says so
  const at::IntArrayRef heads = q.sizes().slice(0, 2);
  if (factor.sizes() == heads) return factor.contiguous();
  if (!at::is_expandable_to(factor.sizes(), heads)) {
    throw std::runtime_error("decode: " + std::string(name) +
                             " must be broadcastable to [B, HQ] = " + repr(heads.vec()) + ", got " +
                             repr(factor.sizes().vec()));
  }
  return factor.expand(heads).contiguous();
}

// The same law for every sequence and head of q. On the CPU each thread keeps the last one: making
// two tensors takes as long as half a short call.
inline TensorPowerLaw constant_law(const PowerLaw& law, const at::Tensor& q) {
  const auto make = [&](at::IntArrayRef sizes) {
    const c10::InferenceMode usable_in_any_mode(false);
    const at::TensorOptions options = at::TensorOptions(q.device()).dtype(at::kFloat);
    return TensorPowerLaw{.log_alpha = at::full(sizes, law.log_alpha, options),
                          .beta = at::full(sizes, law.beta, options)};
  };
  if (q.dim() != 3) return make({1, 1});
  const at::IntArrayRef heads = q.sizes().slice(0, 2);
  if (!q.is_cpu()) return make(heads);
  thread_local PowerLaw last_law;
  thread_local TensorPowerLaw last;
  if (!last.beta.defined() || last.beta.sizes() != heads || last_law.log_alpha != law.log_alpha ||
      last_law.beta != law.beta) {
    last = make(heads);
    last_law = law;
  }
  return last;
}

}  // namespace detail

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
  const Residual residual =
      options.residual.value_or(options.v_sum ? Residual::kMean : Residual::kRenormalize);
  const detail::BelowAutograd below_autograd("decode", {&q, &k, &v});
  auto [out, lse, kept_mass, num_loaded] =
      op.call(q, k, v, detail::per_head("log_alpha", law.log_alpha, q),
              detail::per_head("beta", law.beta, q), detail::scale_or_default(options.scale, q),
              options.seq_lens, options.key_mask, detail::contiguous(options.v_sum),
              static_cast<int64_t>(residual), options.softcap, detail::contiguous(options.sinks),
              options.block_table);
  return {std::move(out), std::move(lse), std::move(kept_mass), std::move(num_loaded)};
}

// The same law for every sequence and head.
inline DecodeResult decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const PowerLaw& law, const DecodeOptions& options = {}) {
  return decode(q, k, v, detail::constant_law(law, q), options);
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
  const detail::BelowAutograd below_autograd("score_quantile", {&q, &k});
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
  const detail::BelowAutograd below_autograd("fit_power_law", {&lengths, &quantiles});
  auto [log_alpha, slope, ok] = op.call(lengths.contiguous(), quantiles.contiguous(), beta);
  return {.law = {.log_alpha = log_alpha, .beta = slope}, .ok = ok};
}

}  // namespace sift
