#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <atomic>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace ascend_emulator {

// An npu tensor as a CPU tensor over the same memory.
at::Tensor as_cpu(const at::Tensor &npu);

// What an Ascend device does not do though a CPU does.
struct Limits {
    bool unsupported = false;
    bool refuses_float64 = false;
    std::vector<std::pair<int, bool>> refused_values; // (index of an argument, the value it must not have)
};

// The kernel of one aten operator.
class CpuFallback final : public c10::OperatorKernel {
public:
    CpuFallback(const c10::OperatorHandle &op, Limits limits);
    void operator()(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack);

    std::string name; // without the overload
    std::atomic<int64_t> calls{0};

private:
    at::Tensor enter(const at::Tensor &tensor, class Aliases &aliases) const;
    void run(const c10::OperatorHandle &op, torch::jit::Stack *stack, c10::Device device, c10::IValue *generator) const;

    const Limits limits;
    const bool random;
    bool writes = false;
    int device_argument = -1, generator_argument = -1, pin_argument = -1;
};

} // namespace ascend_emulator
