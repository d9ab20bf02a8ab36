#include "client/torch/sessions.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <mutex>

#include "client/torch/error.h"

namespace bitpager::optim {
namespace {

using client::Session;
using wire::Code;

constexpr const char* kCpuUuid = "cpu-0";

// Never destroyed: sessions may end after static objects have.
struct Defaults {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<Session>> by_uuid;
};
Defaults& TheDefaults() {
  static auto* const defaults = new Defaults;
  return *defaults;
}

// Of a c10::Stream; older ones do not tell.
template <typename Stream>
client::StreamHandle HandleOf(const Stream& stream) {
  if constexpr (requires { stream.native_handle(); }) {
    return stream.native_handle();
  } else {
    throw Error(Code::kUnsupported,
                "parameters on a GPU need a libtorch whose streams give out their handles "
                "(c10::Stream::native_handle). Hint: a newer libtorch");
  }
}

}  // namespace

std::string UuidOf(const c10::Device& device) {
  if (device.is_cpu()) return kCpuUuid;
  if (!device.is_cuda()) {
    throw Error(Code::kUnsupported, "a parameter is on " + device.str() +
                                        "; bitpager steps parameters on the CPU and on CUDA devices. Hint: "
                                        "move the model before the optimizer is made");
  }
  client::CudaDriver* const driver = Take(client::CudaDriver::System());
  return Take(driver->Uuid(device.index()));
}

std::shared_ptr<Session> DefaultSession(const c10::Device& device) {
  const std::string uuid = UuidOf(device);
  Defaults& defaults = TheDefaults();
  const std::lock_guard lock(defaults.mutex);
  std::weak_ptr<Session>& place = defaults.by_uuid[uuid];
  std::shared_ptr<Session> session = place.lock();
  if (session == nullptr || session->connection()->forked()) {
    client::ConnectOptions options;
    options.device = uuid;
    session = Take(Session::Connect(options));
    place = session;
  }
  return session;
}

void RequireDevice(const Session& session, const c10::Device& device) {
  const std::string wanted = UuidOf(device);
  const std::string& have = session.info().device_uuid;
  if (have.empty() || have == wanted) return;
  Refuse("a parameter is on " + device.str() + " (" + wanted + "), the optimizer's session is for " + have +
         ". Hint: connect with ConnectOptions::device, or leave PagingOptions::session out");
}

wire::Status Settle(const Session& session) {
  wire::Status entered = session.connection()->Enter().status();
  while (entered.code() == Code::kInterrupted) entered = session.connection()->Enter().status();
  return entered;
}

CurrentStream CurrentStreamOf(const c10::Device& device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  const c10::Stream stream = guard.getStream(device);
  return {stream, HandleOf(stream)};
}

}  // namespace bitpager::optim
