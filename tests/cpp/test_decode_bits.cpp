// What must not change a bit of decode on the CPU: threads, padding, pages, neighbours in the batch,
// and whatever lies in places that are not attended.
#include <algorithm>

#include "catch2.h"
#include "decode/cpu/element.h"
#include "decode_case.h"

namespace sift {
namespace {

NamedLevel any_level() {
  return GENERATE(from_range(testable_levels().begin(), testable_levels().end()));
}

DecodeOutputs run(DecodeProblem& problem, const NamedLevel& level) {
  return problem.run(*level.level, 1, one_thread());
}

// Row i of a's batch against row j of b's.
bool same_row(const DecodeOutputs& a, int64_t i, int64_t batch_a, const DecodeOutputs& b, int64_t j,
              int64_t batch_b) {
  const auto same = [&](const auto& x, const auto& y) {
    const auto size_x = static_cast<int64_t>(x.size()) / batch_a;
    const auto size_y = static_cast<int64_t>(y.size()) / batch_b;
    return size_x == size_y &&
           std::equal(x.begin() + i * size_x, x.begin() + (i + 1) * size_x, y.begin() + j * size_y);
  };
  return same(a.out, b.out) && same(a.lse, b.lse) && same(a.kept_mass, b.kept_mass) &&
         same(a.num_loaded, b.num_loaded);
}

}  // namespace

TEST_CASE("decode gives the same bits on any number of threads", "[row 28][row 29]") {
  const NamedLevel level = any_level();
  for (const int64_t batch : {1, 3}) {
    for (const Mask mask : {Mask::kNone, Mask::kHoles}) {
      DecodeProblem problem(
          {.batch = batch,
           .num_kv_heads = 2,
           .capacity = 5000,
           .head_dim = 64,
           .seq_lens = batch == 1 ? std::vector<int32_t>{} : std::vector<int32_t>{5000, 0, 1025},
           .mask = mask,
           .spread = 2});
      const DecodeOutputs expected = run(problem, level);
      for (const int num_threads : {2, 3, 5, 16}) {
        for (uint32_t seed = 0; seed < 3; ++seed) {
          CAPTURE(level.name, batch, num_threads, seed);
          REQUIRE(problem.run(*level.level, num_threads, random_threads(seed)) == expected);
        }
      }
    }
  }
}

TEST_CASE("decode of a padded or masked row gives the bits of the row alone", "[row 27]") {
  const NamedLevel level = any_level();
  for (const Mask mask : {Mask::kLeftPadding, Mask::kHoles}) {
    for (const int64_t block_size : {0, 1, 16, 24}) {
      CAPTURE(level.name, static_cast<int>(mask), block_size);
      const DecodeCase c{.capacity = 3100, .head_dim = 96, .mask = mask, .block_size = block_size};
      DecodeProblem padded(c);
      std::vector<int64_t> positions;
      for (int64_t n = 0; n < padded.params.capacity; ++n) {
        if (padded.key_mask[n] != 0) positions.push_back(n);
      }
      DecodeProblem alone({.capacity = static_cast<int64_t>(positions.size()), .head_dim = 96});
      alone.q = padded.q;
      alone.params.q = alone.q.data() + 2;
      for (size_t i = 0; i < positions.size(); ++i) {
        const int64_t to = (alone.k_offset(0, 0, static_cast<int64_t>(i)) + 1) * 2;
        const int64_t from = (padded.k_offset(0, 0, positions[i]) + 1) * 2;
        std::copy_n(padded.k.begin() + from, 96 * 2, alone.k.begin() + to);
        std::copy_n(padded.v.begin() + from, 96 * 2, alone.v.begin() + to);
      }
      alone.sum_values();
      REQUIRE(run(padded, level) == run(alone, level));
    }
  }
}

TEST_CASE("decode of a batch gives the bits of its sequences", "[row 28]") {
  const NamedLevel level = any_level();
  const DecodeCase c{.batch = 3,
                     .num_kv_heads = 2,
                     .group_size = 3,
                     .capacity = 2100,
                     .seq_lens = {2100, 7, 1100}};
  DecodeProblem problem(c);
  const DecodeOutputs together = run(problem, level);
  for (int64_t b = 0; b < c.batch; ++b) {
    DecodeParams& p = problem.params;
    const DecodeParams all = p;
    p.batch = 1;
    p.q = static_cast<const char*>(p.q) + b * p.q_stride_b * element_bytes(p.dtype);
    p.k.data = static_cast<const char*>(p.k.data) + b * p.k.stride_b * element_bytes(p.dtype);
    p.v.data = static_cast<const char*>(p.v.data) + b * p.v.stride_b * element_bytes(p.dtype);
    p.keys.seq_lens += b;
    p.v_sum += b * p.num_kv_heads * p.head_dim;
    REQUIRE(same_row(together, b, c.batch, run(problem, level), 0, 1));
    p = all;
  }
}

TEST_CASE("decode does not depend on what it does not attend", "[row 8]") {
  const NamedLevel level = any_level();
  for (const int64_t block_size : {0, 16}) {
    DecodeProblem problem({.batch = 2,
                           .num_kv_heads = 2,
                           .capacity = 300,
                           .seq_lens = {300, 77},
                           .mask = Mask::kHoles,
                           .block_size = block_size});
    const DecodeOutputs expected = run(problem, level);
    const auto is_nan = [](uint16_t bits) { return (bits & 0x7fff) > 0x7f80; };
    for (std::vector<uint8_t>* data : {&problem.k, &problem.v}) {
      auto* bits = reinterpret_cast<uint16_t*>(data->data());
      std::replace_if(bits, bits + data->size() / 2, is_nan, uint16_t{0x7f80});  // infinity
    }
    REQUIRE(run(problem, level) == expected);
  }
}

TEST_CASE("decode that keeps all is the same for every residual", "[row 10]") {
  const NamedLevel level = any_level();
  DecodeCase c{.num_kv_heads = 2, .capacity = 2000, .c = 0, .has_sinks = true};
  c.residual = Residual::kNone;
  const DecodeOutputs expected = run(*std::make_unique<DecodeProblem>(c), level);
  c.residual = Residual::kMean;
  REQUIRE(run(*std::make_unique<DecodeProblem>(c), level) == expected);
  c.residual = Residual::kRenormalize;
  REQUIRE(run(*std::make_unique<DecodeProblem>(c), level) == expected);
}

}  // namespace sift
