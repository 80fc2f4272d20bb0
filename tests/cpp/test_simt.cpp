// The host side of the device seam: warp functions against what they mean.
#include <cstdint>
#include <random>
#include <vector>

#include "catch2.h"
#include "device.h"
#include "launch.h"

namespace sift {
namespace {

using dev::lane;

struct Product {
  const uint16_t* a;  // [16, 16]
  const uint16_t* b;  // [16, 8]
  float* c;           // [16, 8]
};

// Fragments filled from memory, as the PTX tables say.
template <class T>
SIFT_KERNEL(32, 1)
product_kernel(const SIFT_GRID_CONSTANT Product p) {
  const int group = lane() / 4, pair = 2 * (lane() % 4);
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) {
    const uint16_t* x = p.a + (group + 8 * (i % 2)) * 16 + pair + 8 * (i / 2);
    a[i] = x[0] | uint32_t{x[1]} << 16;
  }
  for (int i = 0; i < 2; ++i) {
    const uint16_t* x = p.b + (pair + 8 * i) * 8 + group;
    b[i] = x[0] | uint32_t{x[8]} << 16;
  }
  float c[4] = {1, 1, 1, 1};
  dev::multiply_add<T>(c, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i) p.c[(group + 8 * (i / 2)) * 8 + pair + i % 2] = c[i];
}

TEMPLATE_TEST_CASE("multiply_add is a matrix product", "", BFloat16, Float16) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> integers(-8, 8);
  std::vector<int> a(16 * 16), b(16 * 8);
  std::vector<uint16_t> a_bits, b_bits;
  for (int& x : a) a_bits.push_back(from_float<TestType>(float(x = integers(random))).bits);
  for (int& x : b) b_bits.push_back(from_float<TestType>(float(x = integers(random))).bits);
  std::vector<float> c(16 * 8);
  dev::launch("product", product_kernel<TestType>, {1, 32, 0}, nullptr,
              Product{a_bits.data(), b_bits.data(), c.data()});
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      int sum = 1;
      for (int k = 0; k < 16; ++k) sum += a[i * 16 + k] * b[k * 8 + j];
      CHECK(c[i * 8 + j] == float(sum));
    }
  }
}

}  // namespace
}  // namespace sift
