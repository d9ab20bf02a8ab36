// The README's first lines of C++: one step, by a daemon that starts by itself.
#include <iostream>
#include <vector>

#include "client/client.h"
using namespace bitpager;

int main() {
  std::vector<float> param(1 << 20, 1.0F), grad(1 << 20, 0.5F);
  const std::uint64_t elements[] = {param.size()};
  auto session = client::Session::Connect({.job = "first"});
  if (!session.ok()) {
    std::cerr << session.status().message() << "\n";
    return 1;
  }
  auto arena = client::Arena::Create(**session, {.optimizer = "adamw", .elements = elements});
  if (!arena.ok()) return 1;
  const client::StepTensor tensor{.step = 1, .param = param.data(), .grad = grad.data()};
  const wire::GroupRecord group{.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01};
  if (!(*arena)->Step({&tensor, 1}, {&group, 1}, {.step = 1}).ok()) return 1;
  return param[0] < 1.0F && param.back() == param[0] ? 0 : 1;
}
