// Texts in fixed arrays.
#include "client/wire/text.h"

#include <gtest/gtest.h>

#include <string>

namespace bitpager::wire {
namespace {

TEST(Text, IsTerminatedAndZeroFilled) {
  char to[8];
  std::memset(to, 'x', sizeof(to));
  EXPECT_TRUE(CopyText(to, "abc"));
  EXPECT_EQ(std::string(to, 8), std::string("abc\0\0\0\0\0", 8));
  EXPECT_TRUE(CopyText(to, ""));
  EXPECT_EQ(TextOf(to), "");
}

TEST(Text, IsCutAtACharacterBorder) {
  char to[6];
  EXPECT_FALSE(CopyText(to, "abcd\xC3\xA4"));  // four letters and a two-byte one: five fit, it would be split
  EXPECT_EQ(TextOf(to), "abcd");
  EXPECT_FALSE(CopyText(to, "abcdef"));
  EXPECT_EQ(TextOf(to), "abcde");
}

TEST(Text, OfAnUnterminatedArrayEndsWithIt) {
  const char from[4] = {'a', 'b', 'c', 'd'};
  EXPECT_EQ(TextOf(from), "abcd");
  EXPECT_FALSE(IsTerminated(from));
}

TEST(Text, PlainNamesAreLettersDigitsAndThreeMarks) {
  EXPECT_TRUE(IsPlainName("Run_3.b-2"));
  EXPECT_FALSE(IsPlainName(""));
  EXPECT_FALSE(IsPlainName("a b"));
  EXPECT_FALSE(IsPlainName("a/b"));
  EXPECT_FALSE(IsPlainName("\xC3\xA4"));
}

}  // namespace
}  // namespace bitpager::wire
