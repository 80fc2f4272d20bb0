// sift::Attention: prompts, steps and their laws; tests/test_cpp_attention.py compares the same with
// Python.
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "attention_sequences.h"
#include "catch2.h"

namespace sift {
namespace {

TEST_CASE("attention that keeps every key is dense attention") {
  const auto [dtype, tolerance] = GENERATE(std::pair{at::kFloat, 2e-5}, std::pair{at::kHalf, 3e-3},
                                           std::pair{at::kBFloat16, 2e-2});
  const Sequences sequences(40, 2, dtype);
  Attention attention(SiftConfig{.c = 0.0, .min_keys = 0});
  const at::Tensor out =
      at::cat({sequences.feed(attention, 0, 20), sequences.steps(attention, 20, 30),
               sequences.feed(attention, 30, 40)},
              2);
  CHECK(out.scalar_type() == dtype);
  CHECK(close(out, sequences.exact(), tolerance));
  CHECK(attention.stats().loaded_fraction() == 1.0);
  CHECK(std::abs(attention.stats().dropped_mass()) < 1e-6);
}

TEST_CASE("a step decodes with the uniform law and the mean residual") {
  const Sequences sequences(60, 2);
  const auto residual = GENERATE(Residual::kMean, Residual::kRenormalize, Residual::kNone);
  Attention attention(SiftConfig{.c = 1.5, .residual = residual, .min_keys = 0});
  sequences.feed(attention, 0, 50);
  AttentionStats expected;
  for (int64_t i = 50; i < 60; ++i) {
    const at::Tensor out = sequences.feed(attention, i, i + 1);
    const at::Tensor k = sequences.k.narrow(2, 0, i + 1);
    const at::Tensor v = sequences.v.narrow(2, 0, i + 1);
    const DecodeResult result = decode(sequences.q.select(2, i), k, v, PowerLaw::uniform(1.5),
                                       {.v_sum = v.sum(2), .residual = residual});
    CHECK(close(out.squeeze(2), result.out));
    ++expected.decode_calls;
    expected.keys += 2 * kKVHeads * (i + 1);
    expected.rows_loaded += result.num_loaded.sum().item<int64_t>();
    expected.head_steps += 2 * kQHeads;
    expected.dropped += (1.0 - result.kept_mass.to(at::kDouble)).sum().item<double>();
  }
  const AttentionStats stats = attention.stats();
  CHECK(stats.decode_calls == expected.decode_calls);
  CHECK(stats.keys == expected.keys);
  CHECK(stats.rows_loaded == expected.rows_loaded);
  CHECK(std::abs(stats.dropped_mass() - expected.dropped_mass()) < 1e-6);
  CHECK(stats.loaded_fraction() < 1.0);
}

TEST_CASE("steps are counted over many folds") {
  const Sequences sequences(200);
  Attention attention(SiftConfig{.c = 0.0, .min_keys = 0});
  sequences.steps(attention, 0, 200);
  AttentionStats stats = attention.stats();
  CHECK(stats.decode_calls == 200);
  CHECK(stats.rows_loaded == kKVHeads * 200 * 201 / 2);
  stats += attention.stats();
  CHECK(stats.keys == kKVHeads * 200 * 201);
}

TEST_CASE("below min_keys decoding is exact") {
  const Sequences sequences(30);
  Attention attention(SiftConfig{.c = 2.0, .min_keys = 26});
  sequences.feed(attention, 0, 20);
  const at::Tensor exact = sequences.exact();
  for (int64_t i = 20; i < 30; ++i) {
    const at::Tensor out = sequences.feed(attention, i, i + 1);
    CHECK(close(out, exact.narrow(2, i, 1)) == (i + 1 < 26));
  }
}

TEST_CASE("a skipped layer stays dense") {
  const Sequences sequences(30);
  Attention attention(SiftConfig{.c = 2.0, .min_keys = 0, .skip_layers = {1, 3}}, 3);
  sequences.feed(attention, 0, 20);
  CHECK(close(sequences.steps(attention, 20, 30), sequences.exact().narrow(2, 20, 10)));
  CHECK(attention.stats().decode_calls == 0);
  CHECK(attention.stats().dense_calls == 10);
  attention.crop(3);
  CHECK(close(sequences.steps(attention, 27, 30), sequences.exact().narrow(2, 27, 3)));
}

TEST_CASE("a quantile's law is fitted to the prompt, in chunks as at once") {
  const Sequences sequences(200, 2);
  Attention once(quantile_config());
  sequences.feed(once, 0, 200);
  std::vector<int64_t> grid = sample_grid(32);
  std::erase_if(grid, [](int64_t length) { return length > 200; });
  const at::Tensor lengths = at::tensor(grid, at::kInt).expand({2, -1});
  const at::Tensor rows = sequences.q.index_select(2, lengths[0] - 1);
  const TensorFit fit =
      fit_power_law(lengths, score_quantile(rows, sequences.k, lengths, 0.8), 1.0);
  CHECK(fit.ok.all().item<bool>());
  CHECK(close(once.law().log_alpha, fit.law.log_alpha));
  CHECK(close(once.law().beta, at::ones({2, kQHeads})));

  Attention chunks(quantile_config());
  for (int64_t start = 0; start < 200; start += 33) {
    sequences.feed(chunks, start, std::min<int64_t>(start + 33, 200));
  }
  CHECK(close(chunks.law().log_alpha, once.law().log_alpha));
  const Sequences next(1, 2);
  CHECK(close(next.feed(chunks, 0, 1), next.feed(once, 0, 1)));
  CHECK(once.stats().unfitted_heads == 0);
}

TEST_CASE("a prompt too short for a fit decodes exactly, and says so") {
  const Sequences sequences(40, 2);
  Attention attention(quantile_config());
  sequences.feed(attention, 0, 30);
  CHECK(close(sequences.steps(attention, 30, 40), sequences.exact().narrow(2, 30, 10)));
  CHECK(attention.stats().unfitted_heads == 2 * kQHeads);
}

TEST_CASE("warm-up steps are exact and join the fit") {
  const Sequences sequences(170);
  Attention attention(quantile_config(4));
  sequences.feed(attention, 0, 160);
  const at::Tensor prompt_only = attention.law().log_alpha.clone();
  const at::Tensor out = sequences.steps(attention, 160, 164);
  CHECK(close(out, sequences.exact().narrow(2, 160, 4)));
  CHECK_FALSE(attention.law().log_alpha.equal(prompt_only));
  CHECK_FALSE(close(sequences.feed(attention, 164, 165), sequences.exact().narrow(2, 164, 1)));
  // With a uniform threshold they are exact as well.
  Attention uniform(SiftConfig{.c = 2.0, .warmup_steps = 4, .min_keys = 0});
  sequences.feed(uniform, 0, 160);
  CHECK(close(sequences.steps(uniform, 160, 164), sequences.exact().narrow(2, 160, 4)));
}

TEST_CASE("left padding changes nothing") {
  const auto config = GENERATE(SiftConfig{.c = 1.0, .min_keys = 0}, quantile_config());
  const Sequences alone(160);
  Sequences padded(200, 2);
  for (auto [to, from] : {std::pair{&padded.q, &alone.q}, std::pair{&padded.k, &alone.k},
                          std::pair{&padded.v, &alone.v}}) {
    to->narrow(0, 1, 1).narrow(2, 40, 160).copy_(*from);
  }
  at::Tensor mask = at::ones({2, 200}, at::kBool);
  mask[1].narrow(0, 0, 40).fill_(false);
  Attention one(config);
  Attention two(config);
  int64_t num_keys = 0;  // attended by steps
  const auto both = [&](int64_t start, int64_t end) {
    if (end == start + 1) num_keys += kKVHeads * (end + end - 40);
    const at::Tensor expected = alone.feed(one, start - 40, end - 40);
    const at::Tensor out =
        padded.feed(two, start == 40 ? 0 : start, end, {.key_mask = mask.narrow(1, 0, end)});
    CHECK(close(out[1].narrow(1, out.size(2) - expected.size(2), expected.size(2)), expected[0]));
  };
  both(40, 180);
  CHECK(close(two.law().log_alpha[1], one.law().log_alpha[0]));
  for (int64_t i = 180; i < 190; ++i) both(i, i + 1);
  both(190, 195);
  both(195, 196);
  CHECK(two.stats().keys == num_keys);
}

TEST_CASE("softcap and sinks hold for prompts and steps") {
  const Sequences sequences(300);
  const at::Tensor sinks = at::randn({kQHeads});
  const bool has_sinks = GENERATE(true, false);
  const AttentionOptions options{
      .scale = 0.3,
      .softcap = 2.0,
      .sinks = has_sinks ? std::optional(sinks.to(at::kDouble)) : std::nullopt};
  Attention attention(SiftConfig{.c = 0.0, .min_keys = 0});
  const at::Tensor out = at::cat(
      {sequences.feed(attention, 0, 298, options), sequences.feed(attention, 298, 299, options),
       sequences.feed(attention, 299, 300, options)},
      2);
  const at::Tensor k = sequences.k.to(at::kDouble).repeat_interleave(2, 1);
  const at::Tensor v = sequences.v.to(at::kDouble).repeat_interleave(2, 1);
  at::Tensor scores = at::matmul(sequences.q.to(at::kDouble), k.transpose(2, 3)) * 0.3;
  scores = (scores / 2.0).tanh() * 2.0;
  const at::Tensor future = at::ones({300, 300}, at::kBool).triu(1);
  at::Tensor weights = scores.exp().masked_fill(future, 0.0);
  at::Tensor mass = weights.sum(-1, true);
  if (has_sinks) mass = mass + sinks.to(at::kDouble).exp().view({1, -1, 1, 1});
  CHECK(close(out, at::matmul(weights / mass, v)));
  CHECK(std::abs(attention.stats().dropped_mass()) < 1e-6);
}

}  // namespace
}  // namespace sift
