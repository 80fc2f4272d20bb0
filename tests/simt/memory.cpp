#include "memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace sift::simt {
namespace {

constexpr int kPoison = 0xff;
constexpr size_t kSurroundings = 256;  // bytes looked at before those that were given

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}
size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

bool is_poison(const char* begin, const char* end) {
  return std::all_of(begin, end, [](char x) { return x == static_cast<char>(kPoison); });
}

}  // namespace

GuardedMemory::GuardedMemory(size_t capacity)
    : usable_bytes_(round_up(capacity + kSurroundings, page_bytes())) {
  const size_t page = page_bytes();
  void* pages = mmap(nullptr, usable_bytes_ + 2 * page, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  pages_ = static_cast<char*>(pages);
  mprotect(pages_ + page, usable_bytes_, PROT_READ | PROT_WRITE);
}

GuardedMemory::~GuardedMemory() { munmap(pages_, usable_bytes_ + 2 * page_bytes()); }

char* GuardedMemory::end() const { return pages_ + page_bytes() + usable_bytes_; }

char* GuardedMemory::poisoned(size_t bytes) {
  given_ = end() - round_up(bytes, 16);
  given_bytes_ = bytes;
  std::fill(given_ - kSurroundings, end(), static_cast<char>(kPoison));
  return given_;
}

bool GuardedMemory::is_surrounded_by_poison() const {
  return is_poison(given_ - kSurroundings, given_) && is_poison(given_ + given_bytes_, end());
}

namespace {

constexpr size_t kSignalStackBytes = 1 << 16;
char signal_stack[kSignalStackBytes];
stack_t former_stack;
struct sigaction former_segv, former_bus;
void (*current_handler)(const void*) = nullptr;

void on_fault(int fault, siginfo_t* info, void*) {
  current_handler(info->si_addr);
  signal(fault, SIG_DFL);
}

}  // namespace

FaultHandler::FaultHandler(void (*handler)(const void* address)) {
  current_handler = handler;
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = kSignalStackBytes;
  sigaltstack(&stack, &former_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  // NODEFER: the handler is left by a jump, and must not leave its signal blocked.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &former_segv);
  sigaction(SIGBUS, &action, &former_bus);
}

FaultHandler::~FaultHandler() {
  sigaction(SIGSEGV, &former_segv, nullptr);
  sigaction(SIGBUS, &former_bus, nullptr);
  sigaltstack(&former_stack, nullptr);
}

}  // namespace sift::simt
