// What a program is at, on a terminal.
#pragma once

#include <unistd.h>

#include <iostream>
#include <string>

namespace example {

// One line of the standard error, written over and at last wiped; nothing where that is no
// terminal.
class Progress {
 public:
  Progress() = default;
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { show(""); }

  void show(const std::string& text) const {
    if (is_terminal_) std::cerr << "\r\033[K" << text << std::flush;
  }

 private:
  bool is_terminal_ = isatty(STDERR_FILENO) == 1;
};

}  // namespace example
