#include "daemon/shard.h"

namespace bitpager::daemon {

namespace {

using wire::Code;
using wire::Status;

constexpr const char* kEndsText = "the daemon is ending.";

// A call on its way to a dispatcher, which may end before it comes to it.
class Posted {
 public:
  Posted(Shard::Call call, Shard::Refused refused) : call_(std::move(call)), refused_(std::move(refused)) {}
  Posted(const Posted&) = delete;
  Posted& operator=(const Posted&) = delete;
  ~Posted() {
    if (!ran_) refused_({Code::kDraining, kEndsText});
  }
  void Run(Dispatcher& dispatcher) {
    ran_ = true;
    call_(dispatcher);
  }

 private:
  const Shard::Call call_;
  const Shard::Refused refused_;
  bool ran_ = false;
};

void PostTo(Dispatcher& dispatcher, Shard::Call call, Shard::Refused refused) {
  dispatcher.Post([posted = std::make_shared<Posted>(std::move(call), std::move(refused)), &dispatcher] {
    posted->Run(dispatcher);
  });
}

}  // namespace

Shard::~Shard() {
  RequestStop();
  static_cast<void>(Join());
}

void Shard::Start() {
  std::thread failed;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stop_ || (state_ != State::kIdle && state_ != State::kFailed)) return;
    failed = std::move(thread_);
    state_ = State::kOpening;
    thread_ = std::thread([this] { Run(); });
  }
  if (failed.joinable()) failed.join();
}

bool Shard::Serves() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_ == State::kOpening || state_ == State::kServing;
}

bool Shard::Failed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_ == State::kFailed;
}

Status Shard::AwaitOpen() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return state_ != State::kOpening; });
  return state_ == State::kFailed ? failure_ : Status();
}

void Shard::Post(Call call, Refused refused) {
  Status why;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    switch (state_) {
      case State::kServing:
        PostTo(*dispatcher_, std::move(call), std::move(refused));
        return;
      case State::kOpening:
        waiting_.push_back({std::move(call), std::move(refused)});
        return;
      case State::kIdle:
        why = stop_ ? Status(Code::kDraining, kEndsText)
                    : Status(Code::kNotFound, "device " + listing_.uuid + " has no client yet.");
        break;
      case State::kFailed:
        why = failure_;
        break;
      case State::kEnded:
        why = {Code::kDraining, kEndsText};
        break;
    }
  }
  refused(why);
}

void Shard::RequestStop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    if (dispatcher_ != nullptr) dispatcher_->RequestStop();
  }
  changed_.notify_all();
}

bool Shard::Join() {
  {
    // A device that no client came for yet has not ended: it may still be started.
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return stop_ || state_ == State::kEnded; });
  }
  if (thread_.joinable()) thread_.join();  // from here on Start makes no other
  return let_go_;
}

void Shard::Run() {
  wire::Result<Parts> parts = open_();
  std::vector<Waiting> waiting;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting.swap(waiting_);
    if (parts.ok()) {
      prepare_(*parts->dispatcher);
      dispatcher_ = parts->dispatcher.get();
      for (Waiting& one : waiting) {
        PostTo(*dispatcher_, std::move(one.call), std::move(one.refused));
      }
      if (stop_) dispatcher_->RequestStop();
      state_ = State::kServing;
    } else {
      failure_ = parts.status();
      state_ = State::kFailed;
    }
  }
  changed_.notify_all();
  if (!parts.ok()) {
    for (const Waiting& one : waiting) one.refused(parts.status());
    ended_(End::kNotOpened);
    return;
  }
  let_go_ = parts->dispatcher->Run();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    dispatcher_ = nullptr;
    state_ = State::kEnded;
  }
  changed_.notify_all();
  ended_(let_go_ ? End::kDone : End::kFaulted);
  // The device goes on the thread that made its calls.
  if (!let_go_) {
    static_cast<void>(parts->dispatcher.release());
    static_cast<void>(parts->device.release());
    return;
  }
  parts->dispatcher.reset();
  parts->device.reset();
}

}  // namespace bitpager::daemon
