// The forward pass of a Llama with sifted attention, as transformers' LlamaForCausalLM does it.
#pragma once

#include <ATen/core/Tensor.h>
#include <sift_attention/attention.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "safetensors.h"

namespace example {

// The fields of config.json that the forward needs, under their names there.
struct LlamaConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0.0;
  double rope_theta = 0.0;
  bool tie_word_embeddings = false;
};

// Throws std::runtime_error with one sentence for a file or a model that it cannot use.
LlamaConfig read_config(const std::filesystem::path& path);

LlamaConfig llama_3_2_1b();

// Normal weights in bfloat16, as before a training. note(name) is called for each.
Weights random_weights(const LlamaConfig& config,
                       const std::function<void(const std::string&)>& note);

// One sequence.
class Llama {
 public:
  // Throws std::runtime_error where a weight is missing, or not of its shape or of one dtype.
  Llama(const LlamaConfig& config, Weights weights, const sift::SiftConfig& sift_config);

  // Appends tokens (int64 [R]) to the sequence; logits of the token after them, float32 [vocab].
  at::Tensor forward(const at::Tensor& tokens);

  // The layers' attention, with their caches.
  std::vector<sift::Attention>& attentions() { return attentions_; }

  const LlamaConfig& config() const { return config_; }

  // What the decode steps of all layers did.
  sift::AttentionStats stats();

 private:
  struct Layer {
    at::Tensor input_norm, q, k, v, o, post_norm, gate, up, down;
  };
  struct Rotation {
    at::Tensor cos, sin;  // [1, 1, R, head_dim]
  };

  Rotation rotation(int64_t first_position, int64_t num_rows) const;
  at::Tensor norm(const at::Tensor& x, const at::Tensor& weight) const;
  at::Tensor attend(const Layer& layer, sift::Attention& attention, const at::Tensor& x,
                    const Rotation& rotation) const;

  LlamaConfig config_;
  at::Tensor embedding_, head_, norm_;
  at::Tensor inverse_frequencies_;  // float32 [head_dim / 2]
  std::vector<Layer> layers_;
  std::vector<sift::Attention> attentions_;
};

}  // namespace example
