// What a call says as it fails, for tests of error messages.
#pragma once

#include <exception>
#include <functional>
#include <string>

namespace sift {

inline std::string sentence(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing";
}

}  // namespace sift
