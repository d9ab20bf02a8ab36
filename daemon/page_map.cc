#include "daemon/page_map.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace bitpager::daemon {

using nlohmann::json;

std::string ToJson(const PageMap& map) {
  json devices = json::array();
  for (const DevicePages& device : map.devices) {
    json cells = json::array();
    for (const PageCell& cell : device.cells) {
      const paging::PageCounts& n = cell.counts;
      cells.push_back({cell.job, n.resident, n.dirty, n.host, n.streaming, n.disk});
    }
    devices.push_back({{"uuid", device.uuid},
                       {"gpu", device.gpu},
                       {"kind", device.kind},
                       {"page_bytes", device.page_bytes},
                       {"pages", device.pages},
                       {"pages_per_cell", device.pages_per_cell},
                       {"jobs", device.jobs},
                       {"cells", std::move(cells)}});
  }
  return json({{"schema_version", kPageMapSchemaVersion}, {"devices", std::move(devices)}})
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace bitpager::daemon
