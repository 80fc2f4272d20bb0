// Builds decode problems of every kind, runs them at a level and compares with the reference.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "decode/cpu/decode_cpu.h"
#include "decode/cpu/level.h"
#include "decode/params.h"

namespace sift {

// Every level that can run here: the processor's own and, where built, the emulated ones.
struct NamedLevel {
  std::string name;
  const Level* level;
};
const std::vector<NamedLevel>& testable_levels();

// Splits the work at random over real threads.
ParallelFor random_threads(uint32_t seed);
// All in one piece on the calling thread.
ParallelFor one_thread();

// Of NaN, which valgrind takes for undefined.
std::vector<float> make_workspace(int64_t num_bytes);

enum class Mask { kNone, kHoles, kLeftPadding, kNothing };

struct DecodeCase {
  int64_t batch = 1;
  int64_t num_kv_heads = 1;
  int64_t group_size = 4;
  int64_t capacity = 65;
  int64_t head_dim = 64;
  DType dtype = DType::kBFloat16;
  std::vector<int32_t> seq_lens = {};  // empty: capacity
  Mask mask = Mask::kNone;
  int64_t block_size = 0;  // 0: not paged; capacity is rounded up to whole blocks
  double c = 2;            // theta = c / S; 0: exact
  float softcap = 0;
  bool has_sinks = false;
  Residual residual = Residual::kMean;
  float spread = 1;         // of the scores, about
  bool is_aligned = false;  // rows begin at multiples of 16 bytes, not at odd addresses
  uint32_t seed = 1;

  std::string describe() const;
};

struct DecodeOutputs {
  std::vector<uint8_t> out;
  std::vector<float> lse;
  std::vector<float> kept_mass;
  std::vector<int32_t> num_loaded;

  bool operator==(const DecodeOutputs& other) const;  // bit by bit
};

// Random data of a case. Whatever is not attended is NaN: masked rows, gaps between strides, pages
// that no table names.
struct DecodeProblem {
  explicit DecodeProblem(const DecodeCase& c);
  DecodeProblem(const DecodeProblem&) = delete;

  // Outputs and workspace are NaN before.
  DecodeOutputs run(const Level& level, int num_threads, const ParallelFor& parallel_for);
  DecodeOutputs run(const std::function<void(const DecodeParams&)>& decode);
  // Sets v_sum from the attended rows of V, after changes to these.
  void sum_values();

  void set(std::vector<uint8_t>& data, int64_t offset, float x);
  int64_t k_offset(int64_t b, int64_t hk, int64_t n) const;  // the same in V
  void set_k(int64_t b, int64_t hk, int64_t n, float x);     // a whole row
  void set_v(int64_t b, int64_t hk, int64_t n, float x);

  DecodeParams params;
  int64_t lead;  // elements before the first row
  std::vector<uint8_t> q, k, v;
  std::vector<float> log_alpha, beta, v_sum, sinks;
  std::vector<int32_t> seq_lens, block_table;
  std::vector<uint8_t> key_mask;
};

// Throws unless the outputs agree with the reference; returns the keys loaded and borderline.
struct Counts {
  int64_t keys = 0;
  int64_t loaded = 0;
  int64_t borderline = 0;

  Counts& operator+=(const Counts& other) {
    keys += other.keys;
    loaded += other.loaded;
    borderline += other.borderline;
    return *this;
  }
};
Counts check_decode(const DecodeParams& params, const DecodeOutputs& outputs);

}  // namespace sift
