// Which instruction sets this processor has, asked before a kernel compiled for them is called; and of which sources the library is made.

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

extern "C" const char* deformvit_fingerprint() { return TEXT(FINGERPRINT); }

extern "C" int deformvit_supports_plain() { return 1; }

#if defined(__x86_64__)
#include <cpuid.h>

namespace {

enum Register { EAX, EBX, ECX, EDX };

// Asked from the processor itself: compilers' own answers depend on the runtime library that is linked.
bool has(unsigned leaf, Register where, int bit) {
  unsigned r[4];
  return __get_cpuid_count(leaf, 0, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) && (r[where] >> bit & 1);
}

// Whether the operating system keeps these registers when it changes between threads.
bool keeps(unsigned registers) {
  if (!has(1, ECX, 27)) return false;  // xgetbv may be asked
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
}

}  // namespace

extern "C" int deformvit_supports_avx2() {
  return keeps(0x6) && has(7, EBX, 5) && has(1, ECX, 12);  // and fused multiply-add
}

extern "C" int deformvit_supports_avx512() {  // F, DQ, BW, VL
  return deformvit_supports_avx2() && keeps(0xe6) && has(7, EBX, 16) && has(7, EBX, 17) && has(7, EBX, 30) &&
         has(7, EBX, 31);
}
#endif
