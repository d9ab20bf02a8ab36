// Random operations against a naive model: the content of every frame (driver.h) and the pager's invariants.
#include <cstdlib>

#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

struct Machine {
  const char* name;
  std::uint32_t segment_frames;
  std::uint64_t frames;
  std::uint32_t window;
  Policy policy;
  int domains;
  int refusals;
  bool overlaps = false;          // an accelerator's way of paging
  std::uint64_t disk_frames = 0;  // every fourth size of extent lies on disk
};

class RandomOperations : public testing::TestWithParam<std::tuple<Machine, int>> {
 protected:
  struct Known {
    wire::ExtentId id;
    std::uint64_t job;
    std::uint64_t pages;
    std::vector<std::uint64_t> users;
    bool shared = false;  // or was
  };
  static constexpr std::uint64_t kJobs = 5;
  RandomOperations()
      : machine(std::get<0>(GetParam())),
        d(Config(machine), static_cast<std::uint64_t>(std::get<1>(GetParam()))) {
    d.refusals = machine.refusals;
  }
  static PagerConfig Config(const Machine& s) {
    PagerConfig config;
    config.device_frames = s.frames;
    config.host_frames = 400;
    config.disk_frames = s.disk_frames;
    config.segment_frames = s.segment_frames;
    config.window_pages = s.window;
    config.loads_over_resident = s.overlaps;
    if (s.overlaps) {
      config.least_under_way = 3 * s.window;
      config.windows_in_flight = 6;
      config.first_pages = 2 * s.window;
    }
    config.policy = s.policy;
    config.poison = true;
    return config;
  }
  std::uint64_t Below(std::uint64_t n) { return d.rng()() % n; }

  void AddSomething() {
    const std::uint64_t job = 1 + Below(kJobs);
    if (!d.pager.Usage({job})) {
      JobSpec spec;
      spec.name = "job" + std::to_string(job);
      spec.weight = 1.0 + static_cast<double>(Below(3));
      if (Below(3) == 0) spec.device_quota_frames = machine.window + 4 + Below(machine.frames);
      if (d.pager.AddJob({job}, spec).ok()) d.Adopt(job, spec.device_quota_frames);
      return;
    }
    const ExtentSpec spec{{job},
                          static_cast<wire::ExtentKind>(Below(2)),
                          1 + Below(60),
                          Below(8) != 0,
                          static_cast<DomainId>(Below(static_cast<std::uint64_t>(machine.domains)))};
    ExtentSpec small = spec;
    if (!small.evictable) small.pages = 1 + Below(2);
    small.on_disk = machine.disk_frames > 0 && small.evictable && small.pages % 4 == 0;
    if (auto id = d.pager.AddExtent(small); id.ok()) {
      d.Adopt(*id, small);
      extents.push_back({*id, job, small.pages, {job}});
    }
  }
  void Note(wire::RequestId id) {
    if (id) requests.push_back(id);
  }
  void SubmitSomething() {
    if (extents.empty()) return;
    const Known& one = extents[Below(extents.size())];
    if (one.shared) {
      const std::uint64_t first = Below(one.pages);
      const Access access = one.users.size() > 1 ? Access::kRead : static_cast<Access>(Below(3));
      Note(d.Ask({one.users[Below(one.users.size())]}, {{one.id, first, Below(one.pages - first + 1)}},
                 access, Below(5) == 0, Below(2) == 0));
      return;
    }
    const std::uint64_t job = one.job;
    std::vector<PageRange> ranges;
    for (std::uint64_t i = 1 + Below(3); i-- > 0;) {
      const Known& known = extents[Below(extents.size())];
      if (known.job != job || known.shared) continue;
      const std::uint64_t first = Below(known.pages);
      ranges.push_back({known.id, first, Below(known.pages - first + 1)});
    }
    const auto access = static_cast<Access>(Below(3));
    const bool prefetch = Below(5) == 0;
    Note(d.Ask({job}, ranges, access, prefetch, Below(2) == 0));
  }
  void ChangeSomething() {
    const std::uint64_t job = 1 + Below(kJobs);
    switch (Below(11)) {
      case 0:
        if (!extents.empty()) {
          const std::size_t i = Below(extents.size());
          d.Remove(extents[i].id);
          extents.erase(extents.begin() + static_cast<std::ptrdiff_t>(i));
        }
        break;
      case 1:
        if (!requests.empty()) d.pager.Cancel(requests[Below(requests.size())]);
        break;
      case 2:
        d.pager.Evict({job}, Below(20), Reason::kCommand);
        break;
      case 3:
        d.SetBudget(machine.frames / 2 + Below(machine.frames));
        break;
      case 4:
        if (d.pager.Usage({job}))
          d.SetQuota(job, Below(2) == 0 ? 0 : machine.window + 4 + Below(machine.frames));
        break;
      case 5:
        if (!extents.empty()) (void)d.pager.Lease(extents[Below(extents.size())].id);
        break;
      case 6:
        if (Below(6) == 0) RemoveJob(job);
        break;
      case 7:
        if (!d.revoked.empty()) d.pager.LeaseOverdue(d.revoked[Below(d.revoked.size())]);
        break;
      case 8:
        if (!extents.empty()) Replace(Below(extents.size()));
        break;
      case 9:
        d.pager.GiveBackUnused();
        break;
      case 10:
        if (!extents.empty()) UnshareOrEvict(Below(extents.size()));
        break;
    }
  }
  void UnshareOrEvict(std::size_t i) {
    extents[i].shared ? Unshare(i) : d.pager.EvictExtent(extents[i].id, Reason::kCommand);
  }
  void Share(Known& known, std::uint64_t with) {
    if (!d.Share(known.id, {with})) return;
    known.users.push_back(with);
    known.shared = true;
    ++shares;
    EXPECT_EQ(d.pager.UsesOf(known.id), known.users.size());
  }
  void Unshare(std::size_t i) {
    Known& known = extents[i];
    const std::size_t user = Below(known.users.size());
    d.pager.RemoveUse(known.id, {known.users[user]});
    known.users.erase(known.users.begin() + static_cast<std::ptrdiff_t>(user));
    if (known.users.empty()) {
      extents.erase(extents.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      known.job = known.users.front();
    }
  }
  // What CheckReplace says is kept.
  void Replace(std::size_t i) {
    if (extents[i].shared) return;
    const ExtentSpec spec{{extents[i].job}, wire::ExtentKind::kOptimizerState, 1 + Below(60), Below(8) != 0};
    if (!d.pager.CheckReplace(extents[i].id, spec).ok()) return;
    d.pager.CheckInvariants();
    d.Remove(extents[i].id);
    const auto id = d.pager.AddExtent(spec);
    ASSERT_TRUE(id.ok()) << id.status().message();
    d.Adopt(*id, spec);
    extents[i] = {*id, spec.job.value, spec.pages, {spec.job.value}};
  }
  void RemoveJob(std::uint64_t job) {
    d.pager.RemoveJob({job});
    for (Known& known : extents) {
      std::erase(known.users, job);
      if (!known.users.empty()) known.job = known.users.front();
    }
    std::erase_if(extents, [&](const Known& known) { return known.users.empty(); });
  }
  void ReleaseOne() {
    if (d.revoked.empty()) return;
    d.pager.LeaseReleased(d.revoked.back());
    d.revoked.pop_back();
  }

  Machine machine;
  Driver d;
  std::vector<Known> extents;
  std::vector<wire::RequestId> requests;
  int shares = 0;
};

TEST_P(RandomOperations, KeepContentAndInvariants) {
  d.check_budget = false;
  d.check_traffic = machine.domains == 1;  // where there are others, pages are shared
  for (int i = 0; i < 8000 && !HasFailure(); ++i) {
    const std::uint64_t what = Below(100);
    if (what < 3) {
      AddSomething();
    } else if (what < 8) {
      SubmitSomething();
    } else if (what < 10) {
      ChangeSomething();
    } else if (what < 14) {
      ReleaseOne();
    } else if (what < 16) {
      if (!extents.empty()) Share(extents[Below(extents.size())], 1 + Below(kJobs));
    } else if (what < 50) {
      d.Pump();
      if (i % 8 == 0 && machine.refusals == 0) d.CheckSums(kJobs);
    } else {
      d.CompleteOne();
    }
    d.pager.CheckInvariants();
  }
  for (int round = 0; round < 50 && !HasFailure(); ++round) {
    d.Settle();
    while (!d.revoked.empty()) ReleaseOne();
  }
  if (machine.refusals == 0) {
    for (const wire::RequestId id : requests)
      EXPECT_TRUE(d.finished.count(id.value)) << "request " << id.value;
  }
  EXPECT_GT(d.visits.size(), 100U);
  if (machine.refusals == 0) {
    EXPECT_EQ(shares > 0, machine.domains > 1) << shares;
  }
  d.ExpectAllTraffic(kJobs);
  for (std::uint64_t job = 1; shares == 0 && job <= kJobs; ++job) {
    if (d.pager.Usage({job})) d.ExpectTraffic({job});
  }
  for (std::uint64_t job = 1; job <= kJobs; ++job) RemoveJob(job);
  d.Settle();
  while (!d.revoked.empty()) ReleaseOne();
  d.Settle();
  EXPECT_EQ(d.pager.used_host_frames(), 0U);
  EXPECT_EQ(d.pager.used_disk_frames(), 0U);
  for (std::uint64_t job = 1; job <= kJobs; ++job) EXPECT_FALSE(d.pager.Usage({job}));
}

constexpr Machine kMachines[] = {
    {"Frames", 1, 48, 4, Policy::kScanAware, 1, 0},
    {"Tiny", 1, 10, 2, Policy::kScanAware, 1, 0},
    {"Domains", 1, 48, 4, Policy::kScanAware, 3, 0},
    {"Segments", 4, 96, 4, Policy::kScanAware, 3, 0},
    {"Refusing", 4, 96, 4, Policy::kScanAware, 2, 9},
    {"Lru", 1, 48, 4, Policy::kLru, 2, 0},
    {"Clock", 2, 48, 4, Policy::kClock, 2, 0},
    {"RefusingFrames", 1, 40, 4, Policy::kScanAware, 2, 9},
    {"Accelerator", 8, 96, 4, Policy::kScanAware, 2, 0, true},
    {"RefusingAccelerator", 4, 96, 4, Policy::kScanAware, 2, 9, true},
    {"Disk", 1, 48, 4, Policy::kScanAware, 2, 0, false, 150},
    {"DiskAccelerator", 8, 96, 4, Policy::kScanAware, 2, 0, true, 150},
    {"TinyAccelerator", 1, 20, 4, Policy::kScanAware, 1, 0, true},
};

// Eight; BITPAGER_RANDOM_SEEDS has another number of them run.
int SeedsEnd() {
  const char* const said = std::getenv("BITPAGER_RANDOM_SEEDS");
  return said == nullptr ? 9 : std::atoi(said) + 1;
}

INSTANTIATE_TEST_SUITE_P(Machines, RandomOperations,
                         testing::Combine(testing::ValuesIn(kMachines), testing::Range(1, SeedsEnd())),
                         [](const auto& at) {
                           return std::string(std::get<0>(at.param).name) + "Seed" +
                                  std::to_string(std::get<1>(at.param));
                         });

}  // namespace
}  // namespace bitpager::paging
