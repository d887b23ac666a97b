// Large weights on huge pages: rows read here and there otherwise wait for address translation, which
// cost a third of the time where it was measured.

#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_set>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace prunepass {
namespace {  // of this library alone: shared with others it could not be unloaded

// Puts the memory of a weight on huge pages, once; where the system cannot, it stays as it is.
inline void settle(const void* weight, size_t bytes) {
#if defined(__linux__)
  constexpr size_t kPage = size_t{2} << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, from Linux 6.1 on
  if (bytes < 2 * kPage) return;
  static std::mutex guard;
  static std::unordered_set<const void*> settled;
  {
    const std::lock_guard<std::mutex> held(guard);
    if (!settled.insert(weight).second) return;
  }
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(weight) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(weight) + bytes) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, kCollapse);
#else
  (void)weight, (void)bytes;
#endif
}

}  // namespace
}  // namespace prunepass
