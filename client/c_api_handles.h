// The handles of the C ABI: one bp_session holds the objects of the C++ API by their ids. Any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "client/bitpager.h"
#include "client/c_api_internal.h"
#include "client/client.h"
#include "client/fork_guard.h"

// A session and its handles by their ids. What is in use lives on while another thread drops it: handles and,
// when that thread disconnects, the session. This object itself is never freed, so that a call that comes
// late on another thread, a collector's for example, finds the session gone; MakeHandle uses it again.
struct bp_session {
  bitpager::client::ForkGuard guard;
  std::mutex mutex;  // guards what follows; never held during a call to the daemon
  std::shared_ptr<bitpager::client::Session> session;  // null: disconnected
  std::unordered_map<std::uint64_t, std::shared_ptr<bitpager::client::Arena>> arenas;
  std::unordered_map<std::uint64_t, std::shared_ptr<bitpager::client::Weight>> weights;
  std::unordered_map<std::uint64_t, std::shared_ptr<bitpager::client::Buffer>> buffers;
  bp_session* next_unused = nullptr;
};

namespace bitpager::client::internal {

// One that is disconnected, or a new one.
[[nodiscard]] bp_session* MakeHandle();
// It is disconnected.
void KeepUnused(bp_session* session);

inline bool Forked(const bp_session* session) {
  return session->guard.forked();
}

inline wire::Status Disconnected() {
  return InvalidArgument("this session was disconnected");
}

// Null: disconnected.
inline std::shared_ptr<Session> SessionOf(bp_session* session) {
  const std::lock_guard lock(session->mutex);
  return session->session;
}

inline std::string Text(const char* text) {
  return text == nullptr ? std::string() : std::string(text);
}

inline wire::Status NoSuch(const char* what, std::uint64_t id) {
  return {wire::Code::kNotFound, "this session has no " + std::string(what) + " " + std::to_string(id)};
}

// Runs `call` with the handle `id` of `map`.
template <typename Map, typename Call>
int WithHandle(bp_session* session, Map bp_session::*map, std::uint64_t id, const char* what, Call&& call) {
  return Guarded([&]() -> wire::Status {
    if (session == nullptr) return InvalidArgument("session is NULL");
    if (Forked(session)) return ForkedChild();
    typename Map::mapped_type handle;
    {
      const std::lock_guard lock(session->mutex);
      if (session->session == nullptr) return Disconnected();
      const auto at = (session->*map).find(id);
      if (at != (session->*map).end()) handle = at->second;
    }
    if (handle == nullptr) return NoSuch(what, id);
    return call(*handle);
  });
}

template <typename Call>
int WithArena(bp_session* session, std::uint64_t id, Call&& call) {
  return WithHandle(session, &bp_session::arenas, id, "arena", std::forward<Call>(call));
}
template <typename Call>
int WithWeight(bp_session* session, std::uint64_t id, Call&& call) {
  return WithHandle(session, &bp_session::weights, id, "weight", std::forward<Call>(call));
}

// Runs `call` with the session.
template <typename Call>
int WithSession(bp_session* session, Call&& call) {
  return Guarded([&]() -> wire::Status {
    if (session == nullptr) return InvalidArgument("session is NULL");
    if (Forked(session)) return ForkedChild();
    const std::shared_ptr<Session> alive = SessionOf(session);
    return alive == nullptr ? Disconnected() : call(*alive);
  });
}

// Keeps a handle of `of` that was made, under its id, which goes to *id. It goes when `of` was disconnected.
template <typename Map, typename Handle>
wire::Status Keep(bp_session* session, const Session& of, Map bp_session::*map,
                  std::unique_ptr<Handle> handle, std::uint64_t* id) {
  const std::lock_guard lock(session->mutex);
  if (session->session.get() != &of) return Disconnected();
  *id = handle->id();
  (session->*map)[*id] = std::move(handle);
  return {};
}

// Takes a handle out; null when there is none.
template <typename Map>
typename Map::mapped_type Take(bp_session* session, Map bp_session::*map, std::uint64_t id) {
  const std::lock_guard lock(session->mutex);
  const auto at = (session->*map).find(id);
  if (at == (session->*map).end()) return nullptr;
  typename Map::mapped_type handle = std::move(at->second);
  (session->*map).erase(at);
  return handle;
}

// Drops the handle `id` of `map`, which stays when the wait for what was asked for before is interrupted.
template <typename Map>
int DropHandle(bp_session* session, Map bp_session::*map, std::uint64_t id, const char* what) {
  return WithHandle(session, map, id, what, [&](auto& handle) -> wire::Status {
    const wire::Status dropped = handle.Drop();
    if (dropped.code() == wire::Code::kInterrupted) return dropped;
    const std::lock_guard lock(session->mutex);
    // Another thread may have disconnected, and a new session have the number.
    const auto at = (session->*map).find(id);
    if (at != (session->*map).end() && at->second.get() == &handle) (session->*map).erase(at);
    return dropped;
  });
}

inline wire::Result<wire::DType> DTypeFrom(int dtype) {
  if (dtype >= BP_F32 && dtype <= BP_U8) return static_cast<wire::DType>(dtype);
  return InvalidArgument("dtype " + std::to_string(dtype) + " is no bp_dtype");
}

}  // namespace bitpager::client::internal
