// The libtorch optimizers and the Python package's give the same bits. Runs python_side.py with the package
// of this source tree; skipped where no Python has torch.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/torch/rig.h"

namespace bitpager::testing {
namespace {

using torch::optim::OptimizerParamGroup;

constexpr int kSteps = 5;

struct Named {
  std::string name;
  int group;
  torch::Tensor tensor;
};

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string ReadFile(const std::string& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

std::vector<Named> MakeNamed() {
  const Tensors made = MakeParameters({{70'000}, {5, 1000}, {100}, {4097}}, 7);
  const Tensors half = MakeParameters({{9'000}}, 8, torch::kBFloat16);
  return {{"large", 0, made[0]},
          {"matrix", 1, made[1]},
          {"small", 0, made[2]},
          {"odd", 1, made[3]},
          {"half", 0, half[0]}};
}

// What both start from: the plan, the parameters, the gradients. "odd" has none at step 2.
void WriteInputs(const std::string& folder, const std::string& kind, const std::vector<Named>& all) {
  std::ostringstream plan;
  plan << kind << " 0.001 0.1\n" << kind << " 0.03 0\n";
  for (const Named& one : all) {
    plan << one.name << " " << one.group << " "
         << (one.tensor.scalar_type() == torch::kFloat ? "float32" : "bfloat16") << " " << one.tensor.numel()
         << "\n";
    WriteFile(folder + "/" + one.name, Bits(one.tensor));
  }
  WriteFile(folder + "/plan.txt", plan.str());
}

void StepAll(torch::optim::Optimizer& optimizer, std::vector<Named>& all, const std::string& folder) {
  for (int step = 1; step <= kSteps; ++step) {
    torch::manual_seed(100 + step);
    for (Named& one : all) {
      one.tensor.mutable_grad() = torch::randn(one.tensor.sizes()).to(one.tensor.scalar_type());
      if (one.name == "odd" && step == 2) {
        one.tensor.mutable_grad().reset();
        continue;
      }
      WriteFile(folder + "/" + one.name + "." + std::to_string(step), Bits(one.tensor.grad()));
    }
    optimizer.step();
  }
}

std::string RunPython(const std::string& folder, const std::string& socket, int& code) {
  const std::string command = std::string("PYTHONPATH='") + BITPAGER_PYTHON_PACKAGE +
                              "' BITPAGER_BUILD_DIR='" + BITPAGER_BUILD_DIR + "' '" + BITPAGER_PYTHON +
                              "' '" + BITPAGER_PYTHON_SIDE + "' '" + folder + "' '" + socket + "' 2>&1";
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  std::string output;
  char part[256];
  while (std::fgets(part, sizeof(part), pipe) != nullptr) output += part;
  code = ::pclose(pipe);
  return output;
}

template <typename Optimizer, typename Options>
void GivesPythonsBits(const std::string& kind) {
  if (std::string(BITPAGER_PYTHON).empty()) GTEST_SKIP() << "no Python has torch";
  const Rig rig;
  const TempFolder folder;
  std::vector<Named> all = MakeNamed();
  WriteInputs(folder.path(), kind, all);
  std::vector<Tensors> members(2);
  for (const Named& one : all) members[static_cast<std::size_t>(one.group)].push_back(one.tensor);
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(members[0], std::make_unique<Options>(Options(0.001).weight_decay(0.1)));
  groups.emplace_back(members[1], std::make_unique<Options>(Options(0.03).weight_decay(0)));
  Optimizer optimizer(groups, Options().weight_decay(0), rig.Paging());
  StepAll(optimizer, all, folder.path());
  int code = 0;
  const std::string output = RunPython(folder.path(), rig.daemon.socket(), code);
  ASSERT_EQ(code, 0) << output;
  for (const Named& one : all) {
    SCOPED_TRACE(one.name);
    const std::string base = folder.path() + "/" + one.name;
    EXPECT_TRUE(ReadFile(base + ".out") == Bits(one.tensor));
    const optim::PagedParamState state = optimizer.states_of(one.tensor);
    EXPECT_TRUE(ReadFile(base + ".state1") == Bits(state.state1()));
    EXPECT_TRUE(ReadFile(base + ".state2") == Bits(state.state2()));
    EXPECT_TRUE(ReadFile(base + ".absmax1") == Bits(state.absmax1()));
    EXPECT_TRUE(ReadFile(base + ".absmax2") == Bits(state.absmax2()));
    EXPECT_NE(Bits(state.state1()), "");
  }
}

TEST(PythonPackage, StepsAdamWToTheSameBits) {
  GivesPythonsBits<optim::PagedAdamW8bit, optim::PagedAdamW8bitOptions>("PagedAdamW8bit");
}
TEST(PythonPackage, StepsAdamToTheSameBits) {
  GivesPythonsBits<optim::PagedAdam8bit, optim::PagedAdam8bitOptions>("PagedAdam8bit");
}
TEST(PythonPackage, StepsLionToTheSameBits) {
  GivesPythonsBits<optim::PagedLion8bit, optim::PagedLion8bitOptions>("PagedLion8bit");
}

}  // namespace
}  // namespace bitpager::testing
