// The CUDA decode kernel, its threads run as fibers in random order, against the reference.
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "catch2.h"
#include "decode/cuda/decode_cuda.h"
#include "decode_case.h"
#include "simt.h"

namespace sift {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// With a workspace of NaN.
void decode(const DecodeParams& params) {
  const int64_t bytes = decode_cuda_workspace_bytes(params);
  std::vector<float> workspace(static_cast<size_t>(bytes / 4), kNaN);
  decode_cuda(params, workspace.data(), nullptr);
}

DecodeOutputs run(DecodeProblem& problem) { return problem.run(decode); }

Counts check(DecodeCase c) {
  INFO(c.describe());
  DecodeProblem problem(c);
  return check_decode(problem.params, run(problem));
}

// A machine of this seed until the end of the scope.
class WithMachine {
 public:
  explicit WithMachine(const simt::Machine& machine) : before_(simt::machine()) {
    simt::machine() = machine;
  }
  ~WithMachine() { simt::machine() = before_; }

 private:
  simt::Machine before_;
};

}  // namespace

TEST_CASE("decode on CUDA agrees with the reference for every dtype and head dimension") {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t head_dim : {64, 80, 96, 128, 256}) {
      for (const int64_t group_size : {1, 2, 3, 4, 7, 8, 12, 16, 20}) {
        for (const double c : {0.0, 2.0}) {
          check({.group_size = group_size,
                 .capacity = 300,
                 .head_dim = head_dim,
                 .dtype = dtype,
                 .c = c,
                 .spread = 2,
                 .is_aligned = group_size % 3 != 0});
        }
      }
    }
  }
}

TEST_CASE("decode on CUDA agrees with the reference at every length") {
  for (const int64_t length : {1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1025, 4097}) {
    for (const double c : {0.0, 1.5, 1e9}) {
      for (const int64_t block_size : {0, 1, 24, 64}) {
        check({.capacity = length,
               .block_size = block_size,
               .c = c,
               .spread = 2,
               .is_aligned = true});
      }
    }
  }
}

TEST_CASE("decode on CUDA attends what lengths, masks and pages say", "[row 27]") {
  Counts counts;
  for (const Mask mask : {Mask::kNone, Mask::kHoles, Mask::kLeftPadding, Mask::kNothing}) {
    for (const int64_t block_size : {0, 1, 24, 64}) {
      for (const double c : {0.0, 2.0}) {
        const Counts some = check({.batch = 5,
                                   .num_kv_heads = 2,
                                   .group_size = 3,
                                   .capacity = 2500,
                                   .seq_lens = {2500, 0, 1, 1300, 64},
                                   .mask = mask,
                                   .block_size = block_size,
                                   .c = c,
                                   .spread = 2,
                                   .is_aligned = block_size % 3 == 0});
        if (c == 0.0) continue;
        counts += some;
      }
    }
  }
  CHECK(counts.loaded > counts.keys / 20);
  CHECK(counts.loaded < counts.keys / 2);
  CHECK(counts.borderline < counts.keys / 100);
}

TEST_CASE("decode on CUDA agrees with the reference for every residual, with softcap and sinks") {
  for (const Residual residual : {Residual::kMean, Residual::kRenormalize, Residual::kNone}) {
    for (const float softcap : {0.0f, 2.0f, 50.0f}) {
      for (const bool has_sinks : {false, true}) {
        for (const float spread : {0.1f, 3.0f, 300.0f}) {
          check({.capacity = 1500,
                 .softcap = softcap,
                 .has_sinks = has_sinks,
                 .residual = residual,
                 .spread = spread,
                 .is_aligned = true});
        }
      }
    }
  }
}

TEST_CASE("decode on CUDA gives the same bits on any grid, in any order, and in any batch",
          "[row 28]") {
  for (const double c : {0.0, 2.0}) {
    const DecodeCase batch_of_five = {.batch = 5,
                                      .num_kv_heads = 2,
                                      .capacity = 2500,
                                      .seq_lens = {2500, 0, 700, 1300, 64},
                                      .c = c,
                                      .spread = 2,
                                      .is_aligned = true};
    DecodeProblem problem(batch_of_five);
    const DecodeOutputs expected = run(problem);
    for (uint32_t seed = 1; seed <= 6; ++seed) {
      // Small caches cut the batch into waves.
      const WithMachine machine({.max_resident_blocks = static_cast<int>(1 + seed % 5),
                                 .l2_bytes = int64_t{1} << (14 + seed % 4 * 3),
                                 .seed = 100 * seed});
      REQUIRE(run(problem) == expected);
    }
    const int64_t heads = problem.params.num_q_heads;
    const int64_t bytes = heads * problem.params.head_dim * 2;
    for (int64_t b = 0; b < 5; ++b) {
      DecodeOutputs alone = problem.run([&](DecodeParams p) {
        p.batch = 1;
        p.q = static_cast<const char*>(p.q) + b * p.q_stride_b * 2;
        p.k.data = static_cast<const char*>(p.k.data) + b * p.k.stride_b * 2;
        p.v.data = static_cast<const char*>(p.v.data) + b * p.v.stride_b * 2;
        p.keys.seq_lens += b;
        p.v_sum += b * p.num_kv_heads * p.head_dim;
        decode(p);
      });
      CHECK(std::vector(alone.out.begin(), alone.out.begin() + bytes) ==
            std::vector(expected.out.begin() + b * bytes, expected.out.begin() + (b + 1) * bytes));
      CHECK(std::vector(alone.lse.begin(), alone.lse.begin() + heads) ==
            std::vector(expected.lse.begin() + b * heads, expected.lse.begin() + (b + 1) * heads));
    }
  }
}

TEST_CASE("decode on CUDA takes batches of any size", "[row 16]") {
  const Counts counts = check({.batch = 300, .group_size = 1, .capacity = 20, .spread = 2});
  CHECK(counts.keys == 300 * 20);
}

TEST_CASE("decode on CUDA sees NaN in a query and in a key", "[row 6]") {
  for (const double c : {0.0, 2.0}) {
    DecodeProblem problem({.num_kv_heads = 2, .capacity = 600, .c = c, .is_aligned = true});
    problem.set_k(0, 1, 599, kNaN);
    check_decode(problem.params, run(problem));
    problem.set(problem.q, 5, kNaN);
    check_decode(problem.params, run(problem));
  }
}

TEST_CASE("decode on CUDA reads the rows of V that it counts as loaded, and no other") {
  for (const double c : {1e9, 3.0, 0.0}) {
    DecodeProblem problem({.capacity = 300, .c = c, .residual = Residual::kNone, .spread = 2});
    const DecodeOutputs expected = run(problem);
    const std::vector<uint8_t> v = problem.v;
    int num_read = 0;
    for (int64_t n = 0; n < 300; ++n) {
      problem.set_v(0, 0, n, kNaN);
      num_read += !(run(problem) == expected);
      std::copy(v.begin(), v.end(), problem.v.begin());
    }
    CHECK(num_read == expected.num_loaded[0]);
  }
}

TEST_CASE("decode on CUDA takes a group of any size, and many KV heads") {
  check({.num_kv_heads = 2, .group_size = 71, .capacity = 1500, .spread = 2, .is_aligned = true});
  check({.num_kv_heads = 300, .group_size = 1, .capacity = 20, .spread = 2});
}

TEST_CASE("decode on CUDA reaches rows beyond 2^32 bytes", "[row 15]") {
  constexpr int64_t kStride = int64_t{3} << 30;  // elements: 6 GiB from row to row
  constexpr int kRows = 3;
  DecodeProblem problem({.group_size = 1, .capacity = kRows, .c = 2.0});
  const DecodeOutputs expected = run(problem);
  const size_t bytes = (kRows - 1) * kStride * 2 + 4096;
  char* memory[2];
  for (char*& data : memory) {
    data = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    REQUIRE(data != MAP_FAILED);
  }
  const DecodeOutputs far = problem.run([&](DecodeParams p) {
    const KVLayout near[2] = {p.k, p.v};
    for (int i = 0; i < 2; ++i) {
      for (int64_t n = 0; n < kRows; ++n) {
        std::memcpy(memory[i] + n * kStride * 2,
                    static_cast<const char*>(near[i].data) + n * near[i].stride_n * 2, 64 * 2);
      }
    }
    p.k = {memory[0], 0, 0, kStride};
    p.v = {memory[1], 0, 0, kStride};
    decode(p);
  });
  for (char* data : memory) munmap(data, bytes);
  CHECK(far == expected);
}

}  // namespace sift
