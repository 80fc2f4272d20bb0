#include "context.h"

#include <cstdint>

namespace sift::simt {

#if defined(__x86_64__)

// Saves, on the stack, the registers that a callee must preserve, and takes those of the other.
asm(R"(
.text
.p2align 4
.globl sift_simt_switch
.hidden sift_simt_switch
.type sift_simt_switch, @function
sift_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sift_simt_switch, .-sift_simt_switch
)");
void prepare_context(Context& context, char* stack_end, size_t, void (*entry)()) {
  const auto top = reinterpret_cast<uintptr_t>(stack_end) & ~uintptr_t{15};
  auto** word = reinterpret_cast<void**>(top);
  *--word = nullptr;                         // where `entry` would return to
  *--word = reinterpret_cast<void*>(entry);  // returned to, with the alignment of a call
  for (int i = 0; i < 6; ++i) *--word = nullptr;
  context.stack_pointer = word;
}

#else

void prepare_context(Context& context, char* stack_end, size_t stack_bytes, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack_end - stack_bytes;
  context.registers.uc_stack.ss_size = stack_bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

#endif

}  // namespace sift::simt
