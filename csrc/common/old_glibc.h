// Versions of glibc's functions that every Linux since 2018 has, so that a library that was built beside a newer glibc
// runs there too (manylinux_2_28). The functions are the same but for how they report errors, which nothing here reads.
#pragma once

#include <cmath>  // defines __GLIBC__

#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver exp,exp@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
__asm__(".symver hypot,hypot@GLIBC_2.2.5");
#endif
