# Finds the pybind11 that pip installed for this Python.
include(cmake/python.cmake)
sift_ask_python(pybind11_dir "import pybind11; print(pybind11.get_cmake_dir())")
if(NOT pybind11_dir)
  message(FATAL_ERROR "pybind11 must be 2.12 or newer, got none in ${Python_EXECUTABLE}.")
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 2.12 REQUIRED CONFIG PATHS ${pybind11_dir} NO_DEFAULT_PATH)
