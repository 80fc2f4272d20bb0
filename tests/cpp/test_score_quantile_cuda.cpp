// The CUDA kernels of score_quantile, their threads run as fibers in random order, against the
// reference.
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "catch2.h"
#include "decode/cuda/decode_cuda.h"
#include "quantile_case.h"

namespace sift {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> run(QuantileProblem& problem) {
  return problem.run([](const ScoreQuantileParams& params) {
    const int64_t bytes = score_quantile_cuda_workspace_bytes(params);
    std::vector<float> workspace(static_cast<size_t>(bytes / 4), kNaN);
    score_quantile_cuda(params, workspace.data(), nullptr);
  });
}

void check(const DecodeCase& c, const std::vector<int32_t>& lengths, double quantile) {
  INFO(c.describe());
  QuantileProblem problem(c, lengths, quantile);
  problem.check(run(problem));
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("score_quantile on CUDA agrees with the reference for every dtype and head dimension") {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t head_dim : {64, 80, 96, 128, 256}) {
      for (const bool is_aligned : {false, true}) {
        check({.num_kv_heads = 2,
               .group_size = 3,
               .capacity = 300,
               .head_dim = head_dim,
               .dtype = dtype,
               .spread = 2,
               .is_aligned = is_aligned},
              {1, 2, 0, 15, 16, 17, 255, 300, 400, -1, 150}, 0.9);
      }
    }
  }
}

TEST_CASE("score_quantile on CUDA takes any group, any number of rows and any quantile") {
  for (const int64_t group_size : {1, 5, 8, 17, 80}) {  // columns: a part of a tile up to several
    check({.group_size = group_size, .capacity = 70, .is_aligned = true}, {70, 69, 3, 40}, 0.95);
  }
  for (const double quantile : {0.0, 0.3, 0.5, 1.0}) {
    check({.num_kv_heads = 2, .capacity = 700}, {1, 2, 100, 513, 699, 700}, quantile);
  }
  std::vector<int32_t> lengths;
  for (int32_t r = 0; r < 70; ++r) lengths.push_back(r * 9 % 140);
  check({.batch = 2, .group_size = 2, .capacity = 130}, lengths, 0.95);
}

TEST_CASE("score_quantile on CUDA counts attended keys through masks and pages") {
  for (const Mask mask : {Mask::kNone, Mask::kHoles, Mask::kLeftPadding, Mask::kNothing}) {
    for (const int64_t block_size : {0, 1, 24}) {
      check({.batch = 3,
             .num_kv_heads = 2,
             .group_size = 2,
             .capacity = 1200,
             .head_dim = 80,
             .mask = mask,
             .block_size = block_size,
             .softcap = 5,
             .has_sinks = true,
             .is_aligned = block_size == 24},
            {20, 900, 1200, 0, 1, 1100, 30, 31, 601}, 0.9);
    }
  }
}

TEST_CASE("score_quantile on CUDA finds ends of rows far beyond one step of the search") {
  // A step takes 16,384 keys, of which three quarters are attended.
  check({.group_size = 1, .capacity = 40000, .mask = Mask::kHoles},
        {1, 12200, 12288, 12400, 29000, 40000}, 0.99);
}

TEST_CASE("score_quantile on CUDA gives the same bits wherever the keys lie") {
  const std::vector<int32_t> lengths = {1, 40, 333, 400};
  QuantileProblem alone({.num_kv_heads = 2, .capacity = 400, .is_aligned = true}, lengths, 0.8);
  const std::vector<float> expected = run(alone);
  alone.check(expected);
  REQUIRE(same_bits(run(alone), expected));  // under another schedule
  for (const bool is_padded : {false, true}) {
    for (const int64_t block_size : {0, 16}) {
      const int64_t capacity = is_padded ? 600 : 400;  // padding is a third
      QuantileProblem moved({.num_kv_heads = 2,
                             .capacity = capacity,
                             .mask = is_padded ? Mask::kLeftPadding : Mask::kNone,
                             .block_size = block_size},
                            lengths, 0.8);
      moved.params.q = alone.params.q;
      moved.params.q_stride_b = alone.params.q_stride_b;
      moved.params.q_stride_h = alone.params.q_stride_h;
      moved.params.q_stride_r = alone.params.q_stride_r;
      const auto of_alone = reference::attended(alone.params.keys, 0, alone.params.capacity);
      const auto of_moved = reference::attended(moved.params.keys, 0, moved.params.capacity);
      for (size_t i = 0; i < of_alone.size(); ++i) {
        for (int64_t hk = 0; hk < 2; ++hk) {
          const auto row = reference::row(
              alone.params.k.data, alone.keys.k_offset(0, hk, of_alone[i]), 64, alone.params.dtype);
          for (int64_t d = 0; d < 64; ++d) {
            moved.keys.set(moved.keys.k, moved.keys.k_offset(0, hk, of_moved[i]) + d,
                           static_cast<float>(row[d]));
          }
        }
      }
      CAPTURE(is_padded, block_size);
      REQUIRE(same_bits(run(moved), expected));
    }
  }
}

TEST_CASE("score_quantile on CUDA is exact among equal scores") {
  for (const double quantile : {0.0, 0.5, 0.94, 0.96, 1.0}) {
    QuantileProblem problem({.group_size = 2, .capacity = 100, .spread = 0.5f}, {100, 99, 7},
                            quantile);
    for (int64_t n = 0; n < 100; ++n) problem.keys.set_k(0, 0, n, n % 20 == 0 ? 0.25f : 0.125f);
    problem.check(run(problem));
  }
}

TEST_CASE("score_quantile on CUDA keeps scores of any size apart") {
  for (const float spread : {1e-6f, 10.0f}) {
    for (const double quantile : {0.2, 0.99}) {
      check({.capacity = 500, .spread = spread, .is_aligned = true}, {500, 33}, quantile);
    }
  }
}

TEST_CASE("score_quantile on CUDA of NaN or infinity is NaN for the rows that see it") {
  for (const float poison : {kNaN, kInfinity}) {
    QuantileProblem problem({.group_size = 2, .capacity = 300}, {200, 201, 300}, 0.5);
    problem.keys.set_k(0, 0, 200, poison);
    for (uint8_t& x : problem.q) x &= 0x7f;  // positive: no -inf, no inf - inf
    problem.check(run(problem));
  }
}

TEST_CASE("score_quantile on CUDA of scores that are all -inf is 0") {
  QuantileProblem problem({.capacity = 20}, {20, 1, 0}, 0.5);
  for (int64_t n = 0; n < 20; ++n) problem.keys.set_k(0, 0, n, -kInfinity);
  for (uint8_t& x : problem.q) x &= 0x7f;
  problem.check(run(problem));
}

TEST_CASE("score_quantile on CUDA passes bad sinks on to their heads") {
  for (const float sink : {kNaN, kInfinity, -kInfinity, 200.0f}) {
    QuantileProblem problem({.capacity = 50, .has_sinks = true}, {50, 3}, 0.5);
    problem.keys.sinks[2] = sink;
    if (sink == kInfinity) {
      const std::vector<float> got = run(problem);
      for (int h = 0; h < 4; ++h) REQUIRE(std::isnan(got[h * 2]) == (h == 2));
    } else {
      problem.check(run(problem));
    }
  }
}

TEST_CASE("score_quantile on CUDA works through more columns than its workspace holds") {
  // 64 rows of 262,144 keys fill the workspace; most of the keys are beyond the lengths.
  QuantileProblem problem({.num_kv_heads = 3, .group_size = 1, .capacity = 100},
                          std::vector<int32_t>(64, 90), 0.7);
  for (int32_t r = 0; r < 64; ++r) problem.lengths[r] = r;
  problem.params.capacity = 262144;
  REQUIRE(score_quantile_cuda_workspace_bytes(problem.params) < (64 << 20) + 1024);
  problem.check(run(problem));
}

TEST_CASE("score_quantile on CUDA reaches rows beyond 2^32 bytes") {
  constexpr int64_t kStride = int64_t{3} << 30;  // elements: 6 GiB from row to row
  constexpr int64_t kRows = 3;                   // of q and of K
  QuantileProblem problem({.group_size = 1, .capacity = kRows}, {1, 2, 3}, 0.0);
  const std::vector<float> expected = run(problem);
  const size_t bytes = (kRows - 1) * kStride * 2 + 4096;
  char* memory[2];
  for (char*& data : memory) {
    data = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    REQUIRE(data != MAP_FAILED);
  }
  ScoreQuantileParams& p = problem.params;
  for (int64_t i = 0; i < kRows; ++i) {
    const int64_t offset = i * kStride * 2;
    std::memcpy(memory[0] + offset, static_cast<const char*>(p.q) + i * p.q_stride_r * 2, 64 * 2);
    std::memcpy(memory[1] + offset, static_cast<const char*>(p.k.data) + i * p.k.stride_n * 2,
                64 * 2);
  }
  p.q = memory[0];
  p.q_stride_r = kStride;
  p.k = {memory[1], 0, 0, kStride};
  const std::vector<float> far = run(problem);
  for (char* data : memory) munmap(data, bytes);
  REQUIRE(same_bits(far, expected));
}

TEST_CASE("score_quantile on CUDA does nothing where there is nothing to do") {
  QuantileProblem no_keys({.capacity = 0}, {0, 5}, 0.5);
  for (const float x : run(no_keys)) REQUIRE(std::isnan(x));
  QuantileProblem no_rows({.capacity = 10}, {}, 0.5);
  REQUIRE(run(no_rows).empty());
}

TEST_CASE("score_quantile on CUDA names what it does not take") {
  const auto message = [](const DecodeCase& c) {
    QuantileProblem problem(c, {5}, 0.5);
    try {
      run(problem);
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  REQUIRE(message({.dtype = DType::kFloat32}) ==
          "score_quantile: q must be float16 or bfloat16 on CUDA, got float32");
  REQUIRE(message({.head_dim = 32}) ==
          "score_quantile: head_dim must be 64, 80, 96, 128 or 256 on CUDA, got 32");
}

}  // namespace sift
