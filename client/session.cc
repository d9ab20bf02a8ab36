#include "client/session.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "client/connect.h"
#include "client/local_ops.h"
#include "client/wire/text.h"

namespace bitpager::client {
namespace {

using Clock = std::chrono::steady_clock;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::uint32_t kAbiVersion = 1;
constexpr int kHelloMs = 5'000;
// A private daemon may be ending just when we reach it; a new one is started then.
constexpr std::chrono::seconds kRetryPrivate{5};
constexpr std::chrono::milliseconds kRetryEvery{20};

std::string DefaultJob() {
  if (const char* name = std::getenv("BITPAGER_JOB"); name != nullptr && *name != '\0') return name;
  std::string job = program_invocation_short_name;
  for (char& c : job) {
    if (!wire::IsPlainName({&c, 1})) c = '_';
  }
  return job.substr(0, 40) + "-" + std::to_string(::getpid());
}

Result<wire::HelloBody> MakeHello(const ConnectOptions& options) {
  wire::HelloBody hello;
  hello.abi_version = kAbiVersion;
  hello.rank = options.rank;
  const std::string job = options.job.empty() ? DefaultJob() : options.job;
  if (!wire::IsPlainName(job) || !wire::CopyText(hello.job, job)) {
    return Status(Code::kInvalidArgument, "job name '" + job +
                                              "' is not 1 to 63 of the characters "
                                              "A-Z a-z 0-9 . _ - (option or BITPAGER_JOB)");
  }
  wire::CopyText(hello.client, options.client.empty() ? program_invocation_short_name : options.client);
  if (!std::isfinite(options.weight) || options.weight < 0) {
    return Status(Code::kInvalidArgument, "weight is " + std::to_string(options.weight) +
                                              "; a positive number, or 0 for the daemon's default");
  }
  if (options.linger_ms < -1) {
    return Status(Code::kInvalidArgument, "linger_ms is " + std::to_string(options.linger_ms) +
                                              "; 0 or more, or -1 for the daemon's default");
  }
  if (!wire::CopyText(hello.device, options.device)) {
    return Status(Code::kInvalidArgument, "device '" + options.device + "' is longer than a UUID");
  }
  hello.weight = options.weight;
  hello.device_quota_bytes = options.device_quota_bytes;
  hello.host_quota_bytes = options.host_quota_bytes;
  hello.linger_ms = options.linger_ms;
  return hello;
}

// Says hello with this process's pidfd, where the kernel gives one (else the daemon asks for a heartbeat).
Result<Reply> SayHello(SocketCalls& calls, const wire::HelloBody& hello) {
#if defined(SYS_pidfd_open)
  const wire::UniqueFd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0U)));
#else
  const wire::UniqueFd self;
#endif
  const int fds[1] = {self.get()};
  return calls.Ask(wire::MessageType::kHello, hello, std::span<const int>(fds, self ? 1 : 0), kHelloMs);
}

SessionInfo InfoFrom(const Reply& reply, const std::string& socket, const wire::HelloBody& hello) {
  SessionInfo info;
  info.session = reply.body.values[0];
  info.job = reply.body.values[1];
  info.page_bytes = reply.body.values[2];
  info.heartbeat_ms = reply.body.values[3];
  info.linger_ms = reply.body.values[4];
  info.socket = socket;
  info.job_name = wire::TextOf(hello.job);
  const std::string device(wire::TextOf(reply.body.message));
  const std::size_t space = device.find(' ');
  info.device_kind = device.substr(0, space);
  if (space != std::string::npos) info.device_uuid = device.substr(space + 1);
  info.leases = reply.body.values[6] == 0;
  info.synchronous = info.device_kind != "cuda" || reply.body.values[5] != 0;
  return info;
}

Result<std::shared_ptr<Connection>> Attach(Found found, const wire::HelloBody& hello, int threads,
                                           CudaDriver* driver) {
  SocketCalls calls(std::move(found.socket));
  Result<Reply> reply = SayHello(calls, hello);
  if (!reply.ok()) {
    return Status(reply.status().code(),
                  "cannot attach to bitpagerd at " + found.path + ": " + reply.status().message());
  }
  SessionInfo info = InfoFrom(*reply, found.path, hello);
  if (info.session == 0 || info.page_bytes == 0 || info.heartbeat_ms > 3'600'000) {
    return Status(Code::kProtocol, "the daemon at " + found.path + " answered the hello with nonsense");
  }
  return Connection::Make(std::move(calls), std::move(*reply), std::move(info), threads, driver);
}

}  // namespace

Result<std::shared_ptr<Session>> Session::Connect(const ConnectOptions& options) {
  const Result<wire::HelloBody> hello = MakeHello(options);
  if (!hello.ok()) return hello.status();
  const Result<int> threads = ThreadsFrom(options.threads);
  if (!threads.ok()) return threads.status();
  const Clock::time_point end = Clock::now() + kRetryPrivate;
  SearchOptions search{options.socket, options.daemon_path, options.spawn, options.device, {}};
  for (;;) {
    Result<Found> found = FindDaemon(search);
    if (!found.ok()) return found.status();
    const bool is_private = found->is_private;
    const std::string path = found->path;
    Result<std::shared_ptr<Connection>> attached =
        Attach(std::move(*found), *hello, *threads, options.driver);
    if (attached.ok()) return std::make_shared<Session>(std::move(*attached));
    const Code code = attached.status().code();
    // A daemon of another device is no answer to a search.
    if (code == Code::kNotFound && !options.device.empty() && !is_private && !NamedSocket(options.socket)) {
      search.passed.push_back(path);
      continue;
    }
    const bool ending = code == Code::kDaemonLost || code == Code::kDraining;
    if (!is_private || !ending || Clock::now() > end) return attached.status();
    std::this_thread::sleep_for(kRetryEvery);
  }
}

Result<Usage> Session::GetUsage(bool reset_peaks) {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  Result<Reply> reply = reset_peaks ? connection_->Ask(wire::MessageType::kUsage, wire::UsageBody{1})
                                    : connection_->AskBare(wire::MessageType::kUsage);
  if (!reply.ok()) return reply.status();
  const auto value = [&](wire::UsageValue v) { return reply->body.values[static_cast<std::size_t>(v)]; };
  using V = wire::UsageValue;
  Usage usage;
  usage.resident_bytes = value(V::kResidentBytes);
  usage.host_bytes = value(V::kHostBytes);
  usage.state_bytes = value(V::kStateBytes);
  usage.weight_bytes = value(V::kWeightBytes);
  usage.resident_state_bytes = value(V::kResidentStateBytes);
  usage.resident_weight_bytes = value(V::kResidentWeightBytes);
  usage.leased_bytes = value(V::kLeasedBytes);
  usage.loaded_bytes = value(V::kLoadedBytes);
  usage.stored_bytes = value(V::kStoredBytes);
  usage.dropped_bytes = value(V::kDroppedBytes);
  usage.pages = value(V::kPages);
  usage.share_bytes = value(V::kShareBytes);
  usage.stall_ns = value(V::kStallNs);
  usage.steps = value(V::kSteps);
  usage.nonfinite_blocks = value(V::kNonFiniteBlocks);
  usage.device_budget_bytes = value(V::kDeviceBudgetBytes);
  usage.buffer_bytes = value(V::kBufferBytes);
  usage.disk_bytes = value(V::kDiskBytes);
  usage.disk_budget_bytes = value(V::kDiskBudgetBytes);
  usage.shared_bytes = value(V::kSharedBytes);
  usage.peak_resident_bytes = value(V::kPeakResidentBytes);
  usage.peak_host_bytes = value(V::kPeakHostBytes);
  usage.job_peak_resident_bytes = value(V::kJobPeakResidentBytes);
  usage.job_peak_host_bytes = value(V::kJobPeakHostBytes);
  return usage;
}

Status Session::Noop() {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  const Result<wire::CompletionRecord> done = connection_->timeline().Run(wire::Op::kNoop);
  return done.ok() ? StatusOf(*done) : done.status();
}

Status Session::Synchronize() {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  return connection_->timeline().AwaitStreams(~0ULL, Patience::kUntilSignal);
}

Result<Finished> Session::TakeFinished() {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  return connection_->timeline().TakeFinished();
}

Status Session::MakeRoom(std::uint64_t bytes, std::uint64_t limit_ms, std::uint64_t* free_bytes) {
  constexpr std::chrono::microseconds kAskEvery{500};
  wire::MakeRoomBody body;
  body.bytes = bytes;
  const Clock::time_point end =
      Clock::now() + std::chrono::milliseconds(std::min<std::uint64_t>(limit_ms, 86'400'000));
  for (;;) {
    {
      const Result<Connection::Lock> lock = connection_->Enter();
      if (!lock.ok()) return lock.status();
      // What the daemon revokes may be this process's own, and what its mappings of gradients hold stays
      // taken when the process frees it. The end of a mapping waits for all that the device does: before the
      // first page is on its way that is the least.
      connection_->LetGoOfRevoked();
      if (connection_->device() != nullptr) {
        if (Status released = connection_->device()->ReleaseGradients(); !released.ok()) return released;
      }
      const Result<Reply> reply = connection_->Ask(wire::MessageType::kMakeRoom, body);
      if (!reply.ok()) return reply.status();
      const auto& values = reply->body.values;
      *free_bytes = values[0];
      if (values[0] >= bytes) return {};
      if (values[2] != 0) {
        return {Code::kBudgetExceeded,
                "room for " + std::to_string(bytes) +
                    " bytes on the device: all pages that can leave have left, " + std::to_string(values[0]) +
                    " bytes are free. Hint: other memory of the device is not the daemon's"};
      }
    }
    if (Clock::now() >= end) {
      return {Code::kPending, "room for " + std::to_string(bytes) +
                                  " bytes on the device: pages are still leaving, " +
                                  std::to_string(*free_bytes) + " bytes are free. Hint: a longer limit"};
    }
    std::this_thread::sleep_for(kAskEvery);
  }
}

Result<std::uint64_t> Session::RequestCount() {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  return connection_->timeline().next_ticket() - 1;
}

Status Session::ReleaseGradients() {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  return connection_->device() == nullptr ? Status() : connection_->device()->ReleaseGradients();
}

Status Session::Prefetch(std::uint64_t extent) {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  wire::PrefetchBody body;
  body.extent = extent;
  return connection_->timeline().Hint(wire::Op::kPrefetch, body);
}

Status Session::ExpectStep(StreamHandle stream) {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  if (DeviceSession* const device = connection_->device(); device != nullptr) device->Expect(stream);
  return {};
}

Status Session::HintPhase(wire::Phase phase) {
  if (static_cast<std::uint32_t>(phase) > static_cast<std::uint32_t>(wire::Phase::kLeave)) {
    return {Code::kInvalidArgument, "phase is none of idle, forward, backward, step, leave"};
  }
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  wire::PhaseBody body;
  body.phase = phase;
  return connection_->timeline().Hint(wire::Op::kPhase, body);
}

}  // namespace bitpager::client
