// decode of any accepted input, at every level: it stays within its memory and reads no row that is
// not attended; the bits are the same for any number of threads; plain inputs give the reference's
// results.
#include <bit>
#include <cmath>
#include <vector>

#include "decode/cpu/at_level.h"
#include "decode/cpu/element.h"
#include "decode_case.h"
#include "fuzzed_input.h"

namespace sift {
namespace {

// What was in the memory before makes no difference.
DecodeOutputs run(const DecodeParams& params, const Level& level, int num_threads,
                  const ParallelFor& parallel_for, uint8_t before) {
  DecodeParams p = params;
  const int64_t num_heads = p.batch * p.num_q_heads;
  const int64_t num_groups = p.batch * p.num_kv_heads;
  DecodeOutputs outputs;
  outputs.out.assign(num_heads * p.head_dim * element_bytes(p.dtype), before);
  outputs.lse.assign(num_heads, std::bit_cast<float>(before * 0x01010101u));
  outputs.kept_mass = outputs.lse;
  outputs.num_loaded.assign(num_groups, before);
  p.out = outputs.out.data();
  p.lse = outputs.lse.data();
  p.kept_mass = outputs.kept_mass.data();
  p.num_loaded = outputs.num_loaded.data();
  std::vector<uint8_t> workspace(decode_cpu_workspace_bytes(p, num_threads), before);
  decode_cpu_at_level(level, p, workspace.data(), num_threads, parallel_for);
  return outputs;
}

void check_bounds(const DecodeParams& p, const DecodeOutputs& outputs) {
  for (const int32_t count : outputs.num_loaded) {
    require(count >= 0 && count <= p.capacity, "num_loaded must be in [0, N]");
  }
  for (size_t i = 0; i < outputs.lse.size(); ++i) {
    const float mass = outputs.kept_mass[i];
    require(std::isnan(mass) || (mass >= 0 && mass <= 1.001f), "kept_mass must be in [0, 1]");
    require(!std::isnan(mass) || std::isnan(outputs.lse[i]), "NaN must show in lse");
  }
}

void fuzz(Choices& choices) {
  const Sizes sizes(choices);
  DecodeParams p;
  p.dtype = sizes.dtype;
  p.batch = sizes.batch;
  p.num_q_heads = sizes.num_q_heads();
  p.num_kv_heads = sizes.num_kv_heads;
  p.capacity = sizes.capacity;
  p.head_dim = sizes.head_dim;
  const Strides q_strides(choices, {p.batch, p.num_q_heads}, p.head_dim);
  const Elements q(choices, p.dtype, q_strides.num_elements);
  p.q = q.data();
  p.q_stride_b = q_strides.of[0];
  p.q_stride_h = q_strides.of[1];
  FuzzedKeys keys(choices, sizes, /*has_lengths=*/true);
  p.k = keys.make_rows(choices, sizes);
  p.v = keys.make_rows(choices, sizes);
  p.keys = keys.keys;

  const int64_t num_heads = p.batch * p.num_q_heads;
  const std::vector<float> log_alpha = make_numbers(choices, num_heads, 0.5f);
  const std::vector<float> beta = make_numbers(choices, num_heads, 1.0f);
  const std::vector<float> v_sum = make_numbers(choices, p.batch * p.num_kv_heads * p.head_dim, 0);
  const std::vector<float> sinks = make_numbers(choices, p.num_q_heads, 1.0f);
  p.log_alpha = log_alpha.data();
  p.beta = beta.data();
  p.v_sum = v_sum.data();
  if (choices.coin()) p.sinks = sinks.data();
  p.residual = choices.one_of({Residual::kMean, Residual::kRenormalize, Residual::kNone});
  const Scaling scaling(choices);
  p.scale = scaling.scale;
  p.softcap = scaling.softcap;

  const auto num_threads = static_cast<int>(choices.between(2, 9));
  const ParallelFor threads = make_threads(choices);
  for (const NamedLevel& level : testable_levels()) {
    const DecodeOutputs outputs = run(p, *level.level, 1, one_thread(), 0x00);
    require(run(p, *level.level, num_threads, threads, 0xff) == outputs,
            "threads must not show in the bits");
    check_bounds(p, outputs);
    if (choices.is_plain()) check_decode(p, outputs);
  }
}

}  // namespace
}  // namespace sift

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sift::Choices choices(data, size);
  sift::fuzz(choices);
  return 0;
}
