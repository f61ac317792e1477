// A GPU that runs one block after the other, on one thread of a CPU. What it must not forgive throws: a deadlock, an address outside a
// block's memory, a copy from outside p and q, lanes of a warp in different instructions.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace bayesrm::emulator {

struct Block;
struct Warp;

struct Index {
    unsigned x;
};

struct Copy {
    uint32_t to;
    const void* from;  // null: zeros
};

// A thread of the GPU.
struct Fiber {
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    Block* block;
    Warp* warp;
    Index thread_index;
    int lane;
    bool done = false;
    bool (*ready)(const void*) = nullptr;  // null: it can run
    const void* ready_state = nullptr;
    std::vector<Copy> copies;     // asked for, not sent yet
    int64_t sent = 0;             // groups of them
    std::set<int64_t> under_way;  // groups that have not arrived
};

Fiber& running();
void yield_until(bool (*ready)(const void*), const void* state);

template <class Ready>
void wait_until(const Ready& ready) {
    if (!ready()) yield_until([](const void* state) { return (*static_cast<const Ready*>(state))(); }, &ready);
}

// Where `count` threads wait for each other; the last one runs `act` for all.
struct Meeting {
    int arrived = 0;
    int64_t turn = 0;

    template <class Act>
    void meet(int count, const Act& act) {
        if (++arrived == count) {
            act();
            arrived = 0;
            ++turn;
        } else {
            const int64_t mine = turn;
            wait_until([this, mine] { return turn != mine; });
        }
    }
};

struct Warp {
    struct Offer {
        void* to;
        uint32_t address;
    };
    std::vector<Fiber*> lanes;
    Offer offers[32];
    Meeting meeting;
    const void* instruction = nullptr;

    void offer(void* to, uint32_t address) { offers[running().lane] = {to, address}; }

    template <class Act>
    void meet(const Act& act) {
        static const char here = 0;  // one for each kind of instruction
        if (meeting.arrived > 0 && instruction != &here) throw std::logic_error("a warp's lanes are at different places");
        instruction = &here;
        meeting.meet(static_cast<int>(lanes.size()), act);
    }
};

struct Mbarrier {
    int count, pending;
    int64_t bytes = 0, phase = 0;

    void arrive() {
        if (--pending < 0) throw std::logic_error("more arrivals than a barrier expects");
        complete();
    }
    void receive(int64_t received) {
        bytes -= received;
        complete();
    }

  private:
    void complete() {
        if (pending > 0 || bytes != 0) return;
        pending = count;
        ++phase;
    }
};

struct Block {
    std::vector<unsigned char> memory;
    std::map<int, Meeting> named;
    std::map<uint32_t, Mbarrier> barriers;
    Index index, grid;
    int running = 0;  // threads

    unsigned char* at(uint32_t address, uint32_t bytes) {
        if (address % bytes != 0) throw std::logic_error("a misaligned address in shared memory");
        if (address + bytes > memory.size()) throw std::logic_error("an address beyond shared memory");
        return memory.data() + address;
    }
    uint32_t address(const unsigned char* pointer) {
        if (pointer < memory.data() || pointer > memory.data() + memory.size())
            throw std::logic_error("a pointer that is not into shared memory");
        return static_cast<uint32_t>(pointer - memory.data());
    }
    Mbarrier& barrier(uint32_t address) {
        const auto found = barriers.find(address);
        if (found == barriers.end()) throw std::logic_error("a barrier that was not initialised");
        return found->second;
    }
    void poison() {
        const float nan = std::nanf("");
        for (size_t i = 0; i + 4 <= memory.size(); i += 4) std::memcpy(&memory[i], &nan, 4);
    }
};

// What the copy engine knows of a bfloat16 array.
struct Matrix {
    const uint16_t* data;
    int64_t rows, columns;
    int box_rows, box_columns;
};

// Bytes on their way into a block's shared memory.
struct Transfer {
    std::function<void()> land;
};

inline uint16_t bf16(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// c + Σ a_i b_i (16 of them) as a matrix unit adds: every addend cut off below 2⁻²⁴ of the largest, the sum cut to float.
inline float truncated_sum(float c, const float* a, const float* b, int b_step) {
    double addends[17] = {c}, plain = c, largest = std::abs(c);
    for (int i = 0; i < 16; ++i) {
        addends[i + 1] = double(a[i]) * b[i * b_step];
        plain += addends[i + 1];
        largest = std::max(largest, std::abs(addends[i + 1]));
    }
    if (!std::isfinite(plain) || largest == 0) return static_cast<float>(plain);
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 24);
    double sum = 0;
    for (const double addend : addends) sum += std::trunc(addend / unit) * unit;
    const auto nearest = static_cast<float>(sum);
    return std::abs(nearest) > std::abs(sum) ? std::nextafterf(nearest, 0.0f) : nearest;
}

class Machine {
  public:
    static Machine& the();

    // Sources that copies may read, and the order of everything.
    void begin(uint64_t seed, std::vector<std::pair<const void*, size_t>> sources);
    void launch(int blocks, int threads, size_t bytes, const std::function<void()>& kernel);

    void check_source(const void* from, size_t bytes, bool live) const;
    void send_copies(uint32_t barrier);  // 0: none is told
    void send_box(uint32_t to, const Matrix& matrix, int column, int row, uint32_t barrier);

    Fiber* current = nullptr;
    ucontext_t scheduler;
    const std::function<void()>* kernel = nullptr;

  private:
    void run_block(int index, int grid, int threads, size_t bytes);
    bool step(Warp& warp);
    bool land_some(double share);
    bool chance(double share) { return std::uniform_real_distribution<>()(random_) < share; }

    std::mt19937_64 random_;
    std::vector<std::pair<const void*, size_t>> sources_;
    std::vector<Transfer> transfers_;
    std::string failure_;
    friend void enter();
};

}  // namespace bayesrm::emulator
