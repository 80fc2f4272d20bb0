// score_quantile of any accepted input, at every level: it stays within its memory and reads no row
// that is not attended; the bits are the same for any number of threads; plain inputs give the
// reference's results.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "decode/cpu/at_level.h"
#include "decode_case.h"
#include "fuzzed_input.h"
#include "reference_decode.h"

namespace sift {
namespace {

std::vector<float> run(const ScoreQuantileParams& params, const Level& level, int num_threads,
                       const ParallelFor& parallel_for, uint8_t before) {
  ScoreQuantileParams p = params;
  std::vector<float> quantiles(p.batch * p.num_q_heads * p.num_rows,
                               std::bit_cast<float>(before * 0x01010101u));
  p.quantiles = quantiles.data();
  std::vector<uint8_t> workspace(score_quantile_cpu_workspace_bytes(p, num_threads), before);
  score_quantile_cpu_at_level(level, p, workspace.data(), num_threads, parallel_for);
  return quantiles;
}

// Some of the quantiles: the reference reads all of K for each.
void compare(const ScoreQuantileParams& p, const std::vector<float>& quantiles, int64_t first) {
  const auto count = static_cast<int64_t>(quantiles.size());
  const int64_t step = count / 8 + 1;
  for (int64_t i = first % step; i < count; i += step) {
    const int64_t head = i / p.num_rows;
    const double expected =
        reference::score_quantile(p, head / p.num_q_heads, head % p.num_q_heads, i % p.num_rows);
    const bool agrees = std::isnan(expected)
                            ? std::isnan(quantiles[i])
                            : std::fabs(quantiles[i] - expected) <= 1e-4 * expected + 1e-37;
    require(agrees, "the quantile must be the reference's");
  }
}

void fuzz(Choices& choices) {
  const Sizes sizes(choices);
  ScoreQuantileParams p;
  p.dtype = sizes.dtype;
  p.batch = sizes.batch;
  p.num_q_heads = sizes.num_q_heads();
  p.num_kv_heads = sizes.num_kv_heads;
  p.num_rows = choices.one_of<int64_t>({0, 1, 2, 3, 5, 18});
  p.capacity = sizes.capacity;
  p.head_dim = sizes.head_dim;
  const Strides q_strides(choices, {p.batch, p.num_q_heads, p.num_rows}, p.head_dim);
  const Elements q(choices, p.dtype, q_strides.num_elements);
  p.q = q.data();
  p.q_stride_b = q_strides.of[0];
  p.q_stride_h = q_strides.of[1];
  p.q_stride_r = q_strides.of[2];
  FuzzedKeys keys(choices, sizes, /*has_lengths=*/false);
  p.k = keys.make_rows(choices, sizes);
  p.keys = keys.keys;

  std::vector<int32_t> lengths;
  for (int64_t i = 0; i < p.batch * p.num_rows; ++i) {
    const auto any = static_cast<int32_t>(choices.any_bits());
    lengths.push_back(any % 16 == 0 ? any : any % static_cast<int32_t>(p.capacity + 2));
  }
  p.lengths = lengths.data();
  const std::vector<float> sinks = make_numbers(choices, p.num_q_heads, 1.0f);
  if (choices.coin()) p.sinks = sinks.data();
  p.quantile = choices.coin() ? choices.one_of({0.0, 0.5, 0.95, 1.0}) : choices.unit();
  const Scaling scaling(choices);
  p.scale = scaling.scale;
  p.softcap = scaling.softcap;

  const auto num_threads = static_cast<int>(choices.between(2, 40));
  const ParallelFor threads = make_threads(choices);
  for (const NamedLevel& level : testable_levels()) {
    const std::vector<float> quantiles = run(p, *level.level, 1, one_thread(), 0x00);
    const std::vector<float> again = run(p, *level.level, num_threads, threads, 0xff);
    const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
    require(std::ranges::equal(again, quantiles, {}, bits, bits),
            "threads must not show in the bits");
    for (const float quantile : quantiles) {
      require(std::isnan(quantile) || (quantile >= 0 && quantile <= 1.001f),
              "quantiles must be in [0, 1]");
    }
    if (choices.is_plain()) compare(p, quantiles, choices.any_bits());
  }
}

}  // namespace
}  // namespace sift

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sift::Choices choices(data, size);
  sift::fuzz(choices);
  return 0;
}
