// The command line of sift_generate.
#pragma once

#include <sift_attention/config.h>

#include <cstdint>
#include <filesystem>
#include <optional>

namespace example {

struct Options {
  std::filesystem::path file;      // whose bytes are the prompt
  bool is_random = false;          // --random-llama-1b: no file and no trained model
  int64_t num_keys = 32768;        // with is_random
  int64_t num_tokens = 200;        // to write
  std::optional<int> num_threads;  // none: see --help
  std::filesystem::path model = SIFT_EXAMPLE_MODEL;
  sift::SiftConfig sift;
};

// Prints the help and returns nothing where it is asked for. Throws std::invalid_argument with one
// sentence for arguments that do not fit.
std::optional<Options> parse_options(int argc, char** argv);

}  // namespace example
