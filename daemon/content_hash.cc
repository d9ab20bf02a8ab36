// By libcrypto's low-level calls: they alone are linked (some KiB), where the library's generic interface
// would bring all of its algorithms along. They use the processor's SHA instructions where it has them.
#include "daemon/content_hash.h"

#define OPENSSL_API_COMPAT 0x10100000L  // the calls are deprecated since 3.0 in favour of the generic ones
#include <openssl/sha.h>

#include <new>

namespace bitpager::daemon {
namespace {

SHA256_CTX* At(std::array<std::byte, 128>& state) {
  static_assert(sizeof(SHA256_CTX) <= sizeof(state) && alignof(SHA256_CTX) <= 8);
  return std::launder(reinterpret_cast<SHA256_CTX*>(state.data()));
}

}  // namespace

ContentHash::ContentHash() : state_{} {
  SHA256_Init(new (state_.data()) SHA256_CTX);
}

void ContentHash::Add(std::span<const std::byte> bytes) {
  SHA256_Update(At(state_), bytes.data(), bytes.size());
}

Digest ContentHash::Finish() {
  Digest digest;
  SHA256_Final(digest.data(), At(state_));
  return digest;
}

}  // namespace bitpager::daemon
