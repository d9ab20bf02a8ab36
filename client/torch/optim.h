// Optimizers for libtorch whose states live in bitpagerd's pages: 8-bit codes with an absmax of every 256
// elements, or 32 bits where the options say so.
//
//   bitpager::optim::PagedAdamW8bit optimizer(model->parameters(), 2e-4);
//   bitpager::optim::PagedAdamW8bit optimizer(model->parameters(),
//       bitpager::optim::PagedAdamW8bitOptions(2e-4).weight_decay(0.1),
//       bitpager::optim::PagingOptions().session(session));
//
// They give the same bits as the Python package's classes of the same names. Parameters are fp32, fp16 or
// bf16, gradients too, on the CPU or on CUDA devices.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "client/torch/paged_optimizer.h"

namespace bitpager::optim {

// AdamW (arXiv 1711.05101):
// m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + eps sqrt(1-b2^t));
// then p *= 1 - lr weight_decay.
class PagedAdamW8bit : public PagedOptimizer {
 public:
  explicit PagedAdamW8bit(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                          PagedAdamW8bitOptions defaults = {}, const PagingOptions& paging = {})
      : PagedOptimizer(kPagedAdamW8bit, groups, std::make_unique<PagedAdamW8bitOptions>(std::move(defaults)),
                       paging) {}
  explicit PagedAdamW8bit(std::vector<torch::Tensor> parameters, PagedAdamW8bitOptions defaults = {},
                          const PagingOptions& paging = {})
      : PagedAdamW8bit({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults),
                       paging) {}
};

// The same rule without weight decay unless it is asked for (arXiv 1412.6980).
class PagedAdam8bit : public PagedOptimizer {
 public:
  explicit PagedAdam8bit(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                         PagedAdam8bitOptions defaults = {}, const PagingOptions& paging = {})
      : PagedOptimizer(kPagedAdam8bit, groups, std::make_unique<PagedAdam8bitOptions>(std::move(defaults)),
                       paging) {}
  explicit PagedAdam8bit(std::vector<torch::Tensor> parameters, PagedAdam8bitOptions defaults = {},
                         const PagingOptions& paging = {})
      : PagedAdam8bit({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults),
                      paging) {}
};

// Lion (arXiv 2302.06675): p *= 1 - lr weight_decay; p -= lr sign(b1 m + (1-b1) g); m = b2 m + (1-b2) g.
class PagedLion8bit : public PagedOptimizer {
 public:
  explicit PagedLion8bit(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                         PagedLion8bitOptions defaults = {}, const PagingOptions& paging = {})
      : PagedOptimizer(kPagedLion8bit, groups, std::make_unique<PagedLion8bitOptions>(std::move(defaults)),
                       paging) {}
  explicit PagedLion8bit(std::vector<torch::Tensor> parameters, PagedLion8bitOptions defaults = {},
                         const PagingOptions& paging = {})
      : PagedLion8bit({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults),
                      paging) {}
};

}  // namespace bitpager::optim
