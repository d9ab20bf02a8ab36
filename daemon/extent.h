// What an extent is to the daemon: its owner, its format, how its elements lie in pages. Plain data, owned by
// the registry, touched by the dispatcher thread alone.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "client/wire/ids.h"
#include "client/wire/types.h"
#include "kernels/ops.h"
#include "optim8bit/layout.h"

namespace bitpager::daemon {

// An arena is in use once. The owner's uid and job are part of the job.
struct ArenaKey {
  wire::JobId job;
  std::uint32_t rank = 0;
  std::string optimizer;
  wire::StateBits bits = wire::StateBits::k8;
  auto operator<=>(const ArenaKey&) const = default;
};

struct Arena {
  ArenaKey key;
  optim8bit::StateLayout layout;
  std::vector<std::uint64_t> elements;    // of each tensor
  std::vector<std::uint64_t> first_unit;  // of each tensor, and one past the last: tensors + 1
  std::uint64_t layout_hash = 0;
  std::uint64_t applied_step = 0;  // the newest step applied whole
  bool torn = false;               // a step was applied in part (a fault of the device): not to be continued
  [[nodiscard]] std::uint64_t units() const { return first_unit.back(); }
};

struct Weight {
  std::string name;
  kernels::WeightFormat format;
  std::uint64_t elements = 0;
  bool filled = false;    // quantized or imported: may be read
  bool shareable = true;  // its pages may be had by other weights that hold the same
  [[nodiscard]] std::uint64_t blocks() const { return quant::BlocksOf(elements, format.layout.blocksize); }
};

struct Extent {
  wire::ExtentId id;
  wire::JobId job;
  wire::SessionId owner;     // none while it lingers
  std::int64_t keep_ms = 0;  // while it lingers: so long behind the job's last session
  std::uint64_t pages = 0;
  wire::ExtentId paged;  // what the pager calls its pages: `id`, unless they are shared or were
  wire::ExtentId fresh;  // pages of its own that are being filled in place of shared ones; else none
  std::variant<Arena, Weight> body;

  [[nodiscard]] Arena* arena() { return std::get_if<Arena>(&body); }
  [[nodiscard]] const Arena* arena() const { return std::get_if<Arena>(&body); }
  [[nodiscard]] Weight* weight() { return std::get_if<Weight>(&body); }
  [[nodiscard]] const Weight* weight() const { return std::get_if<Weight>(&body); }
};

}  // namespace bitpager::daemon
