// decode on the CPU against the reference: every level, dtype, head dimension, group size, length
// and layout.
#include "catch2.h"
#include "decode_case.h"

namespace sift {
namespace {

Counts check(const DecodeCase& c, const NamedLevel& level) {
  INFO(level.name << " " << c.describe());
  DecodeProblem problem(c);
  return check_decode(problem.params, problem.run(*level.level, 1, one_thread()));
}

NamedLevel any_level() {
  return GENERATE(from_range(testable_levels().begin(), testable_levels().end()));
}

}  // namespace

TEST_CASE("decode agrees with the reference for every dtype and head dimension", "[row 19]") {
  const NamedLevel level = any_level();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t head_dim : {32, 64, 80, 96, 128, 256}) {
      for (const int64_t group_size : {1, 2, 3, 4, 5, 7, 8, 16}) {
        check({.group_size = group_size, .head_dim = head_dim, .dtype = dtype, .spread = 2}, level);
      }
    }
  }
}

TEST_CASE("decode agrees with the reference at every length") {
  const NamedLevel level = any_level();
  for (const int64_t length : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 4097}) {
    for (const double c : {0.0, 1.5, 1e9}) {
      for (const int64_t block_size : {0, 1, 16, 24, 64}) {
        check({.capacity = length, .head_dim = 32, .block_size = block_size, .c = c, .spread = 2},
              level);
      }
    }
  }
}

TEST_CASE("decode attends what lengths, masks and pages say", "[row 27]") {
  const NamedLevel level = any_level();
  Counts counts;
  for (const Mask mask : {Mask::kNone, Mask::kHoles, Mask::kLeftPadding, Mask::kNothing}) {
    for (const int64_t block_size : {0, 1, 16, 24, 64}) {
      const Counts some = check({.batch = 5,
                                 .num_kv_heads = 2,
                                 .group_size = 3,
                                 .capacity = 2500,
                                 .head_dim = 32,
                                 .seq_lens = {2500, 0, 1, 1300, 64},
                                 .mask = mask,
                                 .block_size = block_size,
                                 .spread = 2},
                                level);
      counts += some;
    }
  }
  CHECK(counts.loaded > counts.keys / 20);
  CHECK(counts.loaded < counts.keys / 2);
  CHECK(counts.borderline < counts.keys / 100);
}

TEST_CASE("decode agrees with the reference for every residual, with softcap and sinks") {
  const NamedLevel level = any_level();
  for (const Residual residual : {Residual::kMean, Residual::kRenormalize, Residual::kNone}) {
    for (const float softcap : {0.0f, 2.0f, 50.0f}) {
      for (const bool has_sinks : {false, true}) {
        for (const float spread : {0.1f, 3.0f, 300.0f}) {
          check({.capacity = 1500,
                 .softcap = softcap,
                 .has_sinks = has_sinks,
                 .residual = residual,
                 .spread = spread},
                level);
        }
      }
    }
  }
}

}  // namespace sift
