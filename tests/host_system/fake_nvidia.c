/* NVML and libcuda as remote_train/host/gpus.py calls them, in one library; FAKE_NVIDIA says what is broken. */
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu, compute; } process_t;
typedef struct { unsigned int sms, others[7]; unsigned long long memory; } attributes_t;

static long handles[8] = {0, 1, 2, 3, 4, 5, 6, 7}; /* 0 and 1 are cards, 4 and 5 instances of card 0 */

static int is(const char *what) {
    const char *plan = getenv("FAKE_NVIDIA");
    return plan && strcmp(plan, what) == 0;
}

/* FAKE_NVIDIA_FILE: what the driver says, read anew at each call, so that a test can change it meanwhile. Lines:
   gpu INDEX UUID BYTES_IN_USE, and process INDEX PID BYTES KIND, where KIND is C, G or B: computes, draws, both. A first
   line "hang" has it answer nobody. */
typedef struct { int there; char uuid[80]; unsigned long long used; } card_t;

static int told(long index, card_t *card, process_t *rows, unsigned int *count, char kind) {
    const char *path = getenv("FAKE_NVIDIA_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256], uuid[80], what;
    int cards = 0;
    long at; unsigned int pid; unsigned long long bytes;
    if (card) card->there = 0;
    if (count) *count = 0;
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "gpu %ld %79s %llu", &at, uuid, &bytes) == 3) {
            cards++;
            if (card && at == index) { card->there = 1; strcpy(card->uuid, uuid); card->used = bytes; }
        } else if (count && sscanf(line, "process %ld %u %llu %c", &at, &pid, &bytes, &what) == 4) {
            if (at == index && (what == kind || what == 'B')) {
                rows[*count].pid = pid; rows[*count].used = bytes; (*count)++;
            }
        }
    }
    if (file) fclose(file);
    return path ? cards : -1;
}

static int told_to_hang(void) {
    const char *path = getenv("FAKE_NVIDIA_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[8] = "";
    if (file) { if (!fgets(line, sizeof line, file)) line[0] = 0; fclose(file); }
    return strncmp(line, "hang", 4) == 0;
}

int nvmlInit_v2(void) {
    if (is("hang") || told_to_hang()) for (;;) pause();
    if (is("crash")) abort();
    return is("mismatch") ? 18 : is("unloaded") ? 9 : is("odd") ? 999 : 0;
}
const char *nvmlErrorString(int code) { return code == 999 ? "Unknown Error" : "?"; }
int nvmlSystemGetDriverVersion(char *out, unsigned int size) { snprintf(out, size, "570.86.15"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12080; return is("bare") ? 3 : 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) {
    int cards = told(-1, NULL, NULL, NULL, 0);
    *count = cards >= 0 ? cards : is("empty") ? 0 : 2;
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, long **device) { *device = &handles[index]; return 0; }
int nvmlDeviceGetUUID(long *device, char *out, unsigned int size) {
    card_t card;
    if (told(*device, &card, NULL, NULL, 0) >= 0) snprintf(out, size, "%s", card.uuid);
    else if (*device >= 4) snprintf(out, size, "MIG-0000000%ld", *device);
    else snprintf(out, size, "GPU-0%ld010203-0405-0607-0809-0a0b0c0d0e0f", *device);
    return 0;
}
int nvmlDeviceGetName(long *device, char *out, unsigned int size) {
    snprintf(out, size, *device >= 4 ? "NVIDIA A100 MIG 1g.5gb" : "NVIDIA GeForce RTX 4070 Ti");
    return 0;
}
int nvmlDeviceGetMemoryInfo(long *device, memory_t *memory) {
    if (is("lost") && *device == 1) return 15;
    memory->total = 12884901888ULL; memory->used = *device ? 0 : 1073741824ULL;
    card_t card;
    if (told(*device, &card, NULL, NULL, 0) >= 0) {
        if (!card.there) return 15;
        memory->used = card.used;
    }
    memory->free = memory->total - memory->used;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(long *device, int *major, int *minor) { *major = 8; *minor = 9; return 0; }
int nvmlDeviceGetMemoryBusWidth(long *device, unsigned int *width) { *width = *device >= 4 ? 0 : 192; return 0; }
int nvmlDeviceGetMaxClockInfo(long *device, unsigned int kind, unsigned int *mhz) { *mhz = kind == 2 ? 10501 : 3120; return 0; }
struct load { unsigned int gpu, memory; };
int nvmlDeviceGetHandleByUUID(const char *uuid, long **device) {
    if (strncmp(uuid, "GPU-0", 5) || uuid[5] > '1') return 6;
    *device = &handles[uuid[5] - '0'];
    return 0;
}
int nvmlDeviceGetUtilizationRates(long *device, struct load *load) {
    if (is("lost") && *device == 1) return 15;
    if (is("bare")) return 3;
    load->gpu = 97; load->memory = 40;
    return 0;
}
int nvmlDeviceGetPowerUsage(long *device, unsigned int *milliwatts) { *milliwatts = 283500; return is("bare") ? 3 : 0; }
int nvmlDeviceGetEnforcedPowerLimit(long *device, unsigned int *milliwatts) { *milliwatts = 200000; return is("bare") ? 3 : 0; }
int nvmlDeviceGetPowerManagementDefaultLimit(long *device, unsigned int *milliwatts) { *milliwatts = 285000; return is("bare") ? 3 : 0; }
int nvmlDeviceGetClockInfo(long *device, unsigned int kind, unsigned int *mhz) { *mhz = kind == 1 ? 2415 : 10501; return is("bare") ? 3 : 0; }
int nvmlDeviceGetTemperature(long *device, unsigned int sensor, unsigned int *celsius) { *celsius = 71; return is("bare") ? 3 : 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(long *device, unsigned long long *reasons) {
    *reasons = 0x4 | 0x40;
    return is("bare") ? 3 : 0;
}
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetMigMode(long *device, unsigned int *now, unsigned int *later) {
    if (!is("mig")) return 3;
    *now = *later = *device == 0;
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(long *device, unsigned int *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(long *device, unsigned int place, long **instance) {
    if (place > 1) return 6;
    *instance = &handles[4 + place];
    return 0;
}
int nvmlDeviceGetAttributes_v2(long *device, attributes_t *out) { out->sms = 14; out->memory = 4864; return 0; }

static int list(long *device, unsigned int *count, process_t *rows, int compute) {
    *count = 0;
    if (told(*device, NULL, rows, count, compute ? 'C' : 'G') >= 0 || *device != 0) return 0;
    const char *pid = getenv("FAKE_NVIDIA_PID"), *until = getenv("FAKE_NVIDIA_UNTIL"); /* held until that file is there */
    if (pid) {
        *count = compute && !(until && access(until, F_OK) == 0);
        rows[0].pid = atoi(pid); rows[0].used = 500000000ULL;
        return 0;
    }
    rows[0].pid = compute ? 300 : 100; rows[0].used = compute ? 500000000ULL : 4000000ULL;
    rows[1].pid = 200; rows[1].used = ~0ULL; /* draws and computes; memory not available */
    *count = 2;
    return 0;
}
#ifndef OLD
int nvmlDeviceGetComputeRunningProcesses_v3(long *d, unsigned int *n, process_t *r) { return list(d, n, r, 1); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(long *d, unsigned int *n, process_t *r) { return list(d, n, r, 0); }
#else
int nvmlDeviceGetComputeRunningProcesses(long *d, unsigned int *n, process_t *r) {
    struct { unsigned int pid; unsigned long long used; } *rows = (void *)r;
    *n = *d ? 0 : 2; rows[0].pid = 300; rows[0].used = 500000000ULL; rows[1].pid = 301; rows[1].used = 7;
    return 0;
}
#endif

int cuInit(unsigned int flags) { return is("no cuda") ? 100 : 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 1 - ordinal; return 0; } /* CUDA's order is its own */
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = i ? i : device;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 16 ? 60 + device : attribute == 13 ? 2610000 : attribute == 75 ? 8 : 9;
    return 0;
}
