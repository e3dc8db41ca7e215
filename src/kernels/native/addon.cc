// The Node-API addon: kernels over one arena, called from TypeScript (loader.ts).
//
//     variants()                            -> string[]: the kernel variants this CPU runs, best first
//     bind(arena, parameters, variant, kernels) -> {dot, ...}: functions bound to that arena
//     adviseHugePages(arena)                -> boolean: whether the system took the advice
//
// A call takes no arguments: TypeScript writes them into `parameters` (a Float64Array it shares with the binding)
// and results come back in parameters[0]. Reading a dozen arguments through Node-API would cost as much as a
// small kernel. `kernels` is the kernel table ({name, arguments: Uint32Array}[], descriptors.ts): by it every range
// is checked against the arena before a kernel runs, so that a wrong offset is a RangeError and never a crash.
#include <node_api.h>

#include <cstdio>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "row_layout.h"
#include "table.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace hybrid_infer {
namespace {

// Numbers a kernel call needs at most; ../call.ts says the same.
constexpr size_t kParameters = 16;

// ---- declarations ----------------------------------------------------------------------------------------

// What ../table.ts says about an argument, as descriptors.ts numbers it.
enum class Kind : uint32_t { rowFormat, weightFormat, kvFormat, activation, count, real, pointer };
enum class Item : uint32_t { f32, u32, byte, q8a, row, storedRow, vector, sums, kvRow, kvScale };
enum class Measure : uint32_t { one, value, next, half, pages, aligned, last, reach, rows };

struct Argument {
  uint32_t kindAndOptional;  // Kind | 0x100 where offset 0 stands for "none"
  Item item;
  Measure size;
  uint32_t sizeOf;  // the argument that is measured
  Measure times;
  uint32_t timesOf;
  uint32_t stride;  // 1 + the argument that holds it, or 0
  uint32_t strideBytes;

  Kind kind() const { return static_cast<Kind>(kindAndOptional & 0xFF); }
  bool optional() const { return (kindAndOptional & 0x100) != 0; }
};
static_assert(sizeof(Argument) == 8 * sizeof(uint32_t), "as descriptors.ts writes it");

struct Binding;
// One kernel of a binding.
struct BoundKernel {
  const char* name;
  const Binding* binding;
  size_t count;
  Argument arguments[kParameters];
};

#define HYBRID_INFER_ONE(KERNEL) +1
constexpr size_t kKernelCount = HYBRID_INFER_KERNELS(HYBRID_INFER_ONE);

// What one bind() made. Freed with the parameter array it was given, which the TypeScript side keeps as long as it
// keeps the functions.
struct Binding {
  uint8_t* base;
  size_t size;
  double* parameters;
  const KernelTable* table;
  BoundKernel kernels[kKernelCount];
};

// ---- one call --------------------------------------------------------------------------------------------

// Reads and checks the parameters of one call.
class Call {
 public:
  Call(napi_env env, napi_callback_info info) : env_(env) {
    void* data = nullptr;
    size_t none = 0;
    napi_get_cb_info(env, info, &none, nullptr, nullptr, &data);
    kernel_ = static_cast<const BoundKernel*>(data);
    binding_ = kernel_->binding;
    parameters_ = binding_->parameters;
  }

  const KernelTable& kernels() const { return *binding_->table; }

  // Whether every argument is what its declaration says, and every range lies inside the arena.
  bool check() {
    for (size_t i = 0; i < kernel_->count; i++) {
      switch (kernel_->arguments[i].kind()) {
        case Kind::rowFormat: within(i, static_cast<size_t>(Format::q3)); break;
        case Kind::weightFormat: within(i, static_cast<size_t>(Format::q4)); break;
        case Kind::kvFormat: within(i, static_cast<size_t>(KvFormat::q8)); break;
        case Kind::activation: within(i, static_cast<size_t>(Activation::silu)); break;
        case Kind::count: count(i); break;
        case Kind::real: break;
        case Kind::pointer: count(i); break;
      }
    }
    for (size_t i = 0; i < kernel_->count && ok_; i++) {
      if (kernel_->arguments[i].kind() == Kind::pointer) checkPointer(i);
    }
    return ok_;
  }

  // Argument i as the kernel takes it; only after check().
  template <typename T> T get(size_t i) const {
    if constexpr (std::is_pointer_v<T>) {
      const Argument& argument = kernel_->arguments[i];
      if (argument.optional() && parameters_[i] == 0) return nullptr;
      if (argument.item == Item::kvScale && kvFormat() == KvFormat::f32) return nullptr;
      return reinterpret_cast<T>(binding_->base + static_cast<size_t>(parameters_[i]));
    } else if constexpr (std::is_enum_v<T>) {
      return static_cast<T>(static_cast<uint32_t>(parameters_[i]));
    } else {
      return static_cast<T>(parameters_[i]);
    }
  }

  napi_value refuse() {
    char text[160];
    std::snprintf(text, sizeof text, "%s: parameter %u (%.17g) does not fit the arena of %.0f bytes", kernel_->name,
                  static_cast<unsigned>(bad_), parameters_[bad_], static_cast<double>(binding_->size));
    napi_throw_range_error(env_, nullptr, text);
    return nullptr;
  }
  napi_value result(double value) {
    parameters_[0] = value;
    return nullptr;
  }

 private:
  size_t fail(size_t i) {
    if (ok_) bad_ = i;
    ok_ = false;
    return 0;
  }
  // A whole number that fits any arena (offsets and sizes are below 2^33).
  size_t count(size_t i) {
    const double value = parameters_[i];
    if (!(value >= 0 && value <= 8589934592.0)) return fail(i);
    const size_t whole = static_cast<size_t>(value);
    return static_cast<double>(whole) == value ? whole : fail(i);
  }
  void within(size_t i, size_t last) {
    if (count(i) > last) fail(i);
  }
  Format format() const { return static_cast<Format>(static_cast<uint32_t>(parameters_[0])); }
  KvFormat kvFormat() const { return static_cast<KvFormat>(static_cast<uint32_t>(parameters_[0])); }

  void checkPointer(size_t i) {
    const Argument& argument = kernel_->arguments[i];
    if (argument.optional() && parameters_[i] == 0) return;
    if (argument.item == Item::kvScale && kvFormat() == KvFormat::f32) return;
    const size_t size = measure(argument.size, argument.sizeOf), times = measure(argument.times, argument.timesOf);
    const size_t item = itemBytes(argument.item, size);
    size_t stride = item;
    if (argument.stride != 0) stride = count(argument.stride - 1) * argument.strideBytes;
    if (times > 1 && argument.stride != 0 && (stride % sizeof(float) != 0 || stride < item)) fail(argument.stride - 1);
    // times and stride may be up to 2^35: compared before they are multiplied.
    size_t bytes = times == 0 ? 0 : item;
    if (times > 1 && item != 0) {
      if (times - 1 > binding_->size / stride) fail(i);
      else bytes += (times - 1) * stride;
    }
    const size_t offset = count(i);
    if (offset % alignment(argument.item) != 0 || bytes > binding_->size || offset > binding_->size - bytes) fail(i);
  }

  size_t alignment(Item item) const {
    switch (item) {
      case Item::byte:
      case Item::q8a:
      case Item::row:
      case Item::storedRow: return 1;
      case Item::kvRow: return kvFormat() == KvFormat::f32 ? sizeof(float) : 1;
      default: return sizeof(float);
    }
  }

  // Sizes are below 2^34: nothing here overflows.
  size_t itemBytes(Item item, size_t size) const {
    switch (item) {
      case Item::f32:
      case Item::u32: return 4 * size;
      case Item::byte: return size;
      case Item::q8a: return q8aBytes(size);
      case Item::row: return rowBytesUnpadded(format(), size);
      case Item::storedRow: return rowBytes(format(), size);
      case Item::vector: return activationBytes(format(), size);
      case Item::sums: return 4 * paddedCols(format(), size);
      case Item::kvRow: return kvFormat() == KvFormat::f32 ? 4 * size : size;
      case Item::kvScale: return sizeof(float);
    }
    return 0;
  }

  size_t measure(Measure how, size_t i) {
    switch (how) {
      case Measure::one: return 1;
      case Measure::value: return count(i);
      case Measure::next: return count(i) + 1;
      case Measure::half: return count(i) / 2;
      case Measure::pages: return (count(i) + kKvPage - 1) / kKvPage;
      case Measure::aligned: return alignUp(count(i), 16);
      case Measure::last: return lists(i).end;
      case Measure::reach: {
        const List list = idsOf(i);
        uint32_t largest = 0;
        for (size_t k = list.begin; k < list.end; k++) largest = list.ids[k] > largest ? list.ids[k] : largest;
        return list.begin == list.end ? 0 : static_cast<size_t>(largest) + 1;
      }
      case Measure::rows: {
        const List pages = idsOf(i);
        size_t largest = 0;
        const size_t first = count(beginOf(i)) / kKvPage;
        if (first >= pages.end) return 0;
        for (size_t k = first; k < pages.end; k++) largest = pages.ids[k] > largest ? pages.ids[k] : largest;
        return (largest + 1) * kKvPage;
      }
    }
    return 0;
  }

  struct List {
    const uint32_t* ids;
    size_t begin, end;
  };
  // Where the lists whose offsets are argument i begin and end; both 0 where the offsets do not ascend.
  List lists(size_t i) {
    const Argument& argument = kernel_->arguments[i];
    checkPointer(i);
    if (!ok_) return {nullptr, 0, 0};
    const uint32_t* offsets = reinterpret_cast<const uint32_t*>(binding_->base + count(i));
    const size_t n = count(argument.sizeOf);
    for (size_t t = 0; t < n; t++) {
      if (offsets[t] > offsets[t + 1]) return fail(i), List{nullptr, 0, 0};
    }
    return {nullptr, offsets[0], offsets[n]};
  }
  // The entries of argument i that are used: those of the lists, or all.
  List idsOf(size_t i) {
    const Argument& argument = kernel_->arguments[i];
    checkPointer(i);
    if (!ok_) return {nullptr, 0, 0};
    List list = {nullptr, 0, 0};
    if (argument.size == Measure::last) list = lists(argument.sizeOf);
    else list.end = measure(argument.size, argument.sizeOf);
    list.ids = reinterpret_cast<const uint32_t*>(binding_->base + count(i));
    return list;
  }
  // Page table i begins to be read at the position of the argument before the one it is measured by.
  size_t beginOf(size_t i) const { return kernel_->arguments[i].sizeOf - 1; }

  napi_env env_;
  const BoundKernel* kernel_;
  const Binding* binding_;
  double* parameters_;
  bool ok_ = true;
  size_t bad_ = 0;
};

// ---- kernels as callbacks --------------------------------------------------------------------------------

template <typename T> constexpr bool takes(Kind kind) {
  if constexpr (std::is_pointer_v<T>) return kind == Kind::pointer;
  else if constexpr (std::is_same_v<T, Format>) return kind == Kind::rowFormat || kind == Kind::weightFormat;
  else if constexpr (std::is_same_v<T, KvFormat>) return kind == Kind::kvFormat;
  else if constexpr (std::is_same_v<T, Activation>) return kind == Kind::activation;
  else if constexpr (std::is_floating_point_v<T>) return kind == Kind::real;
  else return kind == Kind::count;
}

template <auto Member> struct Callback;
template <typename R, typename... A, R (*KernelTable::*Member)(A...)> struct Callback<Member> {
  static napi_value run(napi_env env, napi_callback_info info) {
    Call call(env, info);
    return call.check() ? apply(call, std::index_sequence_for<A...>{}) : call.refuse();
  }
  template <size_t... I> static napi_value apply(Call& call, std::index_sequence<I...>) {
    const auto kernel = call.kernels().*Member;
    if constexpr (std::is_void_v<R>) return kernel(call.get<A>(I)...), nullptr;
    else return call.result(static_cast<double>(kernel(call.get<A>(I)...)));
  }
  // Whether the declaration has the kernel's arguments.
  static bool matches(const Argument* arguments, size_t count) {
    return count == sizeof...(A) && matchesEach(arguments, std::index_sequence_for<A...>{});
  }
  template <size_t... I> static bool matchesEach(const Argument* arguments, std::index_sequence<I...>) {
    return (takes<A>(arguments[I].kind()) && ...);
  }
};

struct Method {
  const char* name;
  napi_callback callback;
  bool (*matches)(const Argument* arguments, size_t count);
};
#define HYBRID_INFER_METHOD(KERNEL) \
  {#KERNEL, Callback<&KernelTable::KERNEL>::run, Callback<&KernelTable::KERNEL>::matches},
const Method kMethods[] = {HYBRID_INFER_KERNELS(HYBRID_INFER_METHOD)};

// ---- the module's own functions --------------------------------------------------------------------------

napi_value throwType(napi_env env, const char* text) {
  napi_throw_type_error(env, nullptr, text);
  return nullptr;
}

bool typedArray(napi_env env, napi_value value, napi_typedarray_type wanted, void** data, size_t* length) {
  bool is = false;
  napi_typedarray_type type;
  if (napi_is_typedarray(env, value, &is) != napi_ok || !is) return false;
  // Works for arrays over shared WebAssembly memory, where the calls for array buffers do not.
  return napi_get_typedarray_info(env, value, &type, length, data, nullptr, nullptr) == napi_ok && type == wanted;
}

napi_value VariantNames(napi_env env, napi_callback_info) {
  size_t count, n = 0;
  const Variant* all = variants(&count);
  napi_value names;
  if (napi_create_array(env, &names) != napi_ok) return nullptr;
  for (size_t i = 0; i < count; i++) {
    napi_value name;
    if (!all[i].supported()) continue;
    if (napi_create_string_utf8(env, all[i].table->name, NAPI_AUTO_LENGTH, &name) != napi_ok) return nullptr;
    napi_set_element(env, names, static_cast<uint32_t>(n++), name);
  }
  return names;
}

void freeBinding(napi_env, void* data, void*) { delete static_cast<Binding*>(data); }

// Reads one {name, arguments} into `kernel`; the method it is for, or null.
const Method* readKernel(napi_env env, napi_value entry, BoundKernel& kernel) {
  napi_value name, numbers;
  char text[32] = {};
  void* data = nullptr;
  size_t length = 0;
  if (napi_get_named_property(env, entry, "name", &name) != napi_ok ||
      napi_get_value_string_utf8(env, name, text, sizeof text, nullptr) != napi_ok ||
      napi_get_named_property(env, entry, "arguments", &numbers) != napi_ok ||
      !typedArray(env, numbers, napi_uint32_array, &data, &length) || length > kParameters * 8 || length % 8 != 0) {
    return nullptr;
  }
  kernel.count = length / 8;
  std::memcpy(kernel.arguments, data, length * sizeof(uint32_t));
  for (const Argument& argument : kernel.arguments) {
    if (argument.sizeOf >= kParameters || argument.timesOf >= kParameters || argument.stride > kParameters) return nullptr;
  }
  for (const Method& method : kMethods) {
    if (std::strcmp(method.name, text) == 0) {
      kernel.name = method.name;
      return method.matches(kernel.arguments, kernel.count) ? &method : nullptr;
    }
  }
  return nullptr;
}

napi_value Bind(napi_env env, napi_callback_info info) {
  size_t argc = 4, length = 0, arenaBytes = 0;
  napi_value args[4];
  void *arena = nullptr, *parameters = nullptr;
  char name[32] = {};
  if (napi_get_cb_info(env, info, &argc, args, nullptr, nullptr) != napi_ok || argc < 4 ||
      !typedArray(env, args[0], napi_uint8_array, &arena, &arenaBytes) ||
      !typedArray(env, args[1], napi_float64_array, &parameters, &length) || length < kParameters ||
      napi_get_value_string_utf8(env, args[2], name, sizeof name, nullptr) != napi_ok) {
    return throwType(env, "bind: expected (Uint8Array, Float64Array of at least 16, variant name, kernel table)");
  }
  const KernelTable* table = nullptr;
  size_t count;
  const Variant* all = variants(&count);
  for (size_t i = 0; i < count; i++) {
    if (std::strcmp(all[i].table->name, name) == 0 && all[i].supported()) table = all[i].table;
  }
  if (table == nullptr) return throwType(env, "bind: this CPU or this build has no such variant");

  uint32_t kernels = 0;
  if (napi_get_array_length(env, args[3], &kernels) != napi_ok || kernels != kKernelCount) {
    return throwType(env, "bind: this addon was built for another kernel table: run `npm run build:native`");
  }
  Binding* binding = new (std::nothrow) Binding{};
  napi_value functions;
  if (binding == nullptr || napi_create_object(env, &functions) != napi_ok) {
    delete binding;
    return throwType(env, "bind: out of memory");
  }
  binding->base = static_cast<uint8_t*>(arena);
  binding->size = arenaBytes;
  binding->parameters = static_cast<double*>(parameters);
  binding->table = table;
  // Lives as long as the parameter array, which the functions cannot do without.
  if (napi_wrap(env, args[1], binding, freeBinding, nullptr, nullptr) != napi_ok) {
    delete binding;
    return throwType(env, "bind: the parameter array is in use by another binding");
  }
  for (uint32_t i = 0; i < kernels; i++) {
    BoundKernel& kernel = binding->kernels[i];
    kernel.binding = binding;
    napi_value entry, function;
    if (napi_get_element(env, args[3], i, &entry) != napi_ok) return throwType(env, "bind: no kernel table");
    const Method* method = readKernel(env, entry, kernel);
    if (method == nullptr) {
      return throwType(env, "bind: this addon was built for another kernel table: run `npm run build:native`");
    }
    if (napi_create_function(env, method->name, NAPI_AUTO_LENGTH, method->callback, &kernel, &function) != napi_ok ||
        napi_set_named_property(env, functions, method->name, function) != napi_ok) {
      return throwType(env, "bind: could not create the functions");
    }
  }
  return functions;
}

// Huge pages must be advised before the memory is first touched. Pages are 2 MB: fewer address translations to
// miss when rows are read from all over an arena.
napi_value AdviseHugePages(napi_env env, napi_callback_info info) {
  size_t argc = 1, bytes = 0;
  napi_value arena, result;
  void* data = nullptr;
  bool taken = false;
  if (napi_get_cb_info(env, info, &argc, &arena, nullptr, nullptr) != napi_ok || argc < 1 ||
      !typedArray(env, arena, napi_uint8_array, &data, &bytes)) {
    return throwType(env, "adviseHugePages: expected a Uint8Array");
  }
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  taken = end > begin && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
#endif
  return napi_get_boolean(env, taken, &result) == napi_ok ? result : nullptr;
}

}  // namespace
}  // namespace hybrid_infer

NAPI_MODULE_INIT() {
  using namespace hybrid_infer;
  const struct {
    const char* name;
    napi_callback callback;
  } functions[] = {{"variants", VariantNames}, {"bind", Bind}, {"adviseHugePages", AdviseHugePages}};
  for (const auto& method : functions) {
    napi_value function;
    if (napi_create_function(env, method.name, NAPI_AUTO_LENGTH, method.callback, nullptr, &function) != napi_ok ||
        napi_set_named_property(env, exports, method.name, function) != napi_ok) {
      return nullptr;
    }
  }
  return exports;
}
