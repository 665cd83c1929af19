// The Python module of evaluations: Adam one example at a time (adam.h). Tensors are contiguous, of one dtype, on the CPU.
#include "adam.h"

namespace {

template <typename T>
Moments<T> moments(const std::vector<torch::Tensor>& parts) {
  return {parts[0].data_ptr<T>(), parts[1].data_ptr<T>(), parts[2].data_ptr<T>()};
}

template <typename T>
void learn_head(const std::vector<torch::Tensor>& weight, const std::vector<torch::Tensor>& bias,
                const torch::Tensor& inputs, const torch::Tensor& labels, int64_t done, const Adam<T>& adam) {
  HeadAdam<T> head{moments<T>(weight), moments<T>(bias), weight[0].size(0), weight[0].size(1), adam};
  head.learn(inputs.data_ptr<T>(), labels.data_ptr<int64_t>(), inputs.size(0), done);
}

// One update of a Linear layer's weight, given its input x [width] and the loss's gradient delta [rows] at its output.
template <typename T>
void update_outer(const std::vector<torch::Tensor>& weight, const torch::Tensor& delta, const torch::Tensor& x,
                  int64_t done, const Adam<T>& adam) {
  const Moments<T> all = moments<T>(weight);
  const int64_t rows = weight[0].size(0), width = weight[0].size(1);
  const T *own = x.data_ptr<T>(), *deltas = delta.data_ptr<T>();
  parallel(std::max<int>(1, std::min<int64_t>(at::get_num_threads(), rows / 16)), [&](Team team) {
    const FlushDenormals flush;
    for (int64_t r = rows * team.rank / team.size; r < rows * (team.rank + 1) / team.size; ++r)
      adam.row(all.at(r * width), width, done + 1, deltas[r], own, own);
  });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("learn_head", [](const std::vector<torch::Tensor>& weight, const std::vector<torch::Tensor>& bias,
                              const torch::Tensor& inputs, const torch::Tensor& labels, int64_t done, double rate,
                              double beta1, double beta2, double epsilon) {
    const pybind11::gil_scoped_release release;
    if (inputs.dtype() == torch::kFloat)
      learn_head<float>(weight, bias, inputs, labels, done, {rate, beta1, beta2, epsilon});
    else
      learn_head<double>(weight, bias, inputs, labels, done, {rate, beta1, beta2, epsilon});
  });
  module.def("update_outer", [](const std::vector<torch::Tensor>& weight, const torch::Tensor& delta,
                                const torch::Tensor& x, int64_t done, double rate, double beta1, double beta2,
                                double epsilon) {
    const pybind11::gil_scoped_release release;
    if (x.dtype() == torch::kFloat)
      update_outer<float>(weight, delta, x, done, {rate, beta1, beta2, epsilon});
    else
      update_outer<double>(weight, delta, x, done, {rate, beta1, beta2, epsilon});
  });
}
