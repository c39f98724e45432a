// Which instruction sets this processor has, asked before a kernel compiled for them is called; and of which sources the library is made.

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

extern "C" const char* deformvit_fingerprint() { return TEXT(FINGERPRINT); }

extern "C" int deformvit_supports_plain() { return 1; }

#if defined(__x86_64__)
extern "C" int deformvit_supports_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

extern "C" int deformvit_supports_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#endif
