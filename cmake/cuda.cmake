# Decides whether the CUDA operators are built, SIFT_BUILD_CUDA, and how CUDA code is compiled.
# SIFT_WITH_CUDA=AUTO builds them where torch has CUDA and nvcc is found; ON needs nvcc alone, so
# that a machine with a CPU-only torch can build them. No GPU is needed in either case.
set(SIFT_BUILD_CUDA OFF)
if(SIFT_WITH_CUDA STREQUAL "OFF")
  return()
endif()

sift_ask_python(torch_cuda
  "import runpy; print(runpy.run_path('${SIFT_TORCH_DIR}/version.py')['cuda'] or '')")
find_program(SIFT_NVCC NAMES $ENV{CUDACXX} nvcc
  PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
set(obstacle "")
if(SIFT_WITH_CUDA STREQUAL "AUTO" AND NOT torch_cuda)
  set(obstacle "torch has no CUDA")
elseif(NOT SIFT_NVCC)
  set(obstacle "nvcc was not found")
endif()
if(obstacle)
  if(SIFT_WITH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SIFT_WITH_CUDA must be AUTO or OFF, got ON: ${obstacle}.")
  endif()
  message(STATUS "SIFT_WITH_CUDA=AUTO: building for the CPU only, ${obstacle}")
  return()
endif()

set(CMAKE_CUDA_COMPILER ${SIFT_NVCC})
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # torch's: error states and devices are then the same
# NOTE: CMake 3.25 knows neither C++20 nor all architectures of nvcc 13, so the flags below say both.
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
string(REGEX MATCH "^[0-9]+" nvcc_major "${CMAKE_CUDA_COMPILER_VERSION}")
if(torch_cuda AND NOT torch_cuda MATCHES "^${nvcc_major}\\.")
  message(FATAL_ERROR "nvcc must be of torch's CUDA, ${torch_cuda}, got "
    "${CMAKE_CUDA_COMPILER_VERSION}; SIFT_WITH_CUDA=OFF builds for the CPU only.")
endif()

# The architectures, as torch writes them: 8.0, 9.0a, 12.0+PTX.
if(NOT DEFINED TORCH_CUDA_ARCH_LIST)
  set(TORCH_CUDA_ARCH_LIST "8.0;8.6;8.9;9.0;10.0;12.0+PTX")
  if(DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    set(TORCH_CUDA_ARCH_LIST "$ENV{TORCH_CUDA_ARCH_LIST}")
  endif()
endif()
set(cuda_code "")
string(REGEX REPLACE "[ ,;]+" ";" architectures "${TORCH_CUDA_ARCH_LIST}")
foreach(architecture ${architectures})
  if(NOT architecture MATCHES "^([0-9]+)\\.([0-9][af]?)(\\+PTX)?$")
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST must be numbers like 9.0 or 12.0+PTX, "
      "got ${architecture}.")
  endif()
  set(number ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
  list(APPEND cuda_code "SHELL:-gencode arch=compute_${number},code=sm_${number}")
  if(CMAKE_MATCH_3)
    list(APPEND cuda_code "SHELL:-gencode arch=compute_${number},code=compute_${number}")
  endif()
endforeach()
list(JOIN architectures " " architectures)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${architectures}")
set(SIFT_BUILD_CUDA ON)

# A binary without libtorch_cuda.so among what it needs fails to load even where torch has loaded
# that library. Where torch lacks it, a stand-in with its name serves the linker and stays behind.
set(SIFT_TORCH_CUDA ${SIFT_TORCH_DIR}/lib/libtorch_cuda.so)
if(NOT EXISTS ${SIFT_TORCH_CUDA})
  add_library(torch_cuda_stub SHARED cmake/torch_cuda_stub.cpp)
  set_target_properties(torch_cuda_stub PROPERTIES
    OUTPUT_NAME torch_cuda LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/stub)
  set(SIFT_TORCH_CUDA $<TARGET_FILE:torch_cuda_stub>)
endif()

# NOTE: warnings of ptxas about spilled registers are errors too. Code that CPU and CUDA share is
# constexpr, which the second option makes callable on the device.
set(SIFT_CUDA_OPTIONS -std=c++20 --expt-relaxed-constexpr -Werror=all-warnings -Xptxas=--warn-on-spills
  -Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off ${cuda_code})

function(sift_use_cuda target)
  target_compile_definitions(${target} PRIVATE USE_CUDA)  # the declaration of torch's stream
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${SIFT_CUDA_OPTIONS}>")
  target_link_libraries(${target} PRIVATE ${SIFT_TORCH_CUDA})
  if(TARGET torch_cuda_stub)
    add_dependencies(${target} torch_cuda_stub)
  endif()
  set_target_properties(${target} PROPERTIES BUILD_WITH_INSTALL_RPATH ON)  # without the stand-in
endfunction()
