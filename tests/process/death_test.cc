// Clients that die, fork, or come back; and strangers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/process/trainer.h"
#include "tests/support/daemon_process.h"
#include "tests/support/raw_client.h"

namespace bitpager::testing {
namespace {

using ::testing::HasSubstr;
using wire::Code;
using Clock = std::chrono::steady_clock;

std::vector<std::string> Flags(std::vector<std::string> more = {}) {
  std::vector<std::string> flags = {"--device-budget", "2MiB",  "--host-budget",  "64MiB",
                                    "--page-size",     "16KiB", "--window-pages", "4",
                                    "--threads",       "1"};
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

// Words that processes share.
struct Shared {
  std::atomic<std::uint64_t> word[8];
  static Shared& Make() {
    void* at = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return *new (at) Shared{};
  }
};

bool Empty(const DaemonProcess& daemon) {
  const auto status = daemon.Status();
  return status && status->sessions.empty() && status->jobs.empty() &&
         status->devices.at(0).used_bytes == 0 && status->devices.at(0).host_committed_bytes == 0;
}

// A child that trains until it is killed; word 0 counts its steps, word 1 is the pid of its own child.
int TrainForEver(const DaemonProcess& daemon, Shared& shared, bool with_child) {
  Trainer trainer(daemon.Open("job"), {200'000});
  if (!trainer.Create().ok() || !trainer.Step(1).ok()) return 1;
  if (with_child) {
    const pid_t worker = ::fork();
    if (worker == 0) {  // as a DataLoader's worker: holds all it inherited
      ::alarm(60);
      for (;;) ::pause();
    }
    shared.word[1] = static_cast<std::uint64_t>(worker);
  }
  for (std::uint64_t step = 2;; ++step) {
    if (!trainer.Step(step).ok()) return 1;
    ++shared.word[0];
  }
}

TEST(Killed, AClientGivesEverythingBackWithinASecond) {
  DaemonProcess daemon(Flags());
  Shared& shared = Shared::Make();
  Child client([&] { return TrainForEver(daemon, shared, false); });
  ASSERT_TRUE(WaitUntil([&] { return shared.word[0] > 3; }, Millis(20'000)));
  client.Signal(SIGKILL);
  EXPECT_TRUE(WaitUntil([&] { return Empty(daemon); }, Millis(1'000))) << daemon.Log();
}

TEST(Killed, AClientGivesEverythingBackThoughItsForkedChildLives) {
  DaemonProcess daemon(Flags());
  Shared& shared = Shared::Make();
  Child client([&] { return TrainForEver(daemon, shared, true); });
  ASSERT_TRUE(WaitUntil([&] { return shared.word[0] > 3; }, Millis(20'000)));
  const auto worker = static_cast<pid_t>(shared.word[1].load());
  client.Signal(SIGKILL);
  EXPECT_TRUE(WaitUntil([&] { return Empty(daemon); }, Millis(1'000))) << daemon.Log();
  EXPECT_EQ(::kill(worker, 0), 0) << "the child lives";
  ::kill(worker, SIGKILL);
}

TEST(Killed, ASessionWithInheritedFdsEndsByItsPidfd) {
  // A raw client guards nothing against forks: the child keeps the socket itself open.
  DaemonProcess daemon(Flags());
  Shared& shared = Shared::Make();
  Child client([&] {
    RawClient raw{wire::UniqueFd(ConnectRaw(daemon.socket()))};
    if (!raw.Hello(RawClient::HelloBodyOf("job"), PidfdOf(::getpid()).get()).ok()) return 1;
    const pid_t worker = ::fork();
    if (worker == 0) {
      ::alarm(60);
      for (;;) ::pause();
    }
    shared.word[1] = static_cast<std::uint64_t>(worker);
    for (;;) ::pause();
  });
  ASSERT_TRUE(WaitUntil([&] { return shared.word[1] != 0; }, Millis(20'000)));
  client.Signal(SIGKILL);
  EXPECT_TRUE(WaitUntil([&] { return Empty(daemon); }, Millis(1'000))) << daemon.Log();
  ::kill(static_cast<pid_t>(shared.word[1].load()), SIGKILL);
}

TEST(Forked, AChildThatUsesTheSessionGetsAnError) {
  DaemonProcess daemon(Flags());
  auto session = daemon.Open("job");
  Trainer trainer(session, {50'000});
  ASSERT_TRUE(trainer.Create().ok());
  ASSERT_TRUE(trainer.Step(1).ok());
  Child child([&] {
    if (session->Noop().code() != Code::kForkedChild) return 1;
    if (trainer.session().GetUsage().status().code() != Code::kForkedChild) return 2;
    auto own = client::Session::Connect(daemon.ConnectOptionsOf("child"));
    return own.ok() && (*own)->Noop().ok() ? 0 : 3;
  });
  EXPECT_TRUE(child.Succeeds());
  EXPECT_TRUE(trainer.Step(2).ok()) << "the parent goes on";
}

TEST(Returned, ARestartedClientGoesOnBitIdentically) {
  const std::vector<std::uint64_t> elements = {300'000, 77};
  ShadowArena shadow(wire::Rule::kAdam, elements, kHyper);
  for (std::uint64_t step = 1; step <= 6; ++step) shadow.Step(step);
  DaemonProcess daemon(Flags({"--linger", "1m"}));
  std::vector<float> params;
  {
    Trainer trainer(daemon.Open("job"), elements);
    ASSERT_TRUE(trainer.Create().ok());
    for (std::uint64_t step = 1; step <= 3; ++step) ASSERT_TRUE(trainer.Step(step).ok());
    params = trainer.Params();
  }
  ASSERT_TRUE(WaitUntil([&] { return daemon.Status()->sessions.empty(); }, Millis(2'000)));
  Trainer wrong(daemon.Open("job"), elements);
  const wire::Status refused = wrong.Create(wire::Resume::kContinue, 2);
  EXPECT_EQ(refused.code(), Code::kStepMismatch);
  EXPECT_THAT(refused.message(), HasSubstr("step 3"));
  EXPECT_THAT(refused.message(), HasSubstr("step 2"));
  Trainer trainer(daemon.Open("job"), elements);
  const wire::Status taken = trainer.Create(wire::Resume::kContinue, 3);
  ASSERT_TRUE(taken.ok()) << taken.message();
  trainer.SetParams(params);
  for (std::uint64_t step = 4; step <= 6; ++step) ASSERT_TRUE(trainer.Step(step).ok());
  params = trainer.Params();
  EXPECT_EQ(std::memcmp(params.data(), shadow.params(0).data(), elements[0] * 4), 0);
  EXPECT_EQ(std::memcmp(params.data() + elements[0], shadow.params(1).data(), elements[1] * 4), 0);
}

// ---- two users

// Asks as the user `uid`; what the child returns.
template <typename Body>
bool AsUser(std::uint32_t uid, Body body) {
  Child child([&] {
    if (::setgid(uid) != 0 || ::setuid(uid) != 0) return 99;
    return body();
  });
  return child.Succeeds();
}

TEST(TwoUsers, CannotTouchEachOther) {
  if (::getuid() != 0) GTEST_SKIP() << "needs root, to become two other users";
  constexpr std::uint32_t kAlice = 65501;
  constexpr std::uint32_t kBob = 65502;
  TempFolder folder;
  ASSERT_EQ(::chmod(folder.path().c_str(), 0777), 0);
  DaemonProcess daemon({Flags({"--socket-mode", "0666", "--linger", "1m"}), folder.path(), ~0U, true});
  Shared& shared = Shared::Make();
  Child alice([&] {
    if (::setgid(kAlice) != 0 || ::setuid(kAlice) != 0) return 99;
    RawClient raw{wire::UniqueFd(ConnectRaw(daemon.socket()))};
    if (!raw.Hello(RawClient::HelloBodyOf("same-name"), PidfdOf(::getpid()).get()).ok()) return 1;
    RawBuffer memory = raw.MakeBuffer(1 << 20);
    const Reply arena = raw.CreateArena({}, {50'000}, memory);
    wire::CreateWeightBody create;
    create.elements = 30'000;
    const Reply weight = raw.Ask(wire::MessageType::kCreateWeight, create);
    wire::QuantizeBody quantize;
    quantize.extent = weight.value(0);
    quantize.in = memory.Place();
    if (!arena.ok() || RawClient::CodeOf(raw.Run(wire::Op::kQuantize, quantize)) != Code::kOk) return 2;
    const auto lease = raw.Run(wire::Op::kLease, wire::LeaseBody{weight.value(0)});
    if (RawClient::CodeOf(lease) != Code::kOk) return 3;
    shared.word[1] = raw.view().lease_frames()[raw.view().leases()[lease.values[0]].first_frame].mapping;
    shared.word[2] = arena.value(0);
    shared.word[3] = weight.value(0);
    if (!raw.Ask(wire::MessageType::kMapDomain, wire::MapDomainBody{shared.word[1]}).ok()) return 4;
    shared.word[0] = 1;
    while (shared.word[0] == 1) ::usleep(1'000);
    // Untouched: nobody revoked or limited anything.
    return raw.view().leases()[lease.values[0]].revoke.load() == 0 ? 0 : 5;
  });
  ASSERT_TRUE(WaitUntil([&] { return shared.word[0] == 1; }, Millis(20'000)));
  EXPECT_TRUE(AsUser(kBob, [&] {
    RawClient bob{wire::UniqueFd(ConnectRaw(daemon.socket()))};
    if (!bob.Hello(RawClient::HelloBodyOf("same-name"), PidfdOf(::getpid()).get()).ok()) return 1;
    wire::EvictBody evict;
    wire::CopyText(evict.job, "same-name");
    evict.uid = kAlice;
    if (bob.Ask(wire::MessageType::kEvict, evict).code() != Code::kPermissionDenied) return 2;
    wire::LimitBody limit;
    wire::CopyText(limit.job, "same-name");
    limit.uid = kAlice;
    limit.device_quota_bytes = 1 << 20;
    if (bob.Ask(wire::MessageType::kLimit, limit).code() != Code::kPermissionDenied) return 3;
    if (bob.AskBare(wire::MessageType::kDrain).code() != Code::kPermissionDenied) return 4;
    if (bob.Ask(wire::MessageType::kMapDomain, wire::MapDomainBody{shared.word[1]}).ok()) return 5;
    for (const std::uint64_t extent : {shared.word[2].load(), shared.word[3].load()}) {
      if (bob.Ask(wire::MessageType::kDropExtent, wire::DropExtentBody{extent}).ok()) return 6;
      if (RawClient::CodeOf(bob.Run(wire::Op::kLease, wire::LeaseBody{extent})) != Code::kNotFound) return 7;
    }
    // A job of the same name is another job: nothing kept to go on from, and no collision.
    RawBuffer memory = bob.MakeBuffer(4096);
    wire::CreateArenaBody resume;
    resume.resume = wire::Resume::kContinue;
    if (bob.CreateArena(resume, {50'000}, memory).code() != Code::kNotFound) return 8;
    return bob.CreateArena({}, {50'000}, memory).ok() ? 0 : 9;
  }));
  EXPECT_TRUE(AsUser(kAlice, [&] {
    // Her own process may command her own job; the lease is not revoked by a limit that changes nothing.
    RawClient line{wire::UniqueFd(ConnectRaw(daemon.socket()))};
    wire::LimitBody limit;
    wire::CopyText(limit.job, "same-name");
    limit.weight = 2;
    return line.Ask(wire::MessageType::kLimit, limit).ok() ? 0 : 1;
  }));
  shared.word[0] = 2;
  EXPECT_TRUE(alice.Succeeds());
}

// ---- many

// One client that is killed somewhere: attaching, registering, stepping, leasing.
int Victim(const DaemonProcess& daemon, std::uint64_t seed) {
  auto session = client::Session::Connect(daemon.ConnectOptionsOf("victim" + std::to_string(seed % 3)));
  if (!session.ok()) return 0;  // a name whose last victim is not buried yet, or no room: as good
  auto weight = client::Weight::Create(**session, {wire::QuantType::kNF4, 64, seed % 2 == 0, 40'000, "w"});
  std::vector<float> values(40'000);
  FillParameter(values.data(), values.size(), seed);
  Trainer trainer(*session, {30'000 + seed % 50'000});
  const bool trains = trainer.Create().ok();
  for (std::uint64_t step = 1;; ++step) {
    if (trains) static_cast<void>(trainer.Step(step).ok());
    if (!weight.ok()) continue;
    static_cast<void>((*weight)->Quantize(wire::DType::kF32, {values.data(), {}}).ok());
    static_cast<void>(
        (*weight)->Dequantize(wire::DType::kF32, {values.data(), {}}, client::Path::kLease).ok());
  }
}

// Kills `count` clients, four at a time, each at a point of its own.
void KillMany(const DaemonProcess& daemon, int count, std::mt19937_64& random) {
  std::vector<Child> alive;
  for (int i = 0; i < count; ++i) {
    const std::uint64_t seed = random();
    alive.emplace_back([&] { return Victim(daemon, seed); });
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 12'000));
    if (alive.size() == 4) {
      const std::size_t pick = random() % alive.size();
      std::vector<Child> rest;
      for (std::size_t k = 0; k < alive.size(); ++k) {
        if (k != pick) rest.push_back(std::move(alive[k]));
      }
      alive.swap(rest);  // the one that is left out is killed and reaped
    }
  }
}

TEST(Killed, AThousandClientsChangeNothingForAnother) {
  const std::vector<std::uint64_t> elements = {400'000, 123};
  DaemonProcess daemon(Flags({"--poison-frames", "--log-level", "error"}));
  Shared& shared = Shared::Make();
  auto train = [&] {
    Trainer trainer(daemon.Open("steady"), elements);
    if (!trainer.Create().ok()) return 1;
    ShadowArena shadow(wire::Rule::kAdam, elements, kHyper);
    for (std::uint64_t step = 1; shared.word[0] == 0 || step < 20; ++step) {
      if (!trainer.Step(step).ok()) return 2;
      shadow.Step(step);
      const std::vector<float> params = trainer.Params();
      if (std::memcmp(params.data(), shadow.params(0).data(), elements[0] * 4) != 0) return 3;
      if (std::memcmp(params.data() + elements[0], shadow.params(1).data(), elements[1] * 4) != 0) return 4;
      shared.word[1] = step;
    }
    return 0;
  };
  std::mt19937_64 random(11);
  KillMany(daemon, 20, random);  // what is made once (a share domain) is made
  ASSERT_TRUE(WaitUntil([&] { return Empty(daemon); }, Millis(5'000)));
  const ProcessUse before = daemon.Use();
  {
    Child steady(train);
    ASSERT_TRUE(WaitUntil([&] { return shared.word[1] > 0; }, Millis(20'000)));
    KillMany(daemon, 1'000 / kSlowdown, random);
    // Most get as far as a session, and many as far as steps: more of them where the machine is busy.
    const auto enough = [&] {
      const auto status = daemon.Status();
      return status && status->totals.sessions_lost > 700U / kSlowdown &&
             status->totals.steps > shared.word[1] + 300 / kSlowdown;
    };
    for (int more = 0; more < 20 && !enough(); ++more) KillMany(daemon, 250 / kSlowdown, random);
    EXPECT_TRUE(enough());
    shared.word[0] = 1;
    EXPECT_TRUE(steady.Succeeds()) << "its numbers changed, or its session ended: " << daemon.Log();
  }
  EXPECT_TRUE(WaitUntil([&] { return Empty(daemon); }, Millis(2'000)));
  ProcessUse after = daemon.Use();
  EXPECT_TRUE(WaitUntil([&] { return (after = daemon.Use()).fds <= before.fds; }, Millis(2'000)))
      << after.fds << " fds, before " << before.fds;
  // The allocator keeps some; a leak of a page a client would show as 16 MiB.
  EXPECT_LT(after.rss_bytes, before.rss_bytes + (8U << 20) * kSlowdown);
}

}  // namespace
}  // namespace bitpager::testing
