// A second process for the tests of the CUDA device: this program again, running one of the disabled tests of
// cuda_helper.cc with a socket to the first. Includes no CUDA header.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "client/wire/fd_socket.h"

namespace bitpager::testing {

struct IpcOffer {
  std::uint64_t bytes = 0;
  unsigned char handle[wire::kIpcHandleBytes] = {};
};

struct VmmOffer {
  std::uint64_t handle_bytes = 0;
};

struct FaultReport {
  int before = -1, after = -1, again = -1;  // codes of TakeFault
  int done = -1;
  int signalled = -1;  // words that were written behind the fault
  char message[256] = {};
};

// The command line of a helper process; it finds its socket at fd 3.
[[nodiscard]] std::vector<std::string> HelperCommand(const char* name);

class CudaHelper {
 public:
  // Starts the disabled test CudaHelperProcess.DISABLED_`name`.
  explicit CudaHelper(const char* name);
  ~CudaHelper();
  CudaHelper(const CudaHelper&) = delete;
  CudaHelper& operator=(const CudaHelper&) = delete;

  void Send(const void* data, std::size_t bytes, const std::vector<int>& fds) const;
  // Waits for one message; fails the test when the helper ended without it. The fds are the caller's.
  template <typename T>
  T Receive(std::vector<int>* fds = nullptr) const {
    T out{};
    wire::Packet packet;
    EXPECT_TRUE(wire::ReceivePacket(socket_.get(), packet).ok());
    EXPECT_EQ(packet.bytes, sizeof(T)) << "the helper process ended early";
    if (packet.bytes == sizeof(T)) std::memcpy(&out, packet.data.data(), sizeof(T));
    for (int i = 0; fds != nullptr && i < packet.fd_count; ++i) {
      fds->push_back(packet.fds[static_cast<std::size_t>(i)].Release());
    }
    return out;
  }
  // kill -9, and waits until it is gone.
  void Kill();

 private:
  wire::UniqueFd socket_;
  pid_t pid_ = -1;
};

struct CopyRates {
  double load = 0, store = 0, both = 0;  // GB/s; both: each way
};
// What cudaMemcpyAsync alone reaches between cudaMallocHost and cudaMalloc memory, `bytes` each way in one
// call.
[[nodiscard]] CopyRates PlainCopyRates(std::uint64_t bytes);

// What cudaMemPrefetchAsync reaches on managed memory of `bytes`; `both` is not measured.
[[nodiscard]] CopyRates PrefetchRates(std::uint64_t bytes);

}  // namespace bitpager::testing
