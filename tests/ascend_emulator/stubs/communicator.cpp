#include "communicator.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// These two live in the segment. A new segment is all zeros, which is how both have to start.
struct Meeting {
    std::atomic<unsigned> arrived, sense;
};

struct Mailbox {
    std::atomic<bool> full;
    size_t bytes;
    char data[1 << 16];
};

namespace {

constexpr size_t PAGE = 4096;

// Gives the processor away while there is nothing to do, and gives up after the timeout, as when another rank has died.
class Patience {
public:
    bool wait() {
        if (turns++ == 0) since = Clock::now();
        if (turns < 200) {
            sched_yield();
            return true;
        }
        usleep(50);
        if (std::chrono::duration<double>(Clock::now() - since).count() < timeout()) return true;
        std::fprintf(stderr, "ascend_emulator: waited %g s for another rank of this communicator\n", timeout());
        return false;
    }
    void reset() { turns = 0; }

private:
    using Clock = std::chrono::steady_clock;
    static double timeout() {
        const char *value = std::getenv("ASCEND_EMULATOR_HCCL_TIMEOUT");
        return value && *value ? std::atof(value) : 600;
    }
    Clock::time_point since;
    int turns = 0;
};

// Two transfers of one direction with one peer go through the same mailbox, so the earlier one has to finish first.
bool is_first_of_its_way(const std::vector<Transfer> &transfers, const Transfer &transfer) {
    for (const Transfer &other : transfers) {
        if (&other == &transfer) return true;
        if (other.bytes && other.direction == transfer.direction && other.peer == transfer.peer) return false;
    }
    return true;
}

} // namespace

HcclResult Communicator::meet() {
    Patience patience;
    sense ^= 1;
    if (meeting->arrived.fetch_add(1) + 1 == unsigned(size)) {
        meeting->arrived = 0;
        meeting->sense = sense; // lets the others go
        return HCCL_SUCCESS;
    }
    while (meeting->sense != sense)
        if (!patience.wait()) return HCCL_E_TIMEOUT;
    return HCCL_SUCCESS;
}

// Moves one piece through the mailbox, if it is in the right state for that; tells whether it was.
bool Communicator::advance(Transfer &transfer) {
    const bool outgoing = transfer.direction == Direction::Outgoing;
    Mailbox &box = mailboxes[outgoing ? rank * size + transfer.peer : transfer.peer * size + rank];
    if (box.full == outgoing) return false;
    if (outgoing) {
        box.bytes = std::min(transfer.bytes, sizeof box.data);
        std::memcpy(box.data, transfer.data, box.bytes);
    } else {
        std::memcpy(transfer.data, box.data, box.bytes);
    }
    transfer.data += box.bytes;
    transfer.bytes -= box.bytes;
    box.full = outgoing;
    return true;
}

HcclResult Communicator::exchange(std::vector<Transfer> transfers) {
    Patience patience;
    for (;;) {
        bool unfinished = false, moved = false;
        for (Transfer &transfer : transfers) {
            if (!transfer.bytes) continue;
            unfinished = true;
            if (is_first_of_its_way(transfers, transfer) && advance(transfer)) moved = true;
        }
        if (!unfinished) return HCCL_SUCCESS;
        if (moved) patience.reset();
        else if (!patience.wait()) return HCCL_E_TIMEOUT;
    }
}

bool Communicator::map() {
    const size_t mail = sizeof(Mailbox) * size * size;
    bytes = PAGE + size * SLOT_BYTES + mail;
    const int file = shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
    void *start = MAP_FAILED;
    if (file >= 0 && ftruncate(file, off_t(bytes)) == 0)
        start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (start == MAP_FAILED) return false;
    meeting = static_cast<Meeting *>(start);
    slots = static_cast<char *>(start) + PAGE;
    mailboxes = reinterpret_cast<Mailbox *>(slots + size * SLOT_BYTES);
    return true;
}

HcclResult Communicator::open(const std::string &name, int size, int rank, HcclComm *out) {
    auto *comm = new Communicator(name, size, rank);
    if (!comm->map()) {
        std::fprintf(stderr, "ascend_emulator: no %zu bytes of shared memory: is /dev/shm full?\n", comm->bytes);
        delete comm;
        return HCCL_E_SYSCALL;
    }
    const HcclResult result = comm->meet();
    if (rank == 0) shm_unlink(name.c_str()); // all have it mapped by now: no file outlives the processes
    *out = comm;
    return result;
}

Communicator::~Communicator() {
    if (meeting) munmap(meeting, bytes);
}
