// sift_generate: a Llama writes with exact or with sifted attention, in C++ alone.
#include <sift_attention/attention.h>

#include <ATen/Parallel.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"
#include "options.h"
#include "progress.h"
#include "tokens.h"

namespace example {
namespace {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

// Writes tokens, beginning with the one that the logits of the prompt choose; seconds of each
// decode step. emit(token) is called for each.
template <class Emit>
std::vector<double> write(Llama& model, at::Tensor logits, int64_t num_tokens, const Emit& emit) {
  std::vector<double> seconds;
  for (int64_t i = 0;; ++i) {
    const at::Tensor token = logits.argmax(-1, /*keepdim=*/true);
    emit(token.item<int64_t>());
    if (i + 1 == num_tokens) return seconds;
    const Stopwatch watch;
    logits = model.forward(token);
    seconds.push_back(watch.seconds());
  }
}

void report(const Options& options, Llama& model, const std::vector<double>& seconds) {
  if (seconds.empty()) return;
  const double step_s = median(seconds);
  const sift::AttentionStats stats = model.stats();
  std::fprintf(stderr, "decode: %.2f tokens/s, a median of %.2f ms per step at %lld keys\n",
               1.0 / step_s, step_s * 1e3,
               static_cast<long long>(model.attentions()[0].cache().num_keys()));
  std::fprintf(stderr,
               "%s: %lld of %lld value rows loaded (%.1f%%), %.2f%% of the probability dropped\n",
               options.sift.c == 0.0 ? "exact" : "sifted",
               static_cast<long long>(stats.rows_loaded), static_cast<long long>(stats.keys),
               stats.loaded_fraction() * 100, stats.dropped_mass() * 100);
}

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file || text.empty()) {
    throw std::runtime_error("FILE must be readable and not empty, got " + path.string());
  }
  return text;
}

// The prompt's end, if all of it would leave too little room to write.
void cut(std::string& text, const Options& options, const LlamaConfig& config) {
  const int64_t most = config.max_position_embeddings - options.num_tokens - 1;
  if (most < 1) {
    throw std::runtime_error("--tokens must be at most " +
                             std::to_string(config.max_position_embeddings - 2) +
                             " for this model, got " + std::to_string(options.num_tokens));
  }
  if (static_cast<int64_t>(text.size()) <= most) return;
  std::fprintf(stderr, "prompt: the last %lld of %zu bytes, the model knows %lld positions\n",
               static_cast<long long>(most), text.size(),
               static_cast<long long>(config.max_position_embeddings));
  text.erase(0, text.size() - most);
}

void continue_text(const Options& options) {
  std::string text = read_text(options.file);
  const LlamaConfig config = read_config(options.model / "config.json");
  if (config.vocab_size != kVocabSize) {
    throw std::runtime_error("--model must be one of bytes, with a vocab_size of " +
                             std::to_string(kVocabSize) + ", got " +
                             std::to_string(config.vocab_size));
  }
  cut(text, options, config);
  Llama model(config, read_safetensors(options.model / "model.safetensors"), options.sift);

  const std::vector<int64_t> prompt = encode(text);
  Progress progress;
  progress.show("reading " + std::to_string(prompt.size()) + " tokens");
  const Stopwatch watch;
  const at::Tensor logits = model.forward(at::tensor(prompt));
  const double prompt_s = watch.seconds();
  progress.wipe();

  // On a terminal the text itself shows the progress.
  const bool is_shown = isatty(STDOUT_FILENO) == 1;
  int64_t num_written = 0;
  const std::vector<double> seconds = write(model, logits, options.num_tokens, [&](int64_t token) {
    std::cout << decode(token);
    ++num_written;
    if (is_shown) {
      std::cout << std::flush;
    } else {
      progress.show("token " + std::to_string(num_written) + " of " +
                    std::to_string(options.num_tokens));
    }
  });
  std::cout << std::flush;
  progress.wipe();
  if (is_shown) std::cout << std::endl;
  std::fprintf(stderr, "prompt: %zu tokens in %.2f s\n", prompt.size(), prompt_s);
  report(options, model, seconds);
}

void time_random_model(const Options& options) {
  const LlamaConfig config = llama_3_2_1b();
  Progress progress;
  Llama model(config, random_weights(config, [&](const std::string& name) { progress.show(name); }),
              options.sift);
  // Scores then have a standard deviation of about 3.6, and at 32k keys a tenth of the value rows
  // is loaded: as in benchmarks/bench_generate.py.
  constexpr double kKeyScale = 4.0;
  progress.show("keys and values");
  const std::vector<int64_t> size = {1, config.num_key_value_heads, options.num_keys,
                                     config.head_dim};
  const at::Tensor k = at::randn(size).mul_(kKeyScale).to(at::kBFloat16);
  const at::Tensor v = at::randn(size).to(at::kBFloat16);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    model.attentions()[i].cache().append(k.roll(i, 2), v.roll(i, 2));
  }

  const at::Tensor first = at::zeros({1}, at::kLong);
  model.forward(first);  // threads start, and the values are summed
  int64_t num_written = 0;
  const std::vector<double> seconds =
      write(model, model.forward(first), options.num_tokens, [&](int64_t) {
        progress.show("token " + std::to_string(++num_written) + " of " +
                      std::to_string(options.num_tokens));
      });
  progress.wipe();
  report(options, model, seconds);
}

void run(const Options& options) {
  const c10::InferenceMode inference_mode;
  if (options.num_threads) {
    at::set_num_threads(*options.num_threads);
  } else if (!options.is_random) {
    at::set_num_threads(1);  // in layers this small, waking a second one costs more than it does
  }
  options.is_random ? time_random_model(options) : continue_text(options);
}

}  // namespace
}  // namespace example

int main(int argc, char** argv) {
  try {
    if (const auto options = example::parse_options(argc, argv)) example::run(*options);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "sift_generate: " << error.what() << '\n';
    return 1;
  }
}
