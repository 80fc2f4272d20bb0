// The tokens of the repository's trained models: a byte is its own token, four marks follow.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace example {

constexpr int64_t kBos = 256;  // begins every sequence
constexpr std::array<std::string_view, 4> kMarks = {"<bos>", "<sep>", "<key>", "<qry>"};
constexpr int64_t kVocabSize = kBos + kMarks.size();

// kBos and the bytes of a text.
inline std::vector<int64_t> encode(std::string_view text) {
  std::vector<int64_t> tokens = {kBos};
  for (const char byte : text) tokens.push_back(static_cast<unsigned char>(byte));
  return tokens;
}

inline std::string decode(int64_t token) {
  if (token < kBos) return {static_cast<char>(token)};
  return std::string(kMarks.at(token - kBos));
}

}  // namespace example
