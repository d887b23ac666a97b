// Functions marked so are compiled for several processors; the right one is chosen when loaded.
//
// By what a processor can do, not by its name: "arch=haswell" is Intel's Haswell and no other.

#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define PRUNEPASS_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PRUNEPASS_CLONES
#endif
