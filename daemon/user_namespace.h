// Whether users can be told apart: in a user namespace that does not map every uid, the kernel shows all that
// it does not map as one, the overflow uid. Read once by main.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace bitpager::daemon {

// The uid that stands for more than one user, if there is one here. `uid_map` and `overflow`: the contents of
// /proc/self/uid_map and /proc/sys/kernel/overflowuid. Where every uid is mapped, each is one user.
[[nodiscard]] std::optional<std::uint32_t> AmbiguousUid(const std::string& uid_map,
                                                        const std::string& overflow);
// Of this process.
[[nodiscard]] std::optional<std::uint32_t> AmbiguousUid();

}  // namespace bitpager::daemon
