/* What the stub libraries share among themselves and with the torch extension. */
#ifndef ASCEND_EMULATOR_H
#define ASCEND_EMULATOR_H

#include <stddef.h>
#include <stdint.h>

enum { EMULATOR_MAX_DEVICES = 64 };

#ifdef __cplusplus
extern "C" {
#endif

/* An operator or feature that nobody emulates was reached. Notes `name` for aclGetRecentErrMsg and returns an error
 * code, except while torch_npu's own kernel runs as an oracle: then it returns success, and nothing is computed. */
int emulator_refuse(const char *name);

/* Brackets the run of an oracle, in this thread; may be nested. */
void emulator_oracle_enter(void);
void emulator_oracle_leave(void);

int emulator_current_device(void); /* -1 where neither this thread nor the process has chosen one */
size_t emulator_memory_size(void); /* bytes of every device */

/* aclTensor, aclScalar and their lists, as libopapi.so makes them. CANN keeps their layout to itself, so it is ours. */
typedef enum { OBJECT_TENSOR, OBJECT_SCALAR, OBJECT_INTS, OBJECT_TENSORS, OBJECT_OPAQUE } ObjectKind;

typedef struct AclObject {
    ObjectKind kind;
    int dtype;                  /* an aclDataType; tensors and scalars */
    int64_t length;             /* dimensions of a tensor, entries of a list */
    int64_t *values;            /* sizes of a tensor, entries of a list of integers */
    int64_t *strides;           /* in elements */
    int64_t offset;             /* in elements */
    void *data;
    struct AclObject **tensors; /* entries of a list of tensors */
    char scalar[16];            /* the value of a scalar, of type dtype */
} AclObject;

/* The aclnn operators that torch_npu's C++ calls past the dispatcher, where no kernel of the emulator can stand in its
 * way, are computed by the torch extension, which puts its function here. Returns 0, or an error code. */
typedef int (*ComputeFunction)(const char *name, void **arguments);
extern ComputeFunction emulator_compute;

#ifdef __cplusplus
}
#endif
#endif
