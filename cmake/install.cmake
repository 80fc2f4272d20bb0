# The installed tree, the same in a wheel (under sift_attention/) and under an install prefix:
# lib/, include/sift_attention/, share/cmake/SiftAttention/ and the Python module.
include(CMakePackageConfigHelpers)
set(package_dir share/cmake/SiftAttention)
set(generated_dir ${CMAKE_CURRENT_BINARY_DIR}/package)
set(CMAKE_INSTALL_MESSAGE LAZY)
set(SIFT_COMPONENTS)  # of find_package

# Installs a library as SiftAttention::<component>, which a file of its own defines: a consumer takes
# those that it can use.
function(sift_install_component target component file)
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${component})
  target_compile_features(${target} INTERFACE cxx_std_20)
  install(TARGETS ${target} EXPORT ${file}
    LIBRARY DESTINATION lib
    ARCHIVE DESTINATION lib
    INCLUDES DESTINATION include)
  install(EXPORT ${file} NAMESPACE SiftAttention:: DESTINATION ${package_dir})
  set(SIFT_COMPONENTS ${SIFT_COMPONENTS} ${component} PARENT_SCOPE)
endfunction()

sift_install_component(sift_core core SiftAttentionCoreTargets)
# decode_cpu.h includes "decode/params.h", which it finds beside itself.
install(FILES csrc/decode/cpu/decode_cpu.h DESTINATION include/sift_attention)
install(FILES csrc/decode/params.h DESTINATION include/sift_attention/decode)
install(DIRECTORY include/sift_attention DESTINATION include FILES_MATCHING PATTERN "*.h")

if(SIFT_WITH_TORCH)
  sift_install_component(sift_attention sift_attention SiftAttentionTargets)
  install(TARGETS _estimator LIBRARY DESTINATION .)
endif()
if(SIFT_BUILD_CUDA)
  sift_install_component(sift_attention_cuda cuda SiftAttentionCudaTargets)
  # Python loads the library only into a torch of the same CUDA major version.
  file(WRITE ${generated_dir}/cuda_version "${CMAKE_CUDA_COMPILER_VERSION}\n")
  install(FILES ${generated_dir}/cuda_version DESTINATION lib)
else()
  install(CODE [[  # an earlier build's, whose operators may have other arguments
    file(REMOVE "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib/libsift_attention_cuda.so"
      "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib/cuda_version")]])
endif()

configure_package_config_file(
  cmake/SiftAttentionConfig.cmake.in ${generated_dir}/SiftAttentionConfig.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(
  ${generated_dir}/SiftAttentionConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${generated_dir}/SiftAttentionConfig.cmake ${generated_dir}/SiftAttentionConfigVersion.cmake
  DESTINATION ${package_dir})
