// Loaded into a daemon by LD_PRELOAD: once the file BITPAGER_TEST_FAULT is there, a kernel that traps runs in
// the primary context of the process's first GPU, as a wild address in one of the daemon's own would. What
// came of it is written into that file. No part of a product; needs neither CUDA's headers nor its libraries
// to be compiled.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

namespace {

constexpr char kKernel[] =
    ".version 6.5\n.target sm_75\n.address_size 64\n.visible .entry boom()\n{\n trap;\n}\n";

template <typename... Arguments>
int Call(void* driver, const char* name, Arguments... arguments) {
  using Function = int (*)(Arguments...);
  const auto function = reinterpret_cast<Function>(dlsym(driver, name));
  return function == nullptr ? -1 : function(arguments...);
}

// The name of the call that failed, with its code; "launched" when all worked.
void Trap(char* out, size_t bytes) {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  void* context = nullptr;
  void* module = nullptr;
  void* kernel = nullptr;
  int device = 0;
  if (driver == nullptr) {
    snprintf(out, bytes, "no driver");
    return;
  }
  const auto failed = [&](const char* name, int code) {
    if (code != 0) snprintf(out, bytes, "%s: %d", name, code);
    return code != 0;
  };
  if (failed("cuDeviceGet", Call(driver, "cuDeviceGet", &device, 0)) ||
      failed("cuDevicePrimaryCtxRetain", Call(driver, "cuDevicePrimaryCtxRetain", &context, device)) ||
      failed("cuCtxSetCurrent", Call(driver, "cuCtxSetCurrent", context)) ||
      failed("cuModuleLoadData",
             Call(driver, "cuModuleLoadData", &module, static_cast<const void*>(kKernel))) ||
      failed("cuModuleGetFunction", Call(driver, "cuModuleGetFunction", &kernel, module, "boom"))) {
    return;
  }
  void* const none = nullptr;
  if (failed("cuLaunchKernel",
             Call(driver, "cuLaunchKernel", kernel, 1U, 1U, 1U, 1U, 1U, 1U, 0U, none, none, none))) {
    return;
  }
  snprintf(out, bytes, "launched");
}

void* Wait(void* path) {
  while (access(static_cast<const char*>(path), F_OK) != 0) usleep(1000);
  char said[128] = "";
  Trap(said, sizeof(said));
  if (FILE* file = fopen(static_cast<const char*>(path), "we"); file != nullptr) {
    fprintf(file, "%s\n", said);
    fclose(file);
  }
  return nullptr;
}

__attribute__((constructor)) void Begin() {
  char* const path = getenv("BITPAGER_TEST_FAULT");
  if (path == nullptr) return;
  // The thread takes none of the daemon's signals.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  if (pthread_create(&thread, nullptr, Wait, path) == 0) pthread_detach(thread);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace
