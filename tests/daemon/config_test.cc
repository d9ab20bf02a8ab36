// Settings from flags and TOML files. One thread; files in a folder of its own.
#include "daemon/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "daemon/machine.h"

namespace bitpager::daemon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using wire::Code;

class ConfigFile : public ::testing::Test {
 protected:
  ConfigFile() {
    char name[] = "/tmp/bitpager-config-XXXXXX";
    folder_ = ::mkdtemp(name);
    sources_.system_config_path = folder_ + "/absent.toml";
    ::setenv("BITPAGER_SOCKET", "/run/test/b.sock", 1);
  }
  ~ConfigFile() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& text) {
    const std::string path = folder_ + "/b.toml";
    std::ofstream(path) << text;
    return path;
  }
  wire::Result<LoadedConfig> Load(std::vector<std::string> words) {
    words.insert(words.begin(), "bitpagerd");
    std::vector<const char*> argv;
    for (const auto& word : words) argv.push_back(word.c_str());
    return LoadConfig(static_cast<int>(argv.size()), argv.data(), sources_);
  }
  wire::Result<LoadedConfig> LoadText(const std::string& text) { return Load({"--config", Write(text)}); }

  std::string folder_;
  ConfigSources sources_;
};

TEST_F(ConfigFile, HttpIsOffUnlessGivenAndStaysOnThisMachineUnlessTold) {
  EXPECT_EQ(Load({})->config.http, "");
  EXPECT_EQ(LoadText("[telemetry]\nhttp = \"[::1]:9790\"\n")->config.http, "[::1]:9790");
  EXPECT_EQ(Load({"--http", "localhost:0"})->config.http, "localhost:0");
  const auto remote = LoadText("[telemetry]\nhttp = \"10.0.0.1:9790\"\n");
  ASSERT_FALSE(remote.ok());
  EXPECT_EQ(remote.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(remote.status().message(), AllOf(HasSubstr("10.0.0.1:9790"), HasSubstr("--http-remote")));
  EXPECT_TRUE(Load({"--http", "10.0.0.1:9790", "--http-remote"})->config.http_remote);
  EXPECT_TRUE(LoadText("[telemetry]\nhttp = \"0.0.0.0:9790\"\nhttp_remote = true\n").ok());
  EXPECT_EQ(Load({"--http", "9790"}).status().code(), Code::kInvalidArgument);
}

TEST(ParseSize, ReadsBytesUnitsAndShares) {
  const auto bytes = [](const char* text) { return ParseSize(text).value().bytes; };
  EXPECT_EQ(bytes("4096"), 4096U);
  EXPECT_EQ(bytes("8GiB"), 8ULL << 30);
  EXPECT_EQ(bytes("8G"), 8ULL << 30);
  EXPECT_EQ(bytes("8GB"), 8ULL << 30);
  EXPECT_EQ(bytes("512MiB"), 512ULL << 20);
  EXPECT_EQ(bytes("2M"), 2ULL << 20);
  EXPECT_EQ(bytes("3 kib"), 3ULL << 10);
  EXPECT_EQ(bytes("1.5g"), 3ULL << 29);
  EXPECT_EQ(bytes("1T"), 1ULL << 40);
  EXPECT_EQ(bytes("18446744073709551615"), ~0ULL);
  const auto share = ParseSize("40%");
  EXPECT_EQ(share->kind, SizeSetting::Kind::kPercent);
  EXPECT_DOUBLE_EQ(share->percent, 40);
}

TEST(ParseSize, RefusesWhatIsNoSizeAndNamesIt) {
  for (const char* text : {"", "G", "-1", "1e9", "8GiBs", "8X", "1.G", ".5G", "1.5", "0%", "101%", "1..5G",
                           "5 5", "18446744073709551616", "17179869184G", "0x10"}) {
    const auto size = ParseSize(text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_EQ(size.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(size.status().message(),
                AllOf(HasSubstr("'" + std::string(text) + "'"), HasSubstr("Hint: ")));
  }
  EXPECT_FALSE(ParseBytes("40%").ok());
}

TEST(ParseDuration, NeedsAUnitUnlessZero) {
  EXPECT_EQ(ParseDurationMs("250ms").value(), 250);
  EXPECT_EQ(ParseDurationMs("30s").value(), 30000);
  EXPECT_EQ(ParseDurationMs("1.5 h").value(), 5400000);
  EXPECT_EQ(ParseDurationMs("0").value(), 0);
  for (const char* text : {"30", "-1s", "s", "5 weeks", "9999999999d"})
    EXPECT_FALSE(ParseDurationMs(text).ok());
}

TEST(FormatBytes, PicksTheUnit) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(17), "17 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(8ULL << 30), "8 GiB");
  EXPECT_EQ(FormatBytes((1ULL << 20) - 1), "1 MiB");
}

TEST(WindowPages, AreOf16MiBUnlessConfigured) {
  Config config;
  for (const auto& [page_kib, pages] :
       {std::pair{16U, 32U}, {512U, 32U}, {1024U, 16U}, {2048U, 8U}, {65536U, 8U}}) {
    config.page_bytes = std::uint64_t{page_kib} << 10;
    EXPECT_EQ(WindowPages(config), pages) << page_kib << " KiB";
  }
  config.window_pages = 5;
  EXPECT_EQ(WindowPages(config), 5U);
}

TEST_F(ConfigFile, DefaultsNeedNoFile) {
  const auto loaded = Load({});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const Config& config = loaded->config;
  EXPECT_EQ(config.socket_path, "/run/test/b.sock");
  EXPECT_EQ(config.status_endpoint, "ipc:///run/test/b.sock.status");
  EXPECT_EQ(config.events_endpoint, "ipc:///run/test/b.sock.events");
  EXPECT_EQ(config.page_bytes, 512U << 10);
  EXPECT_EQ(WindowPages(config), 32U);
  EXPECT_EQ(config.socket_mode, 0600U);
  EXPECT_EQ(config.device_budget.kind, SizeSetting::Kind::kDefault);
  EXPECT_EQ(config.config_path, "");
  EXPECT_FALSE(config.private_mode);
  EXPECT_FALSE(config.background);
  EXPECT_EQ(config.max_sessions_of_user, 192U) << "of 256";
  EXPECT_EQ(config.lease_return_ms, 5000);
}

TEST_F(ConfigFile, FileSetsEveryTable) {
  const auto loaded = LoadText(R"([socket]
path = "/tmp/x.sock"
group = "users"
[memory]
device_budget = "8GiB"
host_budget = 1073741824
page_size = "64KiB"
window_pages = 4
windows_in_flight = 2
policy = "lru"
poison_frames = true
[device]
threads = 3
test_handles = false
[jobs]
weight = 2.5
device_quota = "50%"
linger = "10m"
share_weights = false
[limits]
max_sessions = 7
[log]
level = "debug"
[telemetry]
status = "ipc:///tmp/s"
)");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const Config& config = loaded->config;
  EXPECT_EQ(config.socket_path, "/tmp/x.sock");
  EXPECT_EQ(config.socket_mode, 0660U) << "a group is set";
  EXPECT_EQ(config.device_budget.bytes, 8ULL << 30);
  EXPECT_EQ(config.host_budget.bytes, 1ULL << 30);
  EXPECT_EQ(config.page_bytes, 64U << 10);
  EXPECT_EQ(config.window_pages, 4U);
  EXPECT_EQ(config.windows_in_flight, 2U);
  EXPECT_EQ(config.policy, paging::Policy::kLru);
  EXPECT_TRUE(config.poison_frames);
  EXPECT_EQ(config.device_threads, 3);
  EXPECT_FALSE(config.test_handles);
  EXPECT_DOUBLE_EQ(config.job_weight, 2.5);
  EXPECT_DOUBLE_EQ(config.job_device_quota.percent, 50);
  EXPECT_EQ(config.linger_ms, 600000);
  EXPECT_FALSE(config.share_weights);
  EXPECT_EQ(config.max_sessions, 7U);
  EXPECT_EQ(config.max_sessions_of_user, 3U);
  EXPECT_EQ(config.log_level, "debug");
  EXPECT_EQ(config.status_endpoint, "ipc:///tmp/s");
  EXPECT_EQ(config.events_endpoint, "ipc:///tmp/x.sock.events");
}

TEST_F(ConfigFile, FlagsOverrideTheFile) {
  const std::string path = Write("[memory]\ndevice_budget = \"8GiB\"\npolicy = \"lru\"\n");
  const auto loaded =
      Load({"--config", path, "--device-budget", "1GiB", "--private", "--poison-frames", "--linger=5s",
            "--socket", "/tmp/y.sock", "--share-weights", "false", "--test-handles", "false"});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->config.device_budget.bytes, 1ULL << 30);
  EXPECT_EQ(loaded->config.policy, paging::Policy::kLru);
  EXPECT_EQ(loaded->config.linger_ms, 5000);
  EXPECT_FALSE(loaded->config.share_weights);
  EXPECT_TRUE(Load({})->config.share_weights);
  EXPECT_FALSE(loaded->config.test_handles);
  EXPECT_TRUE(Load({})->config.test_handles);
  EXPECT_EQ(loaded->config.socket_path, "/tmp/y.sock");
  EXPECT_TRUE(loaded->config.private_mode);
  EXPECT_TRUE(loaded->config.poison_frames);
}

TEST_F(ConfigFile, SystemFileIsReadWhenNoneIsNamed) {
  sources_.system_config_path = Write("[memory]\npolicy = \"clock\"\n");
  EXPECT_EQ(Load({})->config.policy, paging::Policy::kClock);
  EXPECT_EQ(Load({})->config.config_path, sources_.system_config_path);
}

struct BadText {
  const char* text;
  int line;
  const char* says;
  const char* hint;
};

TEST_F(ConfigFile, ErrorsNameLineValueAndHint) {
  const BadText kCases[] = {
      {"[memory]\n\ndevice_bugdet = \"8GiB\"\n", 3, "memory.device_bugdet",
       "did you mean memory.device_budget?"},
      {"[memori]\npage_size = 1\n", 1, "unknown key memori", "Hint: "},
      {"[memory]\npage_size = \"3MiB\"\n", 2, "'3MiB'", "power of two"},
      {"[memory]\npage_size = true\n", 2, "true has the wrong type", "a string or an integer"},
      {"[memory]\nwindow_pages = \"8\"\n", 2, "'8' has the wrong type", "an integer"},
      {"[memory]\nwindow_pages = 0\n", 2, "'0'", "from 1 to 1024"},
      {"[memory]\nhost_budget = -5\n", 2, "'-5'", "Hint: "},
      {"[memory]\nhost_budget = 0\n", 2, "'0'", "leave the setting out"},
      {"[memory]\npolicy = \"fifo\"\n", 2, "'fifo'", "scan, lru, clock"},
      {"[memory]\npolicy = [\"lru\"]\n", 2, "wrong type", "a string"},
      {"[jobs]\nweight = nan\n", 2, "'nan'", "a number from"},
      {"[jobs]\nlinger = 10\n", 2, "10 has the wrong type", "a string"},
      {"[log]\nlevel = \"loud\"\n", 2, "'loud'", "trace, debug"},
      {"[socket]\nmode = \"0999\"\n", 2, "'0999'", "0660"},
      {"[telemetry]\nstatus = \"tcp://*:5555\"\n", 2, "'tcp://*:5555'", "ipc://"},
      {"memory = 3\n", 1, "unknown key memory", "Hint: "},
      {"[memory\n", 1, "", "Hint: the file is TOML"},
      {"[memory]\npage_size = \"2MiB\"\npage_size = \"2MiB\"\n", 3, "page_size", "Hint: "},
  };
  for (const BadText& bad : kCases) {
    const auto loaded = LoadText(bad.text);
    ASSERT_FALSE(loaded.ok()) << bad.text;
    EXPECT_EQ(loaded.status().code(), Code::kInvalidArgument) << bad.text;
    EXPECT_EQ(ExitCodeOf(loaded.status()), 2);
    EXPECT_THAT(loaded.status().message(),
                AllOf(StartsWith(folder_ + "/b.toml:" + std::to_string(bad.line) + ": "), HasSubstr(bad.says),
                      HasSubstr(bad.hint)));
  }
}

TEST_F(ConfigFile, FlagErrorsNameFlagAndValue) {
  const struct {
    std::vector<std::string> words;
    const char* says;
  } kCases[] = {{{"--device-budget", "lots"}, "--device-budget: 'lots'"},
                {{"--threads", "-1"}, "--threads: '-1'"},
                {{"--policy", ""}, "--policy: ''"},
                {{"--nonsense"}, "--nonsense"},
                {{"--socket"}, "--socket"},
                {{"stray"}, "stray"},
                {{"--page-size", "2MiB", "--page-size", "4MiB"}, "--page-size"}};
  for (const auto& bad : kCases) {
    const auto loaded = Load(bad.words);
    ASSERT_FALSE(loaded.ok()) << bad.words[0];
    EXPECT_EQ(ExitCodeOf(loaded.status()), 2);
    EXPECT_THAT(loaded.status().message(), HasSubstr(bad.says));
  }
}

TEST_F(ConfigFile, MissingFileIsAFailureNotUsage) {
  const auto loaded = Load({"--config", folder_ + "/nowhere.toml"});
  EXPECT_EQ(loaded.status().code(), Code::kNotFound);
  EXPECT_EQ(ExitCodeOf(loaded.status()), 1);
  EXPECT_THAT(loaded.status().message(), AllOf(HasSubstr("nowhere.toml"), HasSubstr("Hint: ")));
  EXPECT_FALSE(Load({"--config", folder_}).ok()) << "a folder is no file";
}

TEST_F(ConfigFile, HelpAndVersionArePrinted) {
  EXPECT_THAT(Load({"--help"})->print_and_exit, AllOf(HasSubstr("--device-budget"), HasSubstr("Exit codes")));
  EXPECT_EQ(Load({"--version"})->print_and_exit, std::string("bitpagerd ") + kVersion + "\n");
}

TEST_F(ConfigFile, SocketPathMustFitWithItsCompanions) {
  EXPECT_TRUE(Load({"--socket", "/" + std::string(kMaxSocketPathBytes - 1, 'a')}).ok());
  const auto loaded = Load({"--socket", "/" + std::string(kMaxSocketPathBytes, 'a')});
  ASSERT_FALSE(loaded.ok());
  EXPECT_THAT(loaded.status().message(), AllOf(HasSubstr("101 bytes"), HasSubstr("shorter")));
  EXPECT_FALSE(Load({"--status-endpoint", "ipc:///a", "--events-endpoint", "ipc:///a"}).ok());
}

TEST_F(ConfigFile, RelativeSocketBecomesAbsolute) {
  const auto loaded = Load({"--socket", "./b.sock"});
  EXPECT_EQ(loaded->config.socket_path, std::filesystem::current_path().string() + "/b.sock");
}

TEST(ExampleConfig, IsAccepted) {
  const char* const argv[] = {"bitpagerd", "--config", BITPAGER_EXAMPLE_CONFIG};
  const auto loaded = LoadConfig(3, argv);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  // With its settings switched on, each is known and of the right type.
  std::ifstream in(BITPAGER_EXAMPLE_CONFIG);
  std::string all;
  for (std::string line; std::getline(in, line);) {
    const bool setting =
        line.rfind("#", 0) == 0 && line.rfind("# ", 0) != 0 && line.find(" = ") != std::string::npos;
    all += (setting ? line.substr(1) : line) + "\n";
  }
  char name[] = "/tmp/bitpager-example-XXXXXX";
  const int fd = ::mkstemp(name);
  ASSERT_EQ(::write(fd, all.data(), all.size()), static_cast<ssize_t>(all.size()));
  ::close(fd);
  const char* const switched[] = {"bitpagerd", "--config", name};
  const auto with_all = LoadConfig(3, switched);
  EXPECT_TRUE(with_all.ok()) << with_all.status().message();
  EXPECT_TRUE(with_all.ok() && with_all->config.device_budget.kind == SizeSetting::Kind::kBytes);
  ::unlink(name);
}

}  // namespace
}  // namespace bitpager::daemon
