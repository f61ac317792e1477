#include "emulator.h"

namespace bayesrm::emulator {

constexpr size_t kStack = 128 * 1024;

Machine& Machine::the() {
    static Machine machine;
    return machine;
}

Fiber& running() { return *Machine::the().current; }

void yield_until(bool (*ready)(const void*), const void* state) {
    Fiber& fiber = running();
    fiber.ready = ready;
    fiber.ready_state = state;
    swapcontext(&fiber.context, &Machine::the().scheduler);
}

// A fiber's first function. An exception may not leave a fiber's stack, so that it ends here and the scheduler throws it anew.
void enter() {
    Machine& machine = Machine::the();
    try {
        (*machine.kernel)();
    } catch (const std::exception& error) {
        machine.failure_ = error.what();
    }
    machine.current->done = true;
    --machine.current->block->running;
    swapcontext(&machine.current->context, &machine.scheduler);
}

void Machine::begin(uint64_t seed, std::vector<std::pair<const void*, size_t>> sources) {
    random_.seed(seed);
    sources_ = std::move(sources);
    transfers_.clear();
    failure_.clear();
}

void Machine::check_source(const void* from, size_t bytes, bool live) const {
    if (!live) return;
    const auto* at = static_cast<const unsigned char*>(from);
    for (const auto& [start, size] : sources_) {
        const auto* first = static_cast<const unsigned char*>(start);
        if (at >= first && at + bytes <= first + size && (at - first) % bytes == 0) return;
    }
    throw std::logic_error("a copy from outside its source, or misaligned");
}

void Machine::send_copies(uint32_t barrier) {
    Fiber& fiber = running();
    const int64_t group = fiber.sent++;
    if (fiber.copies.empty() && barrier == 0) return;
    fiber.under_way.insert(group);
    transfers_.push_back({[&fiber, group, barrier, copies = std::move(fiber.copies)] {
        for (const Copy& copy : copies) {
            unsigned char* to = fiber.block->at(copy.to, 16);
            copy.from == nullptr ? std::memset(to, 0, 16) : std::memcpy(to, copy.from, 16);
        }
        fiber.under_way.erase(group);
        if (barrier != 0) fiber.block->barrier(barrier).arrive();
    }});
    fiber.copies.clear();
}

void Machine::send_box(uint32_t to, const Matrix& matrix, int column, int row, uint32_t barrier) {
    Block& block = *running().block;
    if (matrix.box_columns != 64 || to % 1024 != 0) throw std::logic_error("a box that the 128-byte swizzle does not take");
    transfers_.push_back({[&block, to, &matrix, column, row, barrier] {
        for (int i = 0; i < matrix.box_rows; ++i)
            for (int j = 0; j < 64; ++j) {
                const int64_t from_row = row + i, from_column = column + j;
                const bool inside = from_row >= 0 && from_row < matrix.rows && from_column < matrix.columns;
                const uint16_t value = inside ? matrix.data[from_row * matrix.columns + from_column] : 0;
                const uint32_t plain = to + (i * 64 + j) * 2;
                std::memcpy(block.at(plain ^ (plain >> 7 & 7) << 4, 2), &value, 2);
            }
        block.barrier(barrier).receive(matrix.box_rows * 128);
    }});
}

bool Machine::land_some(double share) {
    bool landed = false;
    std::shuffle(transfers_.begin(), transfers_.end(), random_);
    for (size_t left = transfers_.size(); left > 0 && chance(share); --left) {
        transfers_.back().land();
        transfers_.pop_back();
        landed = true;
    }
    return landed;
}

// Runs each lane of a warp until it waits.
bool Machine::step(Warp& warp) {
    bool moved = false;
    for (Fiber* fiber : warp.lanes) {
        if (fiber->done || (fiber->ready != nullptr && !fiber->ready(fiber->ready_state))) continue;
        fiber->ready = nullptr;
        current = fiber;
        swapcontext(&scheduler, &fiber->context);
        if (!failure_.empty()) throw std::logic_error(failure_);
        moved = true;
    }
    return moved;
}

void Machine::run_block(int index, int grid, int threads, size_t bytes) {
    Block block;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<std::unique_ptr<Warp>> warps;
    block.memory.resize(bytes);
    block.poison();
    block.index = {unsigned(index)};
    block.grid = {unsigned(grid)};
    block.running = threads;
    for (int thread = 0; thread < threads; ++thread) {
        if (thread % 32 == 0) warps.push_back(std::make_unique<Warp>());
        Fiber& fiber = *fibers.emplace_back(std::make_unique<Fiber>());
        fiber.stack = std::make_unique_for_overwrite<unsigned char[]>(kStack);
        fiber.block = &block;
        fiber.warp = warps.back().get();
        fiber.thread_index = {unsigned(thread)};
        fiber.lane = thread % 32;
        fiber.warp->lanes.push_back(&fiber);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        makecontext(&fiber.context, enter, 0);
    }
    while (block.running > 0) {
        bool moved = false;
        std::shuffle(warps.begin(), warps.end(), random_);
        for (const auto& warp : warps)
            if (chance(0.7)) moved |= step(*warp);
        moved |= land_some(0.9);
        if (moved) continue;
        for (const auto& warp : warps) moved |= step(*warp);
        if (!moved && !land_some(1.0)) throw std::logic_error("a deadlock");
    }
    if (!transfers_.empty()) throw std::logic_error("copies are still under way when their block ends");
}

void Machine::launch(int grid, int threads, size_t bytes, const std::function<void()>& body) {
    kernel = &body;
    for (int index = 0; index < grid; ++index) run_block(index, grid, threads, bytes);
}

}  // namespace bayesrm::emulator
