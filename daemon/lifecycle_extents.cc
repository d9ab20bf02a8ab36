// The half of Lifecycle that makes, continues and drops extents.
#include <limits>
#include <string>

#include "client/wire/text.h"
#include "daemon/host_room.h"
#include "daemon/lifecycle.h"

namespace bitpager::daemon {

using wire::Code;
using wire::Status;

wire::Result<Arena> Lifecycle::MakeArena(Session& session, const wire::CreateArenaBody& body) {
  const bool known = body.rule <= wire::Rule::kLion &&
                     (body.bits == wire::StateBits::k8 || body.bits == wire::StateBits::k32) &&
                     body.evictable <= 1 && body.resume <= wire::Resume::kContinue;
  if (!known || !wire::IsTerminated(body.optimizer) || body.optimizer[0] == '\0') {
    return Status(Code::kInvalidArgument,
                  "an arena needs a known rule, 8 or 32 bits, and a named optimizer.");
  }
  if (body.tensors == 0 || body.tensors > wire::kMaxTensors) {
    return Status(Code::kInvalidArgument, "an arena holds 1 to " + std::to_string(wire::kMaxTensors) +
                                              " tensors, not " + std::to_string(body.tensors) + ".");
  }
  wire::Result<optim8bit::StateLayout> layout =
      optim8bit::MakeStateLayout(body.rule, body.bits, core_.page_bytes());
  if (!layout.ok()) return layout.status();
  wire::Result<Place> table =
      Resolve(session, body.table, std::uint64_t{body.tensors} * 8, 8, false, "table of element counts");
  if (!table.ok()) return table.status();
  Arena arena;
  arena.key = {session.identity().job, session.identity().rank, std::string(wire::TextOf(body.optimizer)),
               body.bits};
  arena.layout = *layout;
  arena.layout_hash = body.layout_hash;
  arena.elements.resize(body.tensors);
  std::memcpy(arena.elements.data(), table->at, std::size_t{body.tensors} * 8);
  arena.first_unit.reserve(body.tensors + std::size_t{1});
  arena.first_unit.push_back(0);
  constexpr std::uint64_t kMostElements = std::uint64_t{1} << 48;  // all tensors together
  std::uint64_t sum = 0;
  for (const std::uint64_t n : arena.elements) {
    if (n == 0 || n > kMostElements - sum) {
      return Status(Code::kInvalidArgument, "tensor " + std::to_string(arena.first_unit.size() - 1) +
                                                " has " + std::to_string(n) +
                                                " elements: give 1 or more, 2^48 in all.");
    }
    sum += n;
    arena.first_unit.push_back(arena.first_unit.back() + optim8bit::UnitsOf(n));
  }
  return arena;
}

wire::Result<Extent*> Lifecycle::Continue(Session& session, Extent* kept, const Arena& wanted,
                                          const wire::CreateArenaBody& body) {
  const ArenaKey& key = wanted.key;
  if (kept == nullptr) {
    return Status(Code::kNotFound, "no states of optimizer '" + key.optimizer + "' of this job and rank " +
                                       std::to_string(key.rank) +
                                       " were kept. Hint: set a linger time, or load a checkpoint.");
  }
  Arena& arena = *kept->arena();
  if (arena.layout_hash != wanted.layout_hash || arena.elements != wanted.elements ||
      arena.layout.rule != wanted.layout.rule) {
    return Status(Code::kLayoutMismatch, "the kept states of optimizer '" + key.optimizer +
                                             "' are of other parameters or of another rule (" +
                                             std::to_string(arena.elements.size()) + " tensors kept, " +
                                             std::to_string(body.tensors) + " given).");
  }
  if (arena.torn) {
    return Status(Code::kDeviceFault, "the kept states were left half written by a device fault.");
  }
  if (arena.applied_step != body.step) {
    return Status(Code::kStepMismatch, "the kept states are at step " + std::to_string(arena.applied_step) +
                                           ", the client's parameters at step " + std::to_string(body.step) +
                                           ". Hint: load parameters of step " +
                                           std::to_string(arena.applied_step) +
                                           ", or start the states anew.");
  }
  kept->owner = session.identity().id;
  kept->keep_ms = 0;
  session.AddExtent(kept);
  return kept;
}

wire::Result<Extent*> Lifecycle::CreateArena(Session& session, const wire::CreateArenaBody& body) {
  wire::Result<Arena> arena = MakeArena(session, body);
  if (!arena.ok()) return arena.status();
  Extent* kept = core_.registry.FindArena(arena->key);
  if (kept != nullptr && kept->owner) {
    return Status(Code::kAlreadyExists, "optimizer '" + arena->key.optimizer + "' of this job and rank " +
                                            std::to_string(arena->key.rank) + " is in use by session " +
                                            std::to_string(kept->owner.value) +
                                            ". Hint: name the optimizer, or give each process its rank.");
  }
  if (body.resume == wire::Resume::kContinue) return Continue(session, kept, *arena, body);
  Extent extent;
  extent.pages = (arena->units() + arena->layout.units_per_page - 1) / arena->layout.units_per_page;
  extent.body = std::move(*arena);
  paging::ExtentSpec spec;
  spec.kind = wire::ExtentKind::kOptimizerState;
  spec.evictable = body.evictable == 1;
  if (kept != nullptr) {
    // First whether the new arena fits in the place of the kept one, so that a refusal loses nothing.
    Status fits = CheckReplace(*kept, extent.pages, spec);
    if (!fits.ok()) return fits;
    DropExtent(*kept);
  }
  return Admit(session, std::move(extent), spec, "an optimizer arena");
}

Status Lifecycle::CheckReplace(const Extent& kept, std::uint64_t pages,
                               const paging::ExtentSpec& spec_in) const {
  const Job& job = *core_.registry.FindJob(kept.job);
  paging::ExtentSpec spec = spec_in;
  spec.job = job.id;
  spec.pages = pages;
  const std::uint64_t freed_bytes =
      core_.pager.HostFrameOf({kept.paged, 0}) == ~0ULL ? 0 : kept.pages * core_.page_bytes();
  const std::uint64_t bytes = pages * core_.page_bytes();
  if (spec.evictable && bytes > freed_bytes) {
    Status room = CheckHostRoom(core_, job, bytes - freed_bytes,
                                "an optimizer arena, beyond the kept one in its place,");
    if (!room.ok()) return room;
  }
  Status fits = core_.pager.CheckReplace(kept.paged, spec);
  if (fits.ok()) return {};
  return {fits.code(), fits.message() + ". The kept states are as they were."};
}

wire::Result<Extent*> Lifecycle::CreateWeight(Session& session, const wire::CreateWeightBody& body) {
  if (body.type > wire::QuantType::kFP4 || body.nested > 1 || body.unshared > 1 ||
      !wire::IsTerminated(body.name)) {
    return Status(Code::kInvalidArgument,
                  "a weight is NF4 or FP4, nested or not, unshared or not, with a terminated name.");
  }
  if (body.on_disk > 1) return Status(Code::kInvalidArgument, "a weight lies on disk (1) or not (0).");
  if (body.on_disk == 1 && core_.settings.pager.disk_frames == 0) {
    return Status(Code::kUnsupported,
                  "this daemon keeps no pages on disk. Hint: bitpagerd --disk-folder PATH.");
  }
  if (body.elements == 0 || body.elements > (std::uint64_t{1} << 48)) {
    return Status(Code::kInvalidArgument,
                  "a weight has 1 to 2^48 elements, not " + std::to_string(body.elements) + ".");
  }
  wire::Result<quant::WeightLayout> layout =
      quant::MakeWeightLayout(body.blocksize, body.nested == 1, core_.page_bytes());
  if (!layout.ok()) return layout.status();
  Weight weight;
  weight.name = std::string(wire::TextOf(body.name));
  weight.format.type = body.type;
  weight.format.layout = *layout;
  weight.elements = body.elements;
  weight.shareable = core_.settings.share_weights && body.unshared == 0 && body.on_disk == 0;
  Extent extent;
  extent.pages = quant::PagesOf(*layout, body.elements);
  extent.body = std::move(weight);
  paging::ExtentSpec spec;
  spec.kind = wire::ExtentKind::kQuantizedWeight;
  spec.domain = core_.registry.FindJob(session.identity().job)->domain;
  spec.on_disk = body.on_disk == 1;
  return Admit(session, std::move(extent), spec, "a quantized weight");
}

wire::Result<Extent*> Lifecycle::Admit(Session& session, Extent extent, const paging::ExtentSpec& spec_in,
                                       const char* what) {
  Job& job = *core_.registry.FindJob(session.identity().job);
  paging::ExtentSpec spec = spec_in;
  spec.job = job.id;
  spec.pages = extent.pages;
  if (spec.evictable && !spec.on_disk) {
    Status room = CheckHostRoom(core_, job, extent.pages * core_.page_bytes(), what);
    if (!room.ok()) return room;
  }
  wire::Result<wire::ExtentId> id = core_.pager.AddExtent(spec);
  if (!id.ok()) return id.status();
  extent.id = *id;
  extent.paged = *id;
  extent.job = job.id;
  extent.owner = session.identity().id;
  Extent& added = core_.registry.AddExtent(std::move(extent));
  session.AddExtent(&added);
  if (spec.evictable && !spec.on_disk) core_.mover.ExpectHost(added.id, added.pages);
  return &added;
}

Status Lifecycle::Drop(Session& session, wire::ExtentId id) {
  Extent* extent = session.FindExtent(id);
  if (extent == nullptr) {
    return {Code::kNotFound, "no extent " + std::to_string(id.value) + " in this session to drop."};
  }
  if (session.active || !session.pending.empty() || session.HasRequests()) {
    return {Code::kInvalidArgument,
            "extent " + std::to_string(id.value) +
                " cannot be dropped while requests are outstanding. Hint: wait first."};
  }
  session.RemoveExtent(id);
  DropExtent(*extent);
  return {};
}

void Lifecycle::DropExtent(Extent& extent) {
  sharing_.AbandonFill(extent);
  sharing_.Drop(extent);
  core_.registry.RemoveExtent(extent.id);
}

}  // namespace bitpager::daemon
