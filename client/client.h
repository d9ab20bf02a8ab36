// The C++ API of bitpager: sessions, arenas of optimizer state, quantized weights, shared buffers. Errors are
// wire::Status and wire::Result; nothing here throws but std::bad_alloc. The C ABI (bitpager.h) is a thin
// shim over it.
//
//   auto session = bitpager::client::Session::Connect({});
//   auto arena = bitpager::client::Arena::Create(**session, options);
//   wire::Status status = (*arena)->Step(tensors, groups, {.step = 1});
#pragma once

#include "client/arena.h"
#include "client/buffer.h"
#include "client/session.h"
#include "client/weight.h"
