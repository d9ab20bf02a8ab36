// What the pager counts: traffic by reason, jobs that end, pages in cells.
#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

std::uint64_t Of(const ByReason& counts, Reason reason) {
  return counts[static_cast<std::size_t>(reason)];
}

TEST(Traffic, ReasonsSayWhyPagesCameAndLeft) {
  Driver d(SmallPages(16));
  const wire::JobId job = d.Job(1);
  const wire::ExtentId extent = d.Extent(job, 8);
  d.Run(job, {{extent, 0, 8}});
  Traffic traffic = d.pager.Usage(job)->traffic;
  EXPECT_EQ(traffic.arrived, 8U);
  EXPECT_EQ(Of(traffic.to_device, Reason::kDemand), 0U) << "never written: nothing to copy";
  d.pager.Evict(job, 3, Reason::kCommand);
  d.Settle();
  d.SetQuota(1, 4);
  d.Settle();
  traffic = d.pager.Usage(job)->traffic;
  EXPECT_EQ(Of(traffic.evicted, Reason::kCommand), 3U);
  EXPECT_EQ(Of(traffic.to_host, Reason::kCommand), 3U);
  EXPECT_EQ(Of(traffic.evicted, Reason::kLimit), 1U);
  d.SetQuota(1, 0);
  (void)d.Ask(job, {{extent, 0, 8}}, Access::kRead, true);
  d.Settle();
  EXPECT_EQ(Of(d.pager.Usage(job)->traffic.to_device, Reason::kPrefetch), 4U);
  d.SetBudget(4);
  d.Settle();
  EXPECT_EQ(Of(d.pager.Usage(job)->traffic.evicted, Reason::kPressure), 4U);
  d.Run(job, {{extent, 0, 8}}, Access::kRead);
  traffic = d.pager.Usage(job)->traffic;
  EXPECT_GE(Of(traffic.to_device, Reason::kDemand), 4U);
  EXPECT_GE(Of(traffic.evicted, Reason::kDemand), 4U);
  const std::uint64_t resident = d.pager.Usage(job)->resident_frames;
  d.Remove(extent);
  d.Settle();
  EXPECT_EQ(Of(d.pager.Usage(job)->traffic.evicted, Reason::kClosing), resident);
  d.ExpectTraffic(job);
}

TEST(Traffic, AShareThatShrinksIsAReason) {
  Driver d(SmallPages(16));
  const wire::JobId first = d.Job(1);
  const wire::ExtentId wide = d.Extent(first, 16);
  d.Run(first, {{wide, 0, 16}});
  const wire::JobId second = d.Job(2);
  const wire::ExtentId other = d.Extent(second, 8);
  d.Run(second, {{other, 0, 8}});
  EXPECT_EQ(Of(d.pager.Usage(first)->traffic.evicted, Reason::kShare), 8U);
  EXPECT_EQ(Of(d.pager.Usage(second)->traffic.evicted, Reason::kShare), 0U);
}

TEST(EndedJobs, AreThereUntilTheirLastFrameIs) {
  Driver d(SmallPages(16));
  const wire::JobId job = d.Job(1);
  const wire::ExtentId extent = d.Extent(job, 4);
  d.Run(job, {{extent, 0, 4}});
  d.pager.Evict(job, 4, Reason::kCommand);
  d.Pump();
  ASSERT_EQ(d.outstanding_stores(), 4U);
  d.pager.RemoveJob(job);
  d.Pump();
  ASSERT_TRUE(d.pager.Usage(job)) << "its pages are still on their way";
  EXPECT_EQ(d.pager.Usage(job)->resident_frames, 4U);
  EXPECT_EQ(d.pager.Usage().used_frames, 4U);
  EXPECT_TRUE(d.ended.empty());
  d.Settle();
  EXPECT_EQ(d.ended, std::vector<wire::JobId>{job});
  EXPECT_EQ(d.pager.Usage().used_frames, 0U);
  EXPECT_EQ(Of(d.pager.Usage().traffic.evicted, Reason::kCommand), 4U) << "counts outlive the job";
  d.Settle();
  EXPECT_EQ(d.ended.size(), 1U) << "told once";
}

TEST(EndedJobs, WithoutPagesEndAtTheNextDecision) {
  Driver d(SmallPages(16));
  const wire::JobId job = d.Job(1);
  d.pager.RemoveJob(job);
  EXPECT_TRUE(d.pager.Usage(job)) << "its counts are somebody's until they are handed over";
  d.Pump();
  EXPECT_EQ(d.ended, std::vector<wire::JobId>{job});
}

TEST(Peaks, AreTheMostUntilTheyAreReset) {
  Driver d(SmallPages(16));
  const wire::JobId job = d.Job(1);
  const wire::ExtentId wide = d.Extent(job, 10);
  const wire::ExtentId narrow = d.Extent(job, 3);
  d.Run(job, {{wide, 0, 10}});
  EXPECT_EQ(d.pager.Usage(job)->peak_resident_frames, 10U);
  EXPECT_EQ(d.pager.Usage(job)->peak_host_frames, 13U);
  d.Remove(wide);
  d.Settle();
  d.Run(job, {{narrow, 0, 3}});
  JobUsage usage = *d.pager.Usage(job);
  EXPECT_EQ(usage.resident_frames, 3U);
  EXPECT_EQ(usage.peak_resident_frames, 10U);
  EXPECT_EQ(usage.host_frames, 3U);
  EXPECT_EQ(usage.peak_host_frames, 13U);
  d.ResetPeaks(job);
  d.Settle();
  usage = *d.pager.Usage(job);
  EXPECT_EQ(usage.peak_resident_frames, 3U) << "a quiet job's peak is what it has";
  EXPECT_EQ(usage.peak_host_frames, 3U);
  d.ResetPeaks({99});  // nobody's
}

TEST(Peaks, HaveNoPagesThatARefusedSegmentDidNotTake) {
  Driver d(SmallPages(16, 4, 4));
  const wire::JobId job = d.Job(1);
  const wire::ExtentId extent = d.Extent(job, 16);
  Actions actions;
  (void)d.Ask(job, {{extent, 0, 4}});
  d.pager.Pump(actions);
  ASSERT_EQ(actions.new_segments.size(), 1U);
  EXPECT_EQ(d.pager.Usage(job)->peak_resident_frames, 4U);
  d.pager.SegmentRefused(actions.new_segments[0].segment);
  EXPECT_EQ(d.pager.Usage(job)->peak_resident_frames, 0U);
}

TEST(Peaks, OfSharedExtentsAreTheJobsParts) {
  Driver d(SmallPages(32));
  d.Job(1), d.Job(2);
  const wire::ExtentId base = d.Extent({1}, 11, true, 7, wire::ExtentKind::kQuantizedWeight);
  d.Run({1}, {{base, 0, 11}}, Access::kOverwrite);
  ASSERT_TRUE(d.Share(base, {2}));
  EXPECT_EQ(d.pager.Usage({1})->peak_resident_frames, 11U);
  EXPECT_EQ(d.pager.Usage({2})->peak_resident_frames, 5U);
  EXPECT_EQ(d.pager.Usage({2})->peak_host_frames, 5U);
  d.ResetPeaks({1});
  EXPECT_EQ(d.pager.Usage({1})->peak_resident_frames, 6U);
  d.pager.Evict({1}, 0, Reason::kCommand);
  d.pager.EvictExtent(base, Reason::kCommand);
  d.Settle();
  EXPECT_EQ(d.pager.Usage({2})->resident_frames, 0U);
  EXPECT_EQ(d.pager.Usage({2})->peak_resident_frames, 5U);
  d.Run({2}, {{base, 0, 11}}, Access::kRead);
  d.pager.RemoveUse(base, {1});
  d.Settle();
  EXPECT_EQ(d.pager.Usage({2})->peak_resident_frames, 11U) << "all of it is its own";
}

TEST(PageCells, CountEveryPageOnceInOrder) {
  Driver d(SmallPages(16));
  const wire::JobId job = d.Job(1);
  const wire::ExtentId first = d.Extent(job, 10);
  const wire::ExtentId second = d.Extent(job, 3);
  d.Run(job, {{first, 0, 6}});
  d.Run(job, {{first, 0, 2}}, Access::kRead);
  d.pager.Evict(job, 1, Reason::kCommand);
  d.Pump();
  PageCells cells{4, 0, {}};
  d.pager.ReadPages(first, cells);
  d.pager.ReadPages(second, cells);
  ASSERT_EQ(cells.cells.size(), 4U);
  EXPECT_EQ(cells.in_last, 1U);
  PageCounts sum;
  for (const PageCounts& cell : cells.cells) {
    sum.resident += cell.resident;
    sum.streaming += cell.streaming;
    sum.host += cell.host;
    sum.dirty += cell.dirty;
  }
  EXPECT_EQ(sum.resident, 5U);
  EXPECT_EQ(sum.streaming, 1U);
  EXPECT_EQ(sum.dirty, 6U) << "the one that is being stored is dirty until it is";
  EXPECT_EQ(sum.host, 0U) << "what was never written is nowhere";
  EXPECT_EQ(cells.cells[2].resident + cells.cells[3].resident, 0U);
  d.Settle();
  PageCells after{64, 0, {}};
  d.pager.ReadPages(first, after);
  EXPECT_EQ(after.cells[0].host, 1U);
  EXPECT_EQ(after.cells[0].streaming, 0U);
  d.pager.ReadPages({99}, after);
  EXPECT_EQ(after.cells.size(), 1U) << "of no extent";
}

TEST(PageCells, TellWhatLiesOnDisk) {
  PagerConfig config = SmallPages(4);
  config.disk_frames = 100;
  Driver d(config);
  const wire::JobId job = d.Job(1);
  const ExtentSpec spec{job, wire::ExtentKind::kQuantizedWeight, 8, true, kPrivateDomain, true};
  const auto disk = d.pager.AddExtent(spec);
  ASSERT_TRUE(disk.ok()) << disk.status().message();
  d.Adopt(*disk, spec);
  const wire::ExtentId host = d.Extent(job, 4);
  d.Run(job, {{*disk, 0, 7}}, Access::kOverwrite);
  d.Run(job, {{host, 0, 4}});
  PageCells cells{64, 0, {}};
  d.pager.ReadPages(*disk, cells);
  d.pager.ReadPages(host, cells);
  EXPECT_EQ(cells.cells[0].resident + cells.cells[0].host, 11U);
  EXPECT_LT(cells.cells[0].disk, 8U) << "what is on the device is not told as on disk";
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Settle();
  cells = {64, 0, {}};
  d.pager.ReadPages(*disk, cells);
  d.pager.ReadPages(host, cells);
  EXPECT_EQ(cells.cells[0].host, 11U);
  EXPECT_EQ(cells.cells[0].disk, 7U) << "of them";
}

}  // namespace
}  // namespace bitpager::paging
