/* A CUDA driver that launches nothing and keeps what it was given, so that Triton's own launcher runs where there is
   no GPU: tests/host.py builds it as libcuda.so.1. */

#include "cuda.h"

#include <stdint.h>
#include <string.h>

enum { MOST = 256, ROOM = 4096 };

static size_t sizes[MOST];
static int count;
static unsigned char parameters[ROOM];
static uint64_t launch[9];

/* The sizes of the next launches' parameters, which a driver reads off the kernel. */
void expect(const size_t *of_each, int how_many) {
  for (int i = 0; i < how_many; i++)
    sizes[i] = of_each[i];
  count = how_many;
}

/* Parameters of the last launch; its grid, block, shared memory, stream, function, and how many there were. */
void last(unsigned char *into, uint64_t *numbers) {
  memcpy(into, parameters, ROOM);
  memcpy(numbers, launch, sizeof launch);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **given, void **extra) {
  size_t at = 0;
  memset(parameters, 0, ROOM);
  for (int i = 0; i < count; at += sizes[i++])
    memcpy(parameters + at, given[i], sizes[i]);
  uint64_t numbers[] = {config->gridDimX,       config->gridDimY,           config->gridDimZ,
                        config->blockDimX,      config->blockDimY,          config->sharedMemBytes,
                        (uint64_t)config->hStream, (uint64_t)function, launch[8] + 1};
  memcpy(launch, numbers, sizeof launch);
  return CUDA_SUCCESS;
}

/* A tensor map is what it was made of, one number after the other. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *shape, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  cuuint64_t *to = map->opaque;
  memset(map, 0, sizeof *map);
  *to++ = (uintptr_t)address;
  *to++ = type | rank << 8 | interleave << 16 | (uint64_t)swizzle << 24 | (uint64_t)promotion << 32 | (uint64_t)fill << 40;
  for (cuuint32_t i = 0; i < rank; i++) {
    *to++ = shape[i] | (cuuint64_t)box[i] << 40; /* shapes of tests are small */
    if (i)
      *to++ = strides[i - 1];
  }
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  static uintptr_t loaded;
  *module = (CUmodule)++loaded;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)module;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)data = pointer; /* memory of the host is as good as any */
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  *value = 232448; /* shared memory of a block on compute capability 9.0 is all that is compared with anything */
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int number) {
  *device = number;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = "this driver knows no errors";
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  *clusters = 1;
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return cuCtxGetCurrent(context); }
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
