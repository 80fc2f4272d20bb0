// Memory between pages that must not be touched: whoever reads or writes past its end is stopped,
// in release builds too.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <stdexcept>

namespace sift {

// Which end of the memory touches a page.
enum class Edge { kFront, kBack };

class GuardedMemory {
 public:
  GuardedMemory(int64_t num_bytes, Edge edge) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t readable = std::max<int64_t>(1, (num_bytes + page - 1) / page) * page;
    size_ = static_cast<size_t>(readable + 2 * page);
    region_ = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region_ == MAP_FAILED) throw std::runtime_error("mmap failed");
    uint8_t* begin = static_cast<uint8_t*>(region_) + page;
    if (mprotect(begin, static_cast<size_t>(readable), PROT_READ | PROT_WRITE) != 0) {
      throw std::runtime_error("mprotect failed");
    }
    data_ = begin + (edge == Edge::kFront ? 0 : readable - num_bytes);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(region_, size_); }

  void* data() const { return data_; }

 private:
  void* region_;
  size_t size_;
  void* data_;
};

// Any number of arrays with the same edge guarded.
class GuardedArrays {
 public:
  explicit GuardedArrays(Edge edge) : edge_(edge) {}

  void* fill(int64_t num_bytes) {
    void* data = arrays_.emplace_back(num_bytes, edge_).data();
    std::memset(data, 0xff, static_cast<size_t>(num_bytes));
    return data;
  }
  template <typename T>
  T* fill(int64_t count) {
    return static_cast<T*>(fill(count * static_cast<int64_t>(sizeof(T))));
  }

  // Replaces a pointer to `count` elements of T, or with void bytes, by one to a guarded copy.
  template <typename T>
  void guard(const T*& data, int64_t count, int64_t element_bytes) {
    if (data == nullptr) return;
    void* copy = fill(count * element_bytes);
    std::memcpy(copy, data, static_cast<size_t>(count * element_bytes));
    data = static_cast<const T*>(copy);
  }
  template <typename T>
  void guard(const T*& data, int64_t count) {
    guard(data, count, sizeof(T));
  }

 private:
  Edge edge_;
  std::deque<GuardedMemory> arrays_;
};

}  // namespace sift
