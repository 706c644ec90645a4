#include "parallel.h"

#include "tensor.h"

namespace hyperkernels {

int64_t thread_count() { return torch::stable::get_num_threads(); }

void detail::parallel_for(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*),
                          void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, f, context));
}

}  // namespace hyperkernels
