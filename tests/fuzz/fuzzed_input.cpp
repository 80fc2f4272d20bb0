#include "fuzzed_input.h"

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "decode/cpu/element.h"
#include "decode_case.h"
#include "reference_decode.h"

namespace sift {
namespace {

constexpr int64_t kMostProducts = 128 * 1024;  // of q and k: the reference then takes milliseconds

template <typename T>
T extreme(uint64_t i) {
  using Limits = std::numeric_limits<T>;
  const T values[] = {0,
                      1,
                      Limits::denorm_min(),
                      Limits::min(),
                      Limits::max(),
                      Limits::infinity(),
                      Limits::quiet_NaN()};
  const T x = values[i / 2 % std::size(values)];
  return i % 2 == 0 ? x : -x;
}

}  // namespace

// From a table: drawing them would take longer than the operators.
float Choices::normal() {
  static const std::vector<float> table = [] {
    std::mt19937 random;
    std::normal_distribution<float> normal;
    std::vector<float> numbers(4096);
    std::generate(numbers.begin(), numbers.end(), [&] { return normal(random); });
    return numbers;
  }();
  return table[random_() % table.size()];
}

double Choices::any_double() {
  const auto bits = bytes_.ConsumeIntegral<uint64_t>();
  return coin() ? extreme<double>(bits) : std::bit_cast<double>(bits);
}

float Choices::any_float() {
  const uint32_t bits = any_bits();
  return bits % 4 == 0 ? extreme<float>(bits / 4) : std::bit_cast<float>(bits);
}

Elements::Elements(Choices& choices, DType dtype, int64_t count)
    : element_bytes_(sift::element_bytes(dtype)), lead_(choices.between(0, 3) * element_bytes_) {
  bytes_.resize(lead_ + count * element_bytes_);
  // Some of the wild numbers are ordinary ones, else hardly a score would be finite.
  const bool is_plain = choices.is_plain() || choices.coin();
  const int64_t special = choices.is_plain() ? 0 : choices.between(0, 8);
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < count; ++i) {
      T x = from_float<T>(choices.normal());
      const uint32_t bits = choices.any_bits();
      if (!is_plain || (special > 0 && bits % 64 < special)) std::memcpy(&x, &bits, sizeof(x));
      std::memcpy(bytes_.data() + lead_ + i * element_bytes_, &x, sizeof(x));
    }
  });
}

void Elements::hide() { ASAN_POISON_MEMORY_REGION(bytes_.data(), bytes_.size()); }

void Elements::show(int64_t first, int64_t count) {
  ASAN_UNPOISON_MEMORY_REGION(bytes_.data() + lead_ + first * element_bytes_,
                              count * element_bytes_);
}

Sizes::Sizes(Choices& choices)
    : capacity(choices.between(0, choices.between(0, 15) == 0 ? 1200 : 150)),
      head_dim(choices.one_of<int64_t>({32, 64, 80, 96, 128, 256})),
      dtype(choices.one_of({DType::kFloat32, DType::kBFloat16, DType::kFloat16})) {
  int64_t num_rows =
      std::max<int64_t>(1, kMostProducts / (head_dim * std::max<int64_t>(1, capacity)));
  batch = choices.between(0, std::min<int64_t>(3, num_rows));
  num_rows /= std::max<int64_t>(1, batch);
  num_kv_heads = choices.between(1, std::min<int64_t>(3, num_rows));
  group_size = choices.between(1, std::min<int64_t>(17, num_rows / num_kv_heads));
  if (choices.coin()) {
    block_size = choices.between(1, 70);
    capacity = (capacity + block_size - 1) / block_size * block_size;
  }
}

Strides::Strides(Choices& choices, std::vector<int64_t> sizes, int64_t head_dim)
    : of(sizes.size()) {
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[choices.between(0, i - 1)]);
  int64_t next = head_dim;
  num_elements = head_dim;
  for (const size_t i : order) {
    next += choices.one_of<int64_t>({0, 0, 1, 8, 13});
    of[i] = choices.between(0, 9) == 0 ? 0 : next;
    next = std::max(next, sizes[i] * of[i]);
    num_elements += (sizes[i] - 1) * of[i];
  }
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) num_elements = 0;
}

FuzzedKeys::FuzzedKeys(Choices& choices, const Sizes& sizes, bool has_lengths) {
  if (has_lengths && choices.coin()) {
    for (int64_t b = 0; b < sizes.batch; ++b) {
      const int64_t length = choices.between(-1, sizes.capacity + 1);
      const auto any = static_cast<int32_t>(choices.any_bits());
      seq_lens_.push_back(choices.between(0, 9) == 0 ? any : static_cast<int32_t>(length));
    }
    keys.seq_lens = seq_lens_.data();
  }
  const auto rows_of = [&](int64_t stride, int64_t size) {
    return sizes.batch == 0 ? 0 : (sizes.batch - 1) * stride + size;
  };
  if (choices.coin()) {
    const int64_t attended_of_8 = choices.between(0, 8);
    keys.key_mask_stride_b =
        choices.between(0, 5) == 0 ? 0 : sizes.capacity + choices.between(0, 3);
    mask_.resize(rows_of(keys.key_mask_stride_b, sizes.capacity));
    for (uint8_t& is_attended : mask_) {
      const uint32_t bits = choices.any_bits();
      is_attended = bits % 8 < attended_of_8 ? static_cast<uint8_t>(bits >> 8 | 1) : 0;
    }
    keys.key_mask = reinterpret_cast<const bool*>(mask_.data());
  }
  if (sizes.block_size == 0) return;
  const int64_t max_blocks = sizes.capacity / sizes.block_size;
  keys.block_size = sizes.block_size;
  keys.num_blocks = choices.between(0, sizes.batch * max_blocks + 2);
  keys.block_table_stride_b = choices.between(0, 5) == 0 ? 0 : max_blocks + choices.between(0, 3);
  block_table_.resize(rows_of(keys.block_table_stride_b, max_blocks));
  const int64_t unmapped_of_8 = choices.between(0, 4);
  for (int32_t& id : block_table_) {
    const uint32_t bits = choices.any_bits();
    const auto past_the_last = static_cast<int32_t>(keys.num_blocks);
    const int32_t outside[] = {-1, past_the_last, static_cast<int32_t>(choices.any_bits())};
    id = outside[bits / 8 % 3];
    if (bits % 8 >= unmapped_of_8 && keys.num_blocks > 0) id = bits / 8 % keys.num_blocks;
  }
  keys.block_table = block_table_.data();
}

KVLayout FuzzedKeys::make_rows(Choices& choices, const Sizes& sizes) {
  const bool is_paged = keys.block_table != nullptr;
  const Strides strides(choices,
                        {is_paged ? keys.num_blocks : sizes.batch, sizes.num_kv_heads,
                         is_paged ? sizes.block_size : sizes.capacity},
                        sizes.head_dim);
  Elements& elements = rows_.emplace_back(choices, sizes.dtype, strides.num_elements);
  const KVLayout layout = {elements.data(), strides.of[0], strides.of[1], strides.of[2]};
  elements.hide();
  for (int64_t b = 0; b < sizes.batch; ++b) {
    for (const int64_t n : reference::attended(keys, b, sizes.capacity)) {
      for (int64_t hk = 0; hk < sizes.num_kv_heads; ++hk) {
        elements.show(reference::row_offset(layout, keys, b, hk, n), sizes.head_dim);
      }
    }
  }
  return layout;
}

ParallelFor make_threads(Choices& choices) {
  const auto seed = static_cast<uint32_t>(choices.between(0, INT32_MAX));
  if (choices.between(0, 7) == 0) return random_threads(seed);
  return [seed](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    std::mt19937 random(seed);
    for (int64_t end = count; end > 0;) {
      const int64_t begin = end - 1 - static_cast<int64_t>(random() % end);
      body(begin, end);
      end = begin;
    }
  };
}

Scaling::Scaling(Choices& choices)
    : scale(choices.one_of({0.0f, 0.01f, 0.1f, 0.5f, -0.2f})),
      softcap(choices.one_of({0.0f, 0.0f, 0.5f, 5.0f, 50.0f})) {
  if (choices.is_plain()) return;
  const float any_scale = choices.any_float();
  const float any_softcap = std::fabs(choices.any_float());
  if (std::isfinite(any_scale)) scale = any_scale;
  if (std::isnormal(any_softcap)) softcap = any_softcap;
}

std::vector<float> make_numbers(Choices& choices, int64_t count, float plain_mean) {
  std::vector<float> numbers(count);
  const bool is_plain = choices.is_plain() || choices.coin();
  for (float& x : numbers) {
    x = is_plain ? plain_mean + choices.normal() : choices.any_float();
  }
  return numbers;
}

}  // namespace sift
