// What becomes of a sift::Attention as its cache is cropped, reordered or reset, and of its errors.
#include <limits>

#include "attention_sequences.h"
#include "catch2.h"
#include "sentence.h"

namespace sift {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST_CASE("cropped tokens leave no trace", "[row 36][row 37]") {
  const Sequences sequences(170);
  const Sequences rejected(5);
  for (const SiftConfig& config : {SiftConfig{.c = 1.0, .min_keys = 0}, quantile_config()}) {
    Attention straight(config);
    Attention speculative(config);
    sequences.feed(straight, 0, 150);
    sequences.feed(speculative, 0, 150);
    for (int64_t i = 150; i < 170; ++i) {
      rejected.feed(speculative, 0, 1 + i % 5);
      speculative.crop(1 + i % 5);
      const at::Tensor out = sequences.feed(speculative, i, i + 1);
      CHECK(close(out, sequences.feed(straight, i, i + 1)));
    }
    CHECK(speculative.law().log_alpha.equal(straight.law().log_alpha));
  }
}

TEST_CASE("a crop undoes the fit that needed more keys", "[row 37]") {
  const Sequences sequences(170, 2);
  for (const int64_t left : {149, 60, 20}) {
    Attention cropped(quantile_config());
    Attention fresh(quantile_config());
    sequences.feed(cropped, 0, 150);
    sequences.steps(cropped, 150, 155);
    cropped.crop(155 - left);
    sequences.feed(fresh, 0, left);
    CHECK(close(cropped.law().log_alpha.exp(), fresh.law().log_alpha.exp()));
    CHECK(close(sequences.steps(cropped, left, left + 5), sequences.steps(fresh, left, left + 5)));
  }
}

TEST_CASE("a cache emptied behind the attention's back begins anew", "[row 35]") {
  const Sequences first(180, 2);
  const Sequences second(180, 2);
  Attention fresh(quantile_config(2));
  second.feed(fresh, 0, 150);
  const at::Tensor expected = second.steps(fresh, 150, 155);
  Attention used(quantile_config(2));
  for (const bool crops : {true, false}) {
    first.feed(used, 0, 170);
    first.steps(used, 170, 175);
    if (crops) {
      used.cache().crop(175);
    } else {
      used.cache().reset();
    }
    second.feed(used, 0, 150);
    CHECK(second.steps(used, 150, 155).equal(expected));
    used.reset();
  }
}

TEST_CASE("rows of the batch move with their laws", "[row 36]") {
  const Sequences sequences(160, 3);
  Attention attention(quantile_config());
  sequences.feed(attention, 0, 150);
  const at::Tensor log_alpha = attention.law().log_alpha.clone();
  at::Tensor rows = at::tensor({2, 2, 0}, at::kLong);
  SECTION("reorder") { attention.reorder(rows); }
  SECTION("select by index") {
    rows = at::tensor({2, 0}, at::kLong);
    attention.select(rows);
  }
  SECTION("select by mask") {
    rows = at::tensor({0, 2}, at::kLong);
    attention.select(at::tensor({1, 0, 1}).to(at::kBool));
  }
  SECTION("repeat") {
    rows = at::tensor({0, 0, 1, 1, 2, 2}, at::kLong);
    attention.repeat(2);
  }
  CHECK(attention.law().log_alpha.equal(log_alpha.index_select(0, rows)));
  Sequences moved = sequences;
  for (at::Tensor* each : {&moved.q, &moved.k, &moved.v}) *each = each->index_select(0, rows);
  Attention expected(quantile_config());
  moved.feed(expected, 0, 150);
  CHECK(close(moved.steps(attention, 150, 160), moved.steps(expected, 150, 160)));
}

TEST_CASE("a reset attention is a new one", "[row 35]") {
  const Sequences first(180, 2);
  const Sequences second(180, 3);
  Attention used(quantile_config(2));
  Attention fresh(quantile_config(2));
  used.reset();
  used.reorder(at::tensor({0}, at::kLong));
  used.repeat(2);
  first.feed(used, 0, 170);
  first.steps(used, 170, 175);
  used.reset();
  CHECK(used.cache().num_keys() == 0);
  for (Attention* each : {&used, &fresh}) second.feed(*each, 0, 150);
  CHECK(second.steps(used, 150, 155).equal(second.steps(fresh, 150, 155)));
  CHECK(used.stats().decode_calls == 10);
}

TEST_CASE("an empty batch passes through") {
  for (const SiftConfig& config : {SiftConfig{.min_keys = 0}, quantile_config(1)}) {
    const Sequences nobody(100, 0);
    Attention attention(config);
    CHECK(nobody.feed(attention, 0, 90).sizes() == at::IntArrayRef({0, kQHeads, 90, kHeadDim}));
    CHECK(nobody.steps(attention, 90, 95).sizes() == at::IntArrayRef({0, kQHeads, 5, kHeadDim}));
    CHECK(attention.stats().rows_loaded == 0);
  }
}

TEST_CASE("NaN comes out where it went in") {
  Sequences sequences(60, 2);
  sequences.k[0][0][10][3] = kNan;
  Attention attention(SiftConfig{.c = 2.0, .min_keys = 0});
  sequences.feed(attention, 0, 50);
  const at::Tensor is_nan = sequences.feed(attention, 50, 51).isnan();
  CHECK(is_nan[0].narrow(0, 0, 2).all().item<bool>());
  CHECK_FALSE(is_nan[0].narrow(0, 2, 2).any().item<bool>());
  CHECK_FALSE(is_nan[1].any().item<bool>());
}

TEST_CASE("attention works across inference mode", "[row 33]") {
  const Sequences sequences(190);
  Attention attention(quantile_config());
  Attention expected(quantile_config());
  {
    const c10::InferenceMode inference;
    sequences.feed(attention, 0, 150);
    sequences.feed(attention, 150, 151);
    attention.repeat(1);
  }
  sequences.feed(expected, 0, 150);
  sequences.feed(expected, 150, 151);
  CHECK(sequences.steps(attention, 151, 155).equal(sequences.steps(expected, 151, 155)));
  CHECK(sequences.feed(attention, 155, 190).equal(sequences.feed(expected, 155, 190)));
}

TEST_CASE("a call that fails leaves the cache as it was", "[row 38]") {
  const Sequences sequences(30);
  Attention attention(SiftConfig{.min_keys = 0});
  sequences.feed(attention, 0, 20);
  const at::Tensor q = sequences.q.narrow(2, 20, 1);
  const at::Tensor k = sequences.k.narrow(2, 20, 1);
  const auto complaint = [&](const at::Tensor& new_q, const AttentionOptions& options = {}) {
    return sentence([&] { attention.forward(new_q, k, k, options); });
  };
  CHECK(complaint(q[0]) ==
        "Attention: q must have shape [B, HQ, R, D] with at least one row, got (4, 1, 32)");
  CHECK(complaint(q.expand({-1, -1, 2, -1})) ==
        "Attention: q must have shape [B, HQ, R, D] = (1, 4, 1, 32), got (1, 4, 2, 32)");
  CHECK(complaint(q.repeat({1, 2, 1, 1})) ==
        "Attention: q must have shape [B, HQ, R, D] = (1, 4, 1, 32), got (1, 8, 1, 32)");
  CHECK(complaint(q.to(at::kMeta)) == "Attention: k must be on the device of q = meta, got cpu");
  CHECK(complaint(q, {.key_mask = at::ones({1, 20}, at::kBool)}) ==
        "Attention: key_mask must have shape [B, N] = (1, 21), got (1, 20)");
  CHECK(complaint(q, {.key_mask = at::ones({1, 21})}) ==
        "Attention: key_mask must have dtype bool, got float32");
  CHECK(complaint(q, {.scale = kNan}) == "decode: scale must be a finite float32, got nan");
  CHECK(complaint(q, {.softcap = -1.0}) ==
        "decode: softcap must be 0 or a positive normal float32, got -1");
  CHECK(complaint(q.to(at::kHalf)) == "Attention: k must have dtype float16, got float32");
  CHECK(complaint(q.clone().requires_grad_()) ==
        "Attention: gradients are not supported, call it under at::NoGradGuard or detach its "
        "inputs");
  CHECK(attention.cache().num_keys() == 20);
  CHECK(sentence([&] { attention.crop(21); }) == "KVCache: num_keys must be in [0, 20], got 21");
  CHECK(sentence(
            [&] { Attention().forward(sequences.q.narrow(1, 0, 3), sequences.k, sequences.v); }) ==
        "Attention: the heads of q must be a positive multiple of the heads of k, got 3 and 2");
  CHECK(sentence([] { Attention(SiftConfig{.c = -1.0}); }) ==
        "SiftConfig: c must be finite and not negative, got -1.0");
  Attention untouched(SiftConfig{.min_keys = 0});
  sequences.feed(untouched, 0, 20);
  CHECK(close(sequences.steps(attention, 20, 30), sequences.steps(untouched, 20, 30)));
}

}  // namespace
}  // namespace sift
