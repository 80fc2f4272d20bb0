// score_quantile on the CPU against the reference, at every level.
#include <cstring>
#include <limits>

#include "catch2.h"
#include "decode/cpu/at_level.h"
#include "decode_case.h"
#include "quantile_case.h"

namespace sift {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

NamedLevel any_level() {
  return GENERATE(from_range(testable_levels().begin(), testable_levels().end()));
}

std::vector<float> run(QuantileProblem& problem, const Level& level, int num_threads,
                       const ParallelFor& parallel_for) {
  return problem.run([&](const ScoreQuantileParams& params) {
    const int64_t bytes = score_quantile_cpu_workspace_bytes(params, num_threads);
    std::vector<float> workspace = make_workspace(bytes);
    score_quantile_cpu_at_level(level, params, workspace.data(), num_threads, parallel_for);
  });
}

}  // namespace

TEST_CASE("score_quantile agrees with the reference") {
  const NamedLevel level = any_level();
  const std::vector<int32_t> lengths = {1, 2, 0, 65, 1024, 1025, 5000};
  const auto check = [&](const DecodeCase& c, double tau) {
    QuantileProblem problem(c, lengths, tau);
    problem.check(run(problem, *level.level, 1, one_thread()));
  };
  for (const int64_t group_size : {1, 3, 17}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      check({.group_size = group_size, .capacity = 1100, .dtype = dtype}, 0.95);
    }
  }
  for (const double tau : {0.0, 0.5, 1.0}) check({.num_kv_heads = 2, .capacity = 1100}, tau);
}

TEST_CASE("score_quantile counts attended keys through masks and pages") {
  const NamedLevel level = any_level();
  for (const Mask mask : {Mask::kNone, Mask::kHoles, Mask::kLeftPadding, Mask::kNothing}) {
    for (const int64_t block_size : {0, 1, 24}) {
      QuantileProblem problem({.batch = 3,
                               .num_kv_heads = 2,
                               .group_size = 2,
                               .capacity = 1500,
                               .head_dim = 80,
                               .mask = mask,
                               .block_size = block_size,
                               .softcap = 5,
                               .has_sinks = true},
                              {20, 900, 1500, 0, 1, 1400, 30, 31, 1029}, 0.9);
      problem.check(run(problem, *level.level, 1, one_thread()));
    }
  }
}

TEST_CASE("score_quantile gives the same bits on any number of threads", "[row 28][row 29]") {
  const NamedLevel level = any_level();
  QuantileProblem problem({.num_kv_heads = 3, .group_size = 4, .capacity = 2100},
                          {10, 20, 500, 700, 1000, 1300, 1900, 2100}, 0.95);
  const std::vector<float> expected = run(problem, *level.level, 1, one_thread());
  for (const int num_threads : {2, 5, 16}) {
    REQUIRE(run(problem, *level.level, num_threads, random_threads(num_threads)) == expected);
  }
}

TEST_CASE("score_quantile cuts a tile along its keys for many threads") {
  const NamedLevel level = any_level();
  for (const Mask mask : {Mask::kNone, Mask::kHoles}) {
    for (const double tau : {0.3, 0.95}) {
      QuantileProblem problem({.capacity = 9000, .head_dim = 32, .mask = mask},
                              {0, 7500, 1025, 0, 9000, 1, 2048}, tau);
      const std::vector<float> expected = run(problem, *level.level, 1, one_thread());
      problem.check(expected);
      for (const int num_threads : {3, 40}) {
        const std::vector<float> got =
            run(problem, *level.level, num_threads, random_threads(num_threads));
        REQUIRE(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("score_quantile holds little more than a tile's scores above the quantile") {
  for (const int64_t capacity : {131072, 1048576}) {
    ScoreQuantileParams params;
    const std::vector<int32_t> lengths(160, 131072);
    params.lengths = lengths.data();
    params.batch = 1;
    params.num_q_heads = 32;
    params.num_kv_heads = 8;
    params.num_rows = 160;
    params.capacity = capacity;
    params.quantile = 0.95;
    for (const int num_threads : {1, 64}) {
      REQUIRE(score_quantile_cpu_workspace_bytes(params, num_threads) < num_threads * 1200000);
    }
  }
}

TEST_CASE("score_quantile of NaN is NaN for the rows that see it", "[row 6]") {
  const NamedLevel level = any_level();
  QuantileProblem problem({.group_size = 2, .capacity = 300}, {200, 201, 300}, 0.5);
  problem.keys.set_k(0, 0, 200, kNaN);
  problem.check(run(problem, *level.level, 1, one_thread()));
}

TEST_CASE("score_quantile passes bad sinks on to their heads, also where no key counts") {
  const NamedLevel level = any_level();
  for (const float sink : {kNaN, std::numeric_limits<float>::infinity(), 1.0f}) {
    QuantileProblem problem({.capacity = 5, .has_sinks = true}, {5, 3}, 0.5);
    problem.keys.sinks[1] = sink;
    for (int64_t n = 0; n < 5; ++n) problem.keys.set_k(0, 0, n, 0.0f);
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t r = 0; r < 2; ++r) {
        const int64_t row = h * problem.params.q_stride_h + r * problem.params.q_stride_r;
        problem.keys.set(problem.q, row, 1.0f);
      }
    }
    for (const bool any_counts : {true, false}) {
      for (int64_t n = 0; n < 5 && !any_counts; ++n) {
        problem.keys.set(problem.keys.k, problem.keys.k_offset(0, 0, n),
                         -std::numeric_limits<float>::infinity());
      }
      const std::vector<float> quantiles = run(problem, *level.level, 1, one_thread());
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t r = 0; r < 2; ++r) {
          const float quantile = quantiles[h * 2 + r];
          REQUIRE(std::isnan(quantile) == (h == 1 && sink != 1.0f));
          if (!any_counts && h != 1) REQUIRE(quantile == 0.0f);
        }
      }
    }
  }
}

}  // namespace sift
