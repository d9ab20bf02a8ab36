// A single-producer single-consumer ring over slots in shared memory whose other side may be hostile. Each
// side keeps its own cursor in private memory, publishes it, and checks the range of the peer's. Indices are
// masked, records copied. One thread per side.
#pragma once

#include <cstdint>
#include <cstring>

#include "client/wire/segment.h"

namespace bitpager::wire {

enum class RingState : std::uint8_t {
  kOk,
  kEmpty,    // consumer: nothing to take
  kFull,     // producer: no slot free
  kCorrupt,  // the peer's cursor is impossible: end the session
};

template <typename Record>
class RingProducer {
 public:
  RingProducer() = default;
  // `slots` is a power of two. `tail` is ours, `head` the consumer's.
  RingProducer(Record* records, std::uint32_t slots, Word* tail, const Word* head)
      : records_(records), mask_(slots - 1), tail_word_(tail), head_word_(head) {}

  RingState Push(const Record& record) {
    // Pairs with the consumer's release in Pop: a slot it freed is no longer read.
    const std::uint64_t used = tail_ - head_word_->load(std::memory_order_acquire);
    if (used > mask_ + 1) return RingState::kCorrupt;
    if (used == mask_ + 1) return RingState::kFull;
    std::memcpy(static_cast<void*>(&records_[tail_ & mask_]), &record, sizeof(Record));
    // Pairs with the consumer's acquire in Pop: the record is whole before the cursor moves.
    tail_word_->store(++tail_, std::memory_order_release);
    return RingState::kOk;
  }
  // What Push would say now; kOk stays true until we push.
  [[nodiscard]] RingState Room() const {
    const std::uint64_t used = tail_ - head_word_->load(std::memory_order_acquire);
    if (used > mask_ + 1) return RingState::kCorrupt;
    return used == mask_ + 1 ? RingState::kFull : RingState::kOk;
  }
  [[nodiscard]] std::uint64_t pushed() const { return tail_; }

 private:
  Record* records_ = nullptr;
  std::uint64_t mask_ = 0;
  Word* tail_word_ = nullptr;
  const Word* head_word_ = nullptr;
  std::uint64_t tail_ = 0;
};

template <typename Record>
class RingConsumer {
 public:
  RingConsumer() = default;
  RingConsumer(const Record* records, std::uint32_t slots, const Word* tail, Word* head)
      : records_(records), mask_(slots - 1), tail_word_(tail), head_word_(head) {}

  // Copies the next record into `out`.
  RingState Pop(Record& out) {
    // Pairs with the producer's release in Push.
    const std::uint64_t waiting = tail_word_->load(std::memory_order_acquire) - head_;
    if (waiting == 0) return RingState::kEmpty;
    if (waiting > mask_ + 1) return RingState::kCorrupt;
    std::memcpy(static_cast<void*>(&out), &records_[head_ & mask_], sizeof(Record));
    // Pairs with the producer's acquire in Push: the copy is whole before the slot is free.
    head_word_->store(++head_, std::memory_order_release);
    return RingState::kOk;
  }
  [[nodiscard]] bool Empty() const { return tail_word_->load(std::memory_order_acquire) == head_; }

 private:
  const Record* records_ = nullptr;
  std::uint64_t mask_ = 0;
  const Word* tail_word_ = nullptr;
  Word* head_word_ = nullptr;
  std::uint64_t head_ = 0;
};

}  // namespace bitpager::wire
