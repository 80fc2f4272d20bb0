# _estimator: sift_core's estimator for Python, through pybind11 and without Torch.
include(cmake/python.cmake)
sift_ask_python(pybind11_dir "import pybind11; print(pybind11.get_cmake_dir())")
if(NOT pybind11_dir)
  message(FATAL_ERROR "pybind11 must be installed, got none in ${Python_EXECUTABLE}.")
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 2.12 REQUIRED CONFIG PATHS ${pybind11_dir} NO_DEFAULT_PATH)

pybind11_add_module(_estimator MODULE NO_EXTRAS ${SIFT_PYTHON_SOURCES})
target_link_libraries(_estimator PRIVATE sift_core)
install(TARGETS _estimator LIBRARY DESTINATION .)
