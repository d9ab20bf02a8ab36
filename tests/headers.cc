// Compiled for its precompiled header alone, which tests/CMakeLists.txt names.
