#include "llama.h"

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "json.h"

namespace example {
namespace {

using Shapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

// The weights under the names of transformers.
Shapes weight_shapes(const LlamaConfig& c) {
  const int64_t num_q_channels = c.num_attention_heads * c.head_dim;
  const int64_t num_kv_channels = c.num_key_value_heads * c.head_dim;
  Shapes shapes = {{"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}},
                   {"model.norm.weight", {c.hidden_size}}};
  if (!c.tie_word_embeddings) shapes.push_back({"lm_head.weight", {c.vocab_size, c.hidden_size}});
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    shapes.push_back({layer + "input_layernorm.weight", {c.hidden_size}});
    shapes.push_back({layer + "self_attn.q_proj.weight", {num_q_channels, c.hidden_size}});
    shapes.push_back({layer + "self_attn.k_proj.weight", {num_kv_channels, c.hidden_size}});
    shapes.push_back({layer + "self_attn.v_proj.weight", {num_kv_channels, c.hidden_size}});
    shapes.push_back({layer + "self_attn.o_proj.weight", {c.hidden_size, num_q_channels}});
    shapes.push_back({layer + "post_attention_layernorm.weight", {c.hidden_size}});
    shapes.push_back({layer + "mlp.gate_proj.weight", {c.intermediate_size, c.hidden_size}});
    shapes.push_back({layer + "mlp.up_proj.weight", {c.intermediate_size, c.hidden_size}});
    shapes.push_back({layer + "mlp.down_proj.weight", {c.hidden_size, c.intermediate_size}});
  }
  return shapes;
}

void check_weights(const LlamaConfig& config, const Weights& weights) {
  const auto first = weights.begin();
  for (const auto& [name, shape] : weight_shapes(config)) {
    const auto found = weights.find(name);
    if (found == weights.end()) throw std::runtime_error(name + " must be among the weights");
    const at::Tensor& weight = found->second;
    if (weight.sizes() != shape) {
      throw std::runtime_error(c10::str(name, " must have the shape ", at::IntArrayRef(shape),
                                        " that config.json asks for, got ", weight.sizes()));
    }
    if (weight.scalar_type() != first->second.scalar_type()) {
      throw std::runtime_error(name + " must have the dtype of " + first->first);
    }
  }
}

LlamaConfig parse_config(const Json& json) {
  const auto require = [&](bool holds, const std::string& sentence) {
    if (!holds) throw std::runtime_error(sentence);
  };
  require(json.string("model_type") == "llama", "model_type must be llama");
  require(json.string("hidden_act") == "silu", "hidden_act must be silu");
  require(!json.boolean("attention_bias", false), "attention_bias must be false");
  require(!json.boolean("mlp_bias", false), "mlp_bias must be false");
  const Json& rope = json.object("rope_parameters");
  require(rope.string("rope_type") == "default", "rope_type must be default");
  const LlamaConfig config = {
      .vocab_size = json.integer("vocab_size"),
      .hidden_size = json.integer("hidden_size"),
      .intermediate_size = json.integer("intermediate_size"),
      .num_hidden_layers = json.integer("num_hidden_layers"),
      .num_attention_heads = json.integer("num_attention_heads"),
      .num_key_value_heads = json.integer("num_key_value_heads"),
      .head_dim = json.integer("head_dim"),
      .max_position_embeddings = json.integer("max_position_embeddings"),
      .rms_norm_eps = json.number("rms_norm_eps"),
      .rope_theta = rope.number("rope_theta"),
      .tie_word_embeddings = json.boolean("tie_word_embeddings", false),
  };
  require(config.num_hidden_layers > 0, "num_hidden_layers must be positive");
  require(config.num_key_value_heads > 0 &&
              config.num_attention_heads % config.num_key_value_heads == 0,
          "num_attention_heads must be a multiple of num_key_value_heads");
  return config;
}

// The second half of the channels, negated, before the first.
at::Tensor rotate_half(const at::Tensor& x) {
  const std::vector<at::Tensor> halves = x.chunk(2, -1);
  return at::cat({-halves[1], halves[0]}, -1);
}

}  // namespace

LlamaConfig read_config(const std::filesystem::path& path) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  try {
    if (!file) throw std::runtime_error("the file must be there and readable");
    return parse_config(Json::parse(text));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

LlamaConfig llama_3_2_1b() {
  return {.vocab_size = 128256,
          .hidden_size = 2048,
          .intermediate_size = 8192,
          .num_hidden_layers = 16,
          .num_attention_heads = 32,
          .num_key_value_heads = 8,
          .head_dim = 64,
          .max_position_embeddings = 131072,
          .rms_norm_eps = 1e-5,
          .rope_theta = 500000.0,
          .tie_word_embeddings = true};
}

Weights random_weights(const LlamaConfig& config,
                       const std::function<void(const std::string&)>& note) {
  constexpr double kDeviation = 0.02;
  Weights weights;
  for (const auto& [name, shape] : weight_shapes(config)) {
    note(name);
    at::Tensor weight = at::empty(shape, at::kBFloat16);
    shape.size() == 1 ? weight.fill_(1.0) : weight.normal_(0.0, kDeviation);
    weights.emplace(name, std::move(weight));
  }
  return weights;
}

Llama::Llama(const LlamaConfig& config, Weights weights, const sift::SiftConfig& sift_config)
    : config_(config) {
  check_weights(config, weights);
  embedding_ = weights.at("model.embed_tokens.weight");
  head_ = config.tie_word_embeddings ? embedding_ : weights.at("lm_head.weight");
  norm_ = weights.at("model.norm.weight");
  const at::Tensor channels = at::arange(0, config.head_dim, 2, at::kFloat);
  inverse_frequencies_ = 1.0 / at::pow(config.rope_theta, channels / config.head_dim);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const auto weight = [&](const std::string& name) {
      return weights.at("model.layers." + std::to_string(i) + "." + name + ".weight");
    };
    layers_.push_back({.input_norm = weight("input_layernorm"),
                       .q = weight("self_attn.q_proj"),
                       .k = weight("self_attn.k_proj"),
                       .v = weight("self_attn.v_proj"),
                       .o = weight("self_attn.o_proj"),
                       .post_norm = weight("post_attention_layernorm"),
                       .gate = weight("mlp.gate_proj"),
                       .up = weight("mlp.up_proj"),
                       .down = weight("mlp.down_proj")});
    attentions_.emplace_back(sift_config, i);
  }
}

at::Tensor Llama::forward(const at::Tensor& tokens) {
  const int64_t num_rows = tokens.size(0);
  at::Tensor x = at::embedding(embedding_, tokens.unsqueeze(0));  // [1, R, hidden_size]
  const Rotation rotation = this->rotation(attentions_[0].cache().num_keys(), num_rows);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    x = x + attend(layer, attentions_[i], norm(x, layer.input_norm), rotation);
    const at::Tensor h = norm(x, layer.post_norm);
    x = x + at::linear(at::silu(at::linear(h, layer.gate)) * at::linear(h, layer.up), layer.down);
  }
  const at::Tensor newest = norm(x.narrow(1, num_rows - 1, 1), norm_);
  return at::linear(newest, head_).flatten().to(at::kFloat);
}

Llama::Rotation Llama::rotation(int64_t first_position, int64_t num_rows) const {
  const at::Tensor positions = at::arange(first_position, first_position + num_rows, at::kFloat);
  const at::Tensor angles = positions.unsqueeze(1) * inverse_frequencies_;
  const at::Tensor all = at::cat({angles, angles}, -1).unsqueeze(0).unsqueeze(0);
  const at::ScalarType dtype = embedding_.scalar_type();
  return {.cos = all.cos().to(dtype), .sin = all.sin().to(dtype)};
}

at::Tensor Llama::norm(const at::Tensor& x, const at::Tensor& weight) const {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor variance = wide.pow(2).mean(-1, /*keepdim=*/true);
  return weight * (wide * at::rsqrt(variance + config_.rms_norm_eps)).to(x.scalar_type());
}

at::Tensor Llama::attend(const Layer& layer, sift::Attention& attention, const at::Tensor& x,
                         const Rotation& rotation) const {
  const auto heads_of = [&](const at::Tensor& weight) {  // [1, heads, R, head_dim]
    return at::linear(x, weight).view({1, x.size(1), -1, config_.head_dim}).transpose(1, 2);
  };
  const auto rotated = [&](const at::Tensor& heads) {
    return heads * rotation.cos + rotate_half(heads) * rotation.sin;
  };
  const at::Tensor out =
      attention.forward(rotated(heads_of(layer.q)), rotated(heads_of(layer.k)), heads_of(layer.v));
  return at::linear(out.transpose(1, 2).reshape({1, x.size(1), -1}), layer.o);
}

sift::AttentionStats Llama::stats() {
  sift::AttentionStats total;
  for (sift::Attention& attention : attentions_) total += attention.stats();
  return total;
}

}  // namespace example
