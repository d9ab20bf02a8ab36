// Steps parameters from files with a libtorch optimizer and leaves what came of it there, for
// test_gpu_libtorch.py.
//
//   libtorch_steps FOLDER DEVICE    # "cuda:0", "cpu"; the daemon: BITPAGER_SOCKET
//
// FOLDER/plan.txt: a line "CLASS DTYPE LR WEIGHT_DECAY STEPS", then one "NAME ELEMENTS" for each parameter.
// NAME: its bytes, NAME.N: its gradient at step N. Written: NAME.out, NAME.state1 and so on.
#include <torch/torch.h>

#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "client/torch/optim.h"

namespace optim = bitpager::optim;

namespace {

struct Plan {
  std::string kind, dtype;
  double lr = 0, weight_decay = 0;
  int steps = 0;
  std::vector<std::pair<std::string, std::int64_t>> parameters;  // name, elements
};

Plan ReadPlan(const std::string& folder) {
  std::ifstream file(folder + "/plan.txt");
  Plan plan;
  file >> plan.kind >> plan.dtype >> plan.lr >> plan.weight_decay >> plan.steps;
  std::string name;
  for (std::int64_t elements = 0; file >> name >> elements;) plan.parameters.emplace_back(name, elements);
  if (plan.parameters.empty()) throw std::runtime_error("there is no plan in " + folder);
  return plan;
}

torch::Tensor Read(const std::string& path, std::int64_t elements, torch::Dtype dtype,
                   const torch::Device& device) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  const torch::Tensor tensor = torch::empty({elements}, dtype);
  if (bytes.str().size() != tensor.nbytes()) throw std::runtime_error(path + " has another size");
  std::memcpy(tensor.data_ptr(), bytes.str().data(), tensor.nbytes());
  return tensor.to(device);
}

void Write(const std::string& path, const torch::Tensor& tensor) {
  if (!tensor.defined()) return;
  const torch::Tensor dense = tensor.detach().cpu().contiguous();
  std::ofstream(path, std::ios::binary)
      .write(static_cast<const char*>(dense.data_ptr()), static_cast<std::streamsize>(dense.nbytes()));
}

std::unique_ptr<optim::PagedOptimizer> MakeOptimizer(const Plan& plan,
                                                     const std::vector<torch::Tensor>& parameters) {
  if (plan.kind == "PagedAdamW8bit") {
    return std::make_unique<optim::PagedAdamW8bit>(
        parameters, optim::PagedAdamW8bitOptions(plan.lr).weight_decay(plan.weight_decay));
  }
  if (plan.kind == "PagedLion8bit") {
    return std::make_unique<optim::PagedLion8bit>(
        parameters, optim::PagedLion8bitOptions(plan.lr).weight_decay(plan.weight_decay));
  }
  throw std::runtime_error("no optimizer is called " + plan.kind);
}

void Run(const std::string& folder, const torch::Device& device) {
  const Plan plan = ReadPlan(folder);
  const torch::Dtype dtype = plan.dtype == "bf16" ? torch::kBFloat16 : torch::kFloat;
  std::vector<torch::Tensor> parameters;
  for (const auto& [name, elements] : plan.parameters) {
    parameters.push_back(Read(folder + "/" + name, elements, dtype, device).requires_grad_());
  }
  const auto optimizer = MakeOptimizer(plan, parameters);
  for (int step = 1; step <= plan.steps; ++step) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const auto& [name, elements] = plan.parameters[i];
      parameters[i].mutable_grad() =
          Read(folder + "/" + name + "." + std::to_string(step), elements, dtype, device);
    }
    optimizer->step();
  }
  optimizer->synchronize();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::string base = folder + "/" + plan.parameters[i].first;
    Write(base + ".out", parameters[i]);
    const optim::PagedParamState state = optimizer->states_of(parameters[i]);
    Write(base + ".state1", state.state1());
    Write(base + ".state2", state.state2());
    Write(base + ".absmax1", state.absmax1());
    Write(base + ".absmax2", state.absmax2());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: libtorch_steps FOLDER DEVICE\n";
    return 2;
  }
  try {
    Run(argv[1], torch::Device(argv[2]));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
