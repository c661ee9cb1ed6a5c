// What Python sees of the emulator's C++: torch.ops.ascend_emulator.*
#include <ATen/ATen.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "aten_fallback.h"
#include "stubs/emulator.h"

namespace ascend_emulator {

namespace {

using c10::DispatchKey;

std::vector<std::unique_ptr<torch::Library>> libraries; // what a library registers goes when it goes
std::map<std::string, CpuFallback *> kernels;           // by full name; the dispatcher owns them

std::string full_name(const c10::OperatorName &name) {
    return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

// torch_npu gives some composite operators (matmul, where, softmax.int ...) an autograd of its own that calls aclnn
// directly. Here they are decomposed as on every other device.
void decompose(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack) {
    op.callBoxedForDispatchKey(DispatchKey::CompositeImplicitAutograd, *stack);
}

using Names = c10::List<std::string>;
using Rules = c10::Dict<std::string, std::string>; // operator -> "argument=0" or "=1": the value it must not have

Limits limits_of(const c10::OperatorHandle &op, const std::set<std::string> &unsupported,
                 const std::set<std::string> &refuse_float64, const Rules &refuse_values) {
    const std::string &name = op.schema().name();
    Limits limits{unsupported.count(name) > 0, refuse_float64.count(name) > 0, {}};
    if (refuse_values.contains(name)) {
        const std::string rule = refuse_values.at(name);
        const auto index = op.schema().argumentIndexWithName(rule.substr(0, rule.find('=')));
        if (index) limits.refused_values.emplace_back(*index, rule.back() == '1');
    }
    return limits;
}

std::set<std::string> set_of(const Names &names) { return {names.begin(), names.end()}; }

// Takes over the aten operators for which torch_npu has a kernel, except those named in `native`.
void install(const Names &native, const Names &unsupported, const Names &refuse_float64, const Rules &refuse_values) {
    const auto keep = set_of(native), refused = set_of(unsupported), no_float64 = set_of(refuse_float64);
    auto library = [](DispatchKey key) {
        return std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
    };
    auto backend = library(DispatchKey::PrivateUse1), autograd = library(DispatchKey::AutogradPrivateUse1);
    auto &dispatcher = c10::Dispatcher::singleton();
    for (const auto &operator_name : dispatcher.getAllOpNames()) {
        const std::string name = full_name(operator_name);
        const auto op = dispatcher.findOp(operator_name);
        if (name.rfind("aten::", 0) != 0 || keep.count(name) || !op || !op->hasSchema()) continue;
        const char *bare = name.c_str() + std::strlen("aten::");
        if (op->hasKernelForDispatchKey(DispatchKey::PrivateUse1)) {
            auto kernel = std::make_unique<CpuFallback>(*op, limits_of(*op, refused, no_float64, refuse_values));
            kernels[name] = kernel.get();
            auto boxed = c10::BoxedKernel::makeFromFunctor(std::move(kernel));
            backend->impl(bare, torch::CppFunction::makeFromBoxedKernel(std::move(boxed)));
        }
        if (op->hasKernelForDispatchKey(DispatchKey::AutogradPrivateUse1) &&
            op->hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd))
            autograd->impl(bare, torch::CppFunction::makeFromBoxedFunction<&decompose>());
    }
    libraries.push_back(std::move(backend));
    libraries.push_back(std::move(autograd));
}

// ---- aclnn operators that torch_npu's C++ calls past the dispatcher ----

std::mutex direct_mutex;
std::map<std::string, int64_t> direct_calls;

c10::ScalarType scalar_type(int acl) { // an aclDataType
    static const std::map<int, c10::ScalarType> types = {
        {0, at::kFloat}, {1, at::kHalf}, {2, at::kChar}, {3, at::kInt}, {4, at::kByte}, {6, at::kShort},
        {9, at::kLong}, {11, at::kDouble}, {12, at::kBool}, {16, at::kComplexFloat}, {27, at::kBFloat16}};
    return types.at(acl);
}

at::Tensor tensor_of(const AclObject *object) {
    const auto type = scalar_type(object->dtype);
    const at::IntArrayRef sizes(object->values, object->length), strides(object->strides, object->length);
    char *start = static_cast<char *>(object->data) + object->offset * int64_t(c10::elementSize(type));
    return at::from_blob(start, sizes, strides, at::TensorOptions().dtype(type));
}

at::Scalar number_of(AclObject *object) {
    return at::from_blob(object->scalar, {}, at::TensorOptions().dtype(scalar_type(object->dtype))).item();
}

int compute(const std::string &name, void **arguments) {
    auto object = [&](int index) { return static_cast<AclObject *>(arguments[index]); };
    auto tensor = [&](int index) { return tensor_of(object(index)); };
    if (name == "aclnnInplaceCopy") {
        tensor(0).copy_(tensor(1));
    } else if (name == "aclnnCast") { // input, dtype, output
        tensor(2).copy_(tensor(0));
    } else if (name == "aclnnInplaceFillScalar") {
        tensor(0).fill_(number_of(object(1)));
    } else if (name == "aclnnInplaceZero") {
        tensor(0).zero_();
    } else if (name == "aclnnInplaceOne") {
        tensor(0).fill_(1);
    } else if (name == "aclnnConstantPadNd") { // input, widths, value, output
        const at::IntArrayRef widths(object(1)->values, object(1)->length);
        tensor(3).copy_(at::constant_pad_nd(tensor(0), widths, number_of(object(2))));
    } else if (name == "aclnnCat") { // inputs, dimension, output
        std::vector<at::Tensor> inputs;
        for (int64_t i = 0; i < object(0)->length; i++) inputs.push_back(tensor_of(object(0)->tensors[i]));
        tensor(2).copy_(at::cat(inputs, reinterpret_cast<int64_t>(arguments[1])));
    } else {
        return emulator_refuse(name.c_str());
    }
    return 0;
}

int compute_directly(const char *name, void **arguments) {
    at::NoGradGuard no_grad;
    try {
        if (const int error = compute(name, arguments)) return error;
    } catch (const std::exception &error) { // must not travel through C
        return emulator_refuse((std::string(name) + " (" + error.what() + ")").c_str());
    }
    std::lock_guard<std::mutex> lock(direct_mutex);
    direct_calls[name]++;
    return 0;
}

// ---- counters ----

c10::Dict<std::string, int64_t> calls() {
    c10::Dict<std::string, int64_t> result;
    for (const auto &[name, kernel] : kernels)
        if (kernel->calls) result.insert(name, kernel->calls.load());
    std::lock_guard<std::mutex> lock(direct_mutex);
    for (const auto &[name, count] : direct_calls) result.insert(name, count);
    return result;
}

void reset_calls() {
    for (const auto &[name, kernel] : kernels) kernel->calls = 0;
    std::lock_guard<std::mutex> lock(direct_mutex);
    direct_calls.clear();
}

} // namespace

TORCH_LIBRARY(ascend_emulator, library) {
    emulator_compute = &compute_directly;
    library.def("install", &install);
    library.def("as_cpu", &as_cpu);
    library.def("calls", &calls);
    library.def("reset_calls", &reset_calls);
}

} // namespace ascend_emulator
