#include "exported_decoder.h"

#include <ATen/ops/aminmax.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <sift_attention/sift_attention.h>  // links the operators, which the programs call

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace example {
namespace {

// Prompts are read in pieces, since prefill makes a mask of one byte for each new token and each
// that the cache has room for.
constexpr int64_t kMaxRows = 256;

using Metadata = std::unordered_map<std::string, std::string>;

torch::inductor::AOTIModelPackageLoader load(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) {
    throw std::runtime_error("FOLDER must hold what export packaged, got no " + path.string());
  }
  return torch::inductor::AOTIModelPackageLoader(path.string());
}

const std::string& entry(const Metadata& metadata, const std::string& name) {
  const auto found = metadata.find(name);
  if (found == metadata.end()) {
    throw std::runtime_error("FOLDER must hold what export packaged, got no metadata for " + name);
  }
  return found->second;
}

int64_t number(const Metadata& metadata, const std::string& name) {
  return std::stoll(entry(metadata, name));
}

at::ScalarType cache_dtype(const Metadata& metadata) {
  const std::string& name = entry(metadata, "dtype");
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  throw std::runtime_error("dtype must be float32, bfloat16 or float16, got " + name);
}

// One sequence before its first token.
std::vector<at::Tensor> empty_state(const Metadata& metadata, int64_t capacity) {
  if (number(metadata, "batch") != 1) {
    throw std::runtime_error("batch must be 1 for this program, got " + entry(metadata, "batch"));
  }
  const int64_t num_kv_heads = number(metadata, "num_kv_heads");
  const int64_t head_dim = number(metadata, "head_dim");
  const at::TensorOptions on_device = at::device(at::Device(entry(metadata, "device")));
  std::vector<at::Tensor> state;
  for (int64_t layer = number(metadata, "num_layers"); layer > 0; --layer) {
    for (int i = 0; i < 2; ++i) {
      state.push_back(
          at::zeros({1, num_kv_heads, capacity, head_dim}, on_device.dtype(cache_dtype(metadata))));
    }
    state.push_back(at::zeros({1, num_kv_heads, head_dim}, on_device.dtype(at::kDouble)));
    state.push_back(at::zeros({1, 1}, on_device.dtype(at::kLong)));
  }
  return state;
}

}  // namespace

ExportedDecoder::ExportedDecoder(const std::filesystem::path& folder, int64_t capacity)
    : prefill_(load(folder / "prefill.pt2")),
      decode_(load(folder / "decode.pt2")),
      capacity_(capacity),
      num_layers_(number(decode_.get_metadata(), "num_layers")),
      num_kv_heads_(number(decode_.get_metadata(), "num_kv_heads")),
      vocab_size_(number(decode_.get_metadata(), "vocab_size")),
      state_(empty_state(decode_.get_metadata(), capacity)) {}

at::Tensor ExportedDecoder::forward(const at::Tensor& tokens) {
  const int64_t num_rows = tokens.size(1);
  if (num_tokens_ + num_rows > capacity_) {
    throw std::runtime_error("tokens must fit into a cache of " + std::to_string(capacity_) +
                             ", got " + std::to_string(num_tokens_ + num_rows));
  }
  const auto [least, largest] = tokens.aminmax();
  if (least.item<int64_t>() < 0 || largest.item<int64_t>() >= vocab_size_) {
    throw std::runtime_error("tokens must be in [0, " + std::to_string(vocab_size_) + "), got " +
                             std::to_string(least.item<int64_t>()) + " to " +
                             std::to_string(largest.item<int64_t>()));
  }
  at::Tensor logits;
  for (int64_t begin = 0, end = 0; begin < num_rows; begin = end) {
    end = std::min(begin + kMaxRows, num_rows);
    if (end + 1 == num_rows) --end;  // a last piece of one token would sift
    logits = step(tokens.slice(1, begin, end));
  }
  return logits;
}

at::Tensor ExportedDecoder::step(const at::Tensor& tokens) {
  const int64_t num_rows = tokens.size(1);
  const at::Device device = state_[0].device();
  std::vector<at::Tensor> inputs = {
      tokens.to(device).contiguous(),
      at::full({1}, num_tokens_, at::device(device).dtype(at::kLong)),
      at::zeros({1}, at::device(device).dtype(at::kLong)),  // no padding
  };
  inputs.insert(inputs.end(), state_.begin(), state_.end());
  const std::vector<at::Tensor> outputs = (num_rows == 1 ? decode_ : prefill_).run(inputs);
  num_tokens_ += num_rows;
  rows_loaded_ = outputs[1];
  return outputs[0];
}

}  // namespace example
