# What a builder may choose, and the checks of those choices.
option(SIFT_WITH_TORCH "Build the operators and the Python module; OFF: torch-free kernels alone" ON)
option(SIFT_DEBUG "Build without optimisation, with debug information and assertions" OFF)
option(SIFT_SANITIZE "Build with AddressSanitizer and UndefinedBehaviorSanitizer" OFF)
option(SIFT_BUILD_TESTS "Build the C++ tests (needs Catch2)" OFF)
option(SIFT_BUILD_BENCHMARKS "Build profile_decode: where the time of one call goes" OFF)

set(sift_with_cuda AUTO)
if(DEFINED ENV{SIFT_WITH_CUDA})
  set(sift_with_cuda $ENV{SIFT_WITH_CUDA})
endif()
set(SIFT_WITH_CUDA ${sift_with_cuda} CACHE STRING "Build the CUDA operators: AUTO, ON or OFF")
set_property(CACHE SIFT_WITH_CUDA PROPERTY STRINGS AUTO ON OFF)

if(NOT SIFT_WITH_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SIFT_WITH_CUDA must be AUTO, ON or OFF, got ${SIFT_WITH_CUDA}.")
elseif(SIFT_WITH_CUDA STREQUAL "ON" AND NOT SIFT_WITH_TORCH)
  message(FATAL_ERROR "SIFT_WITH_CUDA must be AUTO or OFF without Torch, got ON.")
endif()
