// limit, evict, drain, version: what goes over the Unix socket, where the daemon knows the caller.
#include <pwd.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "client/wire/text.h"
#include "daemon/config.h"
#include "tools/cli/commands.h"

namespace bitpager::cli {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

int Usage(const Status& status) {
  PrintError(status.message());
  return kUsageExit;
}

Result<std::uint32_t> FindOwner(const std::string& owner) {
  if (owner.empty()) return ~0U;
  std::uint32_t uid = 0;
  const auto parsed = std::from_chars(owner.data(), owner.data() + owner.size(), uid);
  if (parsed.ec == std::errc() && parsed.ptr == owner.data() + owner.size() && uid != ~0U) return uid;
  const passwd* found = ::getpwnam(owner.c_str());
  if (found != nullptr) return static_cast<std::uint32_t>(found->pw_uid);
  return Status(Code::kInvalidArgument,
                "there is no user '" + owner + "'. Hint: --uid takes a uid or a name");
}

template <std::size_t N>
Status SetJob(char (&to)[N], const std::string& job) {
  if (wire::IsPlainName(job) && wire::CopyText(to, job)) return {};
  return {Code::kInvalidArgument, "'" + job +
                                      "' is no job's name. Hint: `bitpager status` lists the jobs; names "
                                      "have letters, digits, dot, underscore, dash, up to 63"};
}

template <std::size_t N>
Status SetDevice(char (&to)[N], const std::string& uuid) {
  if (uuid.empty() || (wire::IsPlainName(uuid) && wire::CopyText(to, uuid))) return {};
  return {Code::kInvalidArgument,
          "'" + uuid + "' is no device. Hint: `bitpager status` prints the UUIDs of those that are served"};
}

// 0 where nothing was given.
Result<std::uint64_t> Quota(const std::string& text) {
  if (text.empty()) return std::uint64_t{0};
  if (text == "none") return kNoLimit;
  const auto bytes = daemon::ParseBytes(text);
  if (bytes.ok() && (*bytes == 0 || *bytes == kNoLimit)) {
    return Status(Code::kInvalidArgument, "'" + text + "' is no quota. Hint: a size such as 20G, or none");
  }
  return bytes;
}

Result<wire::LimitBody> LimitBodyOf(const LimitOptions& options) {
  wire::LimitBody body;
  const Status job = SetJob(body.job, options.job);
  if (!job.ok()) return job;
  const auto uid = FindOwner(options.owner);
  const auto device = Quota(options.device);
  const auto host = Quota(options.host);
  if (!uid.ok()) return uid.status();
  if (!device.ok()) return device.status();
  if (!host.ok()) return host.status();
  if (!std::isfinite(options.weight) || options.weight < 0) {
    return Status(Code::kInvalidArgument, "a weight is a number above 0. Hint: 1 is usual");
  }
  if (*device == 0 && *host == 0 && options.weight == 0) {
    return Status(Code::kInvalidArgument,
                  "nothing to change. Hint: bitpager limit JOB 20G, --host 40G, or --weight 2");
  }
  body.uid = *uid;
  if (const Status named = SetDevice(body.device, options.uuid); !named.ok()) return named;
  body.device_quota_bytes = *device;
  body.host_quota_bytes = *host;
  body.weight = options.weight;
  return body;
}

Result<wire::EvictBody> EvictBodyOf(const EvictOptions& options) {
  wire::EvictBody body;
  const Status job = SetJob(body.job, options.job);
  if (!job.ok()) return job;
  const auto uid = FindOwner(options.owner);
  if (!uid.ok()) return uid.status();
  body.uid = *uid;
  if (const Status named = SetDevice(body.device, options.uuid); !named.ok()) return named;
  if (options.size.empty()) return body;
  const auto bytes = daemon::ParseBytes(options.size);
  if (!bytes.ok()) return bytes.status();
  if (*bytes == 0) {
    return Status(Code::kInvalidArgument, "0 bytes are nothing to evict. Hint: leave the size out for all");
  }
  body.bytes = *bytes;
  return body;
}

// The reply, or nothing with the error printed and `exit_code` set.
std::optional<wire::ReplyBody> Command(const Target& target, wire::MessageType type,
                                       std::span<const std::byte> body, int& exit_code) {
  const Result<Line> line = OpenLine(target);
  if (!line.ok()) {
    PrintError(line.status().message());
    exit_code = kUnreachableExit;
    return std::nullopt;
  }
  const auto reply = AskRaw(*line, type, body, target.timeout_ms);
  if (reply.ok()) return *reply;
  PrintError(reply.status().message());
  exit_code = ExitCodeOf(reply.status());
  return std::nullopt;
}

template <typename Body>
std::optional<wire::ReplyBody> Command(const Target& target, wire::MessageType type, const Body& body,
                                       int& exit_code) {
  return Command(target, type, std::as_bytes(std::span(&body, 1)), exit_code);
}

std::string QuotaText(std::uint64_t bytes) {
  return bytes == kNoLimit ? "no limit but the budget" : daemon::FormatBytes(bytes);
}

}  // namespace

int RunLimit(const Target& target, const LimitOptions& options) {
  const auto body = LimitBodyOf(options);
  if (!body.ok()) return Usage(body.status());
  int exit_code = kOkExit;
  if (!Command(target, wire::MessageType::kLimit, *body, exit_code)) return exit_code;
  std::string said = "job " + options.job + ":";
  if (body->device_quota_bytes != 0) said += " device " + QuotaText(body->device_quota_bytes);
  if (body->host_quota_bytes != 0) said += " host " + QuotaText(body->host_quota_bytes);
  if (body->weight != 0) said += " weight " + std::to_string(body->weight);
  std::printf("%s\n", said.c_str());
  return kOkExit;
}

int RunEvict(const Target& target, const EvictOptions& options) {
  const auto body = EvictBodyOf(options);
  if (!body.ok()) return Usage(body.status());
  int exit_code = kOkExit;
  const auto reply = Command(target, wire::MessageType::kEvict, *body, exit_code);
  if (!reply) return exit_code;
  std::printf("job %s: %s asked to leave the device\n", options.job.c_str(),
              daemon::FormatBytes(reply->values[0]).c_str());
  return kOkExit;
}

int RunDrain(const Target& target) {
  int exit_code = kOkExit;
  const auto reply = Command(target, wire::MessageType::kDrain, std::span<const std::byte>(), exit_code);
  if (!reply) return exit_code;
  std::printf("draining: no new sessions; running requests are finished\n");
  return kOkExit;
}

int RunVersion(const Target& target) {
  std::printf("bitpager %s\n", daemon::kVersion);
  const auto reply = AskStatus(target, "version");
  if (!reply.ok()) {
    std::printf("bitpagerd: none reached\n");
    return kOkExit;
  }
  const auto parsed = nlohmann::json::parse(reply->json, nullptr, /*allow_exceptions=*/false);
  const auto found = parsed.find("version");
  const bool readable = found != parsed.end() && found->is_string();
  std::printf("bitpagerd %s at %s\n", readable ? found->get<std::string>().c_str() : "of unknown version",
              reply->socket.c_str());
  return kOkExit;
}

}  // namespace bitpager::cli
