// Which devices a configuration means, and what the shard of one is made of: the device, budgets out of what
// the machine has, and a dispatcher with settings for both.
#pragma once

#include <vector>

#include "client/wire/status.h"
#include "daemon/config.h"
#include "daemon/machine.h"
#include "daemon/shard.h"
#include "kernels/device.h"

namespace bitpager::daemon {

// Of those that there are, in the driver's order. kNotFound, with the reason, when there is none.
[[nodiscard]] wire::Result<std::vector<kernels::DeviceListing>> ChooseDevices(const Config& config);

// `sharers`: devices that share the host's memory and disk. Errors: those of OpenDevice, ResolveBudgets and
// Dispatcher::Make. The thread that is to run the shard.
[[nodiscard]] wire::Result<Shard::Parts> OpenShard(const Config& config, const MachineFacts& machine,
                                                   const Clock& clock, const kernels::DeviceListing& listing,
                                                   unsigned sharers);

}  // namespace bitpager::daemon
