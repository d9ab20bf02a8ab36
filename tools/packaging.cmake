# The portable bundle: cpack -G TGZ in a build folder. Programs with the libraries they need beside them, what
# client/package/install.cmake puts there for those who compile against the client, the Python wheel, the GPU tests and
# the benchmarks; it runs on any x86-64 Linux with glibc 2.35, with or without a GPU, with no build tools.
find_package(Python3 COMPONENTS Interpreter)

if(Python3_Interpreter_FOUND)
  install(CODE "
    execute_process(COMMAND \"${Python3_EXECUTABLE}\" \"${CMAKE_SOURCE_DIR}/tools/build_wheel.py\"
                            --build-dir \"${CMAKE_BINARY_DIR}\" --bundle \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}\"
                    RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR \"the bundle could not be made\")
    endif()")
endif()

set(CPACK_GENERATOR TGZ)
set(CPACK_PACKAGE_NAME bitpager)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_FILE_NAME bitpager-${PROJECT_VERSION}-linux-x86_64)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_OUTPUT_FILE_PREFIX ${CMAKE_BINARY_DIR}/package)
include(CPack)
