// The Verilated accelerator with its memory and its register bus, behind a C API for Python (ctypes).
//
// One cycle: the memory model drives its signals, the design settles with the clock low, handshakes are
// observed and checked, then the clock rises. The model accepts addresses every cycle and answers one beat a
// cycle from the next cycle on, burst after burst without a gap, unless `Timing` slows it down. Writes reach
// memory when their response is given: the latest moment the standard allows, so a design that reads its
// own results too early is found out.
//
// Checked while running (AMBA AXI, IHI 0022: A3.2.1, A3.4.1, A5): valid stays and its payload is stable until
// ready, bursts are aligned INCR bursts of whole beats within 4 KiB, WLAST marks exactly the last beat.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "Vlepton_core.h"
#include "Vlepton_core___024root.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
#endif

namespace {

using Top = Vlepton_core;

constexpr uint32_t kBeatBytes = sizeof(Top::m_axi_rdata);
constexpr uint32_t kUnits = sizeof(Vlepton_core___024root::lepton_core__DOT__engine__DOT__activity) / 4;
constexpr uint64_t kPage = 4096;
constexpr uint32_t kBeatCredit = 256;  // what one beat takes from a bandwidth bucket
constexpr size_t kEarlyBeats = 16;     // write beats accepted ahead of their address
constexpr uint64_t kRegisterCycles = 1000;
constexpr uint32_t kResetCycles = 16;

enum Status : int { kLimit = 0, kInterrupt = 1, kViolation = 2, kRegisterHang = 3, kRegisterError = 4 };
enum Response : uint8_t { kOkay = 0, kSlverr = 2, kDecerr = 3, kHang = 4 };
enum Stall { kAr, kR, kAw, kW, kB };

extern "C" struct Timing {
    uint32_t read_latency;       // cycles from an address to its first beat, beyond the next cycle
    uint32_t write_latency;      // cycles from a last beat to its response, beyond the next cycle
    uint32_t read_bandwidth;     // beats in 256 cycles
    uint32_t write_bandwidth;
    uint32_t read_outstanding;   // bursts
    uint32_t write_outstanding;
    uint32_t refresh_period;     // cycles; 0: none
    uint32_t refresh_cycles;     // without data at the end of each period
    uint32_t shared_bus;         // reads and writes together move one beat a cycle and share read_bandwidth
    uint32_t stall[5];           // chance of a stall in a cycle, in 1/256, for AR, R, AW, W, B
};

// What a unit did for a command; cycles are those of the harness.
extern "C" struct Activity {
    uint64_t begin, end;
    uint32_t unit, command;
};

struct Fault {
    uint64_t begin, end;
    bool write;
    uint8_t response;
};

struct ReadBurst {
    uint64_t address, ready_at;
    uint32_t left;
    uint8_t id;
    bool plain;  // inside memory, no fault
    bool hang;
};

struct WriteBurst {
    uint64_t address;
    uint64_t ready_at = UINT64_MAX;  // of the response; set by the last beat
    uint32_t beats, received = 0;
    uint8_t id;
    std::array<uint8_t, kPage> data;
    std::array<uint64_t, kPage / kBeatBytes> strobe;
};

struct WriteBeat {
    std::array<uint8_t, kBeatBytes> data;
    uint64_t strobe;
    bool last;
    bool operator==(const WriteBeat& o) const { return strobe == o.strobe && last == o.last && data == o.data; }
};

struct Address {
    uint64_t address;
    uint32_t beats;
    uint8_t size, burst, id;
    bool operator==(const Address& o) const {
        return address == o.address && beats == o.beats && size == o.size && burst == o.burst && id == o.id;
    }
};

// What a channel offered last cycle without being accepted.
template <typename Payload>
struct Waiting {
    bool valid = false;
    Payload payload;
};

class Core {
  public:
    Core(uint8_t* memory, uint64_t bytes, uint64_t base, const Timing& timing, uint64_t seed, const char* trace,
         uint64_t trace_begin, uint64_t trace_end)
        : memory_(memory), bytes_(bytes), base_(base), timing_(timing), random_(seed * 0x9E3779B97F4A7C15ULL | 1),
          trace_begin_(trace_begin), trace_end_(trace_end) {
        context_ = std::make_unique<VerilatedContext>();
        context_->randReset(2);
        context_->randSeed(static_cast<int>(seed % 0x7FFFFFFF) + 1);
        context_->traceEverOn(trace != nullptr);
        top_ = std::make_unique<Top>(context_.get(), "lepton_core");
#if VM_TRACE_FST
        if (trace) {
            fst_ = std::make_unique<VerilatedFstC>();
            top_->trace(fst_.get(), 99);
            fst_->open(trace);
        }
#endif
        reset();
    }

    ~Core() {
#if VM_TRACE_FST
        if (fst_) fst_->close();
#endif
        // What the design leaves is looked up in the thread's context, by default that of the core opened last.
        Verilated::threadContextp(context_.get());
        top_->final();
    }

    void reset() {
        reads_.clear();
        writes_.clear();
        early_.clear();
        complete_ = 0;
        ar_.valid = aw_.valid = w_.valid = false;
        read_credit_ = write_credit_ = kBeatCredit;
        r_valid_ = b_valid_ = false;
        violation_.clear();
        Top& t = *top_;
        t.ap_rst_n = 0;
        t.m_axi_arready = t.m_axi_awready = t.m_axi_wready = t.m_axi_rvalid = t.m_axi_bvalid = 0;
        t.s_axi_control_awvalid = t.s_axi_control_wvalid = t.s_axi_control_arvalid = 0;
        t.s_axi_control_bready = t.s_axi_control_rready = 0;
        for (uint32_t i = 0; i < kResetCycles; ++i) {
            low();
            high();
        }
        if (t.m_axi_arvalid || t.m_axi_awvalid || t.m_axi_wvalid || t.s_axi_control_bvalid || t.s_axi_control_rvalid)
            violation("reset: every valid must be low");
        t.ap_rst_n = 1;
    }

    int run(uint64_t cycles, bool until_interrupt) {
        for (uint64_t i = 0; i < cycles; ++i) {
            if (until_interrupt && interrupt()) return kInterrupt;
            step();
            if (!violation_.empty()) return kViolation;
        }
        return until_interrupt && interrupt() ? kInterrupt : kLimit;
    }

    int read_register(uint32_t offset, uint32_t* value) {
        Top& t = *top_;
        t.s_axi_control_araddr = offset;
        t.s_axi_control_arvalid = 1;
        t.s_axi_control_rready = 1;
        int status = kRegisterHang;
        for (uint64_t i = 0; i < kRegisterCycles; ++i) {
            step();
            if (!violation_.empty()) { status = kViolation; break; }
            if (s_ar_fired_) t.s_axi_control_arvalid = 0;
            if (s_r_fired_) {
                *value = s_rdata_;
                status = s_resp_ ? kRegisterError : kLimit;
                break;
            }
        }
        t.s_axi_control_arvalid = t.s_axi_control_rready = 0;
        return status;
    }

    int write_register(uint32_t offset, uint32_t value) {
        Top& t = *top_;
        t.s_axi_control_awaddr = offset;
        t.s_axi_control_wdata = value;
        t.s_axi_control_wstrb = 0xF;
        t.s_axi_control_awvalid = t.s_axi_control_wvalid = 1;
        t.s_axi_control_bready = 1;
        int status = kRegisterHang;
        for (uint64_t i = 0; i < kRegisterCycles; ++i) {
            step();
            if (!violation_.empty()) { status = kViolation; break; }
            if (s_aw_fired_) t.s_axi_control_awvalid = 0;
            if (s_w_fired_) t.s_axi_control_wvalid = 0;
            if (s_b_fired_) {
                status = s_resp_ ? kRegisterError : kLimit;
                break;
            }
        }
        t.s_axi_control_awvalid = t.s_axi_control_wvalid = t.s_axi_control_bready = 0;
        return status;
    }

    void add_fault(const Fault& fault) { faults_.push_back(fault); }
    void clear_faults() { faults_.clear(); }
    void set_timing(const Timing& timing) { timing_ = timing; }
    uint64_t cycle() const { return cycle_; }

    // Forgets what was recorded; from now on every cycle is, or none.
    void record(bool on) {
        recording_ = on;
        activities_.clear();
        latest_.fill(SIZE_MAX);
    }

    const std::vector<Activity>& activities() const { return activities_; }
    const char* violation_text() const { return violation_.empty() ? nullptr : violation_.c_str(); }

  private:
    // Verilator renames ports whose name is a keyword of some C++ compiler.
    bool interrupt() const { return top_->__SYM__interrupt; }

    void step() {
        drive();
        low();
        observe();
        if (recording_) note_activities();
        high();
    }

    // A word for each unit: bit 24 tells whether it works, the bits below on which command.
    void note_activities() {
        const auto& words = top_->rootp->lepton_core__DOT__engine__DOT__activity;
        for (uint32_t unit = 0; unit < kUnits; ++unit) {
            if (!(words[unit] >> 24 & 1)) continue;
            const uint32_t command = words[unit] & 0xFFFFFF;
            size_t& latest = latest_[unit];
            if (latest == SIZE_MAX || activities_[latest].command != command) {
                latest = activities_.size();
                activities_.push_back({cycle_, cycle_, unit, command});
            }
            activities_[latest].end = cycle_ + 1;
        }
    }

    void low() {
        top_->ap_clk = 0;
        top_->eval();
        dump(0);
    }

    void high() {
        top_->ap_clk = 1;
        top_->eval();
        dump(1);
        ++cycle_;
    }

    void dump(int half) {
#if VM_TRACE_FST
        if (fst_ && cycle_ >= trace_begin_ && cycle_ < trace_end_) fst_->dump(2 * cycle_ + half);
#else
        (void)half;
#endif
    }

    // xorshift64*: one draw serves a cycle.
    uint64_t draw() {
        random_ ^= random_ >> 12;
        random_ ^= random_ << 25;
        random_ ^= random_ >> 27;
        return random_ * 0x2545F4914F6CDD1DULL;
    }

    bool stalled(uint64_t draw, Stall channel) const {
        return (draw >> (8 + 8 * channel) & 0xFF) < timing_.stall[channel];
    }

    void drive() {
        Top& t = *top_;
        const uint64_t random = draw();
        const bool refresh =
            timing_.refresh_period && cycle_ % timing_.refresh_period >= timing_.refresh_period - timing_.refresh_cycles;
        read_credit_ = std::min(read_credit_ + timing_.read_bandwidth, 2 * kBeatCredit - 1);
        write_credit_ = std::min(write_credit_ + timing_.write_bandwidth, 2 * kBeatCredit - 1);

        t.m_axi_arready = reads_.size() < timing_.read_outstanding && !stalled(random, kAr);
        t.m_axi_awready = writes_.size() < timing_.write_outstanding && !stalled(random, kAw);

        const bool room = early_.size() < kEarlyBeats && !stalled(random, kW);
        bool presented = false;
        if (!r_valid_) {
            const bool turn = !(timing_.shared_bus && write_turn_ && room && w_.valid);
            if (turn && !reads_.empty() && !reads_.front().hang && reads_.front().ready_at <= cycle_ && !refresh &&
                read_credit_ >= kBeatCredit && !stalled(random, kR)) {
                present_read();
                presented = true;
                read_credit_ -= kBeatCredit;
                write_turn_ = true;
            } else if (t.m_axi_rvalid) {
                t.m_axi_rvalid = t.m_axi_rlast = 0;
                std::memset(&t.m_axi_rdata, 0xA5, kBeatBytes);  // what a design must not look at
            }
        }

        const uint32_t credit = timing_.shared_bus ? read_credit_ : write_credit_;
        t.m_axi_wready = room && !refresh && credit >= kBeatCredit && !(timing_.shared_bus && presented);

        if (!b_valid_) {
            const bool ready = !writes_.empty() && writes_.front().ready_at <= cycle_ && !stalled(random, kB);
            if (ready) respond_write();
            t.m_axi_bvalid = b_valid_;
        }
    }

    void present_read() {
        Top& t = *top_;
        ReadBurst& burst = reads_.front();
        uint8_t response = kOkay;
        if (burst.plain) {
            std::memcpy(&t.m_axi_rdata, memory_ + (burst.address - base_), kBeatBytes);
        } else {
            response = response_of(burst.address, kBeatBytes, false);
            if (inside(burst.address, kBeatBytes))
                std::memcpy(&t.m_axi_rdata, memory_ + (burst.address - base_), kBeatBytes);
            else
                std::memset(&t.m_axi_rdata, 0xA5, kBeatBytes);
        }
        t.m_axi_rresp = response;
        t.m_axi_rid = burst.id;
        t.m_axi_rlast = burst.left == 1;
        t.m_axi_rvalid = 1;
        r_valid_ = true;
    }

    void respond_write() {
        WriteBurst& burst = writes_.front();
        const uint64_t size = uint64_t(burst.beats) * kBeatBytes;
        const uint8_t response = response_of(burst.address, size, true);
        if (response == kHang) return;
        if (response == kOkay) {
            uint8_t* to = memory_ + (burst.address - base_);
            for (uint32_t beat = 0; beat < burst.beats; ++beat, to += kBeatBytes)
                store(to, &burst.data[beat * kBeatBytes], burst.strobe[beat]);
        }
        top_->m_axi_bresp = response;
        top_->m_axi_bid = burst.id;
        b_valid_ = true;
    }

    static void store(uint8_t* to, const uint8_t* from, uint64_t strobe) {
        constexpr uint64_t all = kBeatBytes == 64 ? ~0ULL : (1ULL << (kBeatBytes % 64)) - 1;
        if (strobe == all) {
            std::memcpy(to, from, kBeatBytes);
            return;
        }
        for (uint32_t i = 0; i < kBeatBytes; ++i)
            if (strobe >> i & 1) to[i] = from[i];
    }

    bool inside(uint64_t address, uint64_t size) const {
        return address >= base_ && address - base_ <= bytes_ && size <= bytes_ - (address - base_);
    }

    uint8_t response_of(uint64_t address, uint64_t size, bool write) const {
        for (const Fault& fault : faults_)
            if (fault.write == write && address < fault.end && address + size > fault.begin) return fault.response;
        return inside(address, size) ? kOkay : kDecerr;
    }

    void observe() {
        Top& t = *top_;
        if (t.m_axi_arvalid || ar_.valid) {
            const Address now{t.m_axi_araddr, t.m_axi_arlen + 1u, t.m_axi_arsize, t.m_axi_arburst, t.m_axi_arid};
            if (offer(ar_, t.m_axi_arvalid, t.m_axi_arready, now, "AR")) accept_read(now);
        }
        if (r_valid_ && t.m_axi_rready) {
            r_valid_ = false;
            ReadBurst& burst = reads_.front();
            burst.address += kBeatBytes;
            if (--burst.left == 0) reads_.pop_front();
        }
        if (t.m_axi_awvalid || aw_.valid) {
            const Address now{t.m_axi_awaddr, t.m_axi_awlen + 1u, t.m_axi_awsize, t.m_axi_awburst, t.m_axi_awid};
            if (offer(aw_, t.m_axi_awvalid, t.m_axi_awready, now, "AW")) accept_write(now);
        }
        if (t.m_axi_wvalid || w_.valid) {
            WriteBeat now;
            std::memcpy(now.data.data(), &t.m_axi_wdata, kBeatBytes);
            now.strobe = t.m_axi_wstrb;
            now.last = t.m_axi_wlast;
            if (offer(w_, t.m_axi_wvalid, t.m_axi_wready, now, "W")) {
                (timing_.shared_bus ? read_credit_ : write_credit_) -= kBeatCredit;
                write_turn_ = false;
                early_.push_back(now);
            }
        }
        while (!early_.empty() && take_write_beat(early_.front())) early_.pop_front();
        if (b_valid_ && t.m_axi_bready) {
            b_valid_ = false;
            writes_.pop_front();
            --complete_;
        }
        s_ar_fired_ = t.s_axi_control_arvalid && t.s_axi_control_arready;
        s_aw_fired_ = t.s_axi_control_awvalid && t.s_axi_control_awready;
        s_w_fired_ = t.s_axi_control_wvalid && t.s_axi_control_wready;
        s_r_fired_ = t.s_axi_control_rvalid && t.s_axi_control_rready;
        s_b_fired_ = t.s_axi_control_bvalid && t.s_axi_control_bready;
        s_rdata_ = t.s_axi_control_rdata;
        s_resp_ = s_r_fired_ ? t.s_axi_control_rresp : t.s_axi_control_bresp;
    }

    // Whether a channel's payload is transferred now; checks it against what was offered before.
    template <typename Payload>
    bool offer(Waiting<Payload>& waiting, bool valid, bool ready, const Payload& now, const char* channel) {
        if (waiting.valid) {
            if (!valid) violation(std::string(channel) + ": valid must stay until ready");
            else if (!(waiting.payload == now)) violation(std::string(channel) + ": payload must not change before ready");
        }
        waiting.valid = valid && !ready;
        if (waiting.valid) waiting.payload = now;
        return valid && ready;
    }

    bool legal(const Address& a, const char* channel) {
        const uint64_t size = uint64_t(a.beats) * kBeatBytes;
        const char* rule = nullptr;
        if (1u << a.size != kBeatBytes) rule = "size must be the whole beat";
        else if (a.burst != 1) rule = "burst must be INCR";
        else if (a.address % kBeatBytes) rule = "address must be beat-aligned";
        else if (a.address / kPage != (a.address + size - 1) / kPage) rule = "burst must not cross 4 KiB";
        if (!rule) return true;
        char text[160];
        std::snprintf(text, sizeof text, "%s: %s: address 0x%llx, %u beats, size %u, burst %u", channel, rule,
                      static_cast<unsigned long long>(a.address), a.beats, a.size, a.burst);
        violation(text);
        return false;
    }

    void accept_read(const Address& a) {
        if (!legal(a, "AR")) return;
        const uint64_t size = uint64_t(a.beats) * kBeatBytes;
        ReadBurst burst{a.address, cycle_ + 1 + timing_.read_latency, a.beats, a.id, true, false};
        burst.plain = faults_.empty() && inside(a.address, size);
        burst.hang = !burst.plain && response_of(a.address, size, false) == kHang;
        reads_.push_back(burst);
    }

    void accept_write(const Address& a) {
        if (!legal(a, "AW")) return;
        writes_.emplace_back();
        WriteBurst& burst = writes_.back();
        burst.address = a.address;
        burst.beats = a.beats;
        burst.id = a.id;
    }

    bool take_write_beat(const WriteBeat& beat) {
        if (complete_ == writes_.size()) return false;
        WriteBurst& burst = writes_[complete_];
        std::memcpy(&burst.data[burst.received * kBeatBytes], beat.data.data(), kBeatBytes);
        burst.strobe[burst.received] = beat.strobe;
        ++burst.received;
        if (beat.last != (burst.received == burst.beats)) {
            char text[120];
            std::snprintf(text, sizeof text, "W: last must mark the last beat: %u of a burst of %u beats at 0x%llx",
                          burst.received, burst.beats, static_cast<unsigned long long>(burst.address));
            violation(text);
            return false;
        }
        if (beat.last) {
            burst.ready_at = cycle_ + 1 + timing_.write_latency;
            ++complete_;
        }
        return true;
    }

    void violation(const std::string& text) {
        if (violation_.empty()) violation_ = "cycle " + std::to_string(cycle_) + ": " + text;
    }

    uint8_t* memory_;
    uint64_t bytes_, base_;
    Timing timing_;
    uint64_t random_;
    uint64_t trace_begin_, trace_end_;
    uint64_t cycle_ = 0;
    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Top> top_;
#if VM_TRACE_FST
    std::unique_ptr<VerilatedFstC> fst_;
#endif
    std::string violation_;
    std::vector<Fault> faults_;

    std::deque<ReadBurst> reads_;
    std::deque<WriteBurst> writes_;
    size_t complete_ = 0;  // bursts of writes_ that have all their beats
    std::deque<WriteBeat> early_;
    Waiting<Address> ar_, aw_;
    Waiting<WriteBeat> w_;
    bool r_valid_ = false, b_valid_ = false;
    bool write_turn_ = false;
    uint32_t read_credit_ = 0, write_credit_ = 0;

    bool recording_ = false;
    std::vector<Activity> activities_;
    std::array<size_t, kUnits> latest_;  // the last activity of each unit, if there is one

    bool s_ar_fired_ = false, s_r_fired_ = false, s_aw_fired_ = false, s_w_fired_ = false, s_b_fired_ = false;
    uint32_t s_rdata_ = 0;
    uint8_t s_resp_ = 0;
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

Core* lepton_open(uint8_t* memory, uint64_t bytes, uint64_t base, const Timing* timing, uint64_t seed,
                  const char* trace, uint64_t trace_begin, uint64_t trace_end) {
    return new Core(memory, bytes, base, *timing, seed, trace, trace_begin, trace_end);
}
void lepton_close(Core* core) { delete core; }
void lepton_reset(Core* core) { core->reset(); }
int lepton_run(Core* core, uint64_t cycles, int until_interrupt) { return core->run(cycles, until_interrupt); }
int lepton_read_register(Core* core, uint32_t offset, uint32_t* value) { return core->read_register(offset, value); }
int lepton_write_register(Core* core, uint32_t offset, uint32_t value) { return core->write_register(offset, value); }
void lepton_add_fault(Core* core, uint64_t begin, uint64_t end, int write, int response) {
    core->add_fault({begin, end, write != 0, static_cast<uint8_t>(response)});
}
void lepton_clear_faults(Core* core) { core->clear_faults(); }
void lepton_set_timing(Core* core, const Timing* timing) { core->set_timing(*timing); }
uint64_t lepton_cycle(Core* core) { return core->cycle(); }
void lepton_record(Core* core, int on) { core->record(on != 0); }
uint64_t lepton_activities(Core* core, const Activity** first) {
    *first = core->activities().data();
    return core->activities().size();
}
const char* lepton_violation(Core* core) { return core->violation_text(); }
uint32_t lepton_beat_bytes() { return kBeatBytes; }

}  // extern "C"
#pragma GCC visibility pop
