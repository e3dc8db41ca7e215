// The Node-API addon: kernels over one arena, called from TypeScript (loader.ts).
//
//     variants()                               -> string[]: the kernel variants this CPU runs, best first
//     bind(arena, parameters, variant, digest) -> {dot, ...}: functions bound to that arena
//     adviseHugePages(arena)                   -> boolean: whether the system took the advice
//
// A call takes no arguments: TypeScript writes them into `parameters` (a Float64Array it shares with the binding)
// and results come back in parameters[0]. Reading a dozen arguments through Node-API would cost as much as a
// small kernel. By the kernel table (declarations.h) every range is checked against the arena before a kernel runs,
// so that a wrong offset is a RangeError and never a crash; `digest` names the table that TypeScript has.
#include <node_api.h>

#include <cstdio>
#include <cstring>
#include <iterator>
#include <new>
#include <type_traits>
#include <utility>

#include "declarations.h"
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

// ---- one call --------------------------------------------------------------------------------------------

// What one bind() made. Freed with the parameter array it was given, which the TypeScript side keeps as long as it
// keeps the functions.
struct Binding {
  uint8_t* base;
  size_t size;
  double* parameters;
  const KernelTable* table;
};

// Reads and checks the parameters of one call of the kernel that D declares (declarations.h). What D says is known
// to the compiler: of each check below a few comparisons are left.
template <typename D> class Call {
 public:
  Call(napi_env env, napi_callback_info info) : env_(env) {
    void* data = nullptr;
    size_t none = 0;
    napi_get_cb_info(env, info, &none, nullptr, nullptr, &data);
    binding_ = static_cast<const Binding*>(data);
    parameters_ = binding_->parameters;
  }

  const KernelTable& kernels() const { return *binding_->table; }

  // Whether every argument is what its declaration says, and every range lies inside the arena. Lists come before
  // the ranges that are measured by what they hold.
  template <size_t... I> bool check(std::index_sequence<I...>) {
    return (read<I>() && ...) && (readOffsets<I>() && ...) && (readIds<I>() && ...) && (checkRest<I>() && ...);
  }

  // Argument I as the kernel takes it; only after check().
  template <typename T, size_t I> T get() const {
    if constexpr (std::is_pointer_v<T>) return isNone<I>() ? nullptr : reinterpret_cast<T>(address<I>());
    else if constexpr (std::is_floating_point_v<T>) return static_cast<T>(parameters_[I]);
    else return static_cast<T>(whole_[I]);
  }

  napi_value refuse() {
    char text[160];
    std::snprintf(text, sizeof text, "%s: parameter %u (%.17g) does not fit the arena of %.0f bytes", D::name,
                  static_cast<unsigned>(bad_), parameters_[bad_], static_cast<double>(binding_->size));
    napi_throw_range_error(env_, nullptr, text);
    return nullptr;
  }
  napi_value result(double value) {
    parameters_[0] = value;
    return nullptr;
  }

 private:
  static constexpr size_t kCount = std::size(D::arguments);
  static_assert(kCount <= kParameters, "call.ts and kParameters say how long a list of arguments may be");

  bool fail(size_t i) {
    bad_ = i;
    return false;
  }

  // A whole number that fits any arena (offsets and sizes are below 2^33), and the number of a name.
  template <size_t I> bool read() {
    constexpr Kind kind = D::arguments[I].kind;
    if constexpr (kind == Kind::real) return true;
    const double value = parameters_[I];
    if (!(value >= 0 && value <= 8589934592.0)) return fail(I);
    const int64_t whole = static_cast<int64_t>(value);
    whole_[I] = static_cast<size_t>(whole);
    return (static_cast<double>(whole) == value && whole <= lastOf(kind)) || fail(I);
  }
  static constexpr int64_t lastOf(Kind kind) {
    switch (kind) {
      case Kind::rowFormat: return static_cast<int64_t>(Format::q3);
      case Kind::weightFormat: return static_cast<int64_t>(Format::q4);
      case Kind::kvFormat: return static_cast<int64_t>(KvFormat::q8);
      case Kind::activation: return static_cast<int64_t>(Activation::geluQuick);
      default: return INT64_MAX;
    }
  }
  Format format() const { return static_cast<Format>(whole_[0]); }
  KvFormat kvFormat() const { return static_cast<KvFormat>(whole_[0]); }

  template <size_t I> uint8_t* address() const { return binding_->base + whole_[I]; }
  template <size_t I> bool isNone() const {
    constexpr Argument argument = D::arguments[I];
    if constexpr (argument.optional) return whole_[I] == 0;
    else if constexpr (argument.item == Item::kvScale) return kvFormat() == KvFormat::f32;
    else return false;
  }

  // Whether the range that argument I begins lies inside the arena.
  template <size_t I> bool inside() {
    if (isNone<I>() || fits<I>()) return true;
    constexpr Argument argument = D::arguments[I];
    constexpr bool byIds = reaches(argument.size) || reaches(argument.times);
    return (byIds && narrowReach() && fits<I>()) || fail(I);
  }

  static constexpr bool reaches(Measure how) { return how == Measure::reach || how == Measure::rows; }

  template <size_t I> bool fits() {
    constexpr Argument argument = D::arguments[I];
    const size_t size = measure<argument.size, argument.sizeOf>();
    const size_t times = measure<argument.times, argument.timesOf>();
    const size_t item = itemBytes<argument.item>(size);
    size_t stride = item;
    if constexpr (argument.stride != 0) {
      stride = whole_[argument.stride - 1] * argument.strideBytes;
      if (times > 1 && (stride % sizeof(float) != 0 || stride < item)) return fail(argument.stride - 1);
    }
    size_t bytes = times == 0 ? 0 : item;
    if (times > 1) {
      size_t before;  // of the last item; times and stride may be up to 2^35
      if (__builtin_mul_overflow(times - 1, stride, &before) || before > binding_->size) return false;
      bytes += before;
    }
    const size_t offset = whole_[I];
    return offset % alignment<argument.item>() == 0 && bytes <= binding_->size && offset <= binding_->size - bytes;
  }

  template <Item item> size_t alignment() const {
    if constexpr (item == Item::kvRow) return kvFormat() == KvFormat::f32 ? sizeof(float) : 1;
    else if constexpr (item == Item::byte || item == Item::q8a || item == Item::row || item == Item::storedRow) return 1;
    else return sizeof(float);
  }

  // Sizes are below 2^34: nothing here overflows.
  template <Item item> size_t itemBytes(size_t size) const {
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

  template <Measure how, size_t I> size_t measure() const {
    switch (how) {
      case Measure::one: return 1;
      case Measure::value: return whole_[I];
      case Measure::next: return whole_[I] + 1;
      case Measure::half: return whole_[I] / 2;
      case Measure::pages: return (whole_[I] + kKvPage - 1) / kKvPage;
      case Measure::aligned: return alignUp(whole_[I], 16);
      case Measure::last: return listsEnd_;
      case Measure::reach: return reach_;
      case Measure::rows: return reach_ * kKvPage;
    }
    return 0;
  }

  // ---- arguments whose contents say how far others reach: of each kind a kernel has one at most
  static constexpr bool measures(Measure how, size_t i) {
    for (const Argument& argument : D::arguments) {
      if ((argument.size == how && argument.sizeOf == i) || (argument.times == how && argument.timesOf == i)) return true;
    }
    return false;
  }
  static constexpr bool isOffsets(size_t i) { return measures(Measure::last, i); }
  static constexpr bool isIds(size_t i) { return measures(Measure::reach, i) || measures(Measure::rows, i); }

  template <size_t I> bool readOffsets() {
    if constexpr (isOffsets(I)) {
      if (!inside<I>()) return false;
      const uint32_t* offsets = reinterpret_cast<const uint32_t*>(address<I>());
      const size_t n = whole_[D::arguments[I].sizeOf];
      for (size_t t = 0; t < n; t++) {
        if (offsets[t] > offsets[t + 1]) return fail(I);
      }
      listsBegin_ = offsets[0];
      listsEnd_ = offsets[n];
    }
    return true;
  }

  // The largest of the entries that are used, plus one: those of the lists; pages from that of the position in the
  // argument before the one that measures the table; or all.
  template <size_t I> bool readIds() {
    if constexpr (isIds(I)) {
      if (!inside<I>()) return false;
      constexpr Argument argument = D::arguments[I];
      size_t k = 0;
      if constexpr (argument.size == Measure::last) k = listsBegin_;
      if constexpr (argument.size == Measure::pages) k = whole_[argument.sizeOf - 1] / kKvPage;
      const size_t end = measure<argument.size, argument.sizeOf>();
      if (k < end) {
        ids_ = reinterpret_cast<const uint32_t*>(address<I>()) + k;
        idCount_ = end - k;
        // All bits of all entries: no less than the largest, and every list kernel looks at every entry here.
        uint32_t bits = 0;
        for (size_t i = 0; i < idCount_; i++) bits |= ids_[i];
        reach_ = static_cast<size_t>(bits) + 1;
      }
    }
    return true;
  }

  // From the bits of the entries to the largest of them. Whether that is less.
  bool narrowReach() {
    uint32_t largest = 0;
    for (size_t i = 0; i < idCount_; i++) largest = ids_[i] > largest ? ids_[i] : largest;
    const bool less = largest + size_t{1} < reach_;
    if (less) reach_ = largest + size_t{1};
    return less;
  }

  template <size_t I> bool checkRest() {
    if constexpr (D::arguments[I].kind == Kind::pointer && !isOffsets(I) && !isIds(I)) return inside<I>();
    return true;
  }

  napi_env env_;
  const Binding* binding_;
  double* parameters_;
  size_t whole_[kCount];
  size_t listsBegin_ = 0, listsEnd_ = 0, reach_ = 0, idCount_ = 0;
  const uint32_t* ids_ = nullptr;
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

template <auto Member, typename D> struct Callback;
template <typename R, typename... A, R (*KernelTable::*Member)(A...), typename D> struct Callback<Member, D> {
  static napi_value run(napi_env env, napi_callback_info info) {
    return apply(env, info, std::index_sequence_for<A...>{});
  }
  template <size_t... I> static napi_value apply(napi_env env, napi_callback_info info, std::index_sequence<I...> all) {
    static_assert(sizeof...(A) == std::size(D::arguments), "table.h and table.ts declare other arguments");
    static_assert((takes<A>(D::arguments[I].kind) && ...), "table.h and table.ts declare other arguments");
    Call<D> call(env, info);
    if (!call.check(all)) return call.refuse();
    const auto kernel = call.kernels().*Member;
    if constexpr (std::is_void_v<R>) return kernel(call.template get<A, I>()...), nullptr;
    else return call.result(static_cast<double>(kernel(call.template get<A, I>()...)));
  }
};

struct Method {
  const char* name;
  napi_callback callback;
};
#define HYBRID_INFER_METHOD(KERNEL) {#KERNEL, Callback<&KernelTable::KERNEL, declared::KERNEL>::run},
const Method kMethods[] = {HYBRID_INFER_KERNELS(HYBRID_INFER_METHOD)};
static_assert(std::size(kMethods) == declared::kKernels, "table.h and table.ts declare other kernels");

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

napi_value Bind(napi_env env, napi_callback_info info) {
  size_t argc = 4, length = 0, arenaBytes = 0;
  napi_value args[4];
  void *arena = nullptr, *parameters = nullptr;
  char name[32] = {}, declarations[sizeof declared::kDigest + 1] = {};
  if (napi_get_cb_info(env, info, &argc, args, nullptr, nullptr) != napi_ok || argc < 4 ||
      !typedArray(env, args[0], napi_uint8_array, &arena, &arenaBytes) ||
      !typedArray(env, args[1], napi_float64_array, &parameters, &length) || length < kParameters ||
      napi_get_value_string_utf8(env, args[2], name, sizeof name, nullptr) != napi_ok ||
      napi_get_value_string_utf8(env, args[3], declarations, sizeof declarations, nullptr) != napi_ok) {
    return throwType(env, "bind: expected (Uint8Array, Float64Array of at least 16, variant name, digest)");
  }
  if (std::strcmp(declarations, declared::kDigest) != 0) {
    return throwType(env, "bind: this addon was built for another kernel table: run `npm run build`");
  }
  const KernelTable* table = nullptr;
  size_t count;
  const Variant* all = variants(&count);
  for (size_t i = 0; i < count; i++) {
    if (std::strcmp(all[i].table->name, name) == 0 && all[i].supported()) table = all[i].table;
  }
  if (table == nullptr) return throwType(env, "bind: this CPU or this build has no such variant");

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
  for (const Method& method : kMethods) {
    napi_value function;
    if (napi_create_function(env, method.name, NAPI_AUTO_LENGTH, method.callback, binding, &function) != napi_ok ||
        napi_set_named_property(env, functions, method.name, function) != napi_ok) {
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
