// A stack and the place where its execution stopped: what a fiber is made of.
#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstddef>

namespace sift::simt {

struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
};

// Makes a context that begins with a call of `entry`, which must not return, on the `stack_bytes`
// before `stack_end`.
void prepare_context(Context& context, char* stack_end, size_t stack_bytes, void (*entry)());

// Stops here, as `from`, and goes on where `to` stopped.
#if defined(__x86_64__)
extern "C" void sift_simt_switch(void** save, void* load);
inline void switch_context(Context& from, Context& to) {
  sift_simt_switch(&from.stack_pointer, to.stack_pointer);
}
#else
inline void switch_context(Context& from, Context& to) {
  swapcontext(&from.registers, &to.registers);
}
#endif

}  // namespace sift::simt
