// Survives a client that shrinks a file under our mapping. Owns the process's SIGBUS handler and a registry
// of guarded address ranges that the handler reads without locks. On a fault inside a guarded range the
// handler maps anonymous zero pages over the whole range and flags it; any other SIGBUS goes to the handler
// that was there before. Guard and Unguard: any thread; the handler: whichever thread faulted.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace bitpager::kernels::cpu {

// One guarded range. Slots are never freed, only reused.
struct GuardSlot {
  // 0 while unused. Stored (release) after the other fields; the handler loads it (acquire) first.
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::size_t> bytes{0};
  std::atomic<bool> failed{
      false};                      // stored by the handler, loaded by the device thread; relaxed, a flag only
  std::atomic<bool> taken{false};  // by Guard (acquire), freed by Unguard (release)
};

// Guards [base, base + bytes), page-aligned. The slot stays valid until Unguard.
[[nodiscard]] GuardSlot* Guard(void* base, std::size_t bytes);
// Call before unmapping, when no op uses the range any more.
void Unguard(GuardSlot* slot);

}  // namespace bitpager::kernels::cpu
