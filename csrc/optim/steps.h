// What the kernels of all optimisers share.
#pragma once

#include <limits>

#include "../common/storage.h"

namespace hyperkernels::optim {

// The count after one more update. It stays at its maximum, where the corrections of the moments are long 1.
HK_INLINE int32_t next_step(int32_t step) { return step < std::numeric_limits<int32_t>::max() ? step + 1 : step; }

}  // namespace hyperkernels::optim
