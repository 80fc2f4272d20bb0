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
  ~Progress() { wipe(); }

  void show(const std::string& text) {
    if (!is_terminal_) return;
    std::cerr << "\r\033[K" << text << std::flush;
    is_shown_ = true;
  }

  // Leaves a line alone that is not this one's.
  void wipe() {
    if (is_shown_) std::cerr << "\r\033[K" << std::flush;
    is_shown_ = false;
  }

 private:
  bool is_terminal_ = isatty(STDERR_FILENO) == 1;
  bool is_shown_ = false;
};

}  // namespace example
