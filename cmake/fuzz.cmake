# libFuzzer programs on the torch-free code: fuzz_decode, fuzz_score_quantile and fuzz_power_law.
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  message(FATAL_ERROR "SIFT_BUILD_FUZZERS needs Clang, got ${CMAKE_CXX_COMPILER_ID}.")
endif()
foreach(name decode score_quantile power_law)
  add_executable(fuzz_${name}
    tests/cpp/decode_case.cpp
    tests/cpp/decode_check.cpp
    tests/fuzz/fuzz_${name}.cpp
    tests/fuzz/fuzzed_input.cpp)
  target_include_directories(fuzz_${name} PRIVATE tests/cpp)
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  target_link_libraries(fuzz_${name} PRIVATE sift_core)
endforeach()
