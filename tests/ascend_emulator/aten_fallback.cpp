// aten operators on npu tensors, computed by PyTorch's CPU kernels without a copy. Device memory is host memory here, so
// an npu tensor is looked at as a CPU tensor over the same bytes; what the CPU kernel allocates becomes an npu tensor.
//
// Only operators for which torch_npu registers a kernel are taken over. For all others a real machine would run
// torch_npu's own fallback, which TORCH_NPU_FALLBACK_CPU_DISABLE=1 makes an error, and so it is here.
#include "aten_fallback.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <mutex>

namespace ascend_emulator {

using at::Tensor;

namespace {

constexpr auto NPU = c10::DeviceType::PrivateUse1;

// Operators that take npu and CPU tensors together, as everywhere in PyTorch: copies, and indexing by host indices.
const std::set<std::string> MIXES_DEVICES = {
    "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", "aten::_to_copy", "aten::_foreach_copy_",
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index",
    "aten::_unsafe_index_put",
};

// Calls function(Tensor) on every tensor in `value`, and puts its results in their places.
template <typename Function>
void map_tensors(c10::IValue &value, Function function) {
    if (value.isTensor()) {
        value = function(value.toTensor());
    } else if (value.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor &tensor : value.toTensorVector()) list.push_back(function(tensor));
        value = list;
    } else if (value.isOptionalTensorList()) {
        c10::List<std::optional<Tensor>> list;
        for (const std::optional<Tensor> &tensor : value.toOptionalTensorList().vec())
            list.push_back(tensor ? std::optional<Tensor>(function(*tensor)) : std::nullopt);
        value = list;
    }
}

bool same_layout(const Tensor &one, const Tensor &other) {
    return one.sizes() == other.sizes() && one.strides() == other.strides();
}

bool same_memory(const Tensor &one, const Tensor &other) { return one.storage().data() == other.storage().data(); }

} // namespace

Tensor as_cpu(const Tensor &npu) {
    TORCH_CHECK(npu.layout() == at::kStrided, "ascend_emulator: ", npu.layout(), " npu tensors have no emulation");
    auto *owner = new c10::Storage(npu.storage()); // keeps the memory while the alias lives
    c10::Storage storage(c10::Storage::use_byte_size_t(), owner->nbytes(),
                         c10::DataPtr(owner->mutable_data(), owner,
                                      [](void *kept) { delete static_cast<c10::Storage *>(kept); }, at::kCPU),
                         c10::GetCPUAllocator(), /*resizable=*/true);
    auto cpu = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                        npu.dtype());
    auto *impl = cpu.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(npu.sizes(), npu.strides(), npu.storage_offset());
    if (npu.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
    cpu._set_conj(npu.is_conj());
    cpu._set_neg(npu.is_neg());
    return cpu;
}

namespace {

Tensor as_npu(const Tensor &cpu, c10::Device device) { // a copy
    const Tensor dense = cpu.is_non_overlapping_and_dense() ? cpu : cpu.contiguous();
    Tensor npu = at::empty_strided(dense.sizes(), dense.strides(), dense.options().device(device).pinned_memory(false));
    const size_t bytes = dense.numel() * dense.element_size();
    if (bytes) std::memcpy(npu.mutable_data_ptr(), dense.const_data_ptr(), bytes);
    if (cpu.unsafeGetTensorImpl()->is_wrapped_number()) npu.unsafeGetTensorImpl()->set_wrapped_number(true);
    return npu;
}

} // namespace

// The npu tensors of one call, with their aliases.
class Aliases {
public:
    bool stranger = false; // a tensor of another device was among the arguments

    Tensor of(const Tensor &npu) {
        for (const auto &[other, alias] : pairs)
            if (other.is_same(npu)) return alias;
        Tensor alias = as_cpu(npu);
        for (const auto &[other, earlier] : pairs) // kernels tell overlapping arguments by their storage
            if (other.storage().unsafeGetStorageImpl() == npu.storage().unsafeGetStorageImpl())
                alias.unsafeGetTensorImpl()->set_storage_keep_dtype(earlier.storage());
        pairs.emplace_back(npu, alias);
        return alias;
    }

    // Written arguments may have been resized, or given other strides.
    void write_back(c10::Device device) const {
        for (const auto &[npu, alias] : pairs) {
            if (same_memory(npu, alias) && same_layout(npu, alias)) continue;
            if (same_memory(npu, alias) && alias.storage().nbytes() <= npu.storage().nbytes()) {
                auto *impl = npu.unsafeGetTensorImpl();
                impl->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
            } else {
                const Tensor moved = as_npu(alias, device);
                npu.set_(moved.storage(), 0, moved.sizes(), moved.strides());
            }
        }
    }

    // What the caller gets for a result of the CPU kernel.
    Tensor result(const Tensor &cpu, c10::Device device) const {
        if (!cpu.defined() || cpu.device().type() == NPU) return cpu;
        for (const auto &[npu, alias] : pairs)
            if (alias.is_same(cpu)) return npu; // an argument, changed in place
        if (cpu.layout() == at::kStrided)
            for (const auto &[npu, alias] : pairs)
                if (alias.storage().unsafeGetStorageImpl() == cpu.storage().unsafeGetStorageImpl()) // a view of one
                    return npu.as_strided(cpu.sizes(), cpu.strides(), cpu.storage_offset());
        return device.type() == NPU ? as_npu(cpu, device) : cpu;
    }

    bool empty() const { return pairs.empty(); }
    c10::Device device() const { return pairs.front().first.device(); }

private:
    std::vector<std::pair<Tensor, Tensor>> pairs;
};

namespace {

// A CPU generator for one call, derived from the npu generator's seed and offset, which moves on. So a generator that
// is seeded, or whose state is restored (gradient checkpointing, resumed training), gives the same numbers again. The
// first call after seeding gives the CPU's numbers; no other does, and an Ascend's Philox numbers are others anyway.
at::Generator drawn_from(at::Generator npu) {
    std::lock_guard<std::mutex> lock(npu.mutex());
    const uint64_t seed = npu.current_seed(), offset = npu.get_offset();
    npu.set_offset(offset + 4); // torch_npu wants multiples of 4
    return at::detail::createCPUGenerator(seed ^ (offset * 0x9e3779b97f4a7c15ull));
}

// Puts another state into the process's CPU generator for a while: some random operators take no generator.
class BorrowedDefaultGenerator {
public:
    explicit BorrowedDefaultGenerator(const at::Generator &source) : lock(once_at_a_time()) {
        auto generator = at::detail::getDefaultCPUGenerator();
        std::lock_guard<std::mutex> own(generator.mutex());
        saved = generator.get_state();
        generator.set_state(source.get_state());
    }
    ~BorrowedDefaultGenerator() {
        auto generator = at::detail::getDefaultCPUGenerator();
        std::lock_guard<std::mutex> own(generator.mutex());
        generator.set_state(saved);
    }

private:
    static std::mutex &once_at_a_time() {
        static std::mutex mutex;
        return mutex;
    }
    std::lock_guard<std::mutex> lock;
    Tensor saved;
};

} // namespace

CpuFallback::CpuFallback(const c10::OperatorHandle &op, Limits limits)
    : limits(std::move(limits)), random(op.hasTag(at::Tag::nondeterministic_seeded)) {
    const auto &schema = op.schema();
    name = schema.name();
    for (size_t i = 0; i < schema.arguments().size(); i++) {
        const std::string &argument = schema.arguments()[i].name();
        if (argument == "device") device_argument = int(i);
        if (argument == "generator") generator_argument = int(i);
        if (argument == "pin_memory") pin_argument = int(i);
        const auto *alias = schema.arguments()[i].alias_info();
        writes = writes || (alias && alias->isWrite());
    }
}

void CpuFallback::operator()(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack) {
    TORCH_CHECK(!limits.unsupported, "ascend_emulator: ", name, " is not supported on an Ascend device");
    calls++;
    const size_t first = stack->size() - op.schema().arguments().size();
    auto argument = [&](int index) -> c10::IValue & { return (*stack)[first + index]; };
    for (const auto &[index, refused] : limits.refused_values)
        TORCH_CHECK(!(argument(index).isBool() && argument(index).toBool() == refused), "ascend_emulator: ", name,
                    " does not take ", op.schema().arguments()[index].name(), "=", refused, " on an Ascend device");

    Aliases aliases;
    for (size_t i = first; i < stack->size(); i++)
        map_tensors((*stack)[i], [&](const Tensor &tensor) { return enter(tensor, aliases); });
    TORCH_CHECK(aliases.empty() || !aliases.stranger || MIXES_DEVICES.count(name),
                "Expected all tensors to be on the same device, but found at least two devices, npu and cpu! ",
                "(in method ", name, ")");

    c10::Device device = aliases.empty() ? c10::impl::VirtualGuardImpl(NPU).getDevice() : aliases.device();
    if (device_argument >= 0 && argument(device_argument).isDevice()) {
        const c10::Device wanted = argument(device_argument).toDevice();
        if (wanted.type() != NPU || wanted.has_index()) device = wanted;
        argument(device_argument) = c10::Device(at::kCPU);
    }
    if (pin_argument >= 0 && argument(pin_argument).isBool()) argument(pin_argument) = false;
    run(op, stack, device, generator_argument < 0 ? nullptr : &argument(generator_argument));

    if (writes) aliases.write_back(device);
    for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); i++)
        map_tensors((*stack)[i], [&](const Tensor &tensor) { return aliases.result(tensor, device); });
}

// What the CPU kernel is given for an argument.
Tensor CpuFallback::enter(const Tensor &tensor, Aliases &aliases) const {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != NPU) {
        aliases.stranger = aliases.stranger || tensor.dim() > 0; // numbers may come from the host
        return tensor;
    }
    TORCH_CHECK(!limits.refuses_float64 || tensor.scalar_type() != at::kDouble, "ascend_emulator: ", name,
                " does not take float64 on an Ascend device");
    return aliases.of(tensor);
}

void CpuFallback::run(const c10::OperatorHandle &op, torch::jit::Stack *stack, c10::Device device,
                      c10::IValue *generator) const {
    std::optional<BorrowedDefaultGenerator> borrowed;
    if (random && device.type() == NPU) {
        const bool given = generator && generator->isGenerator();
        const at::Generator npu = given ? generator->toGenerator() : at::globalContext().defaultGenerator(device);
        TORCH_CHECK(npu.device().type() == NPU, "Expected a 'npu' device type for generator but found '",
                    npu.device().type(), "'");
        const at::Generator drawn = drawn_from(npu);
        if (generator) *generator = drawn;
        else borrowed.emplace(drawn);
    }
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
}

} // namespace ascend_emulator
