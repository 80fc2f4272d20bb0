#include "decode_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <thread>

#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#endif

#include "decode/cpu/at_level.h"
#include "decode/cpu/dispatch.h"
#include "decode/cpu/element.h"
#include "reference_decode.h"

namespace sift {

#ifdef SIFT_EMULATED_LEVELS
extern const Level kEmulatedAvx512Level;
extern const Level kEmulatedAvx512Bf16Level;
#endif

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

}  // namespace

const std::vector<NamedLevel>& testable_levels() {
  static const std::vector<NamedLevel> levels = [] {
    std::vector<NamedLevel> all;
    for (const Level* level : supported_levels()) all.push_back({level->name, level});
#ifdef SIFT_EMULATED_LEVELS
    all.push_back({"emulated avx512", &kEmulatedAvx512Level});
    all.push_back({"emulated avx512_bf16", &kEmulatedAvx512Bf16Level});
#endif
    return all;
  }();
  return levels;
}

ParallelFor one_thread() {
  return [](int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); };
}

ParallelFor random_threads(uint32_t seed) {
  return [seed](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    std::mt19937 random(seed + static_cast<uint32_t>(count));
    std::vector<std::thread> threads;
    for (int64_t begin = 0; begin < count;) {
      const int64_t end = begin + 1 + static_cast<int64_t>(random() % (count - begin));
      threads.emplace_back(body, begin, end);
      begin = end;
    }
    for (std::thread& thread : threads) thread.join();
  };
}

std::vector<float> make_workspace(int64_t num_bytes) {
  std::vector<float> workspace(num_bytes / sizeof(float), kNaN);
#if __has_include(<valgrind/memcheck.h>)
  VALGRIND_MAKE_MEM_UNDEFINED(workspace.data(), num_bytes);
#endif
  return workspace;
}

std::string DecodeCase::describe() const {
  std::ostringstream text;
  text << "DecodeCase{.batch = " << batch << ", .num_kv_heads = " << num_kv_heads
       << ", .group_size = " << group_size << ", .capacity = " << capacity
       << ", .head_dim = " << head_dim << ", .dtype = DType(" << static_cast<int>(dtype)
       << "), .seq_lens = {";
  for (int32_t length : seq_lens) text << length << ", ";
  text << "}, .mask = Mask(" << static_cast<int>(mask) << "), .block_size = " << block_size
       << ", .c = " << c << ", .softcap = " << softcap << ", .has_sinks = " << has_sinks
       << ", .residual = Residual(" << static_cast<int>(residual) << "), .spread = " << spread
       << ", .is_aligned = " << is_aligned << ", .seed = " << seed << "}";
  return text.str();
}

bool DecodeOutputs::operator==(const DecodeOutputs& other) const {
  const auto same = [](const auto& a, const auto& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
  };
  return same(out, other.out) && same(lse, other.lse) && same(kept_mass, other.kept_mass) &&
         same(num_loaded, other.num_loaded);
}

DecodeProblem::DecodeProblem(const DecodeCase& c) : lead(c.is_aligned ? 8 : 1) {
  const auto padded = [&](int64_t n) { return n + (c.is_aligned ? 8 : 3); };
  std::mt19937 random(c.seed);
  std::normal_distribution<float> normal;
  const int64_t num_q_heads = c.num_kv_heads * c.group_size;
  const bool is_paged = c.block_size > 0;
  const int64_t max_blocks = is_paged ? (c.capacity + c.block_size - 1) / c.block_size : 0;
  const int64_t num_blocks = c.batch * max_blocks + 2;  // two that no table names

  params.dtype = c.dtype;
  params.batch = c.batch;
  params.num_q_heads = num_q_heads;
  params.num_kv_heads = c.num_kv_heads;
  params.capacity = is_paged ? max_blocks * c.block_size : c.capacity;
  params.head_dim = c.head_dim;
  params.scale = c.spread / std::sqrt(static_cast<float>(c.head_dim));
  params.softcap = c.softcap;
  params.residual = c.residual;

  const int64_t bytes = element_bytes(c.dtype);
  const int64_t row = padded(c.head_dim);
  params.q_stride_h = row;
  params.q_stride_b = padded(num_q_heads * row);
  q.resize((c.batch * params.q_stride_b + lead) * bytes);
  KVLayout layout;
  if (is_paged) {
    layout = {nullptr, padded(c.block_size * c.num_kv_heads * row), row, c.num_kv_heads * row};
  } else {  // like a cache written as [B, N, HK, D]
    layout = {nullptr, padded(c.capacity * c.num_kv_heads * row), row, c.num_kv_heads * row};
  }
  const int64_t outer = is_paged ? num_blocks : c.batch;
  k.resize((outer * layout.stride_b + lead) * bytes);
  v.resize(k.size());
  for (std::vector<uint8_t>* data : {&q, &k, &v}) {
    for (size_t i = 0; i < data->size() / bytes; ++i) {
      set(*data, static_cast<int64_t>(i) - lead, kNaN);
    }
  }
  params.q = q.data() + lead * bytes;
  params.k = layout;
  params.k.data = k.data() + lead * bytes;
  params.v = layout;
  params.v.data = v.data() + lead * bytes;

  AttendedKeys& keys = params.keys;
  if (!c.seq_lens.empty()) {
    seq_lens = c.seq_lens;
    keys.seq_lens = seq_lens.data();
  }
  if (is_paged) {
    for (int64_t i = 0; i < c.batch * max_blocks; ++i) block_table.push_back(static_cast<int>(i));
    std::shuffle(block_table.begin(), block_table.end(), random);
    // Pages past the end are not mapped.
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t i = 0; i < max_blocks && !seq_lens.empty(); ++i) {
        if (i * c.block_size >= seq_lens[b]) {
          block_table[b * max_blocks + i] = i % 2 == 0 ? -1 : std::numeric_limits<int32_t>::max();
        }
      }
    }
    keys.block_table = block_table.data();
    keys.block_table_stride_b = max_blocks;
    keys.num_blocks = num_blocks;
    keys.block_size = c.block_size;
  }
  if (c.mask != Mask::kNone) {
    keys.key_mask_stride_b = padded(params.capacity);
    key_mask.resize(c.batch * keys.key_mask_stride_b, 1);
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t n = 0; n < params.capacity; ++n) {
        const bool is_attended = c.mask == Mask::kHoles         ? random() % 4 != 0
                                 : c.mask == Mask::kLeftPadding ? n >= params.capacity / 3
                                                                : false;
        key_mask[b * keys.key_mask_stride_b + n] = is_attended;
      }
    }
    keys.key_mask = reinterpret_cast<const bool*>(key_mask.data());
  }

  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < num_q_heads; ++h) {
      for (int64_t d = 0; d < c.head_dim; ++d) {
        set(q, b * params.q_stride_b + h * params.q_stride_h + d, normal(random));
      }
      log_alpha.push_back(c.c == 0 ? -std::numeric_limits<float>::infinity()
                                   : static_cast<float>(std::log(c.c)));
      beta.push_back(1);
    }
    for (int64_t n : reference::attended(keys, b, params.capacity)) {
      for (int64_t hk = 0; hk < c.num_kv_heads; ++hk) {
        for (int64_t d = 0; d < c.head_dim; ++d) {
          set(k, k_offset(b, hk, n) + d, normal(random));
          set(v, k_offset(b, hk, n) + d, normal(random) + 0.5f);
        }
      }
    }
  }
  params.log_alpha = log_alpha.data();
  params.beta = beta.data();
  if (c.has_sinks) {
    for (int64_t h = 0; h < num_q_heads; ++h) sinks.push_back(normal(random) + 3);
    params.sinks = sinks.data();
  }
  sum_values();
}

void DecodeProblem::set(std::vector<uint8_t>& data, int64_t offset, float x) {
  dispatch_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const T value = from_float<T>(x);
    std::memcpy(data.data() + (offset + lead) * sizeof(T), &value, sizeof(T));
  });
}

int64_t DecodeProblem::k_offset(int64_t b, int64_t hk, int64_t n) const {
  return reference::row_offset(params.k, params.keys, b, hk, n);
}

void DecodeProblem::set_k(int64_t b, int64_t hk, int64_t n, float x) {
  for (int64_t d = 0; d < params.head_dim; ++d) set(k, k_offset(b, hk, n) + d, x);
}

void DecodeProblem::set_v(int64_t b, int64_t hk, int64_t n, float x) {
  for (int64_t d = 0; d < params.head_dim; ++d) set(v, k_offset(b, hk, n) + d, x);
}

void DecodeProblem::sum_values() {
  v_sum.clear();
  for (int64_t b = 0; b < params.batch; ++b) {
    const std::vector<int64_t> positions = reference::attended(params.keys, b, params.capacity);
    for (int64_t hk = 0; hk < params.num_kv_heads; ++hk) {
      std::vector<double> sum(params.head_dim, 0.0);
      for (int64_t n : positions) {
        const auto x =
            reference::row(params.v.data, k_offset(b, hk, n), params.head_dim, params.dtype);
        for (int64_t d = 0; d < params.head_dim; ++d) sum[d] += x[d];
      }
      v_sum.insert(v_sum.end(), sum.begin(), sum.end());
    }
  }
  params.v_sum = v_sum.data();
}

DecodeOutputs DecodeProblem::run(const Level& level, int num_threads,
                                 const ParallelFor& parallel_for) {
  return run([&](const DecodeParams& p) {
    std::vector<float> workspace = make_workspace(decode_cpu_workspace_bytes(p, num_threads));
    decode_cpu_at_level(level, p, workspace.data(), num_threads, parallel_for);
  });
}

DecodeOutputs DecodeProblem::run(const std::function<void(const DecodeParams&)>& decode) {
  DecodeOutputs outputs;
  const int64_t rows = params.batch * params.num_q_heads;
  outputs.out.assign(rows * params.head_dim * element_bytes(params.dtype), 0xff);
  outputs.lse.assign(rows, kNaN);
  outputs.kept_mass.assign(rows, kNaN);
  outputs.num_loaded.assign(params.batch * params.num_kv_heads, -1);
  DecodeParams p = params;
  p.out = outputs.out.data();
  p.lse = outputs.lse.data();
  p.kept_mass = outputs.kept_mass.data();
  p.num_loaded = outputs.num_loaded.data();
  decode(p);
  return outputs;
}

}  // namespace sift
