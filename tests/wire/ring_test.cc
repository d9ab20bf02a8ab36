// The SPSC ring: order and wholeness under two threads, full and empty, hostile cursors.
#include "client/wire/ring.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <random>
#include <thread>

namespace bitpager::wire {
namespace {

constexpr std::uint32_t kSlots = 8;

struct Record {
  std::uint64_t words[16] = {};
};

struct Shared {
  Word tail{0};
  Word head{0};
  Record records[kSlots];
};

struct Pair {
  std::unique_ptr<Shared> shared = std::make_unique<Shared>();
  RingProducer<Record> producer{shared->records, kSlots, &shared->tail, &shared->head};
  RingConsumer<Record> consumer{shared->records, kSlots, &shared->tail, &shared->head};
};

Record Numbered(std::uint64_t n) {
  Record record;
  for (std::uint64_t& word : record.words) word = n;
  return record;
}

TEST(Ring, RejectsPushWhenFullAndGoesOnAfterAPop) {
  Pair ring;
  for (std::uint64_t i = 0; i < kSlots; ++i) EXPECT_EQ(ring.producer.Push(Numbered(i)), RingState::kOk);
  EXPECT_EQ(ring.producer.Push(Numbered(99)), RingState::kFull);
  EXPECT_EQ(ring.shared->tail.load(), kSlots);
  Record out;
  ASSERT_EQ(ring.consumer.Pop(out), RingState::kOk);
  EXPECT_EQ(out.words[0], 0U);
  EXPECT_EQ(ring.producer.Push(Numbered(8)), RingState::kOk);
}

TEST(Ring, IsEmptyUntilPushed) {
  Pair ring;
  Record out;
  EXPECT_TRUE(ring.consumer.Empty());
  EXPECT_EQ(ring.consumer.Pop(out), RingState::kEmpty);
  ASSERT_EQ(ring.producer.Push(Numbered(1)), RingState::kOk);
  EXPECT_FALSE(ring.consumer.Empty());
}

TEST(Ring, KeepsOrderAndWholeRecordsUnderTwoThreads) {
  Pair ring;
  constexpr std::uint64_t kCount = 200'000;
  std::thread producer([&] {
    for (std::uint64_t i = 0; i < kCount;) {
      const RingState state = ring.producer.Push(Numbered(i));
      ASSERT_NE(state, RingState::kCorrupt);
      if (state == RingState::kOk) {
        ++i;
      } else {
        std::this_thread::yield();
      }
    }
  });
  for (std::uint64_t i = 0; i < kCount;) {
    Record out;
    const RingState state = ring.consumer.Pop(out);
    ASSERT_NE(state, RingState::kCorrupt);
    if (state == RingState::kEmpty) {
      std::this_thread::yield();
      continue;
    }
    for (const std::uint64_t word : out.words) ASSERT_EQ(word, i);
    ++i;
  }
  producer.join();
  EXPECT_TRUE(ring.consumer.Empty());
}

TEST(Ring, SeesAConsumerCursorThatIsAheadOfOurs) {
  Pair ring;
  ring.shared->head.store(1);
  EXPECT_EQ(ring.producer.Push(Numbered(0)), RingState::kCorrupt);
  ring.shared->head.store(std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(ring.producer.Push(Numbered(0)), RingState::kOk)
      << "one behind: a ring that is one record fuller";
}

TEST(Ring, SeesAProducerCursorThatJumpedTooFar) {
  Pair ring;
  Record out;
  ring.shared->tail.store(kSlots + 1);
  EXPECT_EQ(ring.consumer.Pop(out), RingState::kCorrupt);
  ring.shared->tail.store(std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(ring.consumer.Pop(out), RingState::kCorrupt);
}

// Whatever the peer writes at whatever time, no access leaves the slots (the sanitizers watch) and every
// outcome is one of the four.
TEST(Ring, SurvivesRandomCursorsAndRecords) {
  Pair ring;
  std::mt19937_64 random(7);
  for (int i = 0; i < 300'000; ++i) {
    const std::uint64_t value = (random() & 3U) == 0 ? random() : random() % (4 * kSlots);
    switch (random() % 5) {
      case 0:
        ring.shared->tail.store(value);
        break;
      case 1:
        ring.shared->head.store(value);
        break;
      case 2:
        ring.shared->records[random() % kSlots].words[random() % 16] = random();
        break;
      case 3: {
        const RingState state = ring.producer.Push(Numbered(value));
        ASSERT_TRUE(state == RingState::kOk || state == RingState::kFull || state == RingState::kCorrupt);
        break;
      }
      default: {
        Record out;
        const RingState state = ring.consumer.Pop(out);
        ASSERT_TRUE(state == RingState::kOk || state == RingState::kEmpty || state == RingState::kCorrupt);
      }
    }
  }
}

TEST(Ring, OverwritingOurPublishedCursorDoesNotMoveOurs) {
  Pair ring;
  ASSERT_EQ(ring.producer.Push(Numbered(0)), RingState::kOk);
  ring.shared->tail.store(77);
  ASSERT_EQ(ring.producer.Push(Numbered(1)), RingState::kOk);
  EXPECT_EQ(ring.producer.pushed(), 2U);
  EXPECT_EQ(ring.shared->tail.load(), 2U);
}

}  // namespace
}  // namespace bitpager::wire
