// The operations, once for each instruction set: BAYESRM_ISA is generic, avx2 or avx512.
#include "ggn_project.h"
#include "kron_project.h"
#include "kron_variance.h"
#include "segment_outer.h"

#define BAYESRM_TABLE_OF(isa) kernels_##isa
#define BAYESRM_TABLE(isa) BAYESRM_TABLE_OF(isa)
#define BAYESRM_TEXT_OF(isa) #isa
#define BAYESRM_TEXT(isa) BAYESRM_TEXT_OF(isa)

namespace bayesrm {

extern const Kernels BAYESRM_TABLE(BAYESRM_ISA) = {
    BAYESRM_TEXT(BAYESRM_ISA),
    BAYESRM_ISA::segment_outer,
    BAYESRM_ISA::kron_project,
    BAYESRM_ISA::kron_variance,
    BAYESRM_ISA::ggn_project,
};

}  // namespace bayesrm
