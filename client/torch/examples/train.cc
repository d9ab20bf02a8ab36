// Trains a small model of characters with PagedAdamW8bit: parameter groups, a scheduler, a checkpoint in
// mid-run, and a second run from that checkpoint that ends with the same bits.
//
//   train [STEPS]        # 60 unless it is said
//
// Without a daemon it starts a private one. To see pages move, start one whose fast memory is too small
// first:
//   bitpagerd --socket /tmp/bp.sock --device-budget 1MiB --page-size 64KiB --window-pages 4 &
//   BITPAGER_SOCKET=/tmp/bp.sock ./train
#include <torch/torch.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/torch/optim.h"

namespace client = bitpager::client;
namespace optim = bitpager::optim;

namespace {

constexpr std::int64_t kContext = 16;
constexpr std::int64_t kCharacters = 128;
constexpr std::int64_t kWidth = 512;

const char* const kText =
    "One daemon per machine owns the memory of your training jobs' optimizer states and quantized weights, "
    "in "
    "pages, and moves the pages between fast memory and host memory as pressure asks. Training processes "
    "stay "
    "thin: a whole optimizer step is one request through shared memory. Residency never changes numbers: the "
    "same run gives the same bits whether everything is resident or a single window is, under any eviction. ";

struct NetImpl : torch::nn::Module {
  NetImpl()
      : embedding(register_module("embedding", torch::nn::Embedding(kCharacters, 32))),
        hidden(register_module("hidden", torch::nn::Linear(kContext * 32, kWidth))),
        middle(register_module("middle", torch::nn::Linear(kWidth, kWidth))),
        head(register_module("head", torch::nn::Linear(kWidth, kCharacters))) {}
  torch::Tensor forward(const torch::Tensor& characters) {
    torch::Tensor x = embedding->forward(characters).flatten(1);
    x = torch::gelu(hidden->forward(x));
    return head->forward(torch::gelu(middle->forward(x)));
  }
  torch::nn::Embedding embedding;
  torch::nn::Linear hidden, middle, head;
};
TORCH_MODULE(Net);

// Weights decay, biases do not; whatever a group does not say comes from the optimizer's options.
std::vector<torch::optim::OptimizerParamGroup> GroupsOf(Net& net) {
  std::vector<torch::Tensor> weights, biases;
  for (torch::Tensor& p : net->parameters()) (p.dim() > 1 ? weights : biases).push_back(p);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(weights);
  groups.emplace_back(biases, std::make_unique<optim::PagedAdamW8bitOptions>(
                                  optim::PagedAdamW8bitOptions().weight_decay(0.0)));
  return groups;
}

// One run: a model, its optimizer and its scheduler, all over one session.
struct Run {
  Net net;
  optim::PagedAdamW8bit optimizer;
  torch::optim::StepLR scheduler;

  explicit Run(std::shared_ptr<client::Session> session)
      : optimizer(GroupsOf(net), optim::PagedAdamW8bitOptions(2e-3).weight_decay(0.05),
                  optim::PagingOptions().session(std::move(session))),
        scheduler(optimizer, 20, 0.7) {}

  double Step(const torch::Tensor& text, int number) {
    torch::manual_seed(number);  // the batch depends on the step alone
    const torch::Tensor at = torch::randint(text.size(0) - kContext, {32, 1});
    const torch::Tensor window = at + torch::arange(kContext + 1);
    const torch::Tensor characters = text.index({window});
    const torch::Tensor loss = optimizer.step([&] {
      optimizer.zero_grad();
      torch::Tensor value = torch::nn::functional::cross_entropy(
          net->forward(characters.slice(1, 0, kContext)), characters.select(1, kContext));
      value.backward();
      return value;
    });
    scheduler.step();
    return loss.item<double>();
  }
};

bool SameBits(Net& a, Net& b) {
  const auto left = a->parameters(), right = b->parameters();
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (std::memcmp(left[i].data_ptr(), right[i].data_ptr(), left[i].nbytes()) != 0) return false;
  }
  return left.size() == right.size();
}

int Train(int steps) {
  const auto session = client::Session::Connect({.job = "train"});
  if (!session.ok()) {
    std::cerr << session.status().message() << "\n";
    return 1;
  }
  const torch::Tensor text = torch::from_blob(const_cast<char*>(kText),
                                              {static_cast<std::int64_t>(std::strlen(kText))}, torch::kChar)
                                 .to(torch::kLong);
  torch::manual_seed(0);
  Run first(*session);
  for (int step = 1; step <= steps; ++step) {
    const double loss = first.Step(text, step);
    if (step % 10 == 0 || step == 1) std::cout << "step " << step << ": loss " << loss << "\n";
    if (step == steps / 2) {
      torch::save(first.net, "model.pt");
      torch::save(first.optimizer, "optimizer.pt");  // states leave their pages for this, and stay in them
    }
  }
  const auto usage = (*session)->GetUsage();
  if (usage.ok()) {
    std::cout << "states " << usage->state_bytes << " bytes, of them resident " << usage->resident_state_bytes
              << "; moved in " << usage->loaded_bytes << ", out " << usage->stored_bytes << "\n";
  }
  Run second(*session);
  // libtorch's schedulers are not saved: this one counts up, then the rates come with the optimizer.
  for (int step = 1; step <= steps / 2; ++step) second.scheduler.step();
  torch::load(second.net, "model.pt");
  torch::load(second.optimizer, "optimizer.pt");
  for (int step = steps / 2 + 1; step <= steps; ++step) second.Step(text, step);
  const bool same = SameBits(first.net, second.net);
  std::cout << "from the checkpoint, the same bits: " << (same ? "yes" : "NO") << "\n";
  return same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Train(argc > 1 ? std::atoi(argv[1]) : 60);
  } catch (const std::exception& error) {  // optim::Error says what, why, and a hint
    std::cerr << error.what() << "\n";
    return 1;
  }
}
