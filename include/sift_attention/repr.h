// Numbers in error messages. No Torch.
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sift::detail {

// As Python prints a float: the shortest digits that give the same number.
inline std::string repr(double value) {
  const double size = std::abs(value);
  const bool is_fixed = size == 0.0 || (size >= 1e-4 && size < 1e16);
  std::array<char, 32> digits{};
  const auto format = is_fixed ? std::chars_format::fixed : std::chars_format::scientific;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, format).ptr;
  const std::string text(digits.data(), end);
  return is_fixed && text.find('.') == std::string::npos ? text + ".0" : text;
}

// As Python prints a tuple.
inline std::string repr(const std::vector<int64_t>& numbers) {
  std::string text = "(";
  for (size_t i = 0; i < numbers.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(numbers[i]);
  }
  return text + (numbers.size() == 1 ? ",)" : ")");
}

}  // namespace sift::detail
