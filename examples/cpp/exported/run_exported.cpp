// run_exported FOLDER NUM_TOKENS: token ids from the standard input are continued greedily by an
// exported decoder, without Python; ids go to the standard output. The tokenizer is the caller's.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "exported_decoder.h"

namespace {

int64_t parse_count(const std::string& text) {
  size_t end = 0;
  int64_t count = 0;
  try {
    count = std::stoll(text, &end);
  } catch (const std::logic_error&) {
    end = std::string::npos;
  }
  if (end != text.size() || count < 1) {
    throw std::runtime_error("NUM_TOKENS must be a positive number, got " + text);
  }
  return count;
}

std::vector<int64_t> read_prompt() {
  const std::vector<int64_t> prompt{std::istream_iterator<int64_t>(std::cin), {}};
  if (prompt.empty() || !std::cin.eof()) {
    throw std::runtime_error("the standard input must hold token ids, got " +
                             std::to_string(prompt.size()) + " before something else or its end");
  }
  return prompt;
}

void run(const std::string& folder, int64_t num_tokens) {
  const std::vector<int64_t> prompt = read_prompt();
  const int64_t capacity = static_cast<int64_t>(prompt.size()) + num_tokens;
  example::ExportedDecoder decoder(folder, std::max<int64_t>(capacity, 3));
  at::Tensor logits = decoder.forward(at::tensor(prompt).unsqueeze(0));
  int64_t num_rows = 0, num_loaded = 0;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0;; ++i) {
    const at::Tensor token = logits.argmax(-1, /*keepdim=*/true);
    std::cout << token.item<int64_t>() << '\n';
    if (i + 1 == num_tokens) break;
    logits = decoder.forward(token);
    num_rows += decoder.num_tokens() * decoder.num_layers() * decoder.num_kv_heads();
    num_loaded += decoder.rows_loaded().sum().item<int64_t>();
  }
  if (num_rows == 0) return;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::fprintf(stderr, "%.1f tokens/s, %lld of %lld value rows loaded\n",
               static_cast<double>(num_tokens - 1) / seconds.count(),
               static_cast<long long>(num_loaded), static_cast<long long>(num_rows));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 3) throw std::runtime_error("usage: run_exported FOLDER NUM_TOKENS < token ids");
    const at::NoGradGuard no_grad;
    run(argv[1], parse_count(argv[2]));
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << "run_exported: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "run_exported: " << error.what() << '\n';
  }
  return 1;
}
