# Whether the libtorch optimizers are built and tested here, and the target that they link: bitpager_libtorch.
# Sets BITPAGER_WITH_TORCH, and BITPAGER_NO_TORCH to the reason where they are not. What is installed are their
# sources, with or without libtorch on this machine: see client/package/bitpagerTorch.cmake.
set(BITPAGER_TORCH AUTO CACHE STRING "The libtorch optimizers: AUTO (when a libtorch is found), ON or OFF")
set_property(CACHE BITPAGER_TORCH PROPERTY STRINGS AUTO ON OFF)
set(BITPAGER_LIBTORCH "" CACHE PATH
    "libtorch: the folder that holds its include and lib; empty: the torch of .venv, else of python3")

set(BITPAGER_WITH_TORCH OFF)
set(BITPAGER_NO_TORCH "")
set(BITPAGER_TORCH_FOLDER ${BITPAGER_LIBTORCH})
set(BITPAGER_TORCH_PYTHON "")  # the Python that has this torch, for a test

if(NOT BITPAGER_TORCH MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "BITPAGER_TORCH is ${BITPAGER_TORCH}; it is AUTO, ON or OFF")
elseif(BITPAGER_TORCH STREQUAL "OFF")
  set(BITPAGER_NO_TORCH "BITPAGER_TORCH is OFF")
elseif(BITPAGER_SANITIZE)
  set(BITPAGER_NO_TORCH "libtorch does not run under sanitizers")
elseif(NOT BITPAGER_TORCH_FOLDER)
  # Without importing it, which takes seconds.
  foreach(python IN ITEMS ${CMAKE_SOURCE_DIR}/.venv/bin/python python3)
    execute_process(
      COMMAND ${python} -c "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0])"
      OUTPUT_VARIABLE BITPAGER_TORCH_FOLDER OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(BITPAGER_TORCH_FOLDER)
      set(BITPAGER_TORCH_PYTHON ${python})
      break()
    endif()
  endforeach()
endif()

if(NOT BITPAGER_NO_TORCH)
  # Not by TorchConfig.cmake: that of a CUDA build fails where there is no CUDA toolkit, and none is needed here.
  if(NOT BITPAGER_TORCH_FOLDER)
    set(BITPAGER_NO_TORCH "neither .venv nor python3 has torch")
  elseif(NOT EXISTS ${BITPAGER_TORCH_FOLDER}/lib/libtorch.so OR
         NOT EXISTS ${BITPAGER_TORCH_FOLDER}/include/torch/csrc/api/include/torch/torch.h)
    set(BITPAGER_NO_TORCH "${BITPAGER_TORCH_FOLDER} has no libtorch with C++ headers")
  else()
    set(old_abi "")
    if(EXISTS ${BITPAGER_TORCH_FOLDER}/share/cmake/Torch/TorchConfig.cmake)
      file(STRINGS ${BITPAGER_TORCH_FOLDER}/share/cmake/Torch/TorchConfig.cmake old_abi
           REGEX "_GLIBCXX_USE_CXX11_ABI=0")
    endif()
    if(old_abi)
      set(BITPAGER_NO_TORCH "the libtorch in ${BITPAGER_TORCH_FOLDER} is built with _GLIBCXX_USE_CXX11_ABI=0")
    else()
      set(BITPAGER_WITH_TORCH ON)
    endif()
  endif()
endif()

# A torch of a virtual environment: PREFIX/lib/pythonN/site-packages/torch.
if(BITPAGER_WITH_TORCH AND NOT BITPAGER_TORCH_PYTHON AND EXISTS ${BITPAGER_TORCH_FOLDER}/../../../../bin/python)
  get_filename_component(BITPAGER_TORCH_PYTHON ${BITPAGER_TORCH_FOLDER}/../../../../bin/python ABSOLUTE)
endif()

if(BITPAGER_WITH_TORCH)
  message(STATUS "libtorch optimizers: built with ${BITPAGER_TORCH_FOLDER}")
  add_library(bitpager_libtorch INTERFACE)
  target_include_directories(bitpager_libtorch SYSTEM INTERFACE
    ${BITPAGER_TORCH_FOLDER}/include ${BITPAGER_TORCH_FOLDER}/include/torch/csrc/api/include)
  foreach(library IN ITEMS torch torch_cpu c10)
    target_link_libraries(bitpager_libtorch INTERFACE ${BITPAGER_TORCH_FOLDER}/lib/lib${library}.so)
  endforeach()
elseif(BITPAGER_TORCH STREQUAL "ON")
  message(FATAL_ERROR "libtorch optimizers: ${BITPAGER_NO_TORCH}. Hint: -DBITPAGER_LIBTORCH=/path/to/libtorch, "
                      "or -DBITPAGER_TORCH=AUTO")
else()
  message(STATUS "libtorch optimizers: not built, ${BITPAGER_NO_TORCH}")
endif()
