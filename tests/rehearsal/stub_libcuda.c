// A CUDA driver without a GPU: it answers as an H200 would, loads nothing and runs nothing. A launch that the hardware
// would refuse, for its grid, its block or its shared memory, is refused.
//
// Only what Triton calls is here. Handles are pointers that nobody looks at.
#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef void *Handle;

enum { kSuccess = 0, kInvalidValue = 1, kNoDevice = 100 };
enum { kSharedOfBlock = 232448, kThreadsOfBlock = 1024, kLargestGridX = 0x7fffffff, kLargestGridYZ = 65535 };

static Handle const kSomething = (Handle)1;
static long launches = 0;

long stub_launches(void) { return launches; }

// torch asks this one, and is to keep away.
CUresult cuInit(unsigned flags) { return kNoDevice; }

CUresult cuGetErrorString(CUresult code, const char **text) {
  *text = code == kInvalidValue ? "invalid argument" : "no device";
  return kSuccess;
}

CUresult cuDeviceGet(int *device, int ordinal) { return *device = 0, kSuccess; }

CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 8: *value = 49152; break;            // shared memory of a block that does not ask for more
    case 10: *value = 32; break;              // threads of a warp
    case 12: *value = 65536; break;           // registers of a block
    case 16: *value = 132; break;             // multiprocessors
    case 81: *value = 233472; break;          // shared memory of a multiprocessor
    case 97: *value = kSharedOfBlock; break;  // of a block that asks for it
    default: *value = 1;
  }
  return kSuccess;
}

CUresult cuCtxGetCurrent(Handle *context) { return *context = kSomething, kSuccess; }
CUresult cuCtxSetCurrent(Handle context) { return kSuccess; }
CUresult cuCtxGetLimit(size_t *value, int limit) { return *value = 0, kSuccess; }
CUresult cuCtxSetLimit(int limit, size_t value) { return kSuccess; }
CUresult cuDevicePrimaryCtxRetain(Handle *context, int device) { return *context = kSomething, kSuccess; }

CUresult cuModuleLoadData(Handle *module, const void *image) { return *module = kSomething, kSuccess; }
CUresult cuModuleUnload(Handle module) { return kSuccess; }
CUresult cuModuleGetFunction(Handle *function, Handle module, const char *name) {
  return *function = kSomething, kSuccess;
}

// 0 asks for the threads that a block may have, the rest for memory that a kernel takes by itself.
CUresult cuFuncGetAttribute(int *value, int attribute, Handle function) {
  return *value = attribute == 0 ? kThreadsOfBlock : 0, kSuccess;
}
CUresult cuFuncSetAttribute(Handle function, int attribute, int value) {
  return attribute == 8 && value > kSharedOfBlock ? kInvalidValue : kSuccess;  // 8: the shared memory asked for
}
CUresult cuFuncSetCacheConfig(Handle function, int config) { return kSuccess; }
CUresult cuOccupancyMaxActiveClusters(int *clusters, Handle function, const void *config) {
  return *clusters = 1, kSuccess;
}

CUresult cuTensorMapEncodeTiled(void) { return kInvalidValue; }
CUresult cuTensorMapEncodeIm2col(void) { return kInvalidValue; }

// Memory of the host stands for that of the device.
CUresult cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
  return *(uint64_t *)value = pointer, kSuccess;
}

struct LaunchConfig {  // the head of CUlaunchConfig
  unsigned grid[3], block[3], shared;
};

CUresult cuLaunchKernelEx(const struct LaunchConfig *config, Handle function, void **arguments, void **extra) {
  for (int axis = 0; axis < 3; ++axis) {
    unsigned largest = axis == 0 ? kLargestGridX : kLargestGridYZ;
    if (config->grid[axis] == 0 || config->grid[axis] > largest) return kInvalidValue;
    if (config->block[axis] == 0) return kInvalidValue;
  }
  if (config->block[0] * config->block[1] * config->block[2] > kThreadsOfBlock) return kInvalidValue;
  if (config->shared > kSharedOfBlock) return kInvalidValue;
  ++launches;
  return kSuccess;
}

// For whoever looks the launch up here: another driver's entry points would run something.
CUresult cuGetProcAddress(const char *name, void **function, int version, uint64_t flags, void *status) {
  return *function = NULL, kNoDevice;
}
CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *status) {
  return *function = NULL, kNoDevice;
}
CUresult cuDriverGetVersion(int *version) { return *version = 13000, kSuccess; }
