/* libopapi.so: the objects that aclnn operators take, and the operators themselves.
 *
 * torch_npu looks every operator up by name: NameGetWorkspaceSize takes the arguments, then Name runs it. The build
 * appends all names that the wheel knows, as functions that refuse (or, for an oracle, succeed without computing).
 */
#include <stdlib.h>
#include <string.h>

#include "acl/acl.h"
#include "emulator.h"

ComputeFunction emulator_compute = NULL;

static int64_t *copy_of(const int64_t *values, uint64_t length) {
    int64_t *copy = calloc(length + 1, sizeof *copy);
    if (length) memcpy(copy, values, length * sizeof *copy);
    return copy;
}

static AclObject *make(ObjectKind kind) {
    AclObject *object = calloc(1, sizeof *object);
    object->kind = kind;
    return object;
}

static int destroy(AclObject *object) {
    if (object) {
        free(object->values);
        free(object->strides);
        free(object->tensors);
        free(object);
    }
    return ACL_SUCCESS;
}

AclObject *aclCreateTensor(const int64_t *sizes, uint64_t dimensions, aclDataType dtype, const int64_t *strides,
                           int64_t offset, aclFormat format, const int64_t *storage_sizes, uint64_t storage_dimensions,
                           void *data) {
    AclObject *object = make(OBJECT_TENSOR);
    object->dtype = dtype;
    object->length = (int64_t)dimensions;
    object->values = copy_of(sizes, dimensions);
    object->strides = copy_of(strides, dimensions);
    object->offset = offset;
    object->data = data;
    return object;
}

static size_t size_of(aclDataType dtype) {
    switch (dtype) {
    case ACL_INT8: case ACL_UINT8: case ACL_BOOL: return 1;
    case ACL_FLOAT16: case ACL_BF16: case ACL_INT16: case ACL_UINT16: return 2;
    case ACL_FLOAT: case ACL_INT32: case ACL_UINT32: return 4;
    case ACL_COMPLEX128: return 16;
    default: return 8;
    }
}

AclObject *aclCreateScalar(void *value, aclDataType dtype) {
    AclObject *object = make(OBJECT_SCALAR);
    object->dtype = dtype;
    memcpy(object->scalar, value, size_of(dtype));
    return object;
}

AclObject *aclCreateIntArray(const int64_t *values, uint64_t length) {
    AclObject *object = make(OBJECT_INTS);
    object->length = (int64_t)length;
    object->values = copy_of(values, length);
    return object;
}

AclObject *aclCreateTensorList(AclObject *const *tensors, uint64_t length) {
    AclObject *object = make(OBJECT_TENSORS);
    object->length = (int64_t)length;
    object->tensors = calloc(length + 1, sizeof *object->tensors);
    if (length) memcpy(object->tensors, tensors, length * sizeof *tensors);
    return object;
}

/* Passed along, and read by nothing that is emulated. */
AclObject *aclCreateFloatArray(const float *values, uint64_t length) { return make(OBJECT_OPAQUE); }
AclObject *aclCreateBoolArray(const char *values, uint64_t length) { return make(OBJECT_OPAQUE); }
AclObject *aclCreateScalarList(AclObject *const *scalars, uint64_t length) { return make(OBJECT_OPAQUE); }

int aclDestroyTensor(AclObject *object) { return destroy(object); }
int aclDestroyScalar(AclObject *object) { return destroy(object); }
int aclDestroyIntArray(AclObject *object) { return destroy(object); }
int aclDestroyFloatArray(AclObject *object) { return destroy(object); }
int aclDestroyBoolArray(AclObject *object) { return destroy(object); }
int aclDestroyScalarList(AclObject *object) { return destroy(object); }

int aclDestroyTensorList(AclObject *object) { /* owns its tensors */
    for (int64_t i = 0; object && i < object->length; i++) destroy(object->tensors[i]);
    return destroy(object);
}

/* What torch_npu's C++ calls directly: computed when asked for its workspace, so that there is nothing left to run. An
 * integer argument (the dimension of Cat) arrives in the register of a pointer, on x86-64 as on aarch64. */
#define COMPUTED(NAME)                                                                      \
    int NAME##GetWorkspaceSize(void *first, void *second, void *third, void *fourth) {      \
        void *arguments[] = {first, second, third, fourth};                                 \
        return emulator_compute ? emulator_compute(#NAME, arguments) : emulator_refuse(#NAME); \
    }                                                                                       \
    int NAME(void) { return ACL_SUCCESS; }

COMPUTED(aclnnCast)
COMPUTED(aclnnCat)
COMPUTED(aclnnConstantPadNd)
COMPUTED(aclnnInplaceCopy)
COMPUTED(aclnnInplaceFillScalar)
COMPUTED(aclnnInplaceOne)
COMPUTED(aclnnInplaceZero)

/* ---- all other names, generated ---- */
