// What the tests of the libtorch optimizers share: daemons of their own, parameters and gradients that
// repeat.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/torch/optim.h"
#include "tests/support/daemon_process.h"

namespace bitpager::testing {

inline constexpr std::uint64_t kPageBytes = 16U << 10;

inline std::vector<std::string> Flags(std::uint64_t device_pages = 1024) {
  return {"--device-budget", std::to_string(device_pages * kPageBytes),
          "--host-budget",   "64MiB",
          "--page-size",     "16KiB",
          "--window-pages",  "4",
          "--threads",       "1",
          "--poison-frames"};
}

// A daemon with room for everything, and a session with it.
struct Rig {
  DaemonProcess daemon{Flags()};
  std::shared_ptr<client::Session> session = daemon.Open("test");
  [[nodiscard]] optim::PagingOptions Paging() const { return optim::PagingOptions().session(session); }
};

using Tensors = std::vector<torch::Tensor>;

// Parameters whose values depend on `seed` alone.
inline Tensors MakeParameters(const std::vector<std::vector<std::int64_t>>& shapes, std::uint64_t seed = 1,
                              torch::Dtype dtype = torch::kFloat) {
  torch::manual_seed(seed);
  Tensors parameters;
  for (const auto& shape : shapes) {
    parameters.push_back(torch::randn(shape).to(dtype).requires_grad_());
  }
  return parameters;
}

// Gradients of step `step`; the same for every list of the same shapes.
inline void SetGradients(Tensors& parameters, std::uint64_t step) {
  torch::manual_seed(1000 + step);
  for (torch::Tensor& parameter : parameters) {
    parameter.mutable_grad() = torch::randn(parameter.sizes()).to(parameter.scalar_type()) * 0.1;
  }
}

inline void Steps(torch::optim::Optimizer& optimizer, Tensors& parameters, std::uint64_t first,
                  std::uint64_t last) {
  for (std::uint64_t step = first; step <= last; ++step) {
    SetGradients(parameters, step);
    optimizer.step();
  }
}

// Bits of a dense tensor in its memory order.
inline std::string Bits(const torch::Tensor& tensor) {
  return tensor.defined() ? std::string(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes())
                          : std::string();
}
inline std::vector<std::string> Bits(const Tensors& tensors) {
  std::vector<std::string> bits;
  for (const torch::Tensor& tensor : tensors) bits.push_back(Bits(tensor));
  return bits;
}
inline std::string StateBits(const optim::PagedOptimizer& optimizer, const torch::Tensor& parameter) {
  const optim::PagedParamState state = optimizer.states_of(parameter);
  return std::to_string(state.step()) + Bits(state.state1()) + Bits(state.state2()) + Bits(state.absmax1()) +
         Bits(state.absmax2());
}

inline double MeanDifference(const Tensors& a, const Tensors& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += (a[i].detach() - b[i].detach()).abs().to(torch::kFloat).mean().item<double>();
  }
  return sum / static_cast<double>(a.size());
}
inline double GreatestDifference(const Tensors& a, const Tensors& b) {
  double greatest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    greatest = std::max(greatest, (a[i].detach() - b[i].detach()).abs().max().item<double>());
  }
  return greatest;
}

// The code and text of what `call` throws; kOk when it throws nothing.
struct Refused {
  wire::Code code = wire::Code::kOk;
  std::string text;
};
inline Refused RefusalOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const optim::Error& error) {
    return {error.code(), error.what()};
  }
  return {};
}

}  // namespace bitpager::testing
