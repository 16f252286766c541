/* Kernels are functions that every thread of a team calls with the same arguments, and that share the work out among
   them: so they can run one by one, or many in one parallel region (see replay/native.c). They give 0, 1 where memory
   is short, or OUT_OF_RANGE. What they write is complete when all threads have returned. */

#ifndef QUIRE_TEAM_H
#define QUIRE_TEAM_H

#include <omp.h>
#include <stdlib.h>

enum { OUT_OF_RANGE = 2 };

/* `quire_NAME(arguments)` runs the kernel by a team of its own, of one thread where `is_small`; `quire_NAME_team` is what
   a team calls. `p` names the arguments in `is_small`. */
#define QUIRE_KERNEL(name, Type, function, is_small)                                      \
    int quire_##name##_team(const void *arguments) { return function((const Type *)arguments); } \
    int quire_##name(const Type *p) {                                                     \
        int failed = 0, threads = (is_small) ? 1 : p->threads;                            \
        _Pragma("omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)") \
        failed |= function(p);                                                            \
        return failed;                                                                    \
    }

/* Memory for all threads of the team; null where there is none. */
static inline void *team_memory(int64_t bytes) {
    void *memory;
#pragma omp single copyprivate(memory)
    memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    return memory;
}

/* Every thread calls it when it is done with the memory. */
static inline void free_team_memory(void *memory) {
#pragma omp barrier
#pragma omp single nowait
    free(memory);
}

/* The part of `count` that falls to this thread. */
static inline void team_share(int64_t count, int64_t *first, int64_t *last) {
    int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    *first = count * me / all;
    *last = count * (me + 1) / all;
}

#endif
