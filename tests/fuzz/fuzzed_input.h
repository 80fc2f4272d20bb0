// Inputs that libFuzzer's bytes choose, in memory of exactly the size that they need.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <initializer_list>
#include <random>
#include <stdexcept>
#include <vector>

#include "decode/cpu/decode_cpu.h"
#include "decode/params.h"

namespace sift {

// What must hold of an operator's results, else libFuzzer keeps the input.
inline void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

// Plain inputs are such that the reference's bounds of rounding hold. Others are whatever an
// operator accepts: any bits in the numbers, any lengths and block ids.
class Choices {
 public:
  Choices(const uint8_t* data, size_t size)
      : bytes_(data, size), random_(between(0, INT32_MAX)), is_plain_(coin()) {}

  bool is_plain() const { return is_plain_; }
  bool coin() { return bytes_.ConsumeBool(); }
  int64_t between(int64_t least, int64_t largest) {
    return bytes_.ConsumeIntegralInRange<int64_t>(least, largest);
  }
  template <typename T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }
  double unit() { return bytes_.ConsumeProbability<double>(); }
  double any_double();  // often the largest, the least, an infinity, NaN

  // Many numbers would use up the bytes, so these come from a seed among them.
  float normal();
  uint32_t any_bits() { return random_(); }
  float any_float();

 private:
  FuzzedDataProvider bytes_;
  std::mt19937 random_;
  bool is_plain_;
};

// Elements of a dtype, at an address that is a multiple of their size only.
class Elements {
 public:
  Elements(Choices& choices, DType dtype, int64_t count);
  Elements(Elements&&) = default;

  const void* data() const { return bytes_.data() + lead_; }
  // Whoever reads what is hidden is stopped.
  void hide();
  void show(int64_t first, int64_t count);

 private:
  int64_t element_bytes_;
  int64_t lead_;
  std::vector<uint8_t> bytes_;
};

// The sizes of an operator's call.
struct Sizes {
  explicit Sizes(Choices& choices);

  int64_t capacity, head_dim, batch, num_kv_heads, group_size;
  int64_t block_size = 0;  // 0: not paged
  DType dtype;

  int64_t num_q_heads() const { return num_kv_heads * group_size; }
};

// Strides of dimensions in some order, in which they may be padded or repeat their rows (stride 0).
struct Strides {
  Strides(Choices& choices, std::vector<int64_t> sizes, int64_t head_dim);

  std::vector<int64_t> of;
  int64_t num_elements = 0;  // up to the last of the last row; 0 where there is no row
};

// Which keys are attended, and rows of K or V of which all others are hidden.
struct FuzzedKeys {
  FuzzedKeys(Choices& choices, const Sizes& sizes, bool has_lengths);

  KVLayout make_rows(Choices& choices, const Sizes& sizes);

  AttendedKeys keys;

 private:
  std::vector<int32_t> seq_lens_, block_table_;
  std::vector<uint8_t> mask_;
  std::vector<Elements> rows_;
};

struct Scaling {
  explicit Scaling(Choices& choices);

  float scale;
  float softcap;
};

// Pieces of random size, from the last to the first, now and then on threads of their own, which
// take most of the time.
ParallelFor make_threads(Choices& choices);

std::vector<float> make_numbers(Choices& choices, int64_t count, float plain_mean);

}  // namespace sift
