// Drives sift::Attention by commands on standard input, for tests that compare it with Python bit
// for bit. Tensors follow each other as raw bytes: replay_attention INPUT OUTPUT < commands
//
//   config THRESHOLD C QUANTILE SLOPE|fit PROMPT_ROWS WARMUP_STEPS RESIDUAL MIN_KEYS
//   forward DTYPE B HQ HK R D MASKED   reads q, k, v and the mask; writes the output, log_alpha,
//                                      beta and the sum of V
//   crop N | reorder ROW... | select ROW... | repeat N | reset
//   stats                              writes 4 int64
#include <sift_attention/attention.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace {

class Replay {
 public:
  Replay(const char* input, const char* output)
      : input_(input, std::ios::binary), output_(output, std::ios::binary) {}

  void run(std::istringstream& command) {
    std::string name;
    command >> name;
    if (name == "config") configure(command);
    if (name == "forward") forward(command);
    if (name == "crop") attention_->crop(next<int64_t>(command));
    if (name == "reorder") attention_->reorder(rows(command));
    if (name == "select") attention_->select(rows(command));
    if (name == "repeat") attention_->repeat(next<int64_t>(command));
    if (name == "reset") attention_->reset();
    if (name == "stats") stats();
  }

 private:
  template <class T>
  static T next(std::istringstream& command) {
    T value{};
    command >> value;
    return value;
  }

  static at::Tensor rows(std::istringstream& command) {
    const std::istream_iterator<int64_t> first(command);
    return at::tensor(std::vector<int64_t>(first, {}), at::kLong);
  }

  at::Tensor read(at::IntArrayRef sizes, at::ScalarType dtype) {
    at::Tensor tensor = at::empty(sizes, dtype);
    input_.read(static_cast<char*>(tensor.data_ptr()), static_cast<int64_t>(tensor.nbytes()));
    return tensor;
  }

  void write(const at::Tensor& tensor) {
    const at::Tensor bytes = tensor.contiguous();
    output_.write(static_cast<const char*>(bytes.data_ptr()), static_cast<int64_t>(bytes.nbytes()));
  }

  void configure(std::istringstream& command) {
    sift::SiftConfig config;
    const auto threshold = next<std::string>(command);
    config.threshold =
        threshold == "quantile" ? sift::Threshold::kQuantile : sift::Threshold::kUniform;
    config.c = next<double>(command);
    config.quantile = next<double>(command);
    const auto slope = next<std::string>(command);
    config.slope = slope == "fit" ? std::nullopt : std::optional(std::stod(slope));
    config.prompt_rows = next<int64_t>(command);
    config.warmup_steps = next<int64_t>(command);
    config.residual = static_cast<sift::Residual>(next<int>(command));
    config.min_keys = next<int64_t>(command);
    attention_ = std::make_unique<sift::Attention>(config);
  }

  void forward(std::istringstream& command) {
    const std::map<std::string, at::ScalarType> dtypes = {
        {"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}};
    const at::ScalarType dtype = dtypes.at(next<std::string>(command));
    std::vector<int64_t> sizes(5);
    for (int64_t& size : sizes) command >> size;
    const int64_t batch = sizes[0];
    const auto is_masked = next<bool>(command);
    sift::AttentionOptions options;
    const at::Tensor q = read({batch, sizes[1], sizes[3], sizes[4]}, dtype);
    const at::Tensor k = read({batch, sizes[2], sizes[3], sizes[4]}, dtype);
    const at::Tensor v = read(k.sizes(), dtype);
    const int64_t num_keys = attention_->cache().num_keys() + sizes[3];
    if (is_masked) options.key_mask = read({batch, num_keys}, at::kBool);
    write(attention_->forward(q, k, v, options));
    write(attention_->law().log_alpha);
    write(attention_->law().beta);
    write(attention_->cache().v_sum(options.key_mask));
  }

  void stats() {
    const sift::AttentionStats stats = attention_->stats();
    write(at::tensor({stats.decode_calls, stats.keys, stats.rows_loaded, stats.unfitted_heads}));
  }

  std::ifstream input_;
  std::ofstream output_;
  std::unique_ptr<sift::Attention> attention_;
};

}  // namespace

int main(int, char** argv) {
  const at::NoGradGuard no_grad;
  Replay replay(argv[1], argv[2]);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream command(line);
    replay.run(command);
  }
}
