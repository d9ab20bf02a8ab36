// Marks a function that host and device code share. Owns nothing; any thread.
#pragma once

#if defined(__CUDACC__)
#define BITPAGER_HD __host__ __device__
#else
#define BITPAGER_HD
#endif
