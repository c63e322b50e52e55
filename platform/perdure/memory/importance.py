"""How much each parameter of an encoder matters for what it has learned: a tensor for every parameter, by its name.

Two measures, both a mean over single items, so that neither the training batch nor the number of workers has a say in them:

    fisher         F_k = mean over items i of (d l_i / d theta_k)^2        the loss is sensitive to it (EWC)
    sensitivity    F_k = mean over items i of |d ||z_i||^2 / d theta_k|    the embedding is sensitive to it (MAS)

Published code squares the gradient of a whole mini-batch instead, which shrinks as the batch grows, or takes the length of embeddings
that are normalised already, which is 1 whatever the parameters are. Running statistics of BatchNorm are no parameters: nothing here
protects them. Items go through the encoder one by one in evaluation mode, in full precision. Letters: G items of a group, D embedding.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from perdure.records import Batch, Embedded

__all__ = ["fisher", "per_mean", "sensitivity"]

_UNIT = 1e-4  # how far from 1 the squared length of a normalised row may be


def fisher(
    encoder: nn.Module, groups: Iterable[Batch], loss: Callable[[Embedded], Tensor], *, heads: Sequence[nn.Module] = ()
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: the mean over items of the squared gradient of the item's own loss.

    Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, Eq. (3), with the labels of the data.

        F_k = (1/N) sum_i (d l_i / d theta_k)^2,        l_i = G L(z_1, .., z_i(theta), .., z_G)

    The own loss of an item, for a loss L over pairs or triplets: G times the loss of the group that it stands in, as a function of the
    item alone, all that is computed from the others held fixed. So each pair pulls on an item's gradient once for each part that the
    item plays in it (anchor, positive, negative), the own losses' gradients average to the gradient of L, and for a loss that is a
    mean over items, such as cross-entropy, l_i is the item's term of it.

    Args:
        encoder: (images, tokens) -> embeddings before normalisation; in evaluation mode.
        groups: batches of G items; a group is all that its items are compared with.
        loss: L of a group, () and a mean over its items, differentiable in the embeddings.
        heads: modules of the encoder that L applies to the rows of embeddings, such as a classifier.
    Returns:
        F of every parameter that learns, in the shape of the parameter, 0 or more.
    Raises:
        ValueError: the encoder is in training mode, or there are no items.
    Deviations: the labels of the data, where the Fisher information would draw them from the model. A group instead of the data set
        for a loss over pairs: what an item is compared with is a sample of it, of a size that does not follow the training's.
    """
    return _mean_over_items(encoder, _own_losses(encoder, groups, loss, heads), torch.square)


def sensitivity(encoder: nn.Module, groups: Iterable[Batch]) -> dict[str, Tensor]:
    """How strongly the length of the embedding reacts to each parameter: the mean over items of an absolute gradient.

    Aljundi et al., "Memory Aware Synapses", ECCV 2018, Eq. (2) with the squared norm of section 3.1. It asks for no labels.

        F_k = (1/N) sum_i |d ||z_i||^2 / d theta_k|        z_i before normalisation

    Where items have captions, ||x_i||^2 + ||y_i||^2 of picture and caption: a parameter of one tower gets its own, one that both share
    (encoder.projection=shared) that of the sum.

    Args:
        encoder, groups: as for `fisher`; how the items are grouped does not matter.
    Returns:
        F of every parameter that learns; 0 for those that no embedding depends on, such as a classifier's.
    Raises:
        ValueError: as for `fisher`, or the encoder returns rows of unit length, whose length no parameter can change.
    Deviations: none from the paper. Code in use squares the gradient, or takes the gradient of a batch's mean, in which the signs of
        single items cancel.
    """
    return _mean_over_items(encoder, _squared_lengths(encoder, groups), torch.abs)


def per_mean(importance: dict[str, Tensor]) -> dict[str, Tensor]:
    """Importance in units of its own mean over all entries of all parameters; all zero stays all zero.

    The raw scale of a Fisher information differs between streams and losses by orders of magnitude, and with it what a weight means.
    """
    entries = sum(values.numel() for values in importance.values())
    mean = sum(float(values.double().sum()) for values in importance.values()) / max(entries, 1)
    return {name: values / mean if mean > 0 else values for name, values in importance.items()}


def _mean_over_items(encoder: nn.Module, values: Iterator[Tensor], power: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The mean over items of power(d value / d theta)."""
    if encoder.training:
        raise ValueError("importance is measured in evaluation mode: BatchNorm would mix the items of a batch; call encoder.eval() before")
    named = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    totals = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    items = 0
    with _recurrent_backward(encoder), torch.enable_grad():
        for value in values:
            items += 1
            if value.requires_grad:
                gradients = torch.autograd.grad(value, list(named.values()), materialize_grads=True)
                for total, gradient in zip(totals.values(), gradients, strict=True):
                    total += power(gradient)
    if items == 0:
        raise ValueError("importance is a mean over items, and there are none")
    return {name: total / items for name, total in totals.items()}


def _own_losses(
    encoder: nn.Module, groups: Iterable[Batch], loss: Callable[[Embedded], Tensor], heads: Sequence[nn.Module]
) -> Iterator[Tensor]:
    """l_i of every item, () each."""
    for group in groups:
        with torch.no_grad():
            image_GD, text_GD = _embed(encoder, group)
        for row in range(len(group.labels)):
            image, text = _embed(encoder, group.item(row))
            own_text = None if text_GD is None or text is None else _with_row(text_GD, row, text)
            embedded = Embedded(group.labels, _with_row(image_GD, row, image), own_text)
            with _only_row(heads, row):
                yield len(group.labels) * loss(embedded)


def _squared_lengths(encoder: nn.Module, groups: Iterable[Batch]) -> Iterator[Tensor]:
    """||z_i||^2 of every item, () each, over its picture and its caption."""
    unit_towers: Tensor | None = None
    for group in groups:
        for row in range(len(group.labels)):
            embeddings = [each for each in _embed(encoder, group.item(row)) if each is not None]
            lengths = torch.stack([each.square().sum() for each in embeddings])
            unit = (lengths.detach() - 1).abs() < _UNIT
            unit_towers = unit if unit_towers is None else unit_towers & unit
            yield lengths.sum()
    if unit_towers is not None and bool(unit_towers.any()):
        raise ValueError(
            "the sensitivity of an embedding's length is asked of embeddings before normalisation, but every one of these has length 1; "
            "leave the normalisation to the losses"
        )


def _embed(encoder: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
    return encoder(*batch.inputs)


def _with_row(rows_GD: Tensor, row: int, own_1D: Tensor) -> Tensor:
    """The group's embeddings as numbers, but one of them with its graph."""
    return torch.cat([rows_GD[:row], own_1D, rows_GD[row + 1 :]])


@contextmanager
def _only_row(heads: Sequence[nn.Module], row: int) -> Generator[None]:
    """While this lasts, what the heads make of every other row is a number: their parameters learn from one item alone."""

    def detach_others(module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
        return _with_row(outputs.detach(), row, outputs[row : row + 1])

    with ExitStack() as stack:
        for head in heads:
            stack.callback(head.register_forward_hook(detach_others).remove)
        yield


def _recurrent_backward(encoder: nn.Module) -> Any:
    """cuDNN's recurrent layers refuse to go backward in evaluation mode; torch's own do not."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in encoder.modules())
    return torch.backends.cudnn.flags(enabled=not recurrent and torch.backends.cudnn.enabled)
