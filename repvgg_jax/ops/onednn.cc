// XLA custom calls for oneDNN's convolutions: forward (optionally with a bias and a ReLU), input
// gradient and kernel gradient.
//
// Images are NHWC and kernels HWIO, as in JAX. oneDNN chooses its own layout for the kernel, which
// is small, so each call reorders it, unless `Pack` already did. Images are neither reordered nor
// copied.
// Primitives are cached by shape, since creating one compiles code.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

extern "C" {  // from the OpenMP library that oneDNN is linked to
int omp_get_max_threads();
void omp_set_num_threads(int number);
}

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using F32 = ffi::Buffer<ffi::F32>;
using Shape = ffi::Span<const int64_t>;

enum Pass : int64_t { kForward, kInputGradient, kKernelGradient };

// The cache key of a primitive.
struct Problem {
  Pass pass;
  std::vector<int64_t> x, kernel, y;
  int64_t strides, groups, dilation, top, left;
  bool bias = false, relu = false;

  std::vector<int64_t> key() const {
    std::vector<int64_t> key{pass, strides, groups, dilation, top, left, bias, relu};
    for (const auto* sizes : {&x, &kernel, &y}) {
      key.insert(key.end(), sizes->begin(), sizes->end());
    }
    return key;
  }

  double multiply_adds() const {
    double count = y[0] * y[1] * y[2];
    for (int64_t size : kernel) count *= size;
    return count;
  }
};

// Multiply-adds for each thread, at least: about a tenth of a millisecond. With fewer, starting
// threads and waiting for the last of them takes more time than they save, above all if other
// processes use the cores.
constexpr double kLeastWork = 8e6;

// Limits the OpenMP threads that this thread starts to those that a problem is worth, while it
// exists. A plan is created and run under the same limit. Other threads have their own.
class Threads {
 public:
  explicit Threads(const Problem& problem) : before_(omp_get_max_threads()) {
    const double most = std::max(1.0, problem.multiply_adds() / kLeastWork);
    if (most < before_) omp_set_num_threads(static_cast<int>(most));
  }
  ~Threads() { omp_set_num_threads(before_); }
  Threads(const Threads&) = delete;

 private:
  const int before_;
};

struct Plan {
  dnnl::primitive primitive;
  memory::desc x, kernel, bias, y;  // layouts that the primitive uses
  memory::desc scratchpad;          // temporary memory of the primitive
  memory::desc hwio;                // layout of the kernel in JAX
  dnnl::reorder reorder;            // conversion between the kernel's layouts, if they differ

  // True if the packed kernel has the size of the original one; some layouts pad channels.
  bool packs() const { return kernel != hwio && kernel.get_size() == hwio.get_size(); }
};

dnnl::engine& Engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// Returns scratch memory of this thread, which is reused, since new pages would be slower.
void* Scratch(const memory::desc& wanted) {
  thread_local std::unique_ptr<void, decltype(&std::free)> kept(nullptr, &std::free);
  thread_local size_t size = 0;
  if (wanted.get_size() > size) {
    size = (wanted.get_size() + 63) / 64 * 64;
    kept.reset();  // frees the old memory before allocating the new one
    kept.reset(std::aligned_alloc(64, size));
    if (!kept) {
      size = 0;
      throw std::bad_alloc();
    }
  }
  return kept.get();
}

Plan MakePlan(const Problem& p) {
  const auto f32 = memory::data_type::f32;
  const int64_t height = p.x[1], width = p.x[2], cin = p.x[3];
  const int64_t kh = p.kernel[0], kw = p.kernel[1], group_cin = p.kernel[2], cout = p.kernel[3];
  const int64_t g = p.groups, tap = group_cin * cout;

  Plan plan;
  plan.x = memory::desc({p.x[0], cin, height, width}, f32, memory::format_tag::nhwc);
  plan.y = memory::desc({p.x[0], cout, p.y[1], p.y[2]}, f32, memory::format_tag::nhwc);
  memory::dims sizes{cout, group_cin, kh, kw}, steps{1, cout, kw * tap, tap};
  if (g > 1) {
    sizes = {g, cout / g, group_cin, kh, kw};
    steps = {cout / g, 1, cout, kw * tap, tap};
  }
  plan.hwio = memory::desc(sizes, f32, steps);
  const memory::desc any(sizes, f32, memory::format_tag::any);

  const memory::dims strides{p.strides, p.strides}, gaps{p.dilation - 1, p.dilation - 1};
  const memory::dims before{p.top, p.left};
  // If no window reaches the last pixels, padding is 0: negative padding makes oneDNN write out of
  // bounds.
  const auto beyond = [&p](int64_t y, int64_t size, int64_t x, int64_t before) {
    return std::max<int64_t>(0, (y - 1) * p.strides + (size - 1) * p.dilation + 1 - x - before);
  };
  const memory::dims after{beyond(p.y[1], kh, height, p.top), beyond(p.y[2], kw, width, p.left)};
  const auto direct = dnnl::algorithm::convolution_direct;
  if (p.bias) plan.bias = memory::desc({cout}, f32, memory::format_tag::a);
  dnnl::post_ops after_sum;
  if (p.relu) after_sum.append_eltwise(dnnl::algorithm::eltwise_relu, 0.f, 0.f);
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(after_sum);
  // By default, a primitive uses the scratchpad of the thread that created it, but XLA runs it on
  // any thread, and on several at once.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::convolution_forward::primitive_desc forward(
      Engine(), dnnl::prop_kind::forward, direct, plan.x, any, plan.bias, plan.y, strides, gaps,
      before, after, attributes);
  if (p.pass == kForward) {
    plan.kernel = forward.weights_desc();
    plan.scratchpad = forward.scratchpad_desc();
    plan.primitive = dnnl::convolution_forward(forward);
  } else if (p.pass == kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        Engine(), direct, plan.x, any, plan.y, strides, gaps, before, after, forward, attributes);
    plan.kernel = backward.weights_desc();
    plan.scratchpad = backward.scratchpad_desc();
    plan.primitive = dnnl::convolution_backward_data(backward);
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        Engine(), direct, plan.x, any, plan.y, strides, gaps, before, after, forward, attributes);
    plan.kernel = backward.diff_weights_desc();
    plan.scratchpad = backward.scratchpad_desc();
    plan.primitive = dnnl::convolution_backward_weights(backward);
  }
  if (plan.kernel != plan.hwio) {
    const bool out = p.pass == kKernelGradient;
    plan.reorder = dnnl::reorder(memory(out ? plan.kernel : plan.hwio, Engine(), nullptr),
                                 memory(out ? plan.hwio : plan.kernel, Engine(), nullptr));
  }
  return plan;
}

std::shared_ptr<const Plan> PlanFor(const Problem& problem) {
  static std::mutex mutex;
  static auto* plans = new std::map<std::vector<int64_t>, std::shared_ptr<const Plan>>();
  const auto key = problem.key();
  std::lock_guard<std::mutex> lock(mutex);
  auto& plan = (*plans)[key];
  if (!plan) plan = std::make_shared<const Plan>(MakePlan(problem));
  return plan;
}

ffi::Error Run(const Problem& problem, void* x, void* kernel, void* y, void* bias = nullptr,
               bool packed = false) {
  try {
    const Threads threads(problem);
    const auto plan = PlanFor(problem);
    dnnl::stream stream(Engine());
    const bool ready = packed && plan->packs();
    const memory hwio(ready ? plan->kernel : plan->hwio, Engine(), kernel);
    const bool reorders = !ready && plan->kernel != plan->hwio;
    const memory own = reorders ? memory(plan->kernel, Engine()) : hwio;
    const bool gradient = problem.pass != kForward;
    if (reorders && problem.pass != kKernelGradient) {
      dnnl::reorder(plan->reorder).execute(stream, {{DNNL_ARG_FROM, hwio}, {DNNL_ARG_TO, own}});
    }
    std::unordered_map<int, memory> arguments{
        {problem.pass == kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC,
         memory(plan->x, Engine(), x)},
        {problem.pass == kKernelGradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, own},
        {DNNL_ARG_SCRATCHPAD, memory(plan->scratchpad, Engine(), Scratch(plan->scratchpad))},
        {gradient ? DNNL_ARG_DIFF_DST : DNNL_ARG_DST, memory(plan->y, Engine(), y)}};
    if (bias) arguments.emplace(DNNL_ARG_BIAS, memory(plan->bias, Engine(), bias));
    plan->primitive.execute(stream, arguments);
    if (reorders && problem.pass == kKernelGradient) {
      dnnl::reorder(plan->reorder).execute(stream, {{DNNL_ARG_FROM, own}, {DNNL_ARG_TO, hwio}});
    }
    stream.wait();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("oneDNN: ") + error.what());
  }
}

std::vector<int64_t> Sizes(const F32& array) {
  return {array.dimensions().begin(), array.dimensions().end()};
}

ffi::Error Forward(F32 x, F32 kernel, ffi::RemainingArgs biases, ffi::Result<F32> y,
                   int64_t strides, int64_t groups, int64_t dilation, int64_t top, int64_t left,
                   bool relu, bool packed) {
  const bool biased = biases.size() == 1;
  void* bias = biased ? biases.get<F32>(0)->untyped_data() : nullptr;
  return Run({kForward, Sizes(x), Sizes(kernel), Sizes(*y), strides, groups, dilation, top, left,
              biased, relu},
             x.untyped_data(), kernel.untyped_data(), y->untyped_data(), bias, packed);
}

// Returns the kernel for `Forward` with `packed`: in oneDNN's layout if that has the same size.
ffi::Error Pack(F32 kernel, ffi::Result<F32> result, int64_t strides, int64_t groups,
                int64_t dilation, int64_t top, int64_t left, bool biased, bool relu, Shape x,
                Shape y) {
  try {
    const Problem problem{kForward, {x.begin(), x.end()}, Sizes(kernel), {y.begin(), y.end()},
                          strides, groups, dilation, top, left, biased, relu};
    const Threads threads(problem);
    const auto plan = PlanFor(problem);
    if (!plan->packs()) {
      std::memcpy(result->untyped_data(), kernel.untyped_data(), plan->hwio.get_size());
      return ffi::Error::Success();
    }
    dnnl::stream stream(Engine());
    memory from(plan->hwio, Engine(), kernel.untyped_data());
    memory to(plan->kernel, Engine(), result->untyped_data());
    dnnl::reorder(plan->reorder).execute(stream, from, to);
    stream.wait();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("oneDNN: ") + error.what());
  }
}

ffi::Error InputGradient(F32 dy, F32 kernel, ffi::Result<F32> dx, int64_t strides, int64_t groups,
                         int64_t dilation, int64_t top, int64_t left) {
  return Run({kInputGradient, Sizes(*dx), Sizes(kernel), Sizes(dy), strides, groups, dilation, top,
              left},
             dx->untyped_data(), kernel.untyped_data(), dy.untyped_data());
}

ffi::Error KernelGradient(F32 x, F32 dy, ffi::Result<F32> dk, int64_t strides, int64_t groups,
                          int64_t dilation, int64_t top, int64_t left) {
  return Run({kKernelGradient, Sizes(x), Sizes(*dk), Sizes(dy), strides, groups, dilation, top,
              left},
             x.untyped_data(), dk->untyped_data(), dy.untyped_data());
}

auto One() { return ffi::Ffi::Bind().Arg<F32>(); }

}  // namespace

#define REPVGG_JAX_HANDLER(name, function, arrays, more) \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,          \
                                One() arrays             \
                                    .Ret<F32>()          \
                                    .Attr<int64_t>("strides")  \
                                    .Attr<int64_t>("groups")   \
                                    .Attr<int64_t>("dilation") \
                                    .Attr<int64_t>("top")      \
                                    .Attr<int64_t>("left") more)

REPVGG_JAX_HANDLER(repvgg_jax_convolution, Forward, .Arg<F32>().RemainingArgs(),
                   .Attr<bool>("relu").Attr<bool>("packed"));
REPVGG_JAX_HANDLER(repvgg_jax_pack, Pack, ,
                   .Attr<bool>("biased").Attr<bool>("relu").Attr<Shape>("x").Attr<Shape>("y"));
REPVGG_JAX_HANDLER(repvgg_jax_input_gradient, InputGradient, .Arg<F32>(), );
REPVGG_JAX_HANDLER(repvgg_jax_kernel_gradient, KernelGradient, .Arg<F32>(), );
