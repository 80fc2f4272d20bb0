// What -fsanitize=thread makes kernels call before every access to memory. The sanitizer's own
// runtime is not linked, since it knows of threads only: these functions take its place.
#include <cstddef>

#include "scheduler.h"

namespace sift::simt {
namespace {

bool has_hooks = false;

void hook(const void* address, size_t num_bytes, Action action, const void* code) {
  if (running != nullptr) Scheduler::active->access(address, num_bytes, action, code);
}

}  // namespace

bool finds_races() { return has_hooks; }

}  // namespace sift::simt

#define SIFT_HOOK(name, num_bytes, action)                                                         \
  void name(const void* address) {                                                                 \
    sift::simt::hook(address, num_bytes, sift::simt::Action::action, __builtin_return_address(0)); \
  }
#define SIFT_HOOKS(num_bytes)                                     \
  SIFT_HOOK(__tsan_read##num_bytes, num_bytes, kRead)             \
  SIFT_HOOK(__tsan_write##num_bytes, num_bytes, kWrite)           \
  SIFT_HOOK(__tsan_unaligned_read##num_bytes, num_bytes, kRead)   \
  SIFT_HOOK(__tsan_unaligned_write##num_bytes, num_bytes, kWrite) \
  SIFT_HOOK(__tsan_volatile_read##num_bytes, num_bytes, kRead)    \
  SIFT_HOOK(__tsan_volatile_write##num_bytes, num_bytes, kWrite)

extern "C" {
SIFT_HOOKS(1)
SIFT_HOOKS(2)
SIFT_HOOKS(4)
SIFT_HOOKS(8)
SIFT_HOOKS(16)

void __tsan_read_range(const void* address, size_t num_bytes) {
  sift::simt::hook(address, num_bytes, sift::simt::Action::kRead, __builtin_return_address(0));
}
void __tsan_write_range(const void* address, size_t num_bytes) {
  sift::simt::hook(address, num_bytes, sift::simt::Action::kWrite, __builtin_return_address(0));
}

void __tsan_init() { sift::simt::has_hooks = true; }  // before main, where there are any
void __tsan_func_entry(const void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(const void*, const void*) {}
void __tsan_vptr_read(const void*) {}
}
