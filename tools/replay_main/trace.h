// Traces of page visits: read from files, or made up. One thread.
//
// Format, version 1: JSON, one object a line. The first line is the header
//   {"format": "bitpager-trace", "version": 1, "page_bytes": 524288}
// and each further line is one request, in order of submission; a job's requests run one after the other, the
// jobs run side by side:
//   {"job": "qlora", "extent": "base", "first": 0, "count": 8, "access": "read"}
// `extent` is a name within its job; it has as many pages as are visited. `access` is read (pages stay
// clean), update (pages are read and written) or overwrite (pages are written whole). Empty lines and lines
// that start with # are skipped.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "paging/pager.h"

namespace bitpager::replay {

struct TraceExtent {
  std::string name;
  std::uint32_t job = 0;  // index into Trace::jobs
  std::uint64_t pages = 0;
};

struct TraceRequest {
  std::uint32_t job = 0;
  std::uint32_t extent = 0;  // index into Trace::extents
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  paging::Access access = paging::Access::kUpdate;
};

struct Trace {
  std::string name;
  std::uint64_t page_bytes = 512U << 10;
  std::vector<std::string> jobs;
  std::vector<TraceExtent> extents;
  std::vector<TraceRequest> requests;
  [[nodiscard]] std::uint64_t pages() const;  // of all extents
};

// Errors name the file, the line and what is wrong with it: kNotFound, kUnknownVersion, kInvalidArgument.
[[nodiscard]] wire::Result<Trace> ReadTrace(const std::string& path);

// cyclic: an optimizer arena, step after step. zigzag: weights, forward and backward. checkpointing: weights
// under gradient checkpointing. two-jobs: a cyclic and a zigzag job. kNotFound names those that exist.
[[nodiscard]] wire::Result<Trace> MakeTrace(const std::string& name);
[[nodiscard]] const std::vector<std::string>& SyntheticNames();

}  // namespace bitpager::replay
