#include "kernels/cpu/sigbus_guard.h"

#include <signal.h>
#include <sys/mman.h>

#include <array>
#include <mutex>

namespace bitpager::kernels::cpu {
namespace {

// Registry: a list of fixed blocks, only ever appended to. `next` is stored by Guard (release) and loaded
// by the handler (acquire).
struct GuardBlock {
  std::array<GuardSlot, 512> slots;
  std::atomic<GuardBlock*> next{nullptr};
};

GuardBlock g_first;
struct sigaction g_previous;  // written once, before the handler is installed

bool Covers(const GuardSlot& slot, std::uintptr_t address) {
  const std::uintptr_t begin = slot.begin.load(std::memory_order_acquire);
  return begin != 0 && address >= begin && address - begin < slot.bytes.load(std::memory_order_relaxed);
}

bool CoverWithZeros(std::uintptr_t address) {
  for (GuardBlock* block = &g_first; block != nullptr; block = block->next.load(std::memory_order_acquire)) {
    for (GuardSlot& slot : block->slots) {
      if (!Covers(slot, address)) continue;
      void* const base = reinterpret_cast<void*>(slot.begin.load(std::memory_order_relaxed));
      void* const zeros = mmap(base, slot.bytes.load(std::memory_order_relaxed), PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      slot.failed.store(true, std::memory_order_relaxed);
      return zeros == base;
    }
  }
  return false;
}

void OnSigbus(int number, siginfo_t* info, void* context) {
  if (CoverWithZeros(reinterpret_cast<std::uintptr_t>(info->si_addr))) return;
  if ((g_previous.sa_flags & SA_SIGINFO) != 0) {
    g_previous.sa_sigaction(number, info, context);
  } else if (g_previous.sa_handler == SIG_DFL || g_previous.sa_handler == SIG_IGN) {
    signal(number, SIG_DFL);  // the access faults again and ends the process as it would have
  } else {
    g_previous.sa_handler(number);
  }
}

void Install() {
  struct sigaction action {};
  sigaction(SIGBUS, nullptr, &g_previous);
  action.sa_sigaction = OnSigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

GuardSlot* TakeSlot(GuardBlock& block) {
  for (GuardSlot& slot : block.slots) {
    bool free = false;
    if (slot.taken.compare_exchange_strong(free, true, std::memory_order_acquire)) return &slot;
  }
  return nullptr;
}

GuardSlot* TakeAnySlot() {
  static std::mutex growing;
  for (GuardBlock* block = &g_first;;) {
    if (GuardSlot* slot = TakeSlot(*block); slot != nullptr) return slot;
    GuardBlock* next = block->next.load(std::memory_order_acquire);
    if (next == nullptr) {
      const std::lock_guard lock(growing);
      next = block->next.load(std::memory_order_acquire);
      if (next == nullptr) {
        next = new GuardBlock;  // lives as long as the handler: for ever
        block->next.store(next, std::memory_order_release);
      }
    }
    block = next;
  }
}

}  // namespace

GuardSlot* Guard(void* base, std::size_t bytes) {
  static std::once_flag installed;
  std::call_once(installed, Install);
  GuardSlot* const slot = TakeAnySlot();
  slot->failed.store(false, std::memory_order_relaxed);
  slot->bytes.store(bytes, std::memory_order_relaxed);
  slot->begin.store(reinterpret_cast<std::uintptr_t>(base), std::memory_order_release);
  return slot;
}

void Unguard(GuardSlot* slot) {
  slot->begin.store(0, std::memory_order_release);
  slot->taken.store(false, std::memory_order_release);
}

}  // namespace bitpager::kernels::cpu
