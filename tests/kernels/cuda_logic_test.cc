// What the CUDA device decides by itself, on a driver that is made up: needs no GPU.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "client/wire/unique_fd.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/imports.h"
#include "kernels/cuda/list.h"
#include "kernels/cuda/pin_queue.h"
#include "kernels/cuda/shared_words.h"

namespace bitpager::kernels::cuda {
namespace {

using State = PinQueue::State;

bool AllDone(Event /*event*/) {
  return true;
}

State StateOf(const PinQueue::Piece& piece) {
  return piece.state.load();
}

// Pins it, as a thread would.
void PinNow(PinQueue& queue, PinQueue::Piece& piece, bool works = true) {
  EXPECT_TRUE(queue.Expect(piece));
  ASSERT_EQ(queue.Next(AllDone), &piece);
  EXPECT_EQ(StateOf(piece), State::kPinning);
  queue.Pinned(piece, works);
}

TEST(PinQueue, WhatIsWantedWhileItIsUnpinnedIsPinnedAgain) {
  for (const bool by_copy : {false, true}) {
    PinQueue queue;
    PinQueue::Piece piece;
    PinNow(queue, piece);
    queue.GiveBack(piece, {});
    ASSERT_EQ(queue.Next(AllDone), &piece);
    EXPECT_EQ(StateOf(piece), State::kUnpinning);
    EXPECT_FALSE(by_copy ? queue.Need(piece) : queue.Expect(piece));
    EXPECT_EQ(queue.Next(AllDone), nullptr) << "somebody works on it";
    queue.Unpinned(piece);
    ASSERT_EQ(queue.Next(AllDone), &piece);
    EXPECT_EQ(StateOf(piece), State::kPinning);
    queue.Pinned(piece, true);
    EXPECT_EQ(StateOf(piece), State::kPinned);
    EXPECT_TRUE(queue.empty());
  }
}

TEST(PinQueue, WhatIsWantedAndGivenBackWhileItIsUnpinnedStaysTheSystems) {
  PinQueue queue;
  PinQueue::Piece piece;
  PinNow(queue, piece);
  queue.GiveBack(piece, {});
  ASSERT_EQ(queue.Next(AllDone), &piece);
  EXPECT_FALSE(queue.Expect(piece));
  queue.GiveBack(piece, {});
  queue.Unpinned(piece);
  EXPECT_EQ(StateOf(piece), State::kIdle);
  EXPECT_TRUE(queue.empty());
}

TEST(PinQueue, WhatIsWantedBeforeItsLeavingBeganStays) {
  PinQueue queue;
  PinQueue::Piece piece;
  PinNow(queue, piece);
  queue.GiveBack(piece, {});
  EXPECT_FALSE(queue.Expect(piece));
  EXPECT_EQ(StateOf(piece), State::kPinned);
  queue.GiveBack(piece, {});
  EXPECT_TRUE(queue.Need(piece));
  EXPECT_EQ(StateOf(piece), State::kPinned);
  EXPECT_TRUE(queue.empty());
}

TEST(PinQueue, MemoryThatWasUsedUnpinnedIsGivenBackThoughItIsWantedInBetween) {
  PinQueue queue;
  PinQueue::Piece piece;
  PinNow(queue, piece, false);
  EXPECT_EQ(StateOf(piece), State::kFailed);
  queue.GiveBack(piece, {});
  EXPECT_TRUE(queue.Expect(piece));  // to be tried again
  EXPECT_EQ(StateOf(piece), State::kQueued);
  queue.GiveBack(piece, {});
  EXPECT_EQ(StateOf(piece), State::kLeaving);
  ASSERT_EQ(queue.Next(AllDone), &piece);
  queue.Unpinned(piece);
  EXPECT_EQ(StateOf(piece), State::kIdle);
}

TEST(PinQueue, WhatIsGivenBackWhileItIsPinnedLeaves) {
  PinQueue queue;
  PinQueue::Piece piece;
  EXPECT_TRUE(queue.Expect(piece));
  ASSERT_EQ(queue.Next(AllDone), &piece);
  queue.GiveBack(piece, {});
  queue.Pinned(piece, true);
  EXPECT_EQ(StateOf(piece), State::kLeaving);
  ASSERT_EQ(queue.Next(AllDone), &piece);
  queue.Unpinned(piece);
  EXPECT_EQ(StateOf(piece), State::kIdle);
  // Unless it is wanted again in time.
  EXPECT_TRUE(queue.Expect(piece));
  ASSERT_EQ(queue.Next(AllDone), &piece);
  queue.GiveBack(piece, {});
  EXPECT_FALSE(queue.Expect(piece));
  queue.Pinned(piece, true);
  EXPECT_EQ(StateOf(piece), State::kPinned);
}

TEST(PinQueue, WhatCouldNotBePinnedIsTriedAgainOnceItWasGivenBack) {
  PinQueue queue;
  PinQueue::Piece piece;
  PinNow(queue, piece, false);
  EXPECT_EQ(StateOf(piece), State::kFailed);
  EXPECT_TRUE(queue.Need(piece)) << "it is not waited for";
  EXPECT_FALSE(queue.Expect(piece));
  queue.GiveBack(piece, {});
  EXPECT_TRUE(queue.Expect(piece));
  ASSERT_EQ(queue.Next(AllDone), &piece);
  EXPECT_EQ(StateOf(piece), State::kPinning);
}

TEST(PinQueue, CopiesGoFirstAndWhatWaitsHoldsNobodyUp) {
  PinQueue queue;
  PinQueue::Piece leaving, first, second;
  PinNow(queue, leaving);
  const Event open{Queue::kStore, 7};
  std::array<Event, kQueues> after{};
  after[static_cast<std::size_t>(Queue::kStore)] = open;
  queue.GiveBack(leaving, after);
  const auto not_yet = [](Event event) { return event.sequence < 7; };
  EXPECT_EQ(queue.Next(not_yet), nullptr);
  EXPECT_FALSE(queue.empty());
  EXPECT_TRUE(queue.Expect(first));
  EXPECT_TRUE(queue.Expect(second));
  EXPECT_FALSE(queue.Need(second));
  EXPECT_EQ(queue.Next(not_yet), &second);
  EXPECT_EQ(queue.Next(not_yet), &first);
  EXPECT_EQ(queue.Next(not_yet), nullptr);
  EXPECT_EQ(queue.Next(AllDone), &leaving);
}

// Whatever came in between: in the end what is wanted is pinned, and nothing else is.
TEST(PinQueue, EndsAsItWasLastAsked) {
  std::mt19937 random(17);
  for (int round = 0; round < 200; ++round) {
    PinQueue queue;
    std::vector<PinQueue::Piece> pieces(3);
    std::vector<bool> wanted(pieces.size(), false);
    std::vector<PinQueue::Piece*> working;
    const auto finish = [&](std::size_t which) {
      PinQueue::Piece* const piece = working[which];
      working.erase(working.begin() + static_cast<std::ptrdiff_t>(which));
      StateOf(*piece) == State::kPinning ? queue.Pinned(*piece, true) : queue.Unpinned(*piece);
    };
    for (int step = 0; step < 60; ++step) {
      const std::size_t at = random() % pieces.size();
      switch (random() % 4) {
        case 0:
          static_cast<void>(random() % 2 == 0 ? queue.Expect(pieces[at]) : queue.Need(pieces[at]));
          wanted[at] = true;
          break;
        case 1:
          queue.GiveBack(pieces[at], {});
          wanted[at] = false;
          break;
        case 2:
          if (PinQueue::Piece* const next = queue.Next(AllDone); next != nullptr) working.push_back(next);
          break;
        default:
          if (!working.empty()) finish(random() % working.size());
      }
    }
    while (!working.empty() || !queue.empty()) {
      if (!working.empty()) finish(0);
      if (PinQueue::Piece* const next = queue.Next(AllDone); next != nullptr) working.push_back(next);
    }
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      ASSERT_EQ(StateOf(pieces[i]), wanted[i] ? State::kPinned : State::kIdle) << round;
      ASSERT_EQ(pieces[i].registered, wanted[i]) << round;
    }
  }
}

TEST(SharedWords, ARangeWaitsForItsOwnWritesAlone) {
  SharedWords words;
  std::vector<std::uint64_t> memory(32);
  words.Add(&memory[0], 8 * 8);
  words.Add(&memory[16], 8 * 8);
  words.Wrote(&memory[7], {Queue::kCompute, 3});
  words.Wrote(&memory[16], {Queue::kCompute, 9});
  words.Wrote(&memory[0], {Queue::kStore, 5});
  words.Wrote(&memory[8], {Queue::kLoad, 11});   // behind the first range
  words.Wrote(&memory[31], {Queue::kLoad, 12});  // behind the last one
  const auto first = words.Take(&memory[0]);
  EXPECT_EQ(first[static_cast<std::size_t>(Queue::kCompute)].sequence, 3U);
  EXPECT_EQ(first[static_cast<std::size_t>(Queue::kStore)].sequence, 5U);
  EXPECT_EQ(first[static_cast<std::size_t>(Queue::kStore)].queue, Queue::kStore);
  EXPECT_EQ(first[static_cast<std::size_t>(Queue::kLoad)].sequence, 0U);
  words.Wrote(&memory[7], {Queue::kCompute, 20});  // gone
  const auto second = words.Take(&memory[16]);
  EXPECT_EQ(second[static_cast<std::size_t>(Queue::kCompute)].sequence, 9U);
  for (const Event& event : words.Take(&memory[0])) EXPECT_EQ(event.sequence, 0U);
}

// A driver whose attributes a test sets, and which pins whatever it is given.
class MadeUpDriver : public ::testing::Test {
 protected:
  void SetUp() override {
    attributes.clear();
    flags = ~0U;
    driver_.DeviceGetAttribute = [](int* value, CUdevice_attribute which, CUdevice) {
      *value = attributes.count(which) != 0 ? attributes[which] : 1;
      return CUDA_SUCCESS;
    };
    driver_.MemHostRegister = [](void*, std::size_t, unsigned asked) {
      flags = asked;
      return CUDA_SUCCESS;
    };
    driver_.MemHostUnregister = [](void*) { return CUDA_SUCCESS; };
    driver_.DeviceGetName = [](char* name, int bytes, CUdevice) {
      std::strncpy(name, "made up", static_cast<std::size_t>(bytes));
      return CUDA_SUCCESS;
    };
    driver_.DeviceGetUuid = [](CUuuid*, CUdevice) { return CUDA_SUCCESS; };
    driver_.DeviceTotalMem = [](std::size_t* bytes, CUdevice) {
      *bytes = 1 << 30;
      return CUDA_SUCCESS;
    };
    driver_.MemAdvise = [](CUdeviceptr, std::size_t, CUmem_advise, CUmemLocation) { return CUDA_SUCCESS; };
    driver_.MemPrefetchAsync = [](CUdeviceptr, std::size_t, CUmemLocation, unsigned, CUstream) {
      return CUDA_SUCCESS;
    };
  }

  static inline std::map<CUdevice_attribute, int> attributes;  // others are 1
  static inline unsigned flags = 0;                            // of the last MemHostRegister
  Driver driver_;
};

using ImportedFiles = MadeUpDriver;

// A sealed file of a page, as a client hands it over.
wire::UniqueFd OpenedAgain(int fd, int how) {
  return wire::UniqueFd(open(("/proc/self/fd/" + std::to_string(fd)).c_str(), how | O_CLOEXEC));
}

wire::UniqueFd PageFile() {
  wire::UniqueFd fd(memfd_create("client", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(ftruncate(fd.get(), 4096), 0);
  return fd;
}

ImportSource Source(int fd, bool writable) {
  ImportSource source;
  source.fd = fd;
  source.bytes = 4096;
  source.writable = writable;
  return source;
}

TEST_F(ImportedFiles, ArePinnedForReadingWhereTheDeviceDoesThat) {
  const wire::UniqueFd file = PageFile();
  const wire::UniqueFd read_only = OpenedAgain(file.get(), O_RDONLY);
  Imports imports(driver_, 0);
  const auto read = imports.Open(Source(read_only.get(), false));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_NE(flags & CU_MEMHOSTREGISTER_READ_ONLY, 0U);
  ASSERT_TRUE(imports.Open(Source(file.get(), true)).ok());
  EXPECT_EQ(flags & CU_MEMHOSTREGISTER_READ_ONLY, 0U);
}

TEST_F(ImportedFiles, ArePinnedPlainlyOrRefusedWithTheReasonWhereItDoesNot) {
  attributes[CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED] = 0;
  const wire::UniqueFd file = PageFile();
  const wire::UniqueFd read_only = OpenedAgain(file.get(), O_RDONLY);
  Imports imports(driver_, 0);
  const auto plain = imports.Open(Source(file.get(), false));
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  EXPECT_EQ(flags & CU_MEMHOSTREGISTER_READ_ONLY, 0U);
  *plain->base = std::byte{1};  // its pages can be pinned for writing
  flags = ~0U;
  const auto refused = imports.Open(Source(read_only.get(), false));
  EXPECT_EQ(refused.status().code(), wire::Code::kUnsupported) << refused.status().message();
  EXPECT_NE(refused.status().message().find("Hint: open it for reading and writing"), std::string::npos)
      << refused.status().message();
  EXPECT_EQ(flags, ~0U) << "the driver was asked";
  // A lie about what may be written is the client's mistake everywhere.
  EXPECT_EQ(imports.Open(Source(read_only.get(), true)).status().code(), wire::Code::kPermissionDenied);
}

using Listed = MadeUpDriver;

TEST_F(Listed, SaysWhereManagedFramesCannotBe) {
  EXPECT_TRUE(CheckManaged(true, Describe(driver_, 0)).ok());
  attributes[CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS] = 0;
  const DeviceListing listed = Describe(driver_, 0);
  EXPECT_TRUE(CheckManaged(false, listed).ok());
  const wire::Status refused = CheckManaged(true, listed);
  EXPECT_EQ(refused.code(), wire::Code::kUnsupported);
  EXPECT_NE(refused.message().find("--frames explicit"), std::string::npos) << refused.message();
  attributes.clear();
  EXPECT_EQ(Describe(driver_, 0).problem, listed.problem) << "explicit frames are as good as ever";
}

TEST_F(Listed, ADriverThatLacksWhatManagedFramesNeedHasTheOthers) {
  driver_.MemPrefetchAsync = nullptr;
  driver_.version = 12010;
  const DeviceListing listed = Describe(driver_, 0);
  EXPECT_TRUE(CheckManaged(false, listed).ok());
  const wire::Status refused = CheckManaged(true, listed);
  EXPECT_EQ(refused.code(), wire::Code::kUnsupported);
  EXPECT_NE(refused.message().find("the driver speaks CUDA 12.1"), std::string::npos) << refused.message();
  EXPECT_NE(refused.message().find("535"), std::string::npos) << refused.message();
}

}  // namespace
}  // namespace bitpager::kernels::cuda
