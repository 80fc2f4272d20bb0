# test_core: Catch2 3, or Debian's 2.13.
find_package(Catch2 3 QUIET)
if(NOT Catch2_FOUND)
  find_package(Catch2 2.13 QUIET)
endif()
if(NOT TARGET Catch2::Catch2WithMain)
  message(WARNING "The C++ tests are skipped: Catch2 2.13 or newer was not found.")
  return()
endif()

enable_testing()
include(Catch)
add_executable(test_core
  tests/cpp/decode_case.cpp
  tests/cpp/decode_check.cpp
  tests/cpp/test_decode.cpp
  tests/cpp/test_decode_bits.cpp
  tests/cpp/test_decode_edges.cpp
  tests/cpp/test_dispatch.cpp
  tests/cpp/test_guard_pages.cpp
  tests/cpp/test_largest.cpp
  tests/cpp/test_power_law.cpp
  tests/cpp/test_score_quantile.cpp)
target_link_libraries(test_core PRIVATE sift_core Catch2::Catch2WithMain)
catch_discover_tests(test_core)

# The AVX-512 levels, emulated with SIMDe on processors that have AVX2 only.
find_path(SIFT_SIMDE_DIR simde/x86/avx512.h)
if(SIFT_X86 AND SIFT_SIMDE_DIR)
  set(emulated tests/cpp/emulated_avx512.cpp tests/cpp/emulated_avx512_bf16.cpp)
  target_sources(test_core PRIVATE ${emulated})
  set_source_files_properties(${emulated} PROPERTIES COMPILE_OPTIONS "${avx2};-O2;-Wno-psabi;-Wno-pass-failed")
  target_include_directories(test_core SYSTEM PRIVATE ${SIFT_SIMDE_DIR})
  target_compile_definitions(test_core PRIVATE SIFT_EMULATED_LEVELS)
else()
  message(STATUS "The AVX-512 levels are not tested by emulation: SIMDe was not found")
endif()

# The CUDA kernels on the host: every thread a fiber (tests/simt/). Each .cu is included by a .cpp of
# its own, so that the same source may be CUDA to another target.
set(kernels_as_cpp)
foreach(kernel IN LISTS SIFT_CUDA_KERNELS)
  get_filename_component(name ${kernel} NAME_WE)
  set(as_cpp ${CMAKE_CURRENT_BINARY_DIR}/simt/${name}.cpp)
  file(CONFIGURE OUTPUT ${as_cpp} CONTENT "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${kernel}\"\n")
  list(APPEND kernels_as_cpp ${as_cpp})
endforeach()
add_executable(test_simt
  ${kernels_as_cpp}
  tests/cpp/decode_case.cpp
  tests/cpp/decode_check.cpp
  tests/cpp/test_decode_cuda.cpp
  tests/cpp/test_fit_power_law_cuda.cpp
  tests/cpp/test_score_quantile_cuda.cpp
  tests/cpp/test_simt.cpp
  tests/cpp/test_simt_bugs.cpp
  tests/cpp/test_simt_races.cpp
  tests/simt/access_hooks.cpp
  tests/simt/context.cpp
  tests/simt/copies.cpp
  tests/simt/fragments.cpp
  tests/simt/meeting.cpp
  tests/simt/memory.cpp
  tests/simt/races.cpp
  tests/simt/scheduler.cpp
  tests/simt/scheduler_memory.cpp
  tests/simt/simt.cpp)
# Every access to memory in kernels calls tests/simt/access_hooks.cpp, which finds data races. With
# -g1, `addr2line -ie test_simt OFFSET` names the line behind an offset of the program.
if(NOT SIFT_SANITIZE)
  set(with_kernels tests/cpp/test_simt.cpp tests/cpp/test_simt_bugs.cpp tests/cpp/test_simt_races.cpp)
  set_source_files_properties(
    ${with_kernels} ${kernels_as_cpp} PROPERTIES COMPILE_OPTIONS "-fsanitize=thread;-g1")
endif()
target_include_directories(test_simt PRIVATE tests/simt)
target_link_libraries(test_simt PRIVATE sift_core Catch2::Catch2WithMain)
catch_discover_tests(test_simt)

# sift::KVCache and sift::Attention as a program on LibTorch compiles them, and the program with which
# tests/test_cpp_attention.py compares them with Python.
if(SIFT_WITH_TORCH)
  add_library(torch INTERFACE IMPORTED)
  target_include_directories(torch INTERFACE ${SIFT_TORCH_DIR}/include)
  target_link_libraries(torch INTERFACE
    ${SIFT_TORCH_DIR}/lib/libtorch.so ${SIFT_TORCH_DIR}/lib/libtorch_cpu.so ${SIFT_TORCH_DIR}/lib/libc10.so)
  add_executable(test_torch
    tests/cpp/test_attention.cpp
    tests/cpp/test_attention_rows.cpp
    tests/cpp/test_kv_cache.cpp
    tests/cpp/test_torch.cpp)
  target_precompile_headers(test_torch PRIVATE <ATen/ATen.h>)  # half of each one's time
  target_link_libraries(test_torch PRIVATE sift_attention Catch2::Catch2WithMain)
  catch_discover_tests(test_torch)
  add_executable(replay_attention tests/cpp/replay_attention.cpp)
  target_link_libraries(replay_attention PRIVATE sift_attention)
  foreach(target test_torch replay_attention)
    target_include_directories(${target} PRIVATE include)
  endforeach()
endif()
