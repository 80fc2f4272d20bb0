// Where the time of one decode call goes: a level whose loops are wrapped with clocks.
//
//   profile_decode [keys=32768] [dim=128] [group=4] [kv_heads=8] [dtype=bf16|fp16|fp32]
//
// One thread, all keys attended. Every phase is timed twice: with K and V in memory, and with every
// key in one block of 64 rows that stays in L1, which leaves the arithmetic alone. Prints JSON.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "decode/cpu/at_level.h"
#include "decode/cpu/dispatch.h"
#include "decode/cpu/element.h"

namespace sift {
namespace {

constexpr int64_t kBlockSize = 64;

struct Shape {
  int64_t keys = 32768, dim = 128, group = 4, kv_heads = 8;
  DType dtype = DType::kBFloat16;
};

double now_ms() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

// ---- the wrapped level -----------------------------------------------------------------------------

enum Phase { kScore, kSoftmax, kSelect, kLoad, kNumPhases };
constexpr const char* kPhaseNames[] = {"score", "softmax", "select", "load"};

const Level* timed_level;
int timed_dtype;
double phase_ms[kNumPhases];

struct PhaseTimer {
  explicit PhaseTimer(Phase phase) : total(phase_ms[phase]), start(now_ms()) {}
  ~PhaseTimer() { total += now_ms() - start; }
  double& total;
  double start;
};

Level wrap(const Level& level, DType dtype) {
  timed_level = &level;
  timed_dtype = static_cast<int>(dtype);
  Level timed = level;
  for (RowKernels& kernels : timed.rows) {
    kernels.score = [](auto... arguments) {
      const PhaseTimer timer(kScore);
      timed_level->rows[timed_dtype].score(arguments...);
    };
    kernels.accumulate = [](auto... arguments) {
      const PhaseTimer timer(kLoad);
      timed_level->rows[timed_dtype].accumulate(arguments...);
    };
  }
  timed.exponentiate = [](auto... arguments) {
    const PhaseTimer timer(kSoftmax);
    return timed_level->exponentiate(arguments...);
  };
  timed.select = [](auto... arguments) {
    const PhaseTimer timer(kSelect);
    return timed_level->select(arguments...);
  };
  return timed;
}

// ---- the problem -----------------------------------------------------------------------------------

// Memory that begins with a cache line, as tensors do.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kAlignment); }
  bool operator==(const AlignedAllocator&) const = default;
  static constexpr std::align_val_t kAlignment{4096};
};
using Bytes = std::vector<uint8_t, AlignedAllocator<uint8_t>>;

// Reads it all; what the memory allows.
double read_ms(const Bytes& data) {
  const double start = now_ms();
  uint64_t sum = 0;
  for (size_t i = 0; i + 64 <= data.size(); i += 64) {
    uint64_t x;
    std::memcpy(&x, data.data() + i, 8);
    sum ^= x;
  }
  volatile uint64_t sink = sum;
  (void)sink;
  return now_ms() - start;
}

struct Problem {
  explicit Problem(const Shape& shape) : shape(shape) {
    const int64_t heads = shape.group * shape.kv_heads;
    const int64_t elements = shape.kv_heads * shape.keys * shape.dim;
    q = random(heads * shape.dim, 2.0f);
    k = random(elements, 1.0f);
    v = random(elements, 1.0f);
    log_alpha.resize(heads);
    beta.assign(heads, 0);
    v_sum.assign(shape.kv_heads * shape.dim, 0);
    out.resize(heads * shape.dim * sizeof(float));
    lse.resize(heads);
    kept_mass.resize(heads);
    num_loaded.resize(shape.kv_heads);
    one_block.assign(shape.keys / kBlockSize, 0);

    params.q = q.data();
    params.k = params.v = {nullptr, elements, shape.keys * shape.dim, shape.dim};
    params.k.data = k.data();
    params.v.data = v.data();
    params.log_alpha = log_alpha.data();
    params.beta = beta.data();
    params.v_sum = v_sum.data();
    params.out = out.data();
    params.lse = lse.data();
    params.kept_mass = kept_mass.data();
    params.num_loaded = num_loaded.data();
    params.q_stride_b = heads * shape.dim;
    params.q_stride_h = shape.dim;
    params.batch = 1;
    params.num_q_heads = heads;
    params.num_kv_heads = shape.kv_heads;
    params.capacity = shape.keys;
    params.head_dim = shape.dim;
    params.scale = 1 / std::sqrt(static_cast<float>(shape.dim));
    params.dtype = shape.dtype;
    workspace.resize(decode_cpu_workspace_bytes(params, 1));
  }

  // Every key in one block: the same call without memory.
  DecodeParams in_cache() const {
    DecodeParams p = params;
    p.k.stride_b = p.v.stride_b = kBlockSize * shape.dim;
    p.k.stride_h = p.v.stride_h = 0;
    p.keys.block_table = one_block.data();
    p.keys.num_blocks = 1;
    p.keys.block_size = kBlockSize;
    return p;
  }

  double run(const Level& level, const DecodeParams& p) {
    const double start = now_ms();
    decode_cpu_at_level(level, p, workspace.data(), 1,
                        [](int64_t count, const auto& body) { body(0, count); });
    return now_ms() - start;
  }

  double loaded_fraction() const {
    double sum = 0;
    for (const int32_t n : num_loaded) sum += n;
    return sum / static_cast<double>(shape.kv_heads * shape.keys);
  }

  // The threshold that loads about this fraction of the rows.
  void set_loaded_fraction(const Level& level, const DecodeParams& p, double fraction) {
    float low = -40, high = 0;  // Invariant: log_alpha = low loads more
    for (int i = 0; i < 14 && fraction < 1; ++i) {
      const float middle = (low + high) / 2;
      std::ranges::fill(log_alpha, middle);
      run(level, p);
      (loaded_fraction() > fraction ? low : high) = middle;
    }
    std::ranges::fill(log_alpha, fraction < 1 ? high : -INFINITY);
  }

  Bytes random(int64_t count, float spread) {
    const int64_t bytes = element_bytes(shape.dtype);
    Bytes data(count * bytes);
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> pool(1 << 16);
    for (float& x : pool) x = normal(generator);
    dispatch_dtype(shape.dtype, [&](auto element) {
      using T = decltype(element);
      for (int64_t i = 0; i < count; ++i) {
        const T x = from_float<T>(pool[generator() % pool.size()]);
        std::memcpy(data.data() + i * bytes, &x, sizeof(T));
      }
    });
    return data;
  }

  Shape shape;
  std::mt19937 generator{1};
  Bytes q, k, v, out, workspace;
  std::vector<float> log_alpha, beta, v_sum, lse, kept_mass;
  std::vector<int32_t> num_loaded, one_block;
  DecodeParams params;
};

// ---- the report ------------------------------------------------------------------------------------

double median(std::vector<double> x) {
  std::ranges::nth_element(x, x.begin() + static_cast<int64_t>(x.size() / 2));
  return x[x.size() / 2];
}

void profile(Problem& problem, const Level& level, const DecodeParams& p, const char* where,
             double fraction, bool is_last) {
  const Level timed = wrap(level, problem.shape.dtype);
  problem.set_loaded_fraction(level, p, fraction);
  std::vector<double> total, read_k, read_v, phases[kNumPhases];
  for (const double start = now_ms(); total.size() < 5 || now_ms() - start < 400;) {
    problem.run(level, p);
    read_k.push_back(read_ms(problem.k));
    read_v.push_back(read_ms(problem.v));
    std::ranges::fill(phase_ms, 0);
    total.push_back(problem.run(timed, p));
    for (int i = 0; i < kNumPhases; ++i) phases[i].push_back(phase_ms[i]);
  }
  const Shape& s = problem.shape;
  const double pass_bytes =
      static_cast<double>(s.kv_heads * s.keys * s.dim * element_bytes(s.dtype));
  const double loaded = problem.loaded_fraction();
  double rest = median(total);
  std::printf("  {\"kv\": \"%s\", \"loaded_fraction\": %.4f, \"ms\": {\"call\": %.4f", where,
              loaded, median(total));
  for (int i = 0; i < kNumPhases; ++i) {
    rest -= median(phases[i]);
    std::printf(", \"%s\": %.4f", kPhaseNames[i], median(phases[i]));
  }
  std::printf(
      ", \"rest\": %.4f, \"read K\": %.4f, \"read V\": %.4f}, \"gb_per_s\": {\"call\": %.2f, "
      "\"score\": %.2f, \"load\": %.2f}}%s\n",
      rest, median(read_k), median(read_v), pass_bytes * (1 + loaded) / median(total) / 1e6,
      pass_bytes / median(phases[kScore]) / 1e6, pass_bytes * loaded / median(phases[kLoad]) / 1e6,
      is_last ? "" : ",");
}

}  // namespace
}  // namespace sift

int main(int argc, char** argv) {
  using namespace sift;
  Shape shape;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto equals = std::min(argument.find('='), argument.size() - 1);
    const std::string name = argument.substr(0, equals), value = argument.substr(equals + 1);
    if (name == "keys")
      shape.keys = std::stol(value) / kBlockSize * kBlockSize;
    else if (name == "dim")
      shape.dim = std::stol(value);
    else if (name == "group")
      shape.group = std::stol(value);
    else if (name == "kv_heads")
      shape.kv_heads = std::stol(value);
    else if (name == "dtype" && value == "fp32")
      shape.dtype = DType::kFloat32;
    else if (name == "dtype" && value == "fp16")
      shape.dtype = DType::kFloat16;
    else if (name != "dtype" || value != "bf16") {
      std::fprintf(
          stderr,
          "argument must be keys=, dim=, group=, kv_heads= or dtype=bf16|fp16|fp32, got %s\n",
          argv[i]);
      return 2;
    }
  }
  const Level& level = active_level();
  Problem problem(shape);
  std::printf(
      "{\"level\": \"%s\", \"keys\": %ld, \"dim\": %ld, \"group\": %ld, \"kv_heads\": %ld, "
      "\"rows\": [\n",
      level.name, shape.keys, shape.dim, shape.group, shape.kv_heads);
  for (const double fraction : {1.0, 0.75, 0.5, 0.25, 0.10, 0.04}) {
    profile(problem, level, problem.params, "memory", fraction, false);
    profile(problem, level, problem.in_cache(), "L1", fraction, fraction == 0.04);
  }
  std::printf("]}\n");
}
