#include "daemon/telemetry.h"

#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <vector>
#include <zmq.hpp>

#include "client/wire/unique_fd.h"
#include "daemon/accept_guard.h"

namespace bitpager::daemon {
namespace {

using nlohmann::json;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::size_t kMaxEnvelopeFrames = 8;
constexpr std::int64_t kMaxQueryBytes = 4096;
constexpr int kMaxQueriesAtOnce = 64;  // answered out of one snapshot
constexpr int kSendQueue = 16;         // replies that wait for one asker; more are dropped
constexpr std::string_view kScheme = "ipc://";

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string ErrorReply(Code code, const std::string& message) {
  return Dump({{"schema_version", kSnapshotSchemaVersion},
               {"error", {{"code", wire::CodeName(code)}, {"message", message}}}});
}

std::string ErrorReply(const Status& status) {
  return ErrorReply(status.code(), status.message());
}

std::string BadQuery(const std::string& why) {
  return ErrorReply(Code::kProtocol,
                    why + R"(. Hint: send {"query":"status"}, {"query":"events"} or {"query":"version"})");
}

struct Query {
  std::vector<zmq::message_t> envelope;  // routing id and what stood before the body
  std::string body;
  bool too_many_frames = false;
};

// Made for one query of a batch, given to all that ask the same.
struct Replies {
  std::optional<std::string> status;
  std::map<std::uint64_t, std::string> pages;  // by cells
};

// Reads one whole multipart message; nothing when none is waiting.
std::optional<Query> ReceiveQuery(zmq::socket_t& router) {
  std::vector<zmq::message_t> frames;
  Query out;
  bool more = true;
  while (more) {
    zmq::message_t frame;
    if (!router.recv(frame, zmq::recv_flags::dontwait)) return std::nullopt;
    more = frame.more();
    if (frames.size() > kMaxEnvelopeFrames) {
      out.too_many_frames = true;
      frames.back() = std::move(frame);
    } else {
      frames.push_back(std::move(frame));
    }
  }
  if (frames.size() > 1) {  // the first is the routing id
    out.body = frames.back().to_string();
    frames.pop_back();
  }
  out.envelope = std::move(frames);
  return out;
}

// Drops the reply when the asker has gone or does not read.
void SendReply(zmq::socket_t& router, Query& query, const std::string& reply) {
  for (zmq::message_t& frame : query.envelope) {
    if (!router.send(frame, zmq::send_flags::sndmore | zmq::send_flags::dontwait)) return;
  }
  router.send(zmq::buffer(reply), zmq::send_flags::dontwait);
}

Result<std::string> PathOf(const std::string& endpoint) {
  if (endpoint.rfind(kScheme, 0) != 0 || endpoint.size() <= kScheme.size() + 1 ||
      endpoint[kScheme.size()] != '/') {
    return Status(Code::kInvalidArgument,
                  "'" + endpoint + "' is no endpoint. Hint: ipc:// and an absolute path");
  }
  std::string path = endpoint.substr(kScheme.size());
  if (path.size() > kMaxIpcPathBytes) {
    return Status(Code::kInvalidArgument, "the endpoint's path " + path + " has " +
                                              std::to_string(path.size()) + " bytes; a Unix socket takes " +
                                              std::to_string(kMaxIpcPathBytes) +
                                              ". Hint: a shorter --socket or endpoint path");
  }
  struct stat file {};
  if (::lstat(path.c_str(), &file) == 0 && !S_ISSOCK(file.st_mode)) {
    return Status(Code::kInvalidArgument, path +
                                              " exists and is no socket. Hint: remove it, or choose "
                                              "another endpoint");
  }
  return path;
}

struct GroupId {
  bool given = false;
  gid_t gid = 0;
};

Result<GroupId> FindGroup(const std::string& name) {
  if (name.empty()) return GroupId{};
  errno = 0;
  const group* found = ::getgrnam(name.c_str());
  if (found != nullptr) return GroupId{true, found->gr_gid};
  return Status(Code::kInvalidArgument,
                "there is no group '" + name + "'" +
                    (errno != 0 ? std::string(" (") + std::strerror(errno) + ")" : "") +
                    ". Hint: groupadd --system " + name);
}

Status CannotServe(const std::string& endpoint, int error) {
  const Code code = error == EACCES || error == EPERM ? Code::kPermissionDenied : Code::kInternal;
  return {code, "cannot serve " + endpoint + " (" + zmq_strerror(error) +
                    "). Hint: its directory must exist and this user must be able to write in it"};
}

// A socket file that we made; removed unless another daemon has put its own in that place.
class BoundFile {
 public:
  BoundFile() = default;
  BoundFile(const BoundFile&) = delete;
  BoundFile& operator=(const BoundFile&) = delete;
  ~BoundFile() { Remove(); }
  void Own(const std::string& path) {
    if (::lstat(path.c_str(), &made_) == 0) path_ = path;
  }
  void Remove() {
    struct stat now {};
    const bool ours = !path_.empty() && ::lstat(path_.c_str(), &now) == 0 && now.st_ino == made_.st_ino &&
                      now.st_dev == made_.st_dev;
    if (ours) ::unlink(path_.c_str());
    path_.clear();
  }

 private:
  std::string path_;
  struct stat made_ {};
};

// Binds so that nobody but the owner can connect before the mode is set.
Status Bind(zmq::socket_t& socket, const std::string& endpoint, const Config& config, const GroupId& group,
            BoundFile& file) {
  const Result<std::string> path = PathOf(endpoint);
  if (!path.ok()) return path.status();
  const mode_t before = ::umask(0177);
  int error = 0;
  try {
    socket.bind(endpoint);
  } catch (const zmq::error_t& failed) {
    error = failed.num();
  }
  ::umask(before);
  if (error != 0) return CannotServe(endpoint, error);
  file.Own(*path);
  const bool owned = !group.given || ::chown(path->c_str(), static_cast<uid_t>(-1), group.gid) == 0;
  if (owned && ::chmod(path->c_str(), config.socket_mode) == 0) return {};
  return CannotServe(endpoint, errno);
}

}  // namespace

// Constant after Start: take_snapshot, take_pages, context and sockets (used by the thread alone). `stop` is
// stored by Stop before it rings `wake`, and loaded by the thread after it woke.
struct Telemetry::Impl {
  explicit Impl(EventLog& log) : events(log) {}

  EventLog& events;
  std::uint64_t next_event = 0;  // the first one that was not published
  int watch = 0;
  TakeSnapshot take_snapshot;
  TakePages take_pages;
  std::optional<zmq::context_t> context;
  std::optional<zmq::socket_t> router;
  std::optional<zmq::socket_t> publisher;
  BoundFile router_file;
  BoundFile publisher_file;
  wire::UniqueFd wake;
  std::thread thread;
  std::atomic<bool> stop{false};

  Status Open(const Config& config);
  void Close();
  void Run();
  void Serve();
  void AnswerAll();
  std::string Answer(const Query& query, Replies& made);
  std::string Pages(const json& query, Replies& made);
  void PublishAll();
  void Ring() const;
};

Status Telemetry::Impl::Open(const Config& config) {
  const Result<GroupId> group = FindGroup(config.socket_group);
  if (!group.ok()) return group.status();
  wake.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return {Code::kInternal, std::string("no eventfd (") + std::strerror(errno) + ")"};
  try {
    context.emplace(1);
    router.emplace(*context, zmq::socket_type::router);
    publisher.emplace(*context, zmq::socket_type::pub);
    router->set(zmq::sockopt::maxmsgsize, kMaxQueryBytes);
    router->set(zmq::sockopt::sndhwm, kSendQueue);
    router->set(zmq::sockopt::rcvhwm, kMaxQueriesAtOnce);
    publisher->set(zmq::sockopt::maxmsgsize, kMaxQueryBytes);
    router->set(zmq::sockopt::linger, 100);
    publisher->set(zmq::sockopt::linger, 100);
  } catch (const zmq::error_t& error) {
    return {Code::kInternal, std::string("telemetry cannot be set up (") + error.what() + ")"};
  }
  const Status bound = Bind(*router, config.status_endpoint, config, *group, router_file);
  return bound.ok() ? Bind(*publisher, config.events_endpoint, config, *group, publisher_file) : bound;
}

void Telemetry::Impl::Close() {
  router_file.Remove();
  publisher_file.Remove();
  router.reset();
  publisher.reset();
  context.reset();
}

void Telemetry::Impl::Ring() const {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake.get(), &one, sizeof(one));  // full: it rings already
}

void Telemetry::Impl::Run() {
  ::pthread_setname_np(::pthread_self(), "bp-telemetry");
  while (!stop.load(std::memory_order_acquire)) {
    try {
      Serve();
    } catch (const zmq::error_t& error) {
      if (error.num() == ETERM || error.num() == ENOTSOCK) return;  // another asker may still be served
    } catch (const std::exception&) {                               // no memory for this reply: it is dropped
    }
  }
  try {
    PublishAll();  // the daemon's last words
  } catch (const std::exception&) {
  }
}

void Telemetry::Impl::Serve() {
  zmq_pollitem_t items[] = {{router->handle(), 0, ZMQ_POLLIN, 0}, {nullptr, wake.get(), ZMQ_POLLIN, 0}};
  zmq::poll(items, 2, std::chrono::milliseconds(-1));
  if ((items[1].revents & ZMQ_POLLIN) != 0) {
    std::uint64_t rings = 0;
    [[maybe_unused]] const ssize_t bytes = ::read(wake.get(), &rings, sizeof(rings));
  }
  PublishAll();
  if (stop.load(std::memory_order_acquire)) return;
  if ((items[0].revents & ZMQ_POLLIN) != 0) AnswerAll();
}

// Takes the waiting queries first and the snapshot after them, so that each reply is younger than its query
// and a flood costs the dispatcher one snapshot a batch.
void Telemetry::Impl::AnswerAll() {
  std::vector<Query> queries;
  while (queries.size() < kMaxQueriesAtOnce) {
    auto query = ReceiveQuery(*router);
    if (!query) break;
    queries.push_back(std::move(*query));
  }
  Replies made;
  for (Query& query : queries) {
    const std::string reply = Answer(query, made);
    try {
      SendReply(*router, query, reply);
    } catch (const zmq::error_t&) {  // this asker has gone; the others are still answered
    }
  }
}

std::string Telemetry::Impl::Pages(const json& query, Replies& made) {
  const json cells = query.value("cells", json(kUsualCells));
  if (!take_pages) return BadQuery("page maps are not served here");
  if (!cells.is_number_unsigned() || cells < kLeastCells || cells > kMostCells) {
    return BadQuery("cells is a number from " + std::to_string(kLeastCells) + " to " +
                    std::to_string(kMostCells));
  }
  const auto [found, fresh] = made.pages.try_emplace(cells.get<std::uint64_t>());
  if (fresh) {
    const Result<PageMap> map = take_pages(found->first);
    found->second = map.ok() ? ToJson(*map) : ErrorReply(map.status());
  }
  return found->second;
}

std::string Telemetry::Impl::Answer(const Query& query, Replies& made) {
  if (query.too_many_frames) return BadQuery("the query has too many frames");
  const json parsed = json::parse(query.body, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded() || !parsed.is_object()) return BadQuery("the query is not a JSON object");
  const auto name = parsed.find("query");
  if (name == parsed.end() || !name->is_string()) return BadQuery("the query names nothing");
  if (*name == "version") return Dump({{"schema_version", kSnapshotSchemaVersion}, {"version", kVersion}});
  if (*name == "events") return ToJson(events.Last());
  if (*name == "pages") return Pages(parsed, made);
  if (*name != "status") return BadQuery("unknown query '" + name->get<std::string>() + "'");
  if (!made.status) {
    const Result<Snapshot> snapshot = take_snapshot();
    made.status = snapshot.ok() ? ToJson(*snapshot) : ErrorReply(snapshot.status());
  }
  return *made.status;
}

void Telemetry::Impl::PublishAll() {
  for (const Event& event : events.Since(next_event)) {
    publisher->send(zmq::buffer(event.name), zmq::send_flags::sndmore | zmq::send_flags::dontwait);
    publisher->send(zmq::buffer(ToJson(event)), zmq::send_flags::dontwait);
  }
}

Telemetry::Telemetry(EventLog& events) : impl_(std::make_unique<Impl>(events)) {}

Telemetry::~Telemetry() {
  Stop();
}

Status Telemetry::Start(const Config& config, TakeSnapshot take_snapshot, TakePages take_pages) {
  if (impl_->thread.joinable()) return {Code::kAlreadyExists, "telemetry has been started"};
  impl_->take_snapshot = std::move(take_snapshot);
  impl_->take_pages = std::move(take_pages);
  HoldSpareDescriptor();
  const Status opened = impl_->Open(config);
  if (!opened.ok()) {
    impl_->Close();
    return opened;
  }
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are main's; the thread inherits the mask
  impl_->stop.store(false, std::memory_order_release);
  impl_->next_event = impl_->events.Next();
  impl_->watch = impl_->events.Watch([impl = impl_.get()] { impl->Ring(); });
  impl_->thread = std::thread([impl = impl_.get()] { impl->Run(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return {};
}

void Telemetry::Stop() {
  if (!impl_->thread.joinable()) return;
  impl_->events.Unwatch(impl_->watch);
  impl_->stop.store(true, std::memory_order_release);
  impl_->Ring();
  impl_->thread.join();
  impl_->Close();
}

}  // namespace bitpager::daemon
