// How the ranks of one communicator meet: a segment of POSIX shared memory with a barrier, a slot for each rank and a
// mailbox for each pair of ranks. One host only.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "third_party/hccl/inc/hccl/hccl.h"

constexpr size_t SLOT_BYTES = 1 << 20;

enum class Direction { Outgoing, Incoming };

// What is still to be moved between this rank and a peer.
struct Transfer {
    Direction direction;
    int peer;
    char *data;
    size_t bytes;
};

class Communicator {
public:
    const int size, rank;
    const std::string name;

    // Joins the communicator of that name; returns once all ranks have.
    static HcclResult open(const std::string &name, int size, int rank, HcclComm *out);
    ~Communicator();

    // Waits until every rank is here; what each wrote before is then visible to all.
    HcclResult meet();

    // Carries out all transfers together, whatever their order, so that no two ranks wait for each other forever.
    HcclResult exchange(std::vector<Transfer> transfers);

    char *slot(int of_rank) const { return slots + of_rank * SLOT_BYTES; }

private:
    Communicator(const std::string &name, int size, int rank) : size(size), rank(rank), name(name) {}
    bool map();
    bool advance(Transfer &transfer);

    size_t bytes = 0; // of the whole segment, which holds:
    struct Meeting *meeting = nullptr;
    char *slots = nullptr;              // SLOT_BYTES for each rank
    struct Mailbox *mailboxes = nullptr; // [from][to]
    unsigned sense = 0;                 // this rank's side of the sense-reversing barrier
};
