// SIFT_CPU_ISA chooses the level.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "catch2.h"
#include "decode/cpu/decode_cpu.h"

namespace sift {
namespace {

// Sets the variable, and puts back what was there.
class ScopedIsa {
 public:
  explicit ScopedIsa(const char* value) {
    const char* before = std::getenv("SIFT_CPU_ISA");
    had_value_ = before != nullptr;
    if (had_value_) before_ = before;
    setenv("SIFT_CPU_ISA", value, 1);
  }
  ScopedIsa(const ScopedIsa&) = delete;
  ~ScopedIsa() {
    if (had_value_) {
      setenv("SIFT_CPU_ISA", before_.c_str(), 1);
    } else {
      unsetenv("SIFT_CPU_ISA");
    }
  }

 private:
  bool had_value_;
  std::string before_;
};

}  // namespace

TEST_CASE("SIFT_CPU_ISA chooses among the supported levels", "[row 41]") {
  const std::vector<std::string> levels = supported_cpu_isas();
  REQUIRE(levels.back() == "portable");
  for (const std::string& level : levels) {
    const ScopedIsa isa(level.c_str());
    CHECK(cpu_isa() == level);
  }
  const ScopedIsa isa("");
  CHECK(cpu_isa() == levels.front());
}

TEST_CASE("SIFT_CPU_ISA must name a supported level", "[row 41]") {
  const std::vector<std::string> levels = supported_cpu_isas();
  std::string names;
  for (const std::string& level : levels) names += (names.empty() ? "" : ", ") + level;
  for (const std::string value : {"sse9", "avx512_bf16", "avx512"}) {
    if (std::count(levels.begin(), levels.end(), value) > 0) continue;
    const ScopedIsa isa(value.c_str());
    std::string message;
    try {
      cpu_isa();
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message == "SIFT_CPU_ISA must be one of " + names + " on this processor, got " + value);
  }
}

}  // namespace sift
