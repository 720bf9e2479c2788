/* A CUDA card that answers and computes nothing: driver, runtime, cuBLAS and cuBLASLt in one library (see build.py).

   Real: device memory with a limit, copies, streams, events, capture, the properties of the card, and counts of all that a step
   asks for. Not real: kernels and matrix products, which are counted and leave memory as it is, so that values mean nothing.
   What is not here is generated: functions that return 0. The environment chooses the card:
   FAKE_GPUS (1), FAKE_CC (90: compute capability 9.0), FAKE_GIB (80), FAKE_TAKEN_MIB (500: taken by others), FAKE_DRIVER (13020).
   It fails where the environment says so, with CUDA's numbers: FAKE_COUNT_ERROR (35: the driver is too old), and from the launch after
   the first FAKE_FAIL_AFTER on FAKE_FAIL_CODE (700: illegal address), or once only with FAKE_FAIL_STICKY=0. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "driver_types.h"
#include "vector_types.h"
#define API __attribute__((visibility("default")))
typedef void *Any;
typedef unsigned long long Wide;

static long from_environment(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}
static int capability(void) { return from_environment("FAKE_CC", 90); }
static int driver_version(void) { return from_environment("FAKE_DRIVER", 13020); }
static size_t card_bytes(void) { return (size_t)from_environment("FAKE_GIB", 80) << 30; }
static size_t others_bytes(void) { return (size_t)from_environment("FAKE_TAKEN_MIB", 500) << 20; }

/* counts, by index of COUNTS in card.py ------------------------------------------------------------------------------- */
enum { LAUNCH, PRODUCT, GRAPH, WAIT, ALLOCATE, HOST_ALLOCATE, H2D, D2H, D2D, FILL, REFUSED, EVENT_WAIT, NUM_COUNTS };
API long fake_counts[NUM_COUNTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int last_error;
static int fail(int error) { return last_error = error; }

/* kernels by name: those of the runtime register themselves, those of the driver are asked for by name */
typedef struct { const void *function; const char *name; long launches; } Kernel;
enum { SLOTS = 1 << 18 };
static Kernel kernels[SLOTS];
static Kernel *kernel_of(const void *function) {
    uint64_t place = ((uint64_t)function * 0x9E3779B97F4A7C15ULL) >> 46;
    while (kernels[place % SLOTS].function && kernels[place % SLOTS].function != function) place++;
    kernels[place % SLOTS].function = function;
    return &kernels[place % SLOTS];
}
API void fake_reset(void) {
    memset(fake_counts, 0, sizeof fake_counts);
    for (int i = 0; i < SLOTS; i++) kernels[i].launches = 0;
}
API void fake_write_kernels(const char *path) {
    FILE *file = fopen(path, "w");
    for (int i = 0; i < SLOTS; i++)
        if (kernels[i].launches) fprintf(file, "%ld %s\n", kernels[i].launches, kernels[i].name ? kernels[i].name : "?");
    fclose(file);
}

/* the card ------------------------------------------------------------------------------------------------------------ */
static __thread int device;
API int cudaGetDeviceCount(int *n) {
    int error = from_environment("FAKE_COUNT_ERROR", 0);
    *n = error ? 0 : from_environment("FAKE_GPUS", 1);
    return error ? fail(error) : 0;
}
/* errors that were asked for */
static int broken; /* the error that every later call repeats, as on a card whose context is lost */
static int fails_now(void) {
    static long launches;
    long after = from_environment("FAKE_FAIL_AFTER", -1);
    if (broken || after < 0 || __sync_add_and_fetch(&launches, 1) <= after) return broken;
    int error = from_environment("FAKE_FAIL_CODE", 700), lasts = from_environment("FAKE_FAIL_STICKY", 1);
    if (lasts) broken = error;
    else if (launches > after + 1) return 0;
    return error;
}
static const char *text_of(int error) {
    switch (error) {
    case 2: return "out of memory";
    case 35: return "CUDA driver version is insufficient for CUDA runtime version";
    case 209: return "no kernel image is available for execution on the device";
    case 214: return "uncorrectable ECC error encountered";
    case 700: return "an illegal memory access was encountered";
    case 719: return "unspecified launch failure";
    default: return "refused by the card";
    }
}
API int cudaGetDevice(int *d) { *d = device; return 0; }
API int cuCtxSetCurrent(Any context);
API int cudaSetDevice(int d) { device = d; return cuCtxSetCurrent((Any)(uintptr_t)(0x1000 + d)); }
API int cudaDriverGetVersion(int *v) { *v = driver_version(); return 0; }
API int cudaRuntimeGetVersion(int *v) { *v = RUNTIME_VERSION; return 0; }
API int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
API int cudaDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:%02d:00.0", d); return 0; }
API int cudaDeviceCanAccessPeer(int *v, int a, int b) { *v = 1; return 0; }
static int attribute(int which) { /* numbers of cudaDeviceAttr and CUdevice_attribute, which are the same */
    switch (which) {
    case 1: case 2: case 3: return 1024;              /* threads of a block */
    case 4: return 64;
    case 5: return 2147483647;                        /* blocks of a grid */
    case 6: case 7: return 65535;
    case 8: return 49152;                             /* shared memory of a block */
    case 10: return 32;
    case 12: case 82: return 65536;                   /* registers */
    case 13: return 1980000;                          /* kHz */
    case 16: return 132;                              /* multiprocessors */
    case 36: return 2619000;
    case 37: return 5120;
    case 38: return 50 << 20;                         /* level 2 cache */
    case 39: return 2048;
    case 75: return capability() / 10;
    case 76: return capability() % 10;
    case 81: case 97: return capability() >= 90 ? 232448 : capability() >= 80 ? 166912 : 98304;
    default: return 1;
    }
}
API int cudaDeviceGetAttribute(int *v, int which, int d) { *v = attribute(which); return 0; }
API int cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, capability() >= 90 ? "NVIDIA H100 80GB HBM3" : capability() >= 80 ? "NVIDIA A100-SXM4-80GB" : "Tesla T4");
    p->major = attribute(75), p->minor = attribute(76), p->totalGlobalMem = card_bytes();
    p->multiProcessorCount = attribute(16), p->warpSize = 32, p->l2CacheSize = attribute(38), p->pciBusID = d;
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->sharedMemPerBlock = attribute(8), p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = attribute(97);
    p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->memoryBusWidth = attribute(37), p->textureAlignment = 512;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->managedMemory = p->cooperativeLaunch = 1;
    p->asyncEngineCount = 2;
    return 0;
}
API int cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return cudaGetDeviceProperties(p, d); }

/* memory -------------------------------------------------------------------------------------------------------------- */
enum { HOST = 1, DEVICE = 2, MOST_BLOCKS = 1 << 16, PAGE = 4096 };
typedef struct { char *start; size_t bytes; int kind, device; } Block;
static Block blocks[MOST_BLOCKS];
static int num_blocks;
static size_t taken[64];
static Block *block_of(const void *p) {
    for (int i = 0; i < num_blocks; i++)
        if (blocks[i].start && (char *)p >= blocks[i].start && (char *)p < blocks[i].start + blocks[i].bytes) return &blocks[i];
    return NULL;
}
static int is_on_device(const void *p) { Block *b = block_of(p); return b && b->kind == DEVICE; }
static void *allocate(size_t bytes, int kind) {
    void *start = NULL;
    bytes = bytes ? (bytes + PAGE - 1) / PAGE * PAGE : PAGE;
    pthread_mutex_lock(&lock);
    if (kind == HOST || taken[device] + bytes + others_bytes() <= card_bytes()) {
        start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        int i = 0;
        while (i < num_blocks && blocks[i].start) i++;
        if (i == num_blocks) num_blocks++;
        blocks[i] = (Block){start, bytes, kind, device};
        if (kind == DEVICE) taken[device] += bytes;
    }
    pthread_mutex_unlock(&lock);
    return start;
}
static int release(void *p) {
    pthread_mutex_lock(&lock);
    Block *b = p ? block_of(p) : NULL;
    if (b) {
        munmap(b->start, b->bytes);
        if (b->kind == DEVICE) taken[b->device] -= b->bytes;
        b->start = NULL;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}
API int cudaMalloc(void **p, size_t n) {
    cudaSetDevice(device); /* makes the context current */
    fake_counts[ALLOCATE]++;
    return (*p = allocate(n, DEVICE)) ? 0 : fail(cudaErrorMemoryAllocation);
}
API int cudaFree(void *p) { return release(p); }
API int cudaHostAlloc(void **p, size_t n, unsigned flags) { fake_counts[HOST_ALLOCATE]++; *p = allocate(n, HOST); return 0; }
API int cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
API int cudaFreeHost(void *p) { return release(p); }
API int cudaMemGetInfo(size_t *free, size_t *total) {
    *total = card_bytes();
    *free = *total - taken[device] - others_bytes();
    return 0;
}
API int cudaPointerGetAttributes(struct cudaPointerAttributes *a, void *p) {
    Block *b = block_of(p);
    *a = (struct cudaPointerAttributes){.type = b ? b->kind : 0, .device = b ? b->device : -1,
                                        .devicePointer = b ? p : NULL, .hostPointer = p};
    return 0;
}
static int copy(void *to, const void *from, size_t n) {
    fake_counts[!is_on_device(from) ? H2D : is_on_device(to) ? D2D : D2H]++;
    memmove(to, from, n);
    return 0;
}
API int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, Any stream) { return copy(to, from, n); }
API int cudaMemcpy(void *to, const void *from, size_t n, int kind) { fake_counts[WAIT]++; return copy(to, from, n); }
API int cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t n, Any stream) { return copy(to, from, n); }
API int cudaMemsetAsync(void *p, int value, size_t n, Any stream) { fake_counts[FILL]++; return 0; }
API int cudaMemset(void *p, int value, size_t n) { fake_counts[FILL]++; return 0; }

/* streams, events, capture -------------------------------------------------------------------------------------------- */
static uintptr_t num_streams = 0x1000;
static __thread Any captured; /* the stream that this thread captures */
static int refused_in_capture(void) {
    if (captured) fake_counts[REFUSED]++;
    return captured ? fail(cudaErrorStreamCaptureUnsupported) : 0;
}
API int cudaStreamCreateWithPriority(Any *s, unsigned f, int p) { *s = (Any)(num_streams += 16); return 0; }
API int cudaStreamCreateWithFlags(Any *s, unsigned f) { return cudaStreamCreateWithPriority(s, f, 0); }
API int cudaStreamCreate(Any *s) { return cudaStreamCreateWithPriority(s, 0, 0); }
API int cudaStreamGetPriority(Any s, int *p) { *p = 0; return 0; }
API int cudaStreamGetDevice(Any s, int *d) { *d = device; return 0; }
API int cudaStreamGetFlags(Any s, unsigned *f) { *f = 1; return 0; }
API int cudaStreamGetId(Any s, Wide *id) { *id = (uintptr_t)s; return 0; }
static int wait(void) { fake_counts[WAIT]++; return broken ? fail(broken) : refused_in_capture(); }
API int cudaStreamSynchronize(Any s) { return wait(); }
API int cudaDeviceSynchronize(void) { return wait(); }
API int cudaEventCreateWithFlags(Any *e, unsigned f) { *e = calloc(1, 64); return 0; }
API int cudaEventCreate(Any *e) { return cudaEventCreateWithFlags(e, 0); }
API int cudaEventDestroy(Any e) { free(e); return 0; }
API int cudaEventRecord(double *e, Any s) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *e = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
    return 0;
}
API int cudaEventRecordWithFlags(double *e, Any s, unsigned f) { return cudaEventRecord(e, s); }
API int cudaEventSynchronize(Any e) { fake_counts[EVENT_WAIT]++; return 0; }
API int cudaEventElapsedTime(float *ms, double *from, double *to) { *ms = *to - *from; return 0; }
API int cudaStreamBeginCapture(Any s, int mode) { captured = s; return 0; }
API int cudaStreamBeginCaptureToGraph(Any s, Any g, Any d, Any e, size_t n, int mode) { captured = s; return 0; }
API int cudaStreamEndCapture(Any s, Any *graph) { captured = NULL; *graph = calloc(1, 64); return 0; }
API int cudaStreamIsCapturing(Any s, int *status) { *status = captured && s == captured; return 0; }
static int capture_info(Any s, int *status, Wide *id, Any *graph, size_t *n) {
    *status = captured && s == captured;
    if (id) *id = 1;
    if (graph) *graph = NULL;
    if (n) *n = 0;
    return 0;
}
/* CUDA 13 has one argument more than 12, between the dependencies and their number */
#if RUNTIME_VERSION >= 13000
API int cudaStreamGetCaptureInfo(Any s, int *st, Wide *id, Any *g, Any d, Any e, size_t *n) { return capture_info(s, st, id, g, n); }
#else
API int cudaStreamGetCaptureInfo_v2(Any s, int *st, Wide *id, Any *g, Any d, size_t *n) { return capture_info(s, st, id, g, n); }
#endif
API int cudaGraphInstantiate(Any *e, Any g, Wide f) { *e = calloc(1, 64); return 0; }
API int cudaGraphInstantiateWithFlags(Any *e, Any g, Wide f) { *e = calloc(1, 64); return 0; }
API int cudaGraphGetNodes(Any g, Any nodes, size_t *n) { *n = 1; return 0; }
API int cudaGraphLaunch(Any e, Any s) { fake_counts[GRAPH]++; return 0; }
API int cudaThreadExchangeStreamCaptureMode(int *mode) { *mode = 1; return 0; }
API int cudaUserObjectCreate(Any *o, Any p, Any f, unsigned r, unsigned flags) { *o = (Any)8; return 0; }
API int cudaDeviceGetDefaultMemPool(Any *p, int d) { *p = (Any)8; return 0; }

/* launches of the runtime --------------------------------------------------------------------------------------------- */
static int launch(const void *function, dim3 grid, dim3 block) {
    int error = fails_now();
    if (error) return fail(error);
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !(block.x * block.y * block.z) ||
        block.x * block.y * block.z > 1024)
        return fail(cudaErrorInvalidConfiguration);
    pthread_mutex_lock(&lock);
    if (!captured) fake_counts[LAUNCH]++;
    kernel_of(function)->launches++;
    pthread_mutex_unlock(&lock);
    return 0;
}
API Any *__cudaRegisterFatBinary(Any f) { static Any handle[4]; return handle; }
API void __cudaRegisterFatBinaryEnd(Any *h) {}
API void __cudaUnregisterFatBinary(Any *h) {}
API void __cudaRegisterVar(Any *h, char *v, char *a, const char *n, int e, size_t s, int c, int g) {}
API void __cudaRegisterFunction(Any *h, const char *f, char *d, const char *name, int t, Any a, Any b, Any c, Any e, int *w) {
    pthread_mutex_lock(&lock);
    kernel_of(f)->name = name;
    pthread_mutex_unlock(&lock);
}
static __thread struct { dim3 grid, block; size_t shared; Any stream; } calls[8];
static __thread int num_calls;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, Any stream) {
    calls[num_calls].grid = grid, calls[num_calls].block = block, calls[num_calls].shared = shared;
    calls[num_calls++].stream = stream;
    return 0;
}
API int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, Any *stream) {
    num_calls--;
    *grid = calls[num_calls].grid, *block = calls[num_calls].block, *shared = calls[num_calls].shared;
    *stream = calls[num_calls].stream;
    return 0;
}
API int cudaLaunchKernel(const void *f, dim3 grid, dim3 block, Any *a, size_t s, Any stream) { return launch(f, grid, block); }
API int __cudaLaunchKernel(const void *f, dim3 grid, dim3 block, Any *a, size_t s, Any stream) { return launch(f, grid, block); }
API int cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, Any *a) { return launch(f, c->gridDim, c->blockDim); }
API int __cudaGetKernel(Any *k, Any f) { *k = f; return 0; }
API int cudaGetFuncBySymbol(Any *k, Any f) { *k = f; return 0; }
API int cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->maxDynamicSharedSizeBytes = 49152;
    a->binaryVersion = a->ptxVersion = capability();
    return 0;
}
API int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, Any f, int b, size_t s) { *n = 2; return 0; }
API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, Any f, int b, size_t s, unsigned g) { *n = 2; return 0; }
API int cudaGetSymbolAddress(Any *p, Any s) { static char symbol[1 << 16]; *p = symbol; return 0; }
API const char *cudaGetErrorString(int e) { return text_of(e); }
API const char *cudaGetErrorName(int e) { return "cudaErrorOfTheFakeCard"; }
API int cudaGetLastError(void) { int e = last_error; last_error = 0; return e; }
API int cudaPeekAtLastError(void) { return last_error; }

/* matrix products ----------------------------------------------------------------------------------------------------- */
static int product(void) { if (!captured) fake_counts[PRODUCT]++; return 0; }
API int cublasCreate_v2(Any *h) { *h = calloc(1, 64); return 0; }
API int cublasGetVersion_v2(Any h, int *v) { *v = 130000; return 0; }
API int cublasGetMathMode(Any h, int *m) { *m = 0; return 0; }
API int cublasGetPointerMode_v2(Any h, int *m) { *m = 0; return 0; }
API int cublasGetStream_v2(Any h, Any *s) { *s = NULL; return 0; }
API int cublasGetSmCountTarget(Any h, int *n) { *n = 0; return 0; }
API int cublasGemmEx() { return product(); }
API int cublasSgemm_v2() { return product(); }
API int cublasGemmStridedBatchedEx() { return product(); }
API int cublasSgemmStridedBatched() { return product(); }
API int cublasLtCreate(Any *h) { *h = calloc(1, 64); return 0; }
API int cublasLtMatmulDescCreate(Any *h, int a, int b) { *h = calloc(1, 256); return 0; }
API int cublasLtMatrixLayoutCreate(Any *h, int t, uint64_t r, uint64_t c, int64_t l) { *h = calloc(1, 256); return 0; }
API int cublasLtMatmulPreferenceCreate(Any *h) { *h = calloc(1, 256); return 0; }
API size_t cublasLtGetVersion(void) { return 130000; }
API int cublasLtMatmulAlgoGetHeuristic(Any h, Any d, Any a, Any b, Any c, Any e, Any p, int wanted, Any results, int *found) {
    memset(results, 0, 96);
    *found = 1;
    return 0;
}
API int cublasLtMatmul() { return product(); }

/* the driver, of which numba-cuda, Triton and the runtime ask by name -------------------------------------------------- */
static __thread Any contexts[64];
static __thread int num_contexts;
static Any context_of(int d) { return (Any)(uintptr_t)(0x1000 + d); }
static Any current(void) { return num_contexts ? contexts[num_contexts - 1] : NULL; }
API int cuInit(unsigned f) { return 0; }
API int cuDriverGetVersion(int *v) { *v = driver_version(); return 0; }
API int cuDeviceGetCount(int *n) { return cudaGetDeviceCount(n) ? 100 : 0; /* CUDA_ERROR_NO_DEVICE */ }
API int cuDeviceGet(int *d, int i) { *d = i; return 0; }
API int cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "a card that only answers"); return 0; }
API int cuDeviceGetUuid_v2(char *u, int d) { memset(u, 7 + d, 16); return 0; }
API int cuDeviceGetUuid(char *u, int d) { return cuDeviceGetUuid_v2(u, d); }
API int cuDeviceGetAttribute(int *v, int which, int d) { *v = attribute(which); return 0; }
API int cuDevicePrimaryCtxRetain(Any *c, int d) { *c = context_of(d); return 0; }
API int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *active) { *f = 0; *active = 1; return 0; }
API int cuCtxGetCurrent(Any *c) { *c = current(); return 0; }
API int cuCtxPushCurrent_v2(Any c) { contexts[num_contexts++] = c; return 0; }
API int cuCtxPopCurrent_v2(Any *c) {
    if (!num_contexts) return 201;
    num_contexts--;
    if (c) *c = contexts[num_contexts];
    return 0;
}
API int cuCtxSetCurrent(Any c) { if (!num_contexts) num_contexts = 1; contexts[num_contexts - 1] = c; return 0; }
API int cuCtxGetDevice(int *d) { if (!num_contexts) return 201; *d = (uintptr_t)current() - 0x1000; return 0; }
API int cuCtxGetDevice_v2(int *d, Any c) { if (!c) return 201; *d = (uintptr_t)c - 0x1000; return 0; }
API int cuCtxGetApiVersion(Any c, unsigned *v) { *v = 12000; return 0; }
API int cuCtxSynchronize(void) { fake_counts[WAIT]++; return 0; }
API int cuMemGetInfo_v2(size_t *free, size_t *total) { return cudaMemGetInfo(free, total); }
API int cuPointerGetAttribute(Any *v, int which, uint64_t p) { *v = context_of(0); return 0; }
API int cuStreamGetCtx(Any s, Any *c) { *c = context_of(device); return 0; }
API int cuStreamGetCtx_v2(Any s, Any *c, Any *g) { if (g) *g = NULL; return cuStreamGetCtx(s, c); }
API int cuStreamIsCapturing(Any s, int *status) { return cudaStreamIsCapturing(s, status); }
API int cuStreamSynchronize(Any s) { fake_counts[WAIT]++; return 0; }
API int cuEventSynchronize(Any e) { fake_counts[EVENT_WAIT]++; return 0; }
static uintptr_t num_modules = 0x20000;
API int cuLibraryLoadData(Any *l, Any code, Any a, Any b, unsigned c, Any d, Any e, unsigned f) { *l = (Any)(num_modules++); return 0; }
API int cuModuleLoadData(Any *m, Any code) { *m = (Any)(num_modules++); return 0; }
API int cuModuleLoadDataEx(Any *m, Any code, unsigned n, Any o, Any v) { return cuModuleLoadData(m, code); }
static int get_kernel(Any *k, Any module, const char *name) {
    *k = (Any)strdup(name); /* a handle of its own */
    pthread_mutex_lock(&lock);
    kernel_of(*k)->name = *k;
    pthread_mutex_unlock(&lock);
    return 0;
}
API int cuLibraryGetKernel(Any *k, Any l, const char *name) { return get_kernel(k, l, name); }
API int cuModuleGetFunction(Any *k, Any m, const char *name) { return get_kernel(k, m, name); }
API int cuKernelGetFunction(Any *f, Any k) { *f = k; return 0; }
API int cuKernelGetAttribute(int *v, int which, Any k, int d) { *v = which == 0 ? 1024 : which == 4 ? 32 : 0; return 0; }
API int cuFuncGetAttribute(int *v, int which, Any k) { return cuKernelGetAttribute(v, which, k, 0); }
API int cuLinkCreate_v2(unsigned n, Any o, Any v, Any *state) { *state = (Any)8; return 0; }
API int cuLinkComplete(Any state, Any *image, size_t *n) { static char none[64]; *image = none; *n = 64; return 0; }
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, Any f, int b, size_t s) { *n = 2; return 0; }
API int cuLaunchKernel(Any f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned s, Any stream,
                       Any *p, Any *x) {
    return launch(f, (dim3){gx, gy, gz}, (dim3){bx, by, bz});
}
typedef struct { unsigned gx, gy, gz, bx, by, bz, shared; Any stream; } LaunchConfig;
API int cuLaunchKernelEx(const LaunchConfig *c, Any f, Any *p, Any *x) {
    return launch(f, (dim3){c->gx, c->gy, c->gz}, (dim3){c->bx, c->by, c->bz});
}
API int cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_OF_THE_FAKE_CARD"; return 0; }
API int cuGetErrorString(int e, const char **s) { *s = text_of(e); return 0; }
/* the release of CUDA with a function's second form, whose name ends in _v2; most are as old as the version that anybody asks for */
static int second_form(const char *name) {
    return !strcmp(name, "cuStreamGetCtx") ? 12050 : !strcmp(name, "cuCtxGetDevice") ? 13000 : 0;
}
API int cuGetProcAddress_v2(const char *name, Any *f, int version, uint64_t flags, int *status) {
    static Any self;
    Dl_info here;
    if (!self && dladdr(&num_modules, &here)) self = dlopen(here.dli_fname, RTLD_LAZY);
    char newer[256];
    snprintf(newer, sizeof newer, "%s_v2", name);
    int is_second = version >= second_form(name) && dlsym(self, newer);
    *f = version > driver_version() ? NULL : dlsym(self, is_second ? newer : name);
    if (status) *status = *f ? 0 : 1;
    return 0;
}
API int cuGetProcAddress(const char *name, Any *f, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, f, version, flags, NULL);
}
API int cudaGetDriverEntryPointByVersion(const char *name, Any *f, unsigned version, Wide flags, int *status) {
    return cuGetProcAddress_v2(name, f, version, flags, status);
}
API int cudaGetDriverEntryPoint(const char *name, Any *f, Wide flags, int *status) {
    return cuGetProcAddress_v2(name, f, 0, flags, status);
}
#include "stubs.h"
