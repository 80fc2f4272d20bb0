// What C++ programs on LibTorch include: the operators' wrappers and the configuration.
#include <ATen/ATen.h>
#include <sift_attention/config.h>
#include <sift_attention/sift_attention.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <limits>

#include "catch2.h"
#include "sentence.h"

namespace sift {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Call {
  at::Tensor q = at::randn({2, 4, 32});
  at::Tensor k = at::randn({2, 2, 50, 32});
  at::Tensor v = at::randn({2, 2, 50, 32});
};

TEST_CASE("laws of numbers and of tensors decode alike") {
  const at::NoGradGuard no_grad;
  const Call call;
  const Call larger{.q = at::randn({2, 8, 32})};
  for (const double c : {0.5, 2.0, 2.0, 0.0, 0.5}) {
    const PowerLaw law = PowerLaw::uniform(c);
    for (const Call* each : {&call, &larger}) {
      const TensorPowerLaw tensors{.log_alpha = at::full({1, 1}, law.log_alpha),
                                   .beta = at::full({1, 1}, law.beta)};
      const DecodeResult a = decode(each->q, each->k, each->v, law);
      const DecodeResult b = decode(each->q, each->k, each->v, tensors);
      CHECK(a.out.equal(b.out));
      CHECK(a.num_loaded.equal(b.num_loaded));
    }
  }
}

TEST_CASE("decode keeps its law across inference mode") {
  const Call call;
  at::Tensor inside;
  {
    const c10::InferenceMode inference;
    inside = decode(call.q, call.k, call.v, PowerLaw::uniform(3.0)).out.clone();
  }
  CHECK(decode(call.q, call.k, call.v, PowerLaw::uniform(3.0)).out.equal(inside));
}

TEST_CASE("the operators refuse in one sentence") {
  const Call call;
  const PowerLaw law;
  const at::Tensor graded = call.q.clone().requires_grad_();
  CHECK(sentence([&] { decode(graded, call.k, call.v, law); }) ==
        "decode: gradients are not supported, call it under at::NoGradGuard or detach its inputs");
  CHECK(sentence([&] {
          score_quantile(graded.unsqueeze(2), call.k, at::ones({2, 1}, at::kInt), 0.5);
        }).starts_with("score_quantile: gradients are not supported, "));
  CHECK(sentence([&] {
          const at::NoGradGuard no_grad;
          decode(graded, call.k, call.v, law);
        }) == "nothing");
  CHECK(sentence([&] { decode(call.q[0], call.k, call.v, law); }) ==
        "decode: q must have shape [B, HQ, D], got (4, 32)");
  CHECK(sentence([&] { decode(at::scalar_tensor(1.0), call.k, call.v, law); }) ==
        "decode: q must have shape [B, HQ, D], got ()");
  CHECK(sentence([&] {
          decode(call.q, call.k, call.v, {.log_alpha = at::zeros({3}), .beta = at::zeros({1})});
        }) == "decode: log_alpha must be broadcastable to [B, HQ] = (2, 4), got (3,)");
  CHECK(sentence([&] { decode(call.q, call.k, call.v, law, {.residual = Residual::kMean}); }) ==
        "decode: v_sum must be given for the mean residual, got None");
  CHECK(sentence([&] { decode(call.q, call.k.to(at::kHalf), call.v, law); }) ==
        "decode: k must have dtype float32, got float16");
}

TEST_CASE("gradients that run forward are refused, too", "[row 31]") {
  const Call call;
  const uint64_t level = torch::autograd::ForwardADLevel::get_next_idx();
  const at::Tensor dual =
      at::_make_dual(call.q, at::ones_like(call.q), static_cast<int64_t>(level));
  const at::NoGradGuard no_grad;
  CHECK(sentence([&] { decode(dual, call.k, call.v, PowerLaw()); }) ==
        "decode: gradients are not supported, call it under at::NoGradGuard or detach its inputs");
  CHECK(sentence([&] { decode(dual.detach(), call.k, call.v, PowerLaw()); }) == "nothing");
  torch::autograd::ForwardADLevel::release_idx(level);
}

TEST_CASE("a configuration is checked with Python's sentences") {
  const auto complaint = [](const SiftConfig& config) { return sentence([&] { check(config); }); };
  CHECK(complaint({}) == "nothing");
  CHECK(complaint({.slope = std::nullopt}) == "nothing");
  CHECK(complaint({.c = -1.0}) == "SiftConfig: c must be finite and not negative, got -1.0");
  CHECK(complaint({.c = kNan}) == "SiftConfig: c must be finite and not negative, got nan");
  CHECK(complaint({.quantile = 1.25}) == "SiftConfig: quantile must be in [0, 1), got 1.25");
  CHECK(complaint({.slope = -0.1}) ==
        "SiftConfig: slope must be \"fit\" or a finite number that is not negative, got -0.1");
  CHECK(complaint({.prompt_rows = -1}) == "SiftConfig: prompt_rows must be not negative, got -1");
  CHECK(complaint({.warmup_steps = -2}) == "SiftConfig: warmup_steps must be not negative, got -2");
  CHECK(complaint({.min_keys = -3}) == "SiftConfig: min_keys must be not negative, got -3");
  CHECK(complaint({.skip_layers = {-1}}) ==
        "SiftConfig: skip_layers must be layer indices that are not negative, got (-1,)");
  CHECK(complaint({.skip_layers = {0, -1}}) ==
        "SiftConfig: skip_layers must be layer indices that are not negative, got (0, -1)");
}

}  // namespace
}  // namespace sift
