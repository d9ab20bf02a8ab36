// The bytes of the wire: sizes and offsets that both sides and later versions must agree on.
#include <gtest/gtest.h>

#include <cstddef>

#include "client/wire/messages.h"
#include "client/wire/records.h"
#include "client/wire/segment.h"

namespace bitpager::wire {
namespace {

TEST(Records, LieWhereVersionOneSaysTheyDo) {
  EXPECT_EQ(offsetof(RequestRecord, ticket), 8U);
  EXPECT_EQ(offsetof(RequestRecord, ready), 16U);
  EXPECT_EQ(offsetof(RequestRecord, body), 24U);
  EXPECT_EQ(offsetof(CompletionRecord, code), 8U);
  EXPECT_EQ(offsetof(CompletionRecord, op), 12U);
  EXPECT_EQ(offsetof(CompletionRecord, values), 16U);
  EXPECT_EQ(offsetof(CompletionRecord, message), 72U);
  EXPECT_EQ(sizeof(Slice), 16U);
  EXPECT_EQ(offsetof(StepEntry, param), 16U);
  EXPECT_EQ(offsetof(StepEntry, grad), 32U);
  EXPECT_EQ(offsetof(StepEntry, param_dtype), 48U);
  EXPECT_EQ(offsetof(StepBody, table), 8U);
  EXPECT_EQ(offsetof(StepBody, step), 32U);
  EXPECT_EQ(sizeof(StatesBody), 88U);
  EXPECT_EQ(sizeof(PackedBody), 64U);
}

TEST(Segment, GivesEachWriterItsOwnCacheLine) {
  const std::size_t words[] = {
      offsetof(SegmentHeader, ready),           offsetof(SegmentHeader, done),
      offsetof(SegmentHeader, failed),          offsetof(SegmentHeader, request_tail),
      offsetof(SegmentHeader, request_head),    offsetof(SegmentHeader, completion_tail),
      offsetof(SegmentHeader, completion_head), offsetof(SegmentHeader, daemon_sleeps),
      offsetof(SegmentHeader, client_sleeps)};
  for (std::size_t i = 0; i < std::size(words); ++i) {
    EXPECT_EQ(words[i] % kCacheLine, 0U);
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(words[i], words[j]);
  }
  EXPECT_EQ(sizeof(LeaseSlot), kCacheLine);
}

TEST(Segment, PartsDoNotOverlap) {
  EXPECT_GE(kRequestsOffset, sizeof(SegmentHeader));
  EXPECT_GE(kCompletionsOffset, kRequestsOffset + kRequestSlots * sizeof(RequestRecord));
  EXPECT_GE(kLeaseSlotsOffset, kCompletionsOffset + kCompletionSlots * sizeof(CompletionRecord));
  EXPECT_GE(kLeaseFramesOffset, kLeaseSlotsOffset + kLeaseSlots * sizeof(LeaseSlot));
  EXPECT_GE(kSegmentBytes, kLeaseFramesOffset + kLeaseFrames * sizeof(LeaseFrame));
  EXPECT_EQ(kSegmentBytes % 4096, 0U);
  EXPECT_EQ(kRequestSlots & (kRequestSlots - 1), 0U);
  EXPECT_EQ(kCompletionSlots & (kCompletionSlots - 1), 0U);
}

TEST(Messages, LieWhereVersionOneSaysTheyDo) {
  EXPECT_EQ(offsetof(MessageHeader, version), 4U);
  EXPECT_EQ(offsetof(MessageHeader, body_bytes), 8U);
  EXPECT_EQ(offsetof(HelloBody, job), 8U);
  EXPECT_EQ(offsetof(HelloBody, weight), 8U + 2 * kNameBytes);
  EXPECT_EQ(offsetof(CreateArenaBody, table), 72U);
  EXPECT_EQ(offsetof(ReplyBody, values), 8U);
  EXPECT_EQ(sizeof(ReplyBody), 8U + 24 * 8 + kReplyMessageBytes);
}

}  // namespace
}  // namespace bitpager::wire
