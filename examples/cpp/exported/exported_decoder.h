// A decoder that sift_attention.hf.export packaged, with the state between its calls.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <filesystem>
#include <vector>

namespace example {

class ExportedDecoder {
 public:
  // Loads prefill.pt2 and decode.pt2, and makes room for `capacity` tokens. Throws
  // std::runtime_error where a file is missing or is no such package.
  ExportedDecoder(const std::filesystem::path& folder, int64_t capacity);

  // Reads the next tokens, int64 [1, R] in [0, V), and returns the logits of the one after them,
  // [1, V]. Throws std::runtime_error for other tokens, and where there is no room for R more.
  at::Tensor forward(const at::Tensor& tokens);

  int64_t num_tokens() const { return num_tokens_; }  // read so far
  int64_t num_layers() const { return num_layers_; }
  int64_t num_kv_heads() const { return num_kv_heads_; }
  const at::Tensor& rows_loaded() const {
    return rows_loaded_;
  }  // by the last call, int64 [layers]

 private:
  at::Tensor step(const at::Tensor& tokens);  // all at once

  torch::inductor::AOTIModelPackageLoader prefill_;
  torch::inductor::AOTIModelPackageLoader decode_;
  int64_t capacity_;
  int64_t num_layers_;
  int64_t num_kv_heads_;
  int64_t vocab_size_;
  int64_t num_tokens_ = 0;
  std::vector<at::Tensor> state_;  // keys, values, v_sum and count of every layer
  at::Tensor rows_loaded_;
};

}  // namespace example
