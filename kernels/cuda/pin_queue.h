// Which pieces of host memory are to be pinned and which to be given back, in which order, and what becomes
// of each meanwhile. No CUDA, no threads: HostFrames makes all calls under one mutex, and does the work
// itself.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <utility>

#include "kernels/device.h"

namespace bitpager::kernels::cuda {

class PinQueue {
 public:
  // kIdle: its memory belongs to the system. kLeaving: to be unpinned, unless it is wanted again before.
  enum class State : std::uint8_t { kIdle, kQueued, kPinning, kPinned, kFailed, kLeaving, kUnpinning };
  struct Piece {
    // Written under the mutex; kPinned is read without it. Partner: Set.
    std::atomic<State> state{State::kIdle};
    bool registered = false;             // with the driver
    bool turned = false;                 // kPinning: given back meanwhile. kUnpinning: wanted meanwhile
    bool filled = false;                 // kQueued: it was used without being pinned, so it has memory
    std::array<Event, kQueues> after{};  // kLeaving: what must be done before
  };

  // It will be used. True: there is work more.
  [[nodiscard]] bool Expect(Piece& piece) { return !Want(piece, false); }
  // A copy waits for it. True: it is pinned, or could not be. Else it is the next one to be pinned.
  [[nodiscard]] bool Need(Piece& piece) { return Want(piece, true); }
  // Nothing in it is used any more, once `after` is done.
  void GiveBack(Piece& piece, const std::array<Event, kQueues>& after) {
    switch (piece.state.load(std::memory_order_relaxed)) {
      case State::kIdle:
      case State::kLeaving:
        break;
      case State::kQueued:  // expected, and its owner went before it was pinned
        std::erase(work_, &piece);
        if (std::exchange(piece.filled, false)) {
          Leave(piece, after);
        } else {
          Set(piece, State::kIdle);
        }
        break;
      case State::kPinning:
        piece.turned = true;
        break;
      case State::kUnpinning:
        piece.turned = false;
        break;
      case State::kPinned:
      case State::kFailed:
        Leave(piece, after);
        break;
    }
  }

  // The next one to work on, kPinning or kUnpinning from now on. Null when there is none, or when what those
  // that there are wait for is not done().
  template <typename Done>
  [[nodiscard]] Piece* Next(const Done& done) {
    const auto ready = [&done](const Piece* piece) {
      return piece->state.load(std::memory_order_relaxed) == State::kQueued ||
             std::all_of(piece->after.begin(), piece->after.end(), done);
    };
    const auto found = std::find_if(work_.begin(), work_.end(), ready);
    if (found == work_.end()) return nullptr;
    Piece* const piece = *found;
    work_.erase(found);
    const bool pin = piece->state.load(std::memory_order_relaxed) == State::kQueued;
    Set(*piece, pin ? State::kPinning : State::kUnpinning);
    return piece;
  }
  void Pinned(Piece& piece, bool registered) {
    piece.registered = registered;
    piece.filled = false;
    // Nothing used it since it was the system's. It must not be seen as pinned: a copy would begin, and its
    // memory leave beneath it.
    if (std::exchange(piece.turned, false)) return Leave(piece, {});
    Set(piece, registered ? State::kPinned : State::kFailed);
  }
  void Unpinned(Piece& piece) {
    piece.registered = false;
    Set(piece, State::kIdle);
    if (std::exchange(piece.turned, false)) Queue(piece, false);
  }
  [[nodiscard]] bool empty() const { return work_.empty(); }

 private:
  // Partner: whoever reads kPinned without the mutex, and then may use the piece's registration.
  static void Set(Piece& piece, State state) { piece.state.store(state, std::memory_order_release); }
  void Queue(Piece& piece, bool first) {
    Set(piece, State::kQueued);
    first ? work_.push_front(&piece) : work_.push_back(&piece);
  }
  void Leave(Piece& piece, const std::array<Event, kQueues>& after) {
    piece.after = after;
    Set(piece, State::kLeaving);
    work_.push_back(&piece);
  }
  // True when nothing is left to do, or, unless it is for a copy, when all is arranged already.
  bool Want(Piece& piece, bool by_copy) {
    const State state = piece.state.load(std::memory_order_relaxed);
    switch (state) {
      case State::kPinned:
      case State::kFailed:
        return true;
      case State::kPinning:
      case State::kUnpinning:
        piece.turned = state == State::kUnpinning;
        return !by_copy;
      case State::kQueued:
        if (!by_copy) return true;
        break;
      case State::kIdle:
      case State::kLeaving:
        break;
    }
    std::erase(work_, &piece);
    if (piece.registered) {  // its leaving has not begun: it stays
      Set(piece, State::kPinned);
      return true;
    }
    piece.filled |= state == State::kLeaving;
    Queue(piece, by_copy);
    return false;
  }

  std::deque<Piece*> work_;  // kQueued and kLeaving pieces, in order
};

}  // namespace bitpager::kernels::cuda
