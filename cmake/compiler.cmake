# Flags of all our code. Arithmetic is never reordered or contracted behind our back, so that the
# levels of the CPU kernels differ only where their code does.
include(CheckCXXSourceCompiles)

if(SIFT_DEBUG OR SIFT_SANITIZE)
  set(CMAKE_BUILD_TYPE Debug CACHE STRING "" FORCE)
elseif(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

check_cxx_source_compiles(
  "#include <concepts>\n#include <span>\nint main() { return std::span<int>{}.size(); }"
  SIFT_COMPILER_HAS_CXX20)
if(NOT SIFT_COMPILER_HAS_CXX20)
  message(FATAL_ERROR "The C++ compiler must support C++20 (GCC 11 and Clang 14 do), "
    "got ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}.")
endif()

add_compile_options(
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Werror;-ffp-contract=off>")

# A finding ends the program.
if(SIFT_SANITIZE)
  set(sanitizers -fsanitize=address,undefined,float-cast-overflow)
  add_compile_options(
    -O1 -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS ${sanitizers} -fno-sanitize-recover=all)
  add_link_options(${sanitizers})
endif()
if(SIFT_BUILD_FUZZERS)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(SIFT_X86 ON)
endif()
