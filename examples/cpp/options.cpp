#include "options.h"

#include <charconv>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace example {
namespace {

constexpr std::string_view kHelp = R"(usage: sift_generate FILE [options]
       sift_generate --random-llama-1b [--keys N] [options]

Continues a text with a byte-level Llama whose attention is sifted, greedily. The text goes to the
standard output, everything else to the standard error.

  FILE               the text to continue
  --exact            load every value row
  --c C              load the rows with more than C times uniform attention (2)
  --tokens N         how many tokens to write (200)
  --threads N        threads of PyTorch (1 for a text, its own choice for --random-llama-1b)
  --model DIR        folder of config.json and model.safetensors (the repository's trained model)
  --random-llama-1b  instead of a text: how fast a model of Llama-3.2-1B's shape, random and in
                     bfloat16, writes after a prompt of random keys
  --keys N           length of that prompt (32768)
  --help             this text
)";

[[noreturn]] void refuse(std::string_view option, const std::string& requirement,
                         std::string_view got) {
  throw std::invalid_argument(std::string(option) + " must be " + requirement + ", got " +
                              std::string(got));
}

template <class T>
T parse_number(std::string_view option, std::string_view text, T least,
               const std::string& requirement) {
  T number = {};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || !(number >= least)) {
    refuse(option, requirement, text);
  }
  return number;
}

}  // namespace

std::optional<Options> parse_options(int argc, char** argv) {
  Options options;
  bool has_c = false;
  bool has_keys = false;
  bool is_exact = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const auto value = [&]() -> std::string_view {
      if (++i == argc) refuse(argument, "followed by a value", "none");
      return argv[i];
    };
    if (argument == "--help" || argument == "-h") {
      std::cout << kHelp;
      return std::nullopt;
    } else if (argument == "--exact") {
      is_exact = true;
    } else if (argument == "--c") {
      options.sift.c = parse_number(argument, value(), 0.0, "a number from 0 up");
      has_c = true;
    } else if (argument == "--tokens") {
      options.num_tokens = parse_number<int64_t>(argument, value(), 1, "a positive number");
    } else if (argument == "--keys") {
      options.num_keys = parse_number<int64_t>(argument, value(), 1, "a positive number");
      has_keys = true;
    } else if (argument == "--threads") {
      options.num_threads = parse_number(argument, value(), 1, "a positive number");
    } else if (argument == "--model") {
      options.model = value();
    } else if (argument == "--random-llama-1b") {
      options.is_random = true;
    } else if (argument.starts_with("-")) {
      refuse("an option", "among those of --help", argument);
    } else if (options.file.empty()) {
      options.file = argument;
    } else {
      refuse("FILE", "one file", argument);
    }
  }
  if (options.file.empty() != options.is_random) {
    refuse("FILE", "given, or --random-llama-1b instead", options.is_random ? "both" : "none");
  }
  if (has_c && is_exact) refuse("--c", "without --exact", "both");
  if (has_keys && !options.is_random) refuse("--keys", "with --random-llama-1b", "it alone");
  if (is_exact) options.sift.c = 0.0;
  sift::check(options.sift);
  return options;
}

}  // namespace example
