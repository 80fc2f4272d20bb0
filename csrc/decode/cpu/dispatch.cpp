#include "decode/cpu/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include "decode/cpu/decode_cpu.h"

namespace sift {
#if defined(__x86_64__)
namespace {

// Clang 14 has no __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

}  // namespace
#endif

std::vector<const Level*> supported_levels() {
  std::vector<const Level*> levels;
#if defined(__x86_64__)
  // These ask the operating system too: whether it saves the wide registers.
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && __builtin_cpu_supports("avx512bf16")) levels.push_back(&kAvx512Bf16Level);
  if (has_avx512) levels.push_back(&kAvx512Level);
  if (has_avx2) levels.push_back(&kAvx2Level);
#endif
  levels.push_back(&kPortableLevel);
  return levels;
}

const Level& active_level() {
  static const std::vector<const Level*> levels = supported_levels();
  const char* wanted = std::getenv("SIFT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *levels.front();
  std::string names;
  for (const Level* level : levels) {
    if (std::string_view(wanted) == level->name) return *level;
    names += (names.empty() ? "" : ", ") + std::string(level->name);
  }
  throw std::invalid_argument("SIFT_CPU_ISA must be one of " + names + " on this processor, got " +
                              wanted);
}

std::string cpu_isa() { return active_level().name; }

std::vector<std::string> supported_cpu_isas() {
  std::vector<std::string> names;
  for (const Level* level : supported_levels()) names.emplace_back(level->name);
  return names;
}

}  // namespace sift
