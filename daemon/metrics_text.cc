#include "daemon/metrics_text.h"

#include <array>
#include <charconv>
#include <initializer_list>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/event.h"
#include "daemon/metrics_sums.h"

namespace bitpager::daemon {
namespace {

using Label = std::pair<std::string_view, std::string_view>;
using Labels = std::vector<Label>;

std::string Number(double value) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value);
  return {text.data(), end.ptr};
}
std::string Number(std::uint64_t value) {
  return std::to_string(value);
}

class Writer {
 public:
  // Begins a metric; its samples follow at once.
  void Metric(std::string_view name, std::string_view type, std::string_view help) {
    name_ = "bitpager_" + std::string(name);
    out_ += "# HELP " + name_ + " ";
    out_ += help;
    out_ += "\n# TYPE " + name_ + " ";
    out_ += type;
    out_ += "\n";
  }
  template <typename T>
  void Sample(const Labels& labels, T value, std::string_view suffix = {}) {
    out_ += name_;
    out_ += suffix;
    for (std::size_t i = 0; i < labels.size(); ++i) {
      out_ += i == 0 ? '{' : ',';
      out_ += labels[i].first;
      out_ += "=\"" + EscapeLabel(std::string(labels[i].second)) + "\"";
    }
    if (!labels.empty()) out_ += '}';
    out_ += " " + Number(value) + "\n";
  }
  [[nodiscard]] std::string Take() { return std::move(out_); }

 private:
  std::string name_;
  std::string out_;
};

Labels With(const Labels& labels, std::initializer_list<Label> more) {
  Labels out = labels;
  out.insert(out.end(), more);
  return out;
}

struct DeviceSeries {
  const DeviceSnapshot* device = nullptr;
  std::map<std::string, JobSums> jobs;  // by name
  [[nodiscard]] Labels labels() const { return {{"gpu", device->gpu}, {"UUID", device->uuid}}; }
};

std::vector<DeviceSeries> SeriesOf(const Snapshot& s) {
  std::vector<DeviceSeries> out;
  for (const DeviceSnapshot& device : s.devices) out.push_back({&device, SumByName(s, device.uuid)});
  return out;
}

class Exposition {
 public:
  explicit Exposition(const Snapshot& snapshot) : s_(snapshot), devices_(SeriesOf(snapshot)) {}

  std::string Write() {
    WriteDaemon();
    WriteDevices();
    WriteTiers();
    WriteJobs();
    WriteTraffic();
    WriteCounts();
    WriteHistograms();
    WriteLinks();
    WriteEvents();
    return w_.Take();
  }

 private:
  template <typename T>
  void One(std::string_view name, std::string_view type, std::string_view help, T value) {
    w_.Metric(name, type, help);
    w_.Sample({}, value);
  }
  template <typename Value>
  void OfDevices(std::string_view name, std::string_view type, std::string_view help, Value value) {
    w_.Metric(name, type, help);
    for (const DeviceSeries& series : devices_) {
      if (series.device->open) w_.Sample(series.labels(), value(*series.device));
    }
  }
  // Of jobs that are there.
  template <typename Value>
  void OfJobs(std::string_view name, std::string_view help, Value value) {
    w_.Metric(name, "gauge", help);
    ForJobs(true, [&](const Labels& labels, const JobSnapshot& job) { w_.Sample(labels, value(job)); });
  }
  template <typename Write>
  void ForJobs(bool alive, Write write) {
    for (const DeviceSeries& series : devices_) {
      for (const auto& [name, sum] : series.jobs) {
        if (!alive || sum.alive > 0) write(With(series.labels(), {{"job", name}}), sum.job);
      }
    }
  }
  void OfKinds(std::string_view name, std::string_view help,
               const std::array<std::uint64_t, 2>& (*value)(const JobSnapshot&)) {
    w_.Metric(name, "gauge", help);
    ForJobs(true, [&](const Labels& labels, const JobSnapshot& job) {
      for (std::size_t kind = 0; kind < 2; ++kind) {
        w_.Sample(With(labels, {{"kind", kKindNames[kind]}}), value(job)[kind]);
      }
    });
  }

  void WriteDaemon();
  void WriteDevices();
  void WriteTiers();
  void WriteJobs();
  void WriteTraffic();
  void WriteCounts();
  void WriteHistograms();
  void WriteHistogram(std::string_view name, std::string_view help,
                      HistogramSnapshot HistogramsSnapshot::*which);
  void WriteLinks();
  void WriteEvents();

  const Snapshot& s_;
  const std::vector<DeviceSeries> devices_;
  Writer w_;
};

void Exposition::WriteDaemon() {
  w_.Metric("build_info", "gauge", "Always 1; the version is a label.");
  w_.Sample({{"version", s_.version}}, std::uint64_t{1});
  One("start_time_seconds", "gauge", "When the daemon started, in Unix time.",
      static_cast<double>(s_.start_unix_ms) / 1000);
  One("draining", "gauge", "1 while no new sessions are taken.", std::uint64_t{s_.draining ? 1U : 0U});
  One("page_bytes", "gauge", "Bytes of a page.", s_.page_bytes);
  One("clients", "gauge", "Sessions that are there.", std::uint64_t{s_.sessions.size()});
  One("jobs", "gauge", "Jobs that are there, on all devices.", std::uint64_t{s_.jobs.size()});
  One("sessions_opened_total", "counter", "Sessions that began.", s_.totals.sessions_opened);
  One("sessions_lost_total", "counter", "Sessions that ended without a detach: killed, crashed, failed.",
      s_.totals.sessions_lost);
}

void Exposition::WriteDevices() {
  using D = DeviceSnapshot;
  OfDevices("device_budget_bytes", "gauge", "Device memory that frames may take now.",
            [](const D& d) { return d.budget_bytes; });
  w_.Metric("device_frames", "gauge", "Frames of the budget that are free, and frames that are used.");
  for (const DeviceSeries& series : devices_) {
    if (!series.device->open) continue;
    w_.Sample(With(series.labels(), {{"state", "free"}}), series.device->free_frames);
    w_.Sample(With(series.labels(), {{"state", "used"}}), series.device->used_frames);
  }
  w_.Metric("device_memory_bytes", "gauge",
            "Memory of the device as its driver tells it; of the CPU device, the system's.");
  for (const DeviceSeries& series : devices_) {
    if (!series.device->open) continue;
    w_.Sample(With(series.labels(), {{"state", "total"}}), series.device->memory_total_bytes);
    w_.Sample(With(series.labels(), {{"state", "free"}}), series.device->memory_free_bytes);
  }
  OfDevices("device_own_bytes", "gauge",
            "Device memory that the daemon's segments of frames and its kernels' scratch take.",
            [](const D& d) { return d.own_bytes; });
  OfDevices("pinned_host_bytes", "gauge", "Host memory that is locked for copies.",
            [](const D& d) { return d.pinned_host_bytes; });
  OfDevices("host_budget_bytes", "gauge", "Host memory that frames and buffers may take.",
            [](const D& d) { return d.host_budget_bytes; });
  OfDevices("host_committed_bytes", "gauge", "Host memory committed to frames and buffers.",
            [](const D& d) { return d.host_committed_bytes; });
  OfDevices("disk_budget_bytes", "gauge", "Disk that frames may take; 0: the daemon has no folder for them.",
            [](const D& d) { return d.disk_budget_bytes; });
  OfDevices("disk_committed_bytes", "gauge", "Disk committed to frames.",
            [](const D& d) { return d.disk_committed_bytes; });
  OfDevices("pressure_ratio", "gauge",
            "How near free device memory is to the watermark that pages leave free: 0 from twice the "
            "watermark up, 1 at it.",
            [](const D& d) { return d.pressure_ratio; });
}

void Exposition::WriteTiers() {
  using J = JobSnapshot;
  OfKinds("resident_bytes", "Bytes of pages in device frames, those on their way included.",
          [](const J& j) -> const std::array<std::uint64_t, 2>& { return j.resident_by_kind; });
  OfKinds("host_bytes", "Host memory committed to a job's pages.",
          [](const J& j) -> const std::array<std::uint64_t, 2>& { return j.host_by_kind; });
  OfKinds("disk_bytes", "Disk committed to a job's pages: 0 where the daemon has no folder for them.",
          [](const J& j) -> const std::array<std::uint64_t, 2>& { return j.disk_by_kind; });
}

void Exposition::WriteJobs() {
  using J = JobSnapshot;
  w_.Metric("job_peak_bytes", "gauge", "The most that a job had at any moment since it came.");
  ForJobs(true, [&](const Labels& labels, const J& job) {
    w_.Sample(With(labels, {{"tier", "device"}}), job.peak_resident_bytes);
    w_.Sample(With(labels, {{"tier", "host"}}), job.peak_host_bytes);
  });
  OfJobs("dirty_bytes", "Bytes of pages that are newer on the device than on the host.",
         [](const J& j) { return j.dirty_bytes; });
  OfJobs("leased_bytes", "Bytes of pages that clients read in place.",
         [](const J& j) { return j.leased_bytes; });
  OfJobs("shared_bytes",
         "Bytes of weights that other jobs have too, in full; a job's part of them is in the other figures.",
         [](const J& j) { return j.shared_bytes; });
  OfJobs("buffer_bytes", "Shared memory for parameters and gradients that the daemon made for clients.",
         [](const J& j) { return j.buffer_bytes; });
  OfJobs("quota_bytes", "Device bytes that a job may have; 0: no limit but the budget.",
         [](const J& j) { return j.device_quota_bytes; });
  OfJobs("share_bytes", "Device bytes that are a job's fair share now.",
         [](const J& j) { return j.share_bytes; });
  OfJobs("job_weight", "Weight of a job's share.", [](const J& j) { return j.weight; });
  OfJobs("sessions", "Connected processes of a job.", [](const J& j) { return std::uint64_t{j.sessions}; });
  w_.Metric(
      "saved_bytes", "gauge",
      "Bytes less than 32-bit states of the same rule, or 16-bit weights, of the same elements would take.");
  ForJobs(true, [&](const Labels& labels, const J& job) {
    w_.Sample(With(labels, {{"against", "states_32bit"}}), job.saved_bytes.states_32bit);
    w_.Sample(With(labels, {{"against", "weights_16bit"}}), job.saved_bytes.weights_16bit);
  });
}

void Exposition::WriteTraffic() {
  const auto reasons = [&](const Labels& labels, const paging::ByReason& counts, std::size_t most) {
    for (std::size_t i = 0; i < most; ++i) w_.Sample(With(labels, {{"reason", kReasonNames[i]}}), counts[i]);
  };
  // Pages come for demand or ahead of it; one whose extent ends is never copied.
  constexpr std::size_t kLoadReasons = 2;
  constexpr std::size_t kStoreReasons = paging::kReasons - 1;
  w_.Metric("transfer_bytes_total", "counter", "Bytes copied between the tiers.");
  ForJobs(false, [&](const Labels& labels, const JobSnapshot& job) {
    reasons(With(labels, {{"direction", "to_device"}}), job.moved_by_reason.to_device, kLoadReasons);
    reasons(With(labels, {{"direction", "to_host"}}), job.moved_by_reason.to_host, kStoreReasons);
  });
  w_.Metric("dropped_bytes_total", "counter", "Bytes of pages that left the device without a copy.");
  ForJobs(false, [&](const Labels& labels, const JobSnapshot& job) {
    reasons(labels, job.moved_by_reason.dropped, paging::kReasons);
  });
  w_.Metric("evictions_total", "counter", "Pages that left the device.");
  ForJobs(false, [&](const Labels& labels, const JobSnapshot& job) {
    reasons(labels, job.evictions_by_reason, paging::kReasons);
  });
}

void Exposition::WriteCounts() {
  const auto of_jobs = [&](std::string_view name, std::string_view help, std::uint64_t JobSnapshot::*value) {
    w_.Metric(name, "counter", help);
    ForJobs(false, [&](const Labels& labels, const JobSnapshot& job) { w_.Sample(labels, job.*value); });
  };
  of_jobs("steps_total", "Optimizer steps applied.", &JobSnapshot::steps);
  of_jobs("nonfinite_blocks_total", "Blocks of gradients that held NaN or inf.",
          &JobSnapshot::nonfinite_blocks);
  of_jobs("faults_total", "Waits for pages that were not there.", &JobSnapshot::faults);
  const auto seconds_of_jobs = [&](std::string_view name, std::string_view help,
                                   std::uint64_t JobSnapshot::*value) {
    w_.Metric(name, "counter", help);
    ForJobs(false, [&](const Labels& labels, const JobSnapshot& job) {
      w_.Sample(labels, static_cast<double>(job.*value) / 1e9);
    });
  };
  seconds_of_jobs("job_step_seconds_total", "What a job's steps took together.", &JobSnapshot::step_ns);
  seconds_of_jobs("job_stall_seconds_total", "What a job's requests waited for pages, together.",
                  &JobSnapshot::stall_ns);
  OfDevices("requests_total", "counter", "Requests taken off the rings.",
            [](const DeviceSnapshot& d) { return d.requests; });
}

void Exposition::WriteHistogram(std::string_view name, std::string_view help,
                                HistogramSnapshot HistogramsSnapshot::*which) {
  w_.Metric(name, "histogram", help);
  for (const DeviceSeries& series : devices_) {
    if (!series.device->open) continue;
    const HistogramSnapshot& h = series.device->histograms.*which;
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < h.counts.size(); ++i) {
      sum += h.counts[i];
      const std::string bound = i < h.bounds_s.size() ? Number(h.bounds_s[i]) : "+Inf";
      w_.Sample(With(series.labels(), {{"le", bound}}), sum, "_bucket");
    }
    w_.Sample(series.labels(), h.sum_s, "_sum");
    w_.Sample(series.labels(), h.count, "_count");
  }
}

void Exposition::WriteHistograms() {
  WriteHistogram("step_duration_seconds",
                 "Steps, from the moment that their inputs are ready and it is their turn.",
                 &HistogramsSnapshot::step);
  WriteHistogram("stall_seconds", "The part of each request for pages in which none of it ran.",
                 &HistogramsSnapshot::stall);
  WriteHistogram("fault_seconds", "Waits for a window whose pages were not there.",
                 &HistogramsSnapshot::fault);
  WriteHistogram("request_duration_seconds", "Requests of every kind, from the moment that it is their turn.",
                 &HistogramsSnapshot::request);
}

void Exposition::WriteLinks() {
  w_.Metric("link_bytes_per_second", "gauge", "The fastest that copies of many pages were seen to go.");
  for (const DeviceSeries& series : devices_) {
    const LinkSnapshot& link = series.device->link;
    const std::pair<const char*, std::uint64_t> directions[] = {{"to_device", link.to_device_bytes_per_s},
                                                                {"to_host", link.to_host_bytes_per_s}};
    for (const auto& [direction, speed] : directions) {
      if (speed > 0) w_.Sample(With(series.labels(), {{"direction", direction}}), speed);
    }
  }
}

void Exposition::WriteEvents() {
  w_.Metric("errors_total", "counter", "Replies and completions that failed, by code.");
  // All from the start: a counter that begins with its first error shows no increase for it.
  constexpr auto kLast = static_cast<std::uint32_t>(wire::Code::kInternal);
  for (std::uint32_t value = 1; value <= kLast; ++value) {
    const std::string name(wire::CodeName(static_cast<wire::Code>(value)));
    if (name == "unknown") continue;
    const auto found = s_.errors.find(name);
    w_.Sample({{"code", name}}, found == s_.errors.end() ? std::uint64_t{0} : found->second);
  }
  w_.Metric("events_total", "counter", "Events, by name.");
  for (const std::string_view name : kEventNames) {
    const auto found = s_.events.find(std::string(name));
    w_.Sample({{"event", name}}, found == s_.events.end() ? std::uint64_t{0} : found->second);
  }
  One("events_dropped_total", "counter", "Events that a reader was too slow for.", s_.totals.events_dropped);
  One("http_requests_total", "counter", "Requests answered over HTTP.", s_.totals.http.requests);
  One("scrapes_total", "counter", "Times that these metrics were asked for.", s_.totals.http.scrapes);
  One("scrape_duration_seconds", "gauge", "What the scrape before this one took.",
      static_cast<double>(s_.totals.http.scrape_ns_last) / 1e9);
}

}  // namespace

std::string ToPrometheus(const Snapshot& snapshot) {
  return Exposition(snapshot).Write();
}

}  // namespace bitpager::daemon
