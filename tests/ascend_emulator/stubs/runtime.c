/* libascendcl.so without CANN: settings, errors and devices. memory.c and streams.c are the rest of it.
 *
 * Signatures come from the ACL headers that the torch_npu wheel ships, so a wrong one does not compile. What is not
 * here: functions that may just succeed stand in optional_symbols.txt, all others that torch_npu links against refuse.
 *
 * Environment: ASCEND_EMULATOR_DEVICES (default: LOCAL_WORLD_SIZE, which torchrun sets for its workers, else 1),
 * ASCEND_EMULATOR_MEMORY_GB (8), ASCEND_EMULATOR_SOC (Ascend910B1), ASCEND_EMULATOR_CANN (9.1.0).
 */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "acl/acl.h"
#include "acl/acl_op_compiler.h"
#include "acl/error_codes/rt_error_codes.h"
#include "emulator.h"

enum { CUBE_CORES = 24, VECTOR_CORES = 48 }; /* of an Ascend 910B1 */

/* ---- settings ---- */

static const char *setting(const char *name, const char *fallback) {
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

static int device_count(void) {
    int count = atoi(setting("ASCEND_EMULATOR_DEVICES", setting("LOCAL_WORLD_SIZE", "1")));
    return count < 1 ? 1 : count > EMULATOR_MAX_DEVICES ? EMULATOR_MAX_DEVICES : count;
}

size_t emulator_memory_size(void) {
    return (size_t)(atof(setting("ASCEND_EMULATOR_MEMORY_GB", "8")) * (1 << 30));
}

static const char *cann_version(void) { return setting("ASCEND_EMULATOR_CANN", "9.1.0"); }

/* ---- errors and the oracle ---- */

static _Thread_local char last_error[512];
static _Thread_local int oracle_depth;

void emulator_oracle_enter(void) { oracle_depth++; }
void emulator_oracle_leave(void) { oracle_depth--; }

int emulator_refuse(const char *name) {
    if (oracle_depth > 0) return ACL_SUCCESS;
    snprintf(last_error, sizeof last_error,
             "ascend_emulator: %s has no emulation. On a real NPU it may well run; to emulate it, see "
             "tests/ascend_emulator/README.md. (If every operator fails so: import torch before torch_npu.)", name);
    return ACL_ERROR_FEATURE_UNSUPPORTED;
}

const char *aclGetRecentErrMsg(void) {
    static _Thread_local char shown[sizeof last_error];
    memcpy(shown, last_error, sizeof shown); /* reading clears the message, as CANN does */
    last_error[0] = 0;
    return shown[0] ? shown : NULL;
}

/* The operators of the time before aclnn: one function runs any of them, by name. */
aclError aclopCompileAndExecute(const char *type, int inputs, const aclTensorDesc *const input_desc[],
                                const aclDataBuffer *const input[], int outputs,
                                const aclTensorDesc *const output_desc[], aclDataBuffer *const output[],
                                const aclopAttr *attributes, aclopEngineType engine, aclopCompileType flag,
                                const char *path, aclrtStream stream) {
    return emulator_refuse(type);
}

aclError aclopCompileAndExecuteV2(const char *type, int inputs, aclTensorDesc *input_desc[], aclDataBuffer *input[],
                                  int outputs, aclTensorDesc *output_desc[], aclDataBuffer *output[],
                                  aclopAttr *attributes, aclopEngineType engine, aclopCompileType flag,
                                  const char *path, aclrtStream stream) {
    return emulator_refuse(type);
}

/* ---- devices and contexts ---- */

static _Thread_local int thread_device = -1; /* what this thread chose */
static atomic_int first_device = -1;         /* what the process chose first: holds for threads that chose nothing */
static char contexts[EMULATOR_MAX_DEVICES];  /* a context is nothing but an address that tells the device */

int emulator_current_device(void) { return thread_device >= 0 ? thread_device : atomic_load(&first_device); }

aclError aclrtGetDeviceCount(uint32_t *count) {
    *count = device_count();
    return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t *device) {
    if (emulator_current_device() < 0) return ACL_ERROR_RT_CONTEXT_NULL;
    *device = emulator_current_device();
    return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t device) {
    if (device < 0 || device >= device_count()) return ACL_ERROR_RT_INVALID_DEVICEID;
    thread_device = device;
    int none = -1;
    atomic_compare_exchange_strong(&first_device, &none, device);
    return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    if (flags) *flags = 0;
    *active = 1;
    return ACL_SUCCESS;
}

aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t *const logical) {
    *logical = user;
    return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) {
    *can = 1;
    return ACL_SUCCESS;
}

aclError aclrtGetCurrentContext(aclrtContext *context) {
    int device = emulator_current_device();
    *context = &contexts[device < 0 ? 0 : device];
    return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
    ptrdiff_t device = (char *)context - contexts;
    if (device >= 0 && device < EMULATOR_MAX_DEVICES) thread_device = (int)device;
    return ACL_SUCCESS;
}

const char *aclrtGetSocName(void) { return setting("ASCEND_EMULATOR_SOC", "Ascend910B1"); }

aclError aclsysGetCANNVersion(aclCANNPackageName package, aclCANNPackageVersion *version) {
    memset(version, 0, sizeof *version);
    snprintf(version->version, sizeof version->version, "%s", cann_version());
    return ACL_SUCCESS;
}

aclError aclsysGetVersionStr(char *package, char *version) {
    strcpy(version, cann_version());
    return ACL_SUCCESS;
}

aclError aclGetCannAttribute(aclCannAttr attribute, int32_t *value) {
    *value = attribute != ACL_CANN_ATTR_JIT_COMPILE; /* keeps inf and nan, has bf16, does not compile at run time */
    return ACL_SUCCESS;
}

aclError aclGetDeviceCapability(uint32_t device, aclDeviceInfo info, int64_t *value) {
    *value = info == ACL_DEVICE_INFO_VECTOR_CORE_NUM ? VECTOR_CORES : CUBE_CORES;
    return ACL_SUCCESS;
}

aclError aclrtGetDeviceInfo(uint32_t device, aclrtDevAttr attribute, int64_t *value) {
    switch (attribute) {
    case ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE: *value = (int64_t)emulator_memory_size(); break;
    case ACL_DEV_ATTR_L2_CACHE_SIZE: *value = 192 << 20; break;
    case ACL_DEV_ATTR_VECTOR_CORE_NUM: *value = VECTOR_CORES; break;
    default: *value = CUBE_CORES;
    }
    return ACL_SUCCESS;
}

aclError aclrtDeviceGetUuid(int32_t device, aclrtUuid *uuid) {
    memset(uuid, 0, sizeof *uuid);
    uuid->bytes[sizeof uuid->bytes - 1] = (char)device;
    return ACL_SUCCESS;
}

aclError aclrtDeviceGetBareTgid(int32_t *pid) {
    *pid = 0;
    return ACL_SUCCESS;
}

aclError aclrtGetDeviceUtilizationRate(int32_t device, aclrtUtilizationInfo *use) {
    use->cubeUtilization = use->vectorUtilization = use->aicpuUtilization = use->memoryUtilization = 0;
    return ACL_SUCCESS;
}

/* Options are kept and given back; none has an effect. */
static int64_t options[64];

aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t *value) {
    *value = (unsigned)option < 64 ? options[option] : 0;
    return ACL_SUCCESS;
}

aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
    if ((unsigned)option < 64) options[option] = value;
    return ACL_SUCCESS;
}

aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }

size_t aclGetCompileoptSize(aclCompileOpt option) { return 256; }

aclError aclGetCompileopt(aclCompileOpt option, char *value, size_t length) {
    if (length) value[0] = 0;
    return ACL_SUCCESS;
}

aclError aclrtSetOpExecuteTimeOutV2(uint64_t timeout, uint64_t *actual) {
    *actual = timeout;
    return ACL_SUCCESS;
}
