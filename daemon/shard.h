// One device with its dispatcher and the thread that runs both. Opened at most once; calls that come before
// it serves wait for it.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "client/wire/status.h"
#include "daemon/core.h"
#include "daemon/dispatcher.h"
#include "kernels/device.h"

namespace bitpager::daemon {

class Shard {
 public:
  // Opens the device and makes its dispatcher; called on the shard's thread.
  struct Parts {
    std::unique_ptr<kernels::Device> device;
    std::unique_ptr<Dispatcher> dispatcher;
  };
  using Open = std::function<wire::Result<Parts>()>;
  // Runs on the shard's thread, with its dispatcher.
  using Call = std::function<void(Dispatcher&)>;
  // Runs instead, on the caller's or the shard's thread, when there is no dispatcher.
  using Refused = std::function<void(const wire::Status&)>;

  enum class End : std::uint8_t { kNotOpened, kDone, kFaulted };
  // There is no dispatcher any more, or none came. On the shard's thread.
  using Ended = std::function<void(End)>;

  Shard(kernels::DeviceListing listing, Open open, Ended ended)
      : listing_(std::move(listing)), open_(std::move(open)), ended_(std::move(ended)) {}
  ~Shard();  // stops and joins
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  [[nodiscard]] const kernels::DeviceListing& listing() const { return listing_; }

  // ---- any thread
  // Starts the thread, once; again when the device could not be opened; never after RequestStop. Returns at
  // once; AwaitOpen says how it went. Not from a Refused call, which may be on that very thread.
  void Start();
  [[nodiscard]] wire::Status AwaitOpen();
  // Posts to the dispatcher; while the device is being opened the call waits. kNotFound to `refused` when it
  // was never started, the open's error when that failed, kDraining when it has ended or ends before it came
  // to the call. One of the two is called, whatever happens.
  void Post(Call call, Refused refused);
  // Whether it has a dispatcher or is about to have one.
  [[nodiscard]] bool Serves() const;
  // Whether the device could not be opened.
  [[nodiscard]] bool Failed() const;
  // Before Start: called with the new dispatcher before it runs.
  void SetPrepare(Call prepare) { prepare_ = std::move(prepare); }
  void RequestStop();
  // Until the shard has ended, or RequestStop said that it never will start. False: the device still works on
  // what its dispatcher would free; the process must end as it is.
  [[nodiscard]] bool Join();

 private:
  enum class State : std::uint8_t { kIdle, kOpening, kServing, kFailed, kEnded };
  void Run();

  const kernels::DeviceListing listing_;
  const Open open_;
  const Ended ended_;
  Call prepare_ = [](Dispatcher&) {};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::kIdle;  // guarded by mutex_
  wire::Status failure_;        // guarded by mutex_; kFailed
  bool stop_ = false;           // guarded by mutex_: asked for before it served
  struct Waiting {
    Call call;
    Refused refused;
  };
  std::vector<Waiting> waiting_;      // guarded by mutex_; kOpening
  Dispatcher* dispatcher_ = nullptr;  // guarded by mutex_; kServing
  bool let_go_ = true;                // its thread writes it, Join reads it after
  std::thread thread_;
};

}  // namespace bitpager::daemon
