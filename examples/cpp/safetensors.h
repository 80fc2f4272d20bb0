// Weights in the safetensors format: a header in JSON, then the numbers of all tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

namespace example {

using Weights = std::map<std::string, at::Tensor>;

// Reads every tensor of a file (float32, float16 or bfloat16). Throws std::runtime_error with one
// sentence for a file that is not exactly what the format asks for.
Weights read_safetensors(const std::filesystem::path& path);

}  // namespace example
