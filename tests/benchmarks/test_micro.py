"""Nothing is without a micro-benchmark that should have one."""

from bayesrm_fast import ops
from benchmarks.micro.test_operations import ARGUMENTS


def test_each_operation_has_its_micro_benchmark():
    assert set(ARGUMENTS) == set(ops.__all__)
