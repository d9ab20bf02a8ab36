// plan: hands over to `python -m bitpager.plan`, which reads model configs. Replaces this process.
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tools/cli/commands.h"

namespace bitpager::cli {

int RunPlan(const std::vector<std::string>& arguments) {
  const char* chosen = std::getenv("BITPAGER_PYTHON");
  const std::string python = chosen != nullptr && *chosen != '\0' ? chosen : "python3";
  std::vector<std::string> words = {python, "-m", "bitpager.plan"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execvp(argv[0], argv.data());
  PrintError("plan needs Python with the bitpager package, and " + python +
             " does not start: " + std::strerror(errno) + ". Hint: BITPAGER_PYTHON=/path/to/python");
  return kFailureExit;
}

}  // namespace bitpager::cli
