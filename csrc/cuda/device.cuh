// The instructions: a GPU's, or under a test on a CPU their emulation.
#pragma once

#ifdef BAYESRM_EMULATED
#include "emulated_ptx.h"
#else
#include "ptx.cuh"
#endif
