// decode on the CPU at its edges: ties, infinities, NaN, nothing kept, nothing attended, and memory
// that ends after the last row.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "catch2.h"
#include "decode/cpu/element.h"
#include "decode_case.h"
#include "reference_decode.h"

namespace sift {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

NamedLevel any_level() {
  return GENERATE(from_range(testable_levels().begin(), testable_levels().end()));
}

// One group of 4 heads, fp32, D = 32.
DecodeCase small(int64_t capacity) {
  return {.capacity = capacity, .head_dim = 32, .dtype = DType::kFloat32};
}

std::vector<float> out_of(const DecodeOutputs& outputs) {
  std::vector<float> out(outputs.out.size() / sizeof(float));
  std::memcpy(out.data(), outputs.out.data(), outputs.out.size());
  return out;
}

void set_queries(DecodeProblem& problem, float x) {
  for (int64_t h = 0; h < problem.params.num_q_heads; ++h) {
    for (int64_t d = 0; d < problem.params.head_dim; ++d) {
      problem.set(problem.q, h * problem.params.q_stride_h + d, x);
    }
  }
}

// Sets the law of every head.
void set_law(DecodeProblem& problem, float log_alpha, float beta) {
  problem.log_alpha.assign(problem.log_alpha.size(), log_alpha);
  problem.beta.assign(problem.beta.size(), beta);
}

DecodeOutputs run(DecodeProblem& problem, const NamedLevel& level) {
  return problem.run(*level.level, 1, one_thread());
}

}  // namespace

TEST_CASE("decode where nothing passes loads the first of the largest keys", "[row 9][row 11]") {
  const NamedLevel level = any_level();
  DecodeProblem problem(small(2500));
  set_law(problem, 0, 0);  // theta = 1
  set_queries(problem, 1);
  problem.set_k(0, 0, 1700, 8);
  problem.set_k(0, 0, 1300, 8);
  problem.set_k(0, 0, 2400, 8);
  problem.params.residual = Residual::kNone;
  const DecodeOutputs outputs = run(problem, level);
  check_decode(problem.params, outputs);
  CHECK(outputs.num_loaded[0] == 1);
  const std::vector<double> v =
      reference::row(problem.params.v.data, problem.k_offset(0, 0, 1300), 32, problem.params.dtype);
  const std::vector<float> out = out_of(outputs);
  CHECK(std::fabs(out[0] - v[0] / 3) < 1e-5);
}

TEST_CASE("decode loads the key with the largest p of any head", "[row 9]") {
  const NamedLevel level = any_level();
  DecodeProblem problem(small(1500));
  set_law(problem, 0, 0);
  for (int64_t d = 0; d < 32; ++d) {  // head 2 alone sees one large key
    problem.set(problem.q, 2 * problem.params.q_stride_h + d, 3);
  }
  problem.set_k(0, 0, 1100, 3);
  const DecodeOutputs outputs = run(problem, level);
  check_decode(problem.params, outputs);
  CHECK(outputs.num_loaded[0] == 1);
  CHECK(outputs.kept_mass[2] > 0.99f);
}

TEST_CASE("decode treats equal keys alike", "[row 11]") {
  const NamedLevel level = any_level();
  DecodeProblem problem(small(3000));
  for (int64_t n = 0; n < 3000; ++n) problem.set_k(0, 0, n, 0.25f);
  problem.sum_values();
  SECTION("p just above theta: all are loaded") {
    set_law(problem, std::log(0.999f), 1);
    CHECK(run(problem, level).num_loaded[0] == 3000);
  }
  SECTION("p just below theta: one is, the first") {
    set_law(problem, std::log(1.001f), 1);
    const DecodeOutputs outputs = run(problem, level);
    CHECK(outputs.num_loaded[0] == 1);
    check_decode(problem.params, outputs);
  }
}

TEST_CASE("decode of one huge key is that key's value", "[row 5]") {
  const NamedLevel level = any_level();
  for (const float size : {1e4f, 1e18f}) {
    DecodeProblem problem(small(1100));
    set_queries(problem, 1);
    problem.set_k(0, 0, 1050, size);
    const DecodeOutputs outputs = run(problem, level);
    CHECK(outputs.num_loaded[0] == 1);
    CHECK(outputs.kept_mass[3] == 1);
    check_decode(problem.params, outputs);
  }
}

TEST_CASE("decode keeps deeply negative scores", "[row 5]") {
  const NamedLevel level = any_level();
  DecodeProblem problem(small(200));
  set_queries(problem, 1);
  for (int64_t n = 0; n < 200; ++n) problem.set_k(0, 0, n, -1e36f);
  const DecodeOutputs outputs = run(problem, level);
  for (const float lse : outputs.lse) CHECK(lse < -1e36f);
  for (const float x : out_of(outputs)) CHECK(std::isfinite(x));
}

TEST_CASE("decode with theta 0 keeps keys whose probability underflows", "[row 10]") {
  const NamedLevel level = any_level();
  DecodeCase c = small(1500);
  c.c = 0;
  DecodeProblem problem(c);
  set_queries(problem, 1);
  problem.set_k(0, 0, 3, 1e4f);
  CHECK(run(problem, level).num_loaded[0] == 1500);
  problem.set_k(0, 0, 4, -kInfinity);
  CHECK(run(problem, level).num_loaded[0] == 1500);
}

TEST_CASE("decode loads rows under a sink that all of them vanish against", "[row 10]") {
  DecodeCase c = small(1500);
  c.c = GENERATE(0, 2);
  DecodeProblem problem(c);
  problem.sinks.assign(static_cast<size_t>(problem.params.num_q_heads), 1e4f);
  problem.params.sinks = problem.sinks.data();
  const DecodeOutputs outputs = run(problem, any_level());
  CHECK(outputs.num_loaded[0] == (c.c == 0 ? 1500 : 1));
  for (const float mass : outputs.kept_mass) CHECK(mass == 0);
  for (const float x : out_of(outputs)) CHECK(x == 0);
}

TEST_CASE("decode passes NaN and infinite scores on to their heads only", "[row 6]") {
  const NamedLevel level = any_level();
  SECTION("in a query") {
    DecodeProblem problem(small(1100));
    problem.set(problem.q, 2 * problem.params.q_stride_h + 5, kNaN);
    const DecodeOutputs outputs = run(problem, level);
    CHECK(outputs.num_loaded[0] == 1100);
    CHECK(std::isnan(outputs.lse[2]));
    CHECK(std::isnan(out_of(outputs)[2 * 32 + 7]));
    CHECK(std::isfinite(outputs.lse[1]));
    check_decode(problem.params, outputs);
  }
  SECTION("in a key") {
    DecodeProblem problem(small(1100));
    problem.set(problem.k, problem.k_offset(0, 0, 1050), kNaN);
    const DecodeOutputs outputs = run(problem, level);
    for (const float lse : outputs.lse) CHECK(std::isnan(lse));
    for (const float x : out_of(outputs)) CHECK(std::isnan(x));
  }
  SECTION("a score of +inf") {
    DecodeProblem problem(small(1100));
    set_queries(problem, 1);
    problem.set_k(0, 0, 600, kInfinity);
    const DecodeOutputs outputs = run(problem, level);
    for (const float lse : outputs.lse) CHECK(std::isnan(lse));
    for (const float x : out_of(outputs)) CHECK(std::isnan(x));
  }
}

TEST_CASE("decode leaves out NaN values that it does not load", "[row 7]") {
  const NamedLevel level = any_level();
  DecodeProblem problem(small(1100));
  set_queries(problem, 1);
  problem.set_k(0, 0, 10, 5);
  for (int64_t n = 0; n < 1100; ++n) {
    if (n != 10) problem.set_v(0, 0, n, kNaN);
  }
  problem.params.residual = Residual::kRenormalize;
  for (const float x : out_of(run(problem, level))) CHECK(std::isfinite(x));
}

TEST_CASE("decode of nothing is zero", "[row 1][row 4]") {
  const NamedLevel level = any_level();
  const auto check_nothing = [&](DecodeProblem& problem, int64_t b) {
    const DecodeOutputs outputs = run(problem, level);
    CHECK(outputs.num_loaded[b] == 0);
    for (int64_t h = b * 4; h < b * 4 + 4; ++h) {
      CHECK(outputs.lse[h] == (problem.sinks.empty() ? -kInfinity : problem.sinks[h % 4]));
      CHECK(outputs.kept_mass[h] == 0);
      for (int64_t d = 0; d < 32; ++d) CHECK(out_of(outputs)[h * 32 + d] == 0);
    }
  };
  DecodeCase c = small(1100);
  SECTION("length 0, alone and between others") {
    c.has_sinks = GENERATE(false, true);
    c.batch = 3;
    c.seq_lens = {1100, 0, -5};
    DecodeProblem problem(c);
    check_nothing(problem, 1);
    check_nothing(problem, 2);
  }
  SECTION("capacity 0") {
    c.capacity = 0;
    DecodeProblem problem(c);
    check_nothing(problem, 0);
  }
  SECTION("all scores -inf") {
    c.c = GENERATE(0.0, 2.0);
    DecodeProblem problem(c);
    set_queries(problem, 1);
    for (int64_t n = 0; n < 1100; ++n) problem.set_k(0, 0, n, -kInfinity);
    check_nothing(problem, 0);
  }
}

TEST_CASE("decode without a score above -inf for one head serves the others", "[row 4][row 6]") {
  const NamedLevel level = any_level();
  DecodeProblem problem(small(1100));
  for (int64_t n = 0; n < 1100; ++n) problem.set(problem.k, problem.k_offset(0, 0, n), -kInfinity);
  for (int64_t h = 0; h < 4; ++h) {
    problem.set(problem.q, h * problem.params.q_stride_h, h == 1 ? 1.0f : -kInfinity);
  }
  const DecodeOutputs outputs = run(problem, level);
  CHECK(outputs.lse[1] == -kInfinity);
  CHECK(out_of(outputs)[32] == 0);
  for (const int64_t h : {0, 2, 3}) CHECK(std::isnan(outputs.lse[h]));  // +inf scores
}

TEST_CASE("decode takes a law that is no number as exact", "[row 12][row 13]") {
  const NamedLevel level = any_level();
  DecodeProblem problem(small(700));
  set_law(problem, kNaN, 1);
  CHECK(run(problem, level).num_loaded[0] == 700);
  set_law(problem, kInfinity, 1);  // theta above 1 counts as 1
  CHECK(run(problem, level).num_loaded[0] == 1);
}

TEST_CASE("decode of an empty batch touches nothing", "[row 2]") {
  const NamedLevel level = any_level();
  DecodeCase c = small(64);
  c.batch = 0;
  DecodeProblem problem(c);
  CHECK(run(problem, level).lse.empty());
}

// The first `length` rows of K or V, packed against a page that must not be touched.
class GuardedRows {
 public:
  GuardedRows(const DecodeProblem& problem, const KVLayout& kv, int64_t length) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t element = element_bytes(problem.params.dtype);
    const int64_t row = problem.params.head_dim * element;
    const int64_t size = (length * row + page - 1) / page * page;
    mapped_ = size + page;
    memory_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory_ != MAP_FAILED);
    char* rows = static_cast<char*>(memory_) + size - length * row;
    for (int64_t n = 0; n < length; ++n) {
      std::memcpy(rows + n * row,
                  static_cast<const char*>(kv.data) + problem.k_offset(0, 0, n) * element, row);
    }
    REQUIRE(mprotect(rows + length * row, page, PROT_NONE) == 0);
    layout = {rows, 0, 0, problem.params.head_dim};
  }
  GuardedRows(const GuardedRows&) = delete;
  ~GuardedRows() { munmap(memory_, mapped_); }

  KVLayout layout;

 private:
  void* memory_;
  int64_t mapped_;
};

TEST_CASE("decode reads nothing past the last row") {
  const NamedLevel level = any_level();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t head_dim : {32, 80, 128}) {
      for (const int64_t length : {1, 2, 3, 5, 17, 65}) {
        for (const int64_t group_size : {1, 2, 4}) {
          CAPTURE(level.name, static_cast<int>(dtype), head_dim, length, group_size);
          DecodeProblem problem({.group_size = group_size,
                                 .capacity = length + 3,
                                 .head_dim = head_dim,
                                 .dtype = dtype,
                                 .seq_lens = {static_cast<int32_t>(length)},
                                 .c = 0});
          const DecodeOutputs expected = run(problem, level);
          const GuardedRows k(problem, problem.params.k, length);
          const GuardedRows v(problem, problem.params.v, length);
          problem.params.k = k.layout;
          problem.params.v = v.layout;
          REQUIRE(run(problem, level) == expected);
        }
      }
    }
  }
}

}  // namespace sift
