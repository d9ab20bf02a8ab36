#include "tools/cli/signals.h"

#include <pthread.h>
#include <sys/signalfd.h>
#include <unistd.h>

namespace bitpager::cli {

Signals::Signals(std::initializer_list<int> signals) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int one : signals) ::sigaddset(&set, one);
  ::pthread_sigmask(SIG_BLOCK, &set, &before_);
  fd_.Reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

Signals::~Signals() {
  while (Take() != 0) {  // what came twice must not end the program after its work is done
  }
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

int Signals::Take() const {
  signalfd_siginfo came{};
  return ::read(fd_.get(), &came, sizeof(came)) == sizeof(came) ? static_cast<int>(came.ssi_signo) : 0;
}

}  // namespace bitpager::cli
