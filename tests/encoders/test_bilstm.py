import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.encoders.bilstm import BiLSTM


def tower(**options) -> BiLSTM:
    torch.manual_seed(0)
    made = BiLSTM(6, word_dim=5, hidden=4, **options)
    made.grow(12)
    return made.eval()


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(1, 11), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(0, 5),
    st.sampled_from(["max", "mean"]),
)
def test_padding_and_neighbours_do_not_change_a_row(rows: list[list[int]], padding: int, pooling: str) -> None:
    made = tower(pooling=pooling)
    width = max(map(len, rows)) + padding
    together = made(torch.tensor([row + [0] * (width - len(row)) for row in rows]))
    for row, embedding in zip(rows, together, strict=True):
        torch.testing.assert_close(embedding, made(torch.tensor([row]))[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_equals_two_lstms_run_word_by_word(pooling: str) -> None:
    made = tower(pooling=pooling)
    tokens = [3, 7, 2, 9]
    forward, backward = torch.nn.LSTMCell(5, 4), torch.nn.LSTMCell(5, 4)
    for cell, suffix in ((forward, ""), (backward, "_reverse")):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data = getattr(made.lstm, f"{name}_l0{suffix}").data
    states = {}
    for cell, order in ((forward, range(4)), (backward, range(3, -1, -1))):
        h = c = torch.zeros(1, 4)
        for position in order:
            h, c = cell(made.words[tokens[position]][None], (h, c))
            states[cell, position] = h[0]
    both = torch.stack([torch.cat([states[forward, i], states[backward, i]]) for i in range(4)])
    pooled = both.amax(dim=0) if pooling == "max" else both.mean(dim=0)
    torch.testing.assert_close(made(torch.tensor([tokens]))[0], made.projection(pooled))


def test_growing_keeps_old_words_and_a_smaller_teacher_reads_new_words_as_unknown() -> None:
    student = tower()
    teacher = copy.deepcopy(student)
    old = torch.tensor([[2, 11, 5]])
    before = student(old)
    student.grow(20)
    assert torch.equal(student(old), before)
    assert torch.equal(teacher(torch.tensor([[2, 15, 19]])), teacher(torch.tensor([[2, 1, 1]])))
    assert not torch.equal(student(torch.tensor([[2, 15, 19]])), student(torch.tensor([[2, 1, 1]])))


def test_a_row_of_padding_alone_reads_as_one_unknown_word() -> None:
    made = tower()
    torch.testing.assert_close(made(torch.tensor([[0, 0, 0], [2, 3, 4]]))[0], made(torch.tensor([[1]]))[0])


def test_is_float32_and_unchanged_under_bf16_autocast() -> None:
    made, tokens = tower(), torch.tensor([[2, 3, 0], [4, 5, 6]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made(tokens)
    assert inside.dtype == torch.float32 and torch.equal(inside, made(tokens))


def test_every_parameter_and_only_the_words_of_the_caption_get_a_gradient() -> None:
    made = tower().train()
    made(torch.tensor([[2, 3, 0]])).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    rows = made.words.grad.abs().sum(dim=1)
    assert (rows > 0).nonzero().flatten().tolist() == [2, 3]


def test_refuses_what_is_not_a_matrix_of_words() -> None:
    with pytest.raises(ValueError, match=r"\(B, L\)"):
        tower()(torch.tensor([1, 2]))
