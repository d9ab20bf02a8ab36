# The component torch of find_package(bitpager): a static library bitpager_torch, compiled in the project that asks
# for it. libtorch promises no binary compatibility between its versions, so these sources, which need the libtorch
# and the flags of that project, are what is installed.
if(NOT TARGET torch)
  find_package(Torch QUIET)
endif()

if(NOT TARGET torch)
  set(bitpager_NOT_FOUND_MESSAGE
      "its component torch needs libtorch, and find_package(Torch) finds none. Hint: -DCMAKE_PREFIX_PATH=/path/to/libtorch, \
or the output of python3 -c 'import torch; print(torch.utils.cmake_prefix_path)'")
elseif(TORCH_CXX_FLAGS MATCHES "_GLIBCXX_USE_CXX11_ABI=0")
  set(bitpager_NOT_FOUND_MESSAGE
      "this libtorch is built with _GLIBCXX_USE_CXX11_ABI=0, bitpager with the C++11 ABI. Hint: torch 2.7 or newer, or \
the download of libtorch that is called cxx11-abi")
else()
  set(bitpager_torch_FOUND TRUE)
  if(NOT TARGET bitpager_torch)
    include("${bitpager_TORCH_FOLDER}/sources.cmake")
    list(TRANSFORM BITPAGER_TORCH_SOURCES PREPEND "${bitpager_TORCH_FOLDER}/")
    add_library(bitpager_torch STATIC EXCLUDE_FROM_ALL ${BITPAGER_TORCH_SOURCES})
    set_target_properties(bitpager_torch PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_EXTENSIONS OFF)
    target_compile_features(bitpager_torch PUBLIC cxx_std_20)
    target_link_libraries(bitpager_torch PUBLIC bitpager::client ${TORCH_LIBRARIES})
    add_library(bitpager::torch ALIAS bitpager_torch)
  endif()
endif()
