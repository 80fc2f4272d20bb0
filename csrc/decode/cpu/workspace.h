// Arrays laid out one after the other in the caller's memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sift {

// Hands out arrays from `base`. With base nullptr it only counts, so that one function both
// measures a layout and lays it out.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 64;  // a cache line: threads share none

  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace sift
