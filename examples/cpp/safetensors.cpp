#include "safetensors.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "json.h"

namespace example {
namespace {

static_assert(std::endian::native == std::endian::little, "the format's numbers are little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin;  // bytes from the end of the header
  uint64_t end;
};

at::ScalarType parse_dtype(const std::string& name) {
  if (name == "F32") return at::kFloat;
  if (name == "F16") return at::kHalf;
  if (name == "BF16") return at::kBFloat16;
  throw std::runtime_error("dtype must be F32, F16 or BF16, got " + name);
}

Entry parse_entry(const std::string& name, const Json& description) {
  Entry entry = {.name = name,
                 .dtype = parse_dtype(description.string("dtype")),
                 .shape = description.integers("shape"),
                 .begin = 0,
                 .end = 0};
  const std::vector<int64_t> offsets = description.integers("data_offsets");
  if (offsets.size() != 2) throw std::runtime_error("data_offsets must be two numbers");
  entry.begin = offsets[0];
  entry.end = offsets[1];
  uint64_t num_bytes = c10::elementSize(entry.dtype);
  for (const int64_t size : entry.shape) {
    if (__builtin_mul_overflow(num_bytes, static_cast<uint64_t>(size), &num_bytes)) {
      throw std::runtime_error("shape must be that of its data, got more");
    }
  }
  if (entry.begin > entry.end || entry.end - entry.begin != num_bytes) {
    throw std::runtime_error("data_offsets must hold " + std::to_string(num_bytes) +
                             " bytes, got [" + std::to_string(entry.begin) + ", " +
                             std::to_string(entry.end) + "]");
  }
  return entry;
}

// In the order of their data, which leaves no byte out and uses none twice.
std::vector<Entry> parse_header(const std::string& text, uint64_t num_data_bytes) {
  const Json header = Json::parse(text);
  const auto* members = header.get_if<Json::Object>();
  if (members == nullptr) throw std::runtime_error("the header must be an object");
  std::vector<Entry> entries;
  for (const auto& [name, description] : *members) {
    if (name == "__metadata__") continue;
    try {
      entries.push_back(parse_entry(name, description));
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(name + ": " + error.what());
    }
  }
  std::ranges::sort(entries, {}, [](const Entry& e) { return std::pair(e.begin, e.end); });
  uint64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != end) {
      throw std::runtime_error(entry.name + ": data_offsets must begin at " + std::to_string(end) +
                               ", got " + std::to_string(entry.begin));
    }
    end = entry.end;
  }
  if (end != num_data_bytes) {
    throw std::runtime_error("the file must hold " + std::to_string(end) +
                             " bytes after its header, got " + std::to_string(num_data_bytes));
  }
  return entries;
}

void read(std::ifstream& file, void* bytes, uint64_t num_bytes) {
  file.read(static_cast<char*>(bytes), static_cast<std::streamsize>(num_bytes));
  if (!file) throw std::runtime_error("the file must be readable to its end");
}

Weights read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || !std::filesystem::is_regular_file(path)) {
    throw std::runtime_error("the file must be there and readable");
  }
  const uint64_t num_file_bytes = std::filesystem::file_size(path);
  uint64_t num_header_bytes = 0;
  if (num_file_bytes < sizeof num_header_bytes) {
    throw std::runtime_error("the file must begin with the length of its header, got " +
                             std::to_string(num_file_bytes) + " bytes");
  }
  read(file, &num_header_bytes, sizeof num_header_bytes);
  const uint64_t num_left = num_file_bytes - sizeof num_header_bytes;
  if (num_header_bytes > std::min(num_left, kMaxHeaderBytes)) {
    throw std::runtime_error("the header must fit the file, got a length of " +
                             std::to_string(num_header_bytes) + " bytes");
  }
  std::string header(num_header_bytes, '\0');
  read(file, header.data(), num_header_bytes);
  Weights weights;
  for (const Entry& entry : parse_header(header, num_left - num_header_bytes)) {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.dtype));
    read(file, tensor.data_ptr(), entry.end - entry.begin);
    weights.emplace(entry.name, std::move(tensor));
  }
  return weights;
}

}  // namespace

Weights read_safetensors(const std::filesystem::path& path) {
  try {
    return read_file(path);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

}  // namespace example
