/* Recorded calls of kernels, run again by one team: between two calls there is a barrier instead of the end of a
   parallel region and a way through Python. */

#include <stdint.h>

#include "team.h"

typedef struct {
    int (*run)(const void *);
    const void *arguments;
    int64_t *rows;         /* of the arguments, or null */
    int64_t rows_per_token;
} Call;

/* A pointer in the arguments of a call: `offset` bytes into a buffer that begins `offset_per_token` bytes a token
   into the arena. */
typedef struct {
    char **pointer;
    int64_t offset_per_token, offset;
} Place;

/* Sets rows and pointers for a number of tokens. */
void quire_replay_place(const Call *calls, int64_t num_calls, const Place *places, int64_t num_places, char *arena,
                        int64_t tokens) {
    for (int64_t i = 0; i < num_calls; i++)
        if (calls[i].rows) *calls[i].rows = calls[i].rows_per_token * tokens;
    for (int64_t i = 0; i < num_places; i++)
        *places[i].pointer = arena + places[i].offset_per_token * tokens + places[i].offset;
}

/* 0, or 1 where memory was short. */
int quire_replay_run(const Call *calls, int64_t num_calls, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < num_calls; i++) {
        failed |= calls[i].run(calls[i].arguments);
#pragma omp barrier
    }
    return failed;
}
