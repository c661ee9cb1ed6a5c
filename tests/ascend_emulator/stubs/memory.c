/* Device memory is host memory, with its bytes counted by device, so that a device can run out of it. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "acl/acl.h"
#include "acl/error_codes/rt_error_codes.h"
#include "emulator.h"

enum { ALIGNMENT = 512 };

static atomic_size_t used[EMULATOR_MAX_DEVICES];

static int own_device(void) {
    int device = emulator_current_device();
    return device < 0 ? 0 : device;
}

/* Stands right before each block of device memory, so that freeing it gives back the bytes of the right device. */
typedef struct {
    size_t size;
    int device;
    void *allocation;
} BlockHeader;

aclError aclrtMalloc(void **pointer, size_t size, aclrtMemMallocPolicy policy) {
    int device = own_device();
    void *allocation;
    *pointer = NULL;
    if (atomic_fetch_add(&used[device], size) + size > emulator_memory_size() ||
        posix_memalign(&allocation, ALIGNMENT, size + 2 * ALIGNMENT)) {
        atomic_fetch_sub(&used[device], size);
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    *pointer = (char *)allocation + ALIGNMENT;
    ((BlockHeader *)*pointer)[-1] = (BlockHeader){size, device, allocation};
    memset(*pointer, 0xff, size); /* NaN in every floating-point type: what nobody wrote must not look like zeros */
    return ACL_SUCCESS;
}

/* What torch_npu uses where it pads blocks itself. It warns of that on real machines, too, if their driver is new. */
aclError aclrtMallocAlign32(void **pointer, size_t size, aclrtMemMallocPolicy policy) {
    return aclrtMalloc(pointer, size, policy);
}

aclError aclrtFree(void *pointer) {
    if (!pointer) return ACL_SUCCESS;
    BlockHeader header = ((BlockHeader *)pointer)[-1];
    atomic_fetch_sub(&used[header.device], header.size);
    free(header.allocation);
    return ACL_SUCCESS;
}

aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t *available, size_t *total) {
    int device = own_device();
    *total = emulator_memory_size();
    *available = *total - atomic_load(&used[device]);
    return ACL_SUCCESS;
}

aclError aclrtMallocHost(void **pointer, size_t size) {
    return posix_memalign(pointer, ALIGNMENT, size ? size : ALIGNMENT) ? ACL_ERROR_RT_MEMORY_ALLOCATION : ACL_SUCCESS;
}

aclError aclrtMallocHostWithCfg(void **pointer, uint64_t size, aclrtMallocConfig *config) {
    return aclrtMallocHost(pointer, size);
}

aclError aclrtFreeHost(void *pointer) {
    free(pointer);
    return ACL_SUCCESS;
}

aclError aclrtHostRegister(void *pointer, uint64_t size, aclrtHostRegisterType type, void **device_pointer) {
    *device_pointer = pointer;
    return ACL_SUCCESS;
}

aclError aclrtPointerGetAttributes(const void *pointer, aclrtPtrAttributes *attributes) {
    /* Asked about memory that torch_npu did not allocate: it is the host's. */
    memset(attributes, 0, sizeof *attributes);
    attributes->location.type = ACL_MEM_LOCATION_TYPE_UNREGISTERED;
    return ACL_SUCCESS;
}

static aclError copy(void *target, size_t room, const void *source, size_t size) {
    if (size > room) return ACL_ERROR_RT_PARAM_INVALID;
    memmove(target, source, size);
    return ACL_SUCCESS;
}

aclError aclrtMemcpy(void *target, size_t room, const void *source, size_t size, aclrtMemcpyKind kind) {
    return copy(target, room, source, size);
}

aclError aclrtMemcpyAsync(void *target, size_t room, const void *source, size_t size, aclrtMemcpyKind kind,
                          aclrtStream stream) {
    return copy(target, room, source, size);
}

aclError aclrtMemcpyAsyncWithCondition(void *target, size_t room, const void *source, size_t size,
                                       aclrtMemcpyKind kind, aclrtStream stream) {
    return copy(target, room, source, size);
}

aclError aclrtMemset(void *pointer, size_t room, int32_t value, size_t size) {
    if (size > room) return ACL_ERROR_RT_PARAM_INVALID;
    memset(pointer, value, size);
    return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void *pointer, size_t room, int32_t value, size_t size, aclrtStream stream) {
    return aclrtMemset(pointer, room, value, size);
}
