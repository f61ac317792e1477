"""The count sketch of long feature vectors."""

import pytest
import torch

from bayesrm_fast.score import sketch as sketching
from bayesrm_fast.score.sketch import feature_sketch


def vectors(count, size, seed=0, dtype=torch.float64):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_sketch_is_unbiased():
    x = vectors(2, 300)
    products = []
    for trial in range(400):
        rows, squared_norms = feature_sketch({f"{trial}": x[:, :100], f"{trial} more": x[:, 100:]})
        products.append(float(rows[0] @ rows[1]))
        torch.testing.assert_close(squared_norms, x.square().sum(1))
    found, exact = torch.tensor(products), float(x[0] @ x[1])
    spread = float(((x.square().sum(1).prod() + exact**2) / sketching.WIDTH).sqrt())
    assert float(found.mean()) == pytest.approx(exact, abs=4 * spread / 20)
    assert float(found.std()) < 1.3 * spread


def test_it_is_linear_and_follows_from_the_names_alone():
    x, y = vectors(3, 500), vectors(3, 500, seed=1)
    one, other = feature_sketch({"a": x})[0], feature_sketch({"a": y})[0]
    torch.testing.assert_close(feature_sketch({"a": x + 2 * y})[0], one + 2 * other)
    torch.testing.assert_close(feature_sketch({"b": y, "a": x})[0], one + feature_sketch({"b": y})[0])
    torch.testing.assert_close(feature_sketch({"a": x[1:2]})[0], one[1:2])


def test_each_part_has_columns_and_signs_of_its_own():
    x = vectors(1, 500)
    assert not torch.equal(feature_sketch({"a": x})[0], feature_sketch({"b": x})[0])


def test_every_number_goes_to_one_column_with_a_sign():
    rows, squared_norms = feature_sketch({"a": torch.eye(200)})
    assert torch.equal(rows.abs().sum(1), torch.ones(200))
    assert set(rows.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(squared_norms, torch.ones(200, dtype=torch.float64))


def test_parts_are_taken_out_and_norms_are_float64():
    parts = {"a": vectors(2, 10, dtype=torch.float32), "b": vectors(2, 20, dtype=torch.float32)}
    rows, squared_norms = feature_sketch(parts)
    assert not parts
    assert (rows.shape, rows.dtype) == ((2, sketching.WIDTH), torch.float32)
    assert squared_norms.dtype == torch.float64
