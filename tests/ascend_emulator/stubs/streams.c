/* Streams are synchronous: whatever is queued has been done when the call returns. Events are clocks. */
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "acl/acl.h"

aclError aclrtCreateStream(aclrtStream *stream) {
    static atomic_int next = 1;
    int *id = malloc(sizeof *id);
    *id = atomic_fetch_add(&next, 1);
    *stream = id;
    return ACL_SUCCESS;
}

aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flags) {
    return aclrtCreateStream(stream);
}

aclError aclrtDestroyStream(aclrtStream stream) {
    free(stream);
    return ACL_SUCCESS;
}

aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }

aclError aclrtStreamGetId(aclrtStream stream, int32_t *id) {
    *id = stream ? *(int *)stream : 0;
    return ACL_SUCCESS;
}

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status) {
    *status = ACL_STREAM_STATUS_COMPLETE;
    return ACL_SUCCESS;
}

aclError aclrtGetStreamOverflowSwitch(aclrtStream stream, uint32_t *flag) {
    *flag = 0;
    return ACL_SUCCESS;
}

aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void *argument) {
    function(argument);
    return ACL_SUCCESS;
}

aclError aclrtLaunchCallback(aclrtCallback function, void *argument, aclrtCallbackBlockType block,
                             aclrtStream stream) {
    function(argument);
    return ACL_SUCCESS;
}

typedef struct {
    uint64_t microseconds;
} Event;

aclError aclrtCreateEvent(aclrtEvent *event) {
    *event = calloc(1, sizeof(Event));
    return ACL_SUCCESS;
}

aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flag) { return aclrtCreateEvent(event); }
aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flag) { return aclrtCreateEvent(event); }

aclError aclrtDestroyEvent(aclrtEvent event) {
    free(event);
    return ACL_SUCCESS;
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ((Event *)event)->microseconds = now.tv_sec * 1000000ull + now.tv_nsec / 1000;
    return ACL_SUCCESS;
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status) {
    *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
    return ACL_SUCCESS;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus *status) {
    *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
    return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start, aclrtEvent end) {
    *milliseconds = (float)((int64_t)((Event *)end)->microseconds - (int64_t)((Event *)start)->microseconds) / 1000;
    return ACL_SUCCESS;
}

aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t *timestamp) {
    *timestamp = ((Event *)event)->microseconds;
    return ACL_SUCCESS;
}
