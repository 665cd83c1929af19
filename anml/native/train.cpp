// The Python module of training: Stack32 and Stack64 (blocks.h), attend (head.h).
#include "blocks.h"
#include "head.h"

namespace {

template <typename T>
void bind(pybind11::module& module, const char* name) {
  pybind11::class_<Stack<T>>(module, name)
      .def(pybind11::init<const std::vector<std::vector<int64_t>>&, double, double>())
      .def("start", &Stack<T>::start)
      .def("encode", &Stack<T>::encode)
      .def("descend", &Stack<T>::descend)
      .def("encode_query", &Stack<T>::encode_query)
      .def("query_vjp", &Stack<T>::query_vjp)
      .def("step_vjp", &Stack<T>::step_vjp)
      .def("jvp", &Stack<T>::jvp)
      .def("carry_adjoint", &Stack<T>::carry_adjoint)
      .def("gradients", &Stack<T>::gradients);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  bind<float>(module, "Stack32");
  bind<double>(module, "Stack64");
  module.def("attend", [](const torch::Tensor& weight, const torch::Tensor& rows, const torch::Tensor& extra,
                          const std::optional<torch::Tensor>& probability) {
    return weight.dtype() == torch::kFloat ? attend<float>(weight, rows, extra, probability)
                                           : attend<double>(weight, rows, extra, probability);
  });
}
