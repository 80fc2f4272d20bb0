// Memory that ends, to the byte, before a page that nobody may touch.
#pragma once

#include <cstddef>

namespace sift::simt {

class GuardedMemory {
 public:
  explicit GuardedMemory(size_t capacity);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  // The last `bytes` before the guard page, aligned to 16 and so with up to 15 more behind them;
  // they and what lies next to them become 0xFF, which is NaN to every element type.
  char* poisoned(size_t bytes);
  // Whether the bytes next to those that were given are 0xFF still.
  bool is_surrounded_by_poison() const;
  // One past the last usable byte.
  char* end() const;

 private:
  char* pages_ = nullptr;  // guard page, usable pages, guard page
  size_t usable_bytes_ = 0;
  char* given_ = nullptr;
  size_t given_bytes_ = 0;
};

// While one lives, a forbidden access calls `handler` on a stack of its own. The handler switches to
// another context; when it returns instead, the access ends the process.
class FaultHandler {
 public:
  explicit FaultHandler(void (*handler)(const void* address));
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;
};

}  // namespace sift::simt
