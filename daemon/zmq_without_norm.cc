// Stand-ins for the NORM multicast transport, which ZeroMQ's static library refers to and which Debian builds
// as a shared library alone: linking that would bring the C++ runtime of the building machine back in.
// bitpager speaks ipc:// and tcp:// only. Each stand-in returns 0, which is NORM's own "invalid" or "false",
// so that a socket told to use norm:// is refused with an error. Any thread.
#define BITPAGER_ABSENT(name) \
  extern "C" void* name();    \
  extern "C" void* name() {   \
    return nullptr;           \
  }

BITPAGER_ABSENT(NormCreateInstance)
BITPAGER_ABSENT(NormCreateSession)
BITPAGER_ABSENT(NormDestroyInstance)
BITPAGER_ABSENT(NormDestroySession)
BITPAGER_ABSENT(NormGetDescriptor)
BITPAGER_ABSENT(NormGetNextEvent)
BITPAGER_ABSENT(NormGetRandomSessionId)
BITPAGER_ABSENT(NormIsUnicastAddress)
BITPAGER_ABSENT(NormNodeDelete)
BITPAGER_ABSENT(NormObjectGetType)
BITPAGER_ABSENT(NormObjectGetUserData)
BITPAGER_ABSENT(NormObjectSetUserData)
BITPAGER_ABSENT(NormSetCongestionControl)
BITPAGER_ABSENT(NormSetDefaultSyncPolicy)
BITPAGER_ABSENT(NormSetDefaultUnicastNack)
BITPAGER_ABSENT(NormSetLoopback)
BITPAGER_ABSENT(NormSetMulticastInterface)
BITPAGER_ABSENT(NormSetRxPortReuse)
BITPAGER_ABSENT(NormSetTTL)
BITPAGER_ABSENT(NormStartReceiver)
BITPAGER_ABSENT(NormStartSender)
BITPAGER_ABSENT(NormStopInstance)
BITPAGER_ABSENT(NormStopReceiver)
BITPAGER_ABSENT(NormStopSender)
BITPAGER_ABSENT(NormStreamFlush)
BITPAGER_ABSENT(NormStreamOpen)
BITPAGER_ABSENT(NormStreamRead)
BITPAGER_ABSENT(NormStreamSeekMsgStart)
BITPAGER_ABSENT(NormStreamWrite)

// Its "invalid" handles, and its "any node".
extern "C" {
extern const void* const NORM_INSTANCE_INVALID;
extern const void* const NORM_SESSION_INVALID;
extern const void* const NORM_OBJECT_INVALID;
extern const unsigned NORM_NODE_ANY;
const void* const NORM_INSTANCE_INVALID = nullptr;
const void* const NORM_SESSION_INVALID = nullptr;
const void* const NORM_OBJECT_INVALID = nullptr;
const unsigned NORM_NODE_ANY = ~0U;
}
