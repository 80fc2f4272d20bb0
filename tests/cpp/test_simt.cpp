// The host side of the device seam: warp functions, elements and launches do what they say.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "catch2.h"
#include "device.h"
#include "launch.h"

namespace sift {
namespace {

using dev::lane;
using dev::thread;

constexpr int kSide = 8;  // of a matrix

// ---- Matrices --------------------------------------------------------------------------------------

struct Matrices {
  const uint16_t* elements;  // [4, 8, 8]
  uint32_t* loaded;          // [4, 32] words, as the lanes hold them
  uint32_t* transposed;      // [4, 32]
  uint32_t* loaded_two;      // [2, 32]
  uint32_t* moved;           // [32] transpose of the first
};

SIFT_KERNEL(32, 1) load_kernel(const SIFT_GRID_CONSTANT Matrices p) {
  constexpr int kRowBytes = kSide * sizeof(uint16_t);
  char* row = dev::shared_memory() + lane() * kRowBytes;
  dev::copy_async_16(row, p.elements + lane() * kSide, true);
  dev::commit_copies();
  dev::wait_copies<0>();
  dev::sync_warp();
  uint32_t loaded[4], transposed[4], two[2];
  dev::load_matrix_x4(loaded, row);
  dev::load_matrix_x4_transposed(transposed, row);
  dev::load_matrix_x2(two, lane() < 16 ? row : nullptr);
  for (int i = 0; i < 4; ++i) {
    p.loaded[32 * i + lane()] = loaded[i];
    p.transposed[32 * i + lane()] = transposed[i];
  }
  for (int i = 0; i < 2; ++i) p.loaded_two[32 * i + lane()] = two[i];
  p.moved[lane()] = dev::transpose_matrix(loaded[0]);
}

TEST_CASE("matrices are spread over the lanes in rows, or in columns") {
  std::vector<uint16_t> elements(4 * kSide * kSide);
  std::iota(elements.begin(), elements.end(), uint16_t{1000});
  std::vector<uint32_t> loaded(4 * 32), transposed(4 * 32), two(2 * 32), moved(32);
  dev::launch(
      "load", load_kernel, {1, 32, 512}, nullptr,
      Matrices{elements.data(), loaded.data(), transposed.data(), two.data(), moved.data()});
  const auto at = [&](int matrix, int row, int column) {
    return uint32_t{elements[static_cast<size_t>((matrix * kSide + row) * kSide + column)]};
  };
  for (int i = 0; i < 4 * 32; ++i) {
    const int matrix = i / 32, row = i % 32 / 4, column = 2 * (i % 4);
    CHECK(loaded[i] == (at(matrix, row, column) | at(matrix, row, column + 1) << 16));
    CHECK(transposed[i] == (at(matrix, column, row) | at(matrix, column + 1, row) << 16));
  }
  CHECK(std::equal(two.begin(), two.end(), loaded.begin()));
  CHECK(std::equal(moved.begin(), moved.end(), transposed.begin()));
}

struct Product {
  const uint16_t* a;  // [16, 16]
  const uint16_t* b;  // [8, 16], each row a column of the matrix
  float* c;           // [16, 8]
};

// Scores as a kernel computes them: rows of queries times rows of keys.
template <class T>
SIFT_KERNEL(32, 1)
product_kernel(const SIFT_GRID_CONSTANT Product p) {
  auto* a_rows = reinterpret_cast<uint16_t*>(dev::shared_memory());
  uint16_t* b_rows = a_rows + 16 * 16;
  for (int i = lane(); i < 16 * 16; i += 32) a_rows[i] = p.a[i];
  for (int i = lane(); i < 8 * 16; i += 32) b_rows[i] = p.b[i];
  dev::sync_warp();
  uint32_t a[4], b[2];
  dev::load_matrix_x4(a, a_rows + lane() % 16 * 16 + lane() / 16 * kSide);
  dev::load_matrix_x2(b, b_rows + lane() % 8 * 16 + lane() / 8 % 2 * kSide);
  float c[4] = {1, 1, 1, 1};
  dev::multiply_add<T>(c, a, b[0], b[1]);
  float* corner = p.c + lane() / 4 * kSide + 2 * (lane() % 4);
  for (int i = 0; i < 4; ++i) corner[i / 2 * 8 * kSide + i % 2] = c[i];
}

TEMPLATE_TEST_CASE("multiply_add is a matrix product", "", BFloat16, Float16) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> integers(-8, 8);
  std::vector<int> a(16 * 16), b(8 * 16);
  std::vector<uint16_t> a_bits, b_bits;
  for (int& x : a) a_bits.push_back(from_float<TestType>(float(x = integers(random))).bits);
  for (int& x : b) b_bits.push_back(from_float<TestType>(float(x = integers(random))).bits);
  std::vector<float> c(16 * 8);
  dev::launch("product", product_kernel<TestType>, {1, 32, 768}, nullptr,
              Product{a_bits.data(), b_bits.data(), c.data()});
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      CHECK(c[i * 8 + j] == float(std::inner_product(&a[i * 16], &a[i * 16] + 16, &b[j * 16], 1)));
    }
  }
}

// ---- Exchange --------------------------------------------------------------------------------------

struct Exchanged {
  double* shuffled;   // [64] value of lane 40 % 32
  float* mirrored;    // [64] by shuffle_xor
  int32_t* sums;      // [64] over the lanes up to this one, by shuffle_up
  uint32_t* ballots;  // [64] of odd lanes
  uint32_t* counter;  // counts threads
};

SIFT_KERNEL(64, 1) exchange_kernel(const SIFT_GRID_CONSTANT Exchanged p) {
  p.shuffled[thread()] = dev::shuffle(thread() + 0.5, 40);
  p.mirrored[thread()] = dev::shuffle_xor(float(thread()), 31);
  int32_t sum = lane();
  for (int delta = 1; delta < 32; delta *= 2) {
    const int32_t below = dev::shuffle_up(sum, delta);
    if (lane() >= delta) sum += below;
  }
  p.sums[thread()] = sum;
  p.ballots[thread()] = dev::ballot(lane() % 2 == 1);
  dev::atomic_add(p.counter, 1);
}

TEST_CASE("lanes exchange values within their warp") {
  std::vector<double> shuffled(64);
  std::vector<float> mirrored(64);
  std::vector<int32_t> sums(64);
  std::vector<uint32_t> ballots(64);
  uint32_t counter = 0;
  dev::launch("exchange", exchange_kernel, {1, 64, 0}, nullptr,
              Exchanged{shuffled.data(), mirrored.data(), sums.data(), ballots.data(), &counter});
  for (int i = 0; i < 64; ++i) {
    CHECK(shuffled[i] == i / 32 * 32 + 8.5);
    CHECK(mirrored[i] == float(i / 32 * 32 + 31 - i % 32));
    CHECK(sums[i] == (i % 32) * (i % 32 + 1) / 2);
    CHECK(ballots[i] == 0xaaaaaaaau);
  }
  CHECK(counter == 64);
}

// ---- Elements --------------------------------------------------------------------------------------

// Every finite element, the midpoint to the next and the floats on both sides of it.
TEMPLATE_TEST_CASE("floats round to the nearest element, ties to even", "", BFloat16, Float16) {
  const auto value = [](uint32_t bits) { return to_float(TestType{static_cast<uint16_t>(bits)}); };
  const auto low = [](float x) { return dev::pack<TestType>(x, 0) & 0xffffu; };
  const auto high = [](float x) { return dev::pack<TestType>(0, x) >> 16; };
  bool holds = true;
  uint32_t bits = 0;
  for (; std::isfinite(value(bits + 1)); ++bits) {
    const float x = value(bits), middle = x + (value(bits + 1) - x) / 2;
    holds = holds && low(x) == bits && high(-x) == (bits | 0x8000u);
    holds = holds && low(middle) == bits + bits % 2 && high(middle) == bits + bits % 2;
    holds = holds && low(std::nextafter(middle, 0.0f)) == bits;
    holds = holds && low(std::nextafter(middle, INFINITY)) == bits + 1;
    holds =
        holds && dev::low_half<TestType>(bits) == x && dev::high_half<TestType>(bits << 16) == x;
  }
  CHECK(holds);
  CHECK(low(INFINITY) == bits + 1);
  CHECK(low(std::numeric_limits<float>::max()) == bits + 1);
  CHECK(std::isnan(dev::low_half<TestType>(dev::pack<TestType>(dev::nan(), 0))));
}

// ---- Launches --------------------------------------------------------------------------------------

struct Blocks {
  int32_t* order;     // blocks in the order of their begin
  uint32_t* counter;  // of blocks
};

SIFT_KERNEL(32, 1) order_kernel(const SIFT_GRID_CONSTANT Blocks p) {
  if (lane() == 0) p.order[dev::atomic_add(p.counter, 1)] = dev::block();
}

TEST_CASE("every block runs once, in random order") {
  std::vector<int32_t> expected(100);
  std::iota(expected.begin(), expected.end(), 0);
  std::vector<std::vector<int32_t>> orders(2, std::vector<int32_t>(100));
  for (auto& order : orders) {
    uint32_t counter = 0;
    dev::launch("order", order_kernel, {100, 32, 0}, nullptr, Blocks{order.data(), &counter});
  }
  CHECK(orders[0] != orders[1]);
  for (auto& order : orders) {
    std::sort(order.begin(), order.end());
    CHECK(order == expected);
  }
}

}  // namespace
}  // namespace sift
