// libhccl.so: collectives between processes of one host, under torch_npu's own ProcessGroupHCCL.
//
// Every collective has finished when the call returns. Reductions run in the order of ranks, so that results are the
// same on every rank and in every run; HCCL promises that only with HCCL_DETERMINISTIC.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

#include "communicator.h"

namespace {

Communicator &of(HcclComm comm) { return *static_cast<Communicator *>(comm); }

size_t width_of(HcclDataType type) {
    switch (type) {
    case HCCL_DATA_TYPE_INT16: case HCCL_DATA_TYPE_UINT16: return 2;
    case HCCL_DATA_TYPE_FP16: case HCCL_DATA_TYPE_BFP16: return 2;
    case HCCL_DATA_TYPE_INT32: case HCCL_DATA_TYPE_UINT32: case HCCL_DATA_TYPE_FP32: return 4;
    case HCCL_DATA_TYPE_INT64: case HCCL_DATA_TYPE_UINT64: case HCCL_DATA_TYPE_FP64: return 8;
    case HCCL_DATA_TYPE_INT128: return 16;
    default: return 1;
    }
}

struct BFloat16 {
    uint16_t bits;
    BFloat16(float value) { // to the nearest, ties to even; NaN stays NaN
        uint32_t wide;
        std::memcpy(&wide, &value, sizeof wide);
        bits = (wide & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
    }
    operator float() const {
        const uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
};

struct Float16 { // computed with in fp32, as bfloat16 is
    _Float16 value;
    Float16(float wide) : value(_Float16(wide)) {}
    operator float() const { return float(value); }
};

template <typename T>
HcclResult combine_as(void *total, const void *part, size_t count, HcclReduceOp operation) {
    T *sum = static_cast<T *>(total);
    const T *own = static_cast<const T *>(part);
    for (size_t i = 0; i < count; i++) switch (operation) {
        case HCCL_REDUCE_SUM: sum[i] = T(sum[i] + own[i]); break;
        case HCCL_REDUCE_PROD: sum[i] = T(sum[i] * own[i]); break;
        case HCCL_REDUCE_MAX: sum[i] = std::max(sum[i], own[i]); break;
        case HCCL_REDUCE_MIN: sum[i] = std::min(sum[i], own[i]); break;
        default: return HCCL_E_NOT_SUPPORT;
        }
    return HCCL_SUCCESS;
}

// total = total (operation) part, elementwise.
HcclResult combine(void *total, const void *part, size_t count, HcclDataType type, HcclReduceOp operation) {
    switch (type) {
    case HCCL_DATA_TYPE_INT8: return combine_as<int8_t>(total, part, count, operation);
    case HCCL_DATA_TYPE_UINT8: return combine_as<uint8_t>(total, part, count, operation);
    case HCCL_DATA_TYPE_INT16: return combine_as<int16_t>(total, part, count, operation);
    case HCCL_DATA_TYPE_INT32: return combine_as<int32_t>(total, part, count, operation);
    case HCCL_DATA_TYPE_INT64: return combine_as<int64_t>(total, part, count, operation);
    case HCCL_DATA_TYPE_FP16: return combine_as<Float16>(total, part, count, operation);
    case HCCL_DATA_TYPE_BFP16: return combine_as<BFloat16>(total, part, count, operation);
    case HCCL_DATA_TYPE_FP32: return combine_as<float>(total, part, count, operation);
    case HCCL_DATA_TYPE_FP64: return combine_as<double>(total, part, count, operation);
    default: return HCCL_E_NOT_SUPPORT;
    }
}

constexpr int EVERYBODY = -1;

// One slice, small enough for a slot. The result lands at `root`, or at EVERYBODY; target may be source.
HcclResult reduce_slice(Communicator &comm, const char *source, char *target, size_t count, HcclDataType type,
                        HcclReduceOp operation, int root) {
    const size_t bytes = count * width_of(type);
    std::memcpy(comm.slot(comm.rank), source, bytes);
    HcclResult result = comm.meet();
    if (result == HCCL_SUCCESS && (root == EVERYBODY || root == comm.rank)) {
        std::memcpy(target, comm.slot(0), bytes);
        for (int rank = 1; rank < comm.size && result == HCCL_SUCCESS; rank++)
            result = combine(target, comm.slot(rank), count, type, operation);
    }
    return result == HCCL_SUCCESS ? comm.meet() : result; // nobody overwrites its slot before all have read it
}

HcclResult reduce(Communicator &comm, const void *source, void *target, size_t count, HcclDataType type,
                  HcclReduceOp operation, int root) {
    const size_t width = width_of(type), most = SLOT_BYTES / width;
    HcclResult result = HCCL_SUCCESS;
    for (size_t done = 0; done < count && result == HCCL_SUCCESS; done += most)
        result = reduce_slice(comm, static_cast<const char *>(source) + done * width,
                              static_cast<char *>(target) + done * width, std::min(count - done, most), type, operation,
                              root);
    return result;
}

// The parts of a buffer that belong to the ranks, in elements.
struct Parts {
    std::vector<uint64_t> counts, starts;

    Parts(int size, uint64_t count) {
        for (int rank = 0; rank < size; rank++) counts.push_back(count), starts.push_back(rank * count);
    }
    Parts(int size, const void *counts, const void *starts)
        : counts(static_cast<const uint64_t *>(counts), static_cast<const uint64_t *>(counts) + size),
          starts(static_cast<const uint64_t *>(starts), static_cast<const uint64_t *>(starts) + size) {}
};

HcclResult scatter_reduced(Communicator &comm, const void *source, void *target, const Parts &parts, HcclDataType type,
                           HcclReduceOp operation) {
    const size_t width = width_of(type), own = parts.counts[comm.rank] * width;
    std::vector<char> kept(own); // target may lie within source, of which later parts are still to be read
    HcclResult result = HCCL_SUCCESS;
    for (int rank = 0; rank < comm.size && result == HCCL_SUCCESS; rank++)
        result = reduce(comm, static_cast<const char *>(source) + parts.starts[rank] * width, kept.data(),
                        parts.counts[rank], type, operation, rank);
    std::memcpy(target, kept.data(), own);
    return result;
}

// Part r of `send` goes to rank r; part r of `receive` comes from there.
HcclResult all_to_all(Communicator &comm, const void *source, const Parts &send, size_t send_width, const void *target,
                      const Parts &receive, size_t receive_width) {
    char *from = static_cast<char *>(const_cast<void *>(source)), *to = static_cast<char *>(const_cast<void *>(target));
    std::vector<Transfer> transfers;
    for (int rank = 0; rank < comm.size; rank++) {
        transfers.push_back({Direction::Outgoing, rank, from + send.starts[rank] * send_width,
                             send.counts[rank] * send_width});
        transfers.push_back({Direction::Incoming, rank, to + receive.starts[rank] * receive_width,
                             receive.counts[rank] * receive_width});
    }
    return comm.exchange(transfers);
}

HcclResult gather(Communicator &comm, const void *source, uint64_t count, void *target, const Parts &receive,
                  HcclDataType type) {
    const size_t width = width_of(type);
    const char *start = static_cast<const char *>(source);
    const std::vector<char> copy(start, start + count * width); // source may lie within target
    Parts send(comm.size, count);
    std::fill(send.starts.begin(), send.starts.end(), 0); // everybody gets the same
    return all_to_all(comm, copy.data(), send, width, target, receive, width);
}

// Sends and receives between HcclGroupStart and HcclGroupEnd are carried out together, at the end.
thread_local int group_depth = 0;
thread_local std::vector<std::pair<Communicator *, Transfer>> grouped;

HcclResult send_or_receive(Communicator &comm, Transfer transfer) {
    if (group_depth == 0) return comm.exchange({transfer});
    grouped.emplace_back(&comm, transfer);
    return HCCL_SUCCESS;
}

} // namespace

// ---- the interface; hccl.h declares it, with C linkage ----

HcclResult HcclAllReduce(void *source, void *target, uint64_t count, HcclDataType type, HcclReduceOp operation,
                         HcclComm comm, aclrtStream) {
    return reduce(of(comm), source, target, count, type, operation, EVERYBODY);
}

HcclResult HcclReduce(void *source, void *target, uint64_t count, HcclDataType type, HcclReduceOp operation,
                      uint32_t root, HcclComm comm, aclrtStream) {
    return reduce(of(comm), source, target, count, type, operation, int(root));
}

HcclResult HcclReduceScatter(void *source, void *target, uint64_t count, HcclDataType type, HcclReduceOp operation,
                             HcclComm comm, aclrtStream) {
    return scatter_reduced(of(comm), source, target, Parts(of(comm).size, count), type, operation);
}

HcclResult HcclReduceScatterV(void *source, const void *counts, const void *starts, void *target, uint64_t,
                              HcclDataType type, HcclReduceOp operation, HcclComm comm, aclrtStream) {
    return scatter_reduced(of(comm), source, target, Parts(of(comm).size, counts, starts), type, operation);
}

HcclResult HcclBroadcast(void *buffer, uint64_t count, HcclDataType type, uint32_t root, HcclComm handle, aclrtStream) {
    Communicator &comm = of(handle);
    char *data = static_cast<char *>(buffer);
    const bool sends = comm.rank == int(root);
    for (size_t left = count * width_of(type), piece; left; data += piece, left -= piece) {
        piece = std::min(left, SLOT_BYTES);
        if (sends) std::memcpy(comm.slot(0), data, piece);
        if (HcclResult result = comm.meet()) return result;
        if (!sends) std::memcpy(data, comm.slot(0), piece);
        if (HcclResult result = comm.meet()) return result;
    }
    return HCCL_SUCCESS;
}

HcclResult HcclAllGather(void *source, void *target, uint64_t count, HcclDataType type, HcclComm comm, aclrtStream) {
    return gather(of(comm), source, count, target, Parts(of(comm).size, count), type);
}

HcclResult HcclAllGatherV(void *source, uint64_t count, void *target, const void *counts, const void *starts,
                          HcclDataType type, HcclComm comm, aclrtStream) {
    return gather(of(comm), source, count, target, Parts(of(comm).size, counts, starts), type);
}

HcclResult HcclAlltoAll(const void *source, uint64_t send_count, HcclDataType send_type, const void *target,
                        uint64_t receive_count, HcclDataType receive_type, HcclComm comm, aclrtStream) {
    const int size = of(comm).size;
    return all_to_all(of(comm), source, Parts(size, send_count), width_of(send_type), target,
                      Parts(size, receive_count), width_of(receive_type));
}

HcclResult HcclAlltoAllV(const void *source, const void *send_counts, const void *send_starts, HcclDataType send_type,
                         const void *target, const void *receive_counts, const void *receive_starts,
                         HcclDataType receive_type, HcclComm comm, aclrtStream) {
    const int size = of(comm).size;
    return all_to_all(of(comm), source, Parts(size, send_counts, send_starts), width_of(send_type), target,
                      Parts(size, receive_counts, receive_starts), width_of(receive_type));
}

HcclResult HcclScatter(void *source, void *target, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm,
                       aclrtStream) {
    const size_t bytes = count * width_of(type);
    std::vector<Transfer> transfers{{Direction::Incoming, int(root), static_cast<char *>(target), bytes}};
    for (int rank = 0; of(comm).rank == int(root) && rank < of(comm).size; rank++)
        transfers.push_back({Direction::Outgoing, rank, static_cast<char *>(source) + rank * bytes, bytes});
    return of(comm).exchange(transfers);
}

HcclResult HcclSend(void *buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm, aclrtStream) {
    const size_t bytes = count * width_of(type);
    return send_or_receive(of(comm), {Direction::Outgoing, int(peer), static_cast<char *>(buffer), bytes});
}

HcclResult HcclRecv(void *buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm, aclrtStream) {
    const size_t bytes = count * width_of(type);
    return send_or_receive(of(comm), {Direction::Incoming, int(peer), static_cast<char *>(buffer), bytes});
}

// torch_npu looks these two up in libhcomm.so, which is linked against this library.
extern "C" HcclResult HcclGroupStart() {
    group_depth++;
    return HCCL_SUCCESS;
}

extern "C" HcclResult HcclGroupEnd() {
    if (--group_depth > 0) return HCCL_SUCCESS;
    std::map<Communicator *, std::vector<Transfer>> by_communicator;
    for (auto &[comm, transfer] : grouped) by_communicator[comm].push_back(transfer);
    grouped.clear();
    HcclResult result = HCCL_SUCCESS;
    for (auto &[comm, transfers] : by_communicator)
        if (result == HCCL_SUCCESS) result = comm->exchange(transfers);
    return result;
}

HcclResult HcclBatchSendRecv(HcclSendRecvItem *items, uint32_t count, HcclComm comm, aclrtStream) {
    std::vector<Transfer> transfers;
    for (const HcclSendRecvItem *item = items; item < items + count; item++)
        transfers.push_back({item->sendRecvType == HCCL_SEND ? Direction::Outgoing : Direction::Incoming,
                             int(item->remoteRank), static_cast<char *>(item->buf),
                             item->count * width_of(item->dataType)});
    return of(comm).exchange(transfers);
}

HcclResult HcclBarrier(HcclComm comm, aclrtStream) { return of(comm).meet(); }

HcclResult HcclGetRootInfo(HcclRootInfo *root) { // the name of a segment that nobody else uses
    static std::atomic<int> number;
    const long long now = std::chrono::system_clock::now().time_since_epoch().count();
    std::memset(root, 0, sizeof *root);
    std::snprintf(root->internal, 64, "/ascend_%d_%d_%llx", int(getpid()), number++, now);
    return HCCL_SUCCESS;
}

HcclResult HcclCommInitRootInfo(uint32_t size, const HcclRootInfo *root, uint32_t rank, HcclComm *comm) {
    return Communicator::open(root->internal, int(size), int(rank), comm);
}

HcclResult HcclCommInitRootInfoConfig(uint32_t size, const HcclRootInfo *root, uint32_t rank, const HcclCommConfig *,
                                      HcclComm *comm) {
    return HcclCommInitRootInfo(size, root, rank, comm);
}

HcclResult HcclCreateSubCommConfig(HcclComm *parent, uint32_t size, uint32_t *, uint64_t id, uint32_t rank,
                                   HcclCommConfig *, HcclComm *comm) {
    return Communicator::open(of(*parent).name + "_" + std::to_string(id), int(size), int(rank), comm);
}

HcclResult HcclCommDestroy(HcclComm comm) {
    delete &of(comm);
    return HCCL_SUCCESS;
}

HcclResult HcclGetCommName(HcclComm comm, char *name) {
    std::strcpy(name, of(comm).name.c_str() + 1); // without the slash that shared memory wants
    return HCCL_SUCCESS;
}

HcclResult HcclGetCommAsyncError(HcclComm, HcclResult *error) {
    *error = HCCL_SUCCESS;
    return HCCL_SUCCESS;
}

HcclResult HcclGetRankId(HcclComm comm, uint32_t *rank) {
    *rank = uint32_t(of(comm).rank);
    return HCCL_SUCCESS;
}

HcclResult HcclGetRankSize(HcclComm comm, uint32_t *size) {
    *size = uint32_t(of(comm).size);
    return HCCL_SUCCESS;
}

uint32_t HcclGetCommConfigCapability() { return 0; }

HcclResult HcclSetConfig(HcclConfig, HcclConfigValue) { return HCCL_SUCCESS; }

HcclResult HcclGetConfig(HcclConfig, HcclConfigValue *value) {
    value->value = 0;
    return HCCL_SUCCESS;
}

const char *HcclGetErrorString(HcclResult) { return "an error of ascend_emulator's HCCL; see stderr"; }
