// An optimizer arena: the paged states of one optimizer's tensors, and its steps. Any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/session.h"
#include "client/wire/records.h"
#include "client/wire/status.h"
#include "client/wire/types.h"

namespace bitpager::client {

struct ArenaOptions {
  wire::Rule rule = wire::Rule::kAdam;
  wire::StateBits bits = wire::StateBits::k8;
  bool evictable =
      true;  // false: its pages stay on the device, or creation is refused with the bytes missing
  std::string optimizer;                    // (uid, job, rank, optimizer, bits) is in use once; 1 to 63 bytes
  std::span<const std::uint64_t> elements;  // of each tensor, in parameter order; each >= 1
  std::uint64_t layout_hash = 0;            // of names, shapes and dtypes
  wire::Resume resume = wire::Resume::kFresh;
  std::uint64_t step = 0;  // kContinue: the step that the parameters are at
};

struct ArenaInfo {
  std::uint64_t pages = 0;
  std::uint64_t units = 0;
  std::uint64_t units_per_page = 0;
  std::uint64_t step = 0;  // that the states are at
};

// One tensor of a step: `elements` of its arena entry, dense, parameter and gradient in the same order.
struct StepTensor {
  std::uint32_t tensor = 0;  // index in the arena; ascending
  std::uint32_t group = 0;
  std::uint64_t step = 0;  // counts from 1
  wire::DType param_dtype = wire::DType::kF32;
  wire::DType grad_dtype = wire::DType::kF32;
  wire::Slice param_place;  // buffer 0: `param` is staged through the slab, both ways
  void* param = nullptr;
  wire::Slice grad_place;  // buffer 0: `grad` is copied into the slab
  const void* grad = nullptr;
};

struct StepOptions {
  wire::OnNonFinite on_nonfinite = wire::OnNonFinite::kSkip;
  std::uint64_t step = 0;  // of the optimizer, recorded when applied
  bool continues = false;  // a further part of the step of the session's request before: counted once
};

// Of a step on a GPU's stream.
struct StreamStepOptions {
  wire::OnNonFinite on_nonfinite = wire::OnNonFinite::kSkip;
  std::uint64_t step = 0;                 // of the optimizer, recorded when applied
  std::uint64_t steps_ahead = 0;          // added to every tensor's step, so that a list may be used again
  std::span<const std::uint64_t> grads;   // empty, or an address for each tensor, in place of its own
  std::span<const std::uint64_t> params;  // the same for parameters
  // The caller enqueued nothing on the stream since its last request there: this one starts right behind it,
  // without a round by the stream. A part of the same step: counted once.
  bool follows = false;
};

struct StepResult {
  std::uint64_t nonfinite_blocks = 0;
  std::uint32_t first_nonfinite_tensor = ~0U;  // ~0: none
  std::uint64_t loaded_pages = 0;
  std::uint64_t stored_pages = 0;
  std::uint64_t total_ns = 0;
  std::uint64_t stall_ns = 0;
  std::uint64_t launch_ns = 0;  // from its turn, its inputs ready, until the device had its first kernel
};

// Planes of one tensor's states, k < StatesOf(rule): n uint8 codes (8-bit) or n fp32; absmax: ceil(n / 256)
// fp32 (8-bit only).
struct StatePlanes {
  void* planes[2] = {nullptr, nullptr};
  float* absmax[2] = {nullptr, nullptr};
};

class Arena {
 public:
  [[nodiscard]] static wire::Result<std::unique_ptr<Arena>> Create(const Session& session,
                                                                   const ArenaOptions& options);
  // Leaves the states to the session: they follow the job's linger setting, so that a run may come back to
  // them. Drop gives their memory back.
  ~Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Applies one step and waits for it. `result` is set for Ok and kNonFinite (blocks were skipped, all others
  // are updated). On any other error nothing was applied, save kDaemonLost and kInterrupted (unknown, still
  // going). A step that stages parameters is waited for to its end.
  [[nodiscard]] wire::Status Step(std::span<const StepTensor> tensors,
                                  std::span<const wire::GroupRecord> groups, const StepOptions& options,
                                  StepResult* result = nullptr);
  // Submits one step on `stream` and returns its ticket without waiting: it runs behind what the stream
  // holds, and what the stream gets next runs behind it. param and grad are addresses in the session's GPU;
  // places are not used. What it found, Session::TakeFinished tells. On an error nothing was submitted.
  // kUnsupported: a session of another kind of device, a capturing stream; kInvalidArgument, kOutOfRange: a
  // tensor, with its index; kInterrupted: a signal came while waiting for room.
  [[nodiscard]] wire::Result<std::uint64_t> StepOnStream(std::span<const StepTensor> tensors,
                                                         std::span<const wire::GroupRecord> groups,
                                                         const StreamStepOptions& options,
                                                         StreamHandle stream);
  // Copies one tensor's states out of its pages.
  [[nodiscard]] wire::Status ReadStates(std::uint32_t tensor, const StatePlanes& into);
  // Writes them into its pages; the arena is at `step` then.
  [[nodiscard]] wire::Status WriteStates(std::uint32_t tensor, std::uint64_t step, const StatePlanes& from);
  // Behind what the session asked for before, on streams too, which it waits for. kInterrupted: call again.
  [[nodiscard]] wire::Status Drop();
  // The same without a wait: at a later call. For those who must not wait, as collectors.
  void DropLater();

  [[nodiscard]] std::uint64_t id() const { return extent_; }
  [[nodiscard]] const ArenaInfo& info() const { return info_; }

 private:
  Arena(std::shared_ptr<Connection> connection, const ArenaOptions& options)
      : connection_(std::move(connection)),
        rule_(options.rule),
        bits_(options.bits),
        elements_(options.elements.begin(), options.elements.end()) {}

  struct Plan;  // of one step
  wire::Status CheckStep(std::span<const StepTensor> tensors, std::span<const wire::GroupRecord> groups,
                         const StepOptions& options, Plan& plan) const;
  wire::Status CheckList(std::size_t tensors, std::size_t groups, std::uint64_t step) const;
  wire::Status CheckTensor(std::span<const StepTensor> tensors, std::size_t index, std::size_t groups) const;
  wire::Status WriteStreamTable(std::span<const StepTensor> tensors,
                                std::span<const wire::GroupRecord> groups, const StreamStepOptions& options,
                                std::byte* at);
  wire::StepBody Stage(std::span<const StepTensor> tensors, std::span<const wire::GroupRecord> groups,
                       const StepOptions& options, const Plan& plan);
  wire::Status MoveStates(std::uint32_t tensor, bool into_pages, std::uint64_t step,
                          const StatePlanes& planes);

  const std::shared_ptr<Connection> connection_;
  const wire::Rule rule_;
  const wire::StateBits bits_;
  const std::vector<std::uint64_t> elements_;
  std::uint64_t extent_ = 0;
  ArenaInfo info_;
};

}  // namespace bitpager::client
