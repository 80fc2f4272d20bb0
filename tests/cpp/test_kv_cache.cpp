// sift::KVCache: growth, its rows, the sum of V.
#include <sift_attention/kv_cache.h>

#include <limits>
#include <set>

#include "catch2.h"
#include "sentence.h"

namespace sift {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

at::Tensor rows(int64_t count, int64_t batch = 2) { return at::randn({batch, 2, count, 8}); }

// A cache, and its K as a program without it would hold them.
struct Grown {
  KVCache cache;
  at::Tensor k;

  void append(int64_t count, int64_t batch = 2) {
    const at::Tensor k_rows = rows(count, batch);
    k = k.defined() ? at::cat({k, k_rows}, 2) : k_rows;
    const auto [all_k, all_v] = cache.append(k_rows, 2.0 * k_rows);
    CHECK(all_k.equal(k));
    CHECK(all_v.equal(2.0 * k));
    CHECK(cache.num_keys() == k.size(2));
  }
};

TEST_CASE("a cache grows by half and copies seldom") {
  Grown grown;
  std::set<const void*> addresses;
  grown.append(1);
  grown.append(300);
  for (int i = 0; i < 300; ++i) {
    grown.append(1);
    addresses.insert(grown.cache.k().data_ptr());
  }
  CHECK(addresses.size() == 2);
  CHECK(grown.cache.k().stride(3) == 1);
  grown.append(0);
  CHECK(grown.cache.num_keys() == 601);
}

TEST_CASE("a cache of large buffers holds what it was given") {
  KVCache cache;
  const at::Tensor k = at::randn({1, 2, 40'000, 64});
  cache.append(k, k);
  cache.append(k, k);
  CHECK(cache.v().equal(at::cat({k, k}, 2)));
}

TEST_CASE("a cache follows its rows", "[row 36]") {
  Grown grown;
  grown.append(10);
  grown.cache.v_sum();
  int64_t batch = 2;
  SECTION("crop") {
    grown.cache.crop(3);
    grown.k = grown.k.narrow(2, 0, 7);
  }
  SECTION("crop to nothing") {
    grown.cache.crop(10);
    grown.k = grown.k.narrow(2, 0, 0);
  }
  SECTION("reorder") {
    grown.cache.reorder(at::tensor({1, 1}, at::kLong));
    grown.k = at::stack({grown.k[1], grown.k[1]});
  }
  SECTION("select by index") {
    grown.cache.select(at::tensor({1}, at::kLong));
    grown.k = grown.k.narrow(0, 1, 1);
    batch = 1;
  }
  SECTION("select by mask") {
    grown.cache.select(at::tensor({1, 0}).to(at::kBool));
    grown.k = grown.k.narrow(0, 0, 1);
    batch = 1;
  }
  SECTION("repeat") {
    grown.cache.repeat(3);
    grown.k = grown.k.repeat_interleave(3, 0);
    batch = 6;
  }
  for (const int64_t count : {1, 2, 400, 1}) {
    CHECK(grown.cache.k().equal(grown.k));
    grown.append(count, batch);
    CHECK(at::allclose(grown.cache.v_sum(), 2.0 * grown.k.sum(2), 1e-4, 1e-4));
  }
}

TEST_CASE("an empty cache takes rows of any kind", "[row 35]") {
  Grown grown;
  CHECK_FALSE(grown.cache.v_sum().defined());
  grown.cache.reorder(at::tensor({0}, at::kLong));
  grown.cache.repeat(2);
  grown.append(300);
  const void* address = grown.cache.k().data_ptr();
  grown.cache.reset();
  CHECK(grown.cache.num_keys() == 0);
  CHECK(grown.cache.v_sum().equal(at::zeros({2, 2, 8})));
  grown.k.reset();
  grown.append(200);
  CHECK(grown.cache.k().data_ptr() == address);
  grown.cache.reset();
  const at::Tensor other = at::randn({5, 1, 3, 16}, at::kBFloat16);
  CHECK(grown.cache.append(other, other).first.equal(other));
  grown.cache.reset();
  const at::Tensor nobody = at::randn({0, 1, 3, 16});
  CHECK(grown.cache.append(nobody, nobody).first.equal(nobody));
  CHECK(grown.cache.v_sum().sizes() == at::IntArrayRef({0, 1, 16}));
}

TEST_CASE("a cache works across inference mode") {
  Grown grown;
  {
    const c10::InferenceMode inference;
    grown.append(4);
    grown.cache.v_sum();
    grown.cache.repeat(2);
    grown.k = grown.k.repeat_interleave(2, 0);
  }
  grown.append(1, 4);
  CHECK(at::allclose(grown.cache.v_sum(), 2.0 * grown.k.sum(2), 1e-4, 1e-4));
}

TEST_CASE("the sum of V stays exact over 100,000 rows") {
  KVCache cache;
  const at::Tensor row = at::full({1, 1, 1, 8}, 0.1);  // added in float32 the sum would be 9998.56
  for (int i = 0; i < 100'000; ++i) {
    cache.append(row, row);
    cache.v_sum();
  }
  const double exact = 100'000 * static_cast<double>(0.1F);
  const at::Tensor error = (cache.v_sum().to(at::kDouble) - exact).abs();
  CHECK(error.max().item<double>() <= 0x1p-24 * exact);
}

TEST_CASE("the sum of V follows a mask") {
  KVCache cache;
  const at::Tensor v = rows(20);
  v.select(0, 1).narrow(1, 0, 5).fill_(kNan);  // left padding
  cache.append(v, v);
  at::Tensor mask = at::ones({2, 40}, at::kBool);
  mask[1].narrow(0, 0, 5).fill_(false);
  const auto sum_to = [&](int64_t num_keys) {
    const at::Tensor attended = mask.narrow(1, 0, num_keys).unsqueeze(1).unsqueeze(3);
    return at::where(attended, cache.v(), 0.0).sum(2);
  };
  CHECK(at::allclose(cache.v_sum(mask.narrow(1, 0, 20)), sum_to(20), 1e-4, 1e-4));
  mask[0][22] = false;  // pauses
  for (int64_t num_keys = 21; num_keys <= 25; ++num_keys) {
    const at::Tensor row = rows(1);
    cache.append(row, row);
    const at::Tensor now = mask.narrow(1, 0, num_keys);
    CHECK(at::allclose(cache.v_sum(now), sum_to(num_keys), 1e-4, 1e-4));
    CHECK(cache.num_summed().equal(now.sum(1, true)));
  }
  mask[0][0] = false;  // changes its mind
  cache.append(rows(1), rows(1));
  cache.v_sum(mask.narrow(1, 0, 26));
  CHECK((cache.num_summed() == mask.narrow(1, 0, 26).sum(1, true))
            .equal(at::tensor({0, 1}).to(at::kBool).unsqueeze(1)));
  cache.crop(2);
  CHECK(cache.num_summed().equal(at::tensor({23, 19}, at::kLong).unsqueeze(1)));
  CHECK(at::allclose(cache.v_sum(mask.narrow(1, 0, 24)), sum_to(24), 1e-4, 1e-4));
}

TEST_CASE("a cache refuses rows that do not fit", "[row 38]") {
  KVCache cache;
  const at::Tensor k = rows(3);
  const auto complaint = [&](const at::Tensor& new_k, const at::Tensor& new_v) {
    return sentence([&] { cache.append(new_k, new_v); });
  };
  CHECK(complaint(k[0], k[0]) == "KVCache: k must have shape [B, HK, R, D], got (2, 3, 8)");
  CHECK(complaint(k, rows(4)) ==
        "KVCache: v must have the shape of k = (2, 2, 3, 8), got (2, 2, 4, 8)");
  CHECK(complaint(k, k.to(at::kHalf)) == "KVCache: v must have dtype float32, got float16");
  CHECK(complaint(k, k.to(at::kMeta)) == "KVCache: v must be on the device of k = cpu, got meta");
  cache.append(k, k);
  CHECK(complaint(rows(1, 3), rows(1, 3)) ==
        "KVCache: k must fit the keys held, float32 (2, 2, 3, 8) on cpu, got float32 "
        "(3, 2, 1, 8) on cpu");
  CHECK(sentence([&] { cache.crop(4); }) == "KVCache: num_keys must be in [0, 3], got 4");
  CHECK(sentence([&] { cache.crop(-1); }) == "KVCache: num_keys must be in [0, 3], got -1");
  CHECK(cache.k().equal(k));
}

}  // namespace
}  // namespace sift
