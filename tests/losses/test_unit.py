import torch

from perdure.losses import inner_products, unit_rows


def test_rows_have_length_one_in_at_least_float32() -> None:
    for dtype, out in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        rows = unit_rows(torch.randn(5, 7).to(dtype))
        assert rows.dtype == out
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5, dtype=out))


def test_a_row_of_zeros_stays_zero_with_a_finite_gradient() -> None:
    raw = torch.zeros(2, 3, requires_grad=True)
    rows = unit_rows(raw)
    rows.sum().backward()
    assert not rows.any()
    assert raw.grad is not None and raw.grad.isfinite().all()


def test_inner_products_are_not_rounded_under_autocast() -> None:
    rows = unit_rows(torch.randn(8, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (rows @ rows.T).dtype == torch.bfloat16
        similarity = inner_products(rows, rows)
    assert torch.equal(similarity, rows @ rows.T)
