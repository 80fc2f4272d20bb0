// The selection behind score_quantile against sorting.
#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "catch2.h"
#include "decode/cpu/largest.h"

namespace sift {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPivotSamples = 64;  // those of largest.cpp lie at i * n / 64

struct Order {
  const char* name;
  float (*score)(int64_t i, int64_t n, std::mt19937& random);
};

const std::vector<Order> kOrders = {
    {"random",
     [](int64_t, int64_t, std::mt19937& r) { return std::normal_distribution<float>()(r); }},
    {"rising", [](int64_t i, int64_t, std::mt19937&) { return static_cast<float>(i); }},
    {"falling", [](int64_t i, int64_t, std::mt19937&) { return static_cast<float>(-i); }},
    {"equal", [](int64_t, int64_t, std::mt19937&) { return 1.5f; }},
    {"few values", [](int64_t, int64_t, std::mt19937& r) { return static_cast<float>(r() % 3); }},
    {"half at -inf",
     [](int64_t i, int64_t, std::mt19937& r) { return r() % 2 ? 1.0f * i : -kInfinity; }},
    {"all at -inf", [](int64_t, int64_t, std::mt19937&) { return -kInfinity; }},
    {"periodic", [](int64_t i, int64_t, std::mt19937&) { return static_cast<float>(i % 47); }},
    {"misleading samples",
     [](int64_t i, int64_t n, std::mt19937& r) {
       const int64_t sample = (i * kPivotSamples + kPivotSamples - 1) / n;
       return sample * n / kPivotSamples == i ? 1e6f : static_cast<float>(r() % 997);
     }},
};

std::vector<float> make_scores(const Order& order, int64_t n) {
  std::mt19937 random(static_cast<uint32_t>(n));
  std::vector<float> scores(n);
  for (int64_t i = 0; i < n; ++i) scores[i] = order.score(i, n, random);
  return scores;
}

}  // namespace

TEST_CASE("partition_largest puts the k largest in front, the least of them last") {
  for (const Order& order : kOrders) {
    for (const int64_t n : {1, 2, 63, 128, 129, 130, 700, 4300, 20000}) {
      const std::vector<float> scores = make_scores(order, n);
      std::vector<float> sorted = scores;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      for (const int64_t k : {int64_t{1}, n / 20 + 1, n / 2 + 1, n - n / 20, n}) {
        CAPTURE(order.name, n, k);
        std::vector<float> x = scores;
        partition_largest(x.data(), n, k);
        REQUIRE(x[k - 1] == sorted[k - 1]);
        std::sort(x.begin(), x.begin() + k, std::greater<>());
        std::sort(x.begin() + k, x.end(), std::greater<>());
        REQUIRE(x == sorted);
      }
    }
  }
}

TEST_CASE("Largest keeps what is wanted of a stream, within its memory") {
  for (const Order& order : kOrders) {
    for (const int64_t n : {1, 1000, 2500, 20000}) {
      std::vector<float> sorted = make_scores(order, n);
      const std::vector<float> scores = sorted;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      for (const int64_t wanted : {int64_t{1}, n / 20 + 1, n / 2 + 1, n}) {
        for (const int64_t piece : {int64_t{77}, kChunkKeys}) {
          CAPTURE(order.name, n, wanted, piece);
          const int64_t capacity = Largest::capacity(wanted, n);
          REQUIRE(capacity <= 2 * wanted + kChunkKeys + 1);
          std::vector<float> values(capacity + 1, -1.0f);
          Largest largest(values.data(), capacity, wanted);
          for (int64_t i = 0; i < n; i += piece) {
            largest.add(scores.data() + i, std::min(piece, n - i));
          }
          REQUIRE(values.back() == -1.0f);
          REQUIRE(largest.count() >= wanted);
          REQUIRE(largest.values() == values.data());
          std::sort(values.begin(), values.begin() + largest.count(), std::greater<>());
          values.resize(wanted);
          REQUIRE(std::equal(values.begin(), values.end(), sorted.begin()));
        }
      }
    }
  }
}

}  // namespace sift
