// A scripted daemon for tests of the client: one thread that speaks the protocol over client/wire, answers
// everything kindly by default, and misbehaves where a test says so. It shares no code with daemon/.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "client/wire/fd_socket.h"
#include "client/wire/messages.h"
#include "client/wire/records.h"
#include "client/wire/ring.h"
#include "client/wire/segment.h"
#include "client/wire/unique_fd.h"

namespace bitpager::testing {

// A memory file mapped read-write.
struct Memory {
  wire::UniqueFd fd;
  std::byte* base = nullptr;
  std::uint64_t bytes = 0;
  Memory() = default;
  Memory(std::uint64_t size, bool sealed);
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept;
  ~Memory();
};

// A fresh path in a temporary folder of this process.
[[nodiscard]] std::string TemporaryPath(const std::string& name);

class FakeDaemon {
 public:
  // What a script does with a request: complete it (the record is filled for kOk), keep it open, or nothing
  // any more.
  enum class Then { kComplete, kKeepOpen };

  struct Script {
    std::uint64_t heartbeat_ms = 0;
    bool seal_segment = true;
    bool spin = false;                 // for measurements: never sleeps while a client is attached
    bool rings_always = false;         // rings the completion bell after every completion
    std::string device = "cpu cpu-0";  // "<kind> <uuid>"
    bool synchronous = true;           // says that streams do not wait for it
    bool leases = true;                // says that its frames can be leased
    // Changes the segment before it is sent.
    std::function<void(wire::SegmentHeader&)> on_segment;
    // Sees each message first; true: it was answered (or not) by the script.
    std::function<bool(FakeDaemon&, const wire::Packet&)> on_message;
    // Sees each request; fills the completion.
    std::function<Then(FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord&)> on_request;
  };

  FakeDaemon(std::string path, Script script);
  explicit FakeDaemon(std::string path) : FakeDaemon(std::move(path), Script()) {}
  ~FakeDaemon();
  FakeDaemon(const FakeDaemon&) = delete;
  FakeDaemon& operator=(const FakeDaemon&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }

  // ---- from scripts (its thread) or between calls of the client ----
  void Reply(const wire::Packet& question, const wire::ReplyBody& body, std::span<const int> fds = {});
  void HangUp();  // closes the connection
  void Complete(const wire::CompletionRecord& record);
  [[nodiscard]] wire::SegmentHeader& header() { return view().header(); }
  [[nodiscard]] wire::SegmentView view() { return {segment_.base}; }
  [[nodiscard]] std::byte* At(wire::Slice slice) { return buffers_.at(slice.buffer).base + slice.offset; }
  [[nodiscard]] std::size_t buffers() const { return buffers_.size(); }
  [[nodiscard]] int connection() const { return connection_.get(); }

  // ---- any thread ----
  [[nodiscard]] std::uint64_t requests() const { return requests_seen_.load(); }
  [[nodiscard]] bool attached() const { return attached_.load(); }
  [[nodiscard]] std::uint64_t doorbells() const { return doorbells_.load(); }
  [[nodiscard]] int detaches() const { return detaches_.load(); }
  [[nodiscard]] bool hung_up() const { return hung_up_.load(); }  // by the client
  void Ring();
  // Memory that clients registered, by buffer; released ones are gone.
  [[nodiscard]] std::map<std::uint64_t, wire::RegisterBufferBody> registered();

 private:
  void Run();
  void Accept();
  bool TakeMessage();
  void Answer(const wire::Packet& packet);
  void AnswerHello(const wire::Packet& packet);
  void AnswerCreateBuffer(const wire::Packet& packet);
  void AnswerRegisterBuffer(const wire::Packet& packet);
  bool TakeRequests();
  void Sleep();

  const std::string path_;
  const Script script_;
  wire::UniqueFd listener_;
  wire::UniqueFd stop_bell_;
  wire::UniqueFd connection_;
  wire::UniqueFd request_bell_;
  wire::UniqueFd completion_bell_;
  Memory segment_;
  wire::RingConsumer<wire::RequestRecord> request_ring_;
  wire::RingProducer<wire::CompletionRecord> completion_ring_;
  std::map<std::uint64_t, Memory> buffers_;
  std::mutex registered_mutex_;
  std::map<std::uint64_t, wire::RegisterBufferBody> registered_;  // guarded by registered_mutex_
  std::uint64_t last_buffer_ = 0;
  std::uint64_t last_extent_ = 100;
  std::uint64_t turns_ = 0;
  std::atomic<std::uint64_t> requests_seen_{0};
  std::atomic<std::uint64_t> doorbells_{0};
  std::atomic<int> detaches_{0};
  std::atomic<bool> attached_{false};
  std::atomic<bool> hung_up_{false};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace bitpager::testing
