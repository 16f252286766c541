"""Views over tensors that lie beside each other in memory."""

from __future__ import annotations

from torch import Tensor


def side_by_side(first: Tensor, second: Tensor) -> Tensor | None:
    """One view over the heads of two tensors, where the second's follow the first's in memory.

    So do the parts of a fused QKV product. Nothing is copied; the view writes through.

    Args:
        first: [T, H, D].
        second: [T, K, D].

    Returns:
        [T, H + K, D], or None where the tensors do not lie so.
    """
    num_tokens, num_heads, head_size = first.shape
    row_stride, head_stride, stride = first.stride()
    num_all = num_heads + second.shape[1]
    if head_stride != head_size or stride != 1 or second.stride()[1:] != (head_size, 1):
        return None
    if second.data_ptr() != first.data_ptr() + num_heads * head_size * first.element_size():
        return None
    if num_tokens == 1:  # torch leaves the stride of a single row to chance
        row_stride = num_all * head_size
    elif row_stride != second.stride(0) or row_stride < num_all * head_size:
        return None
    if first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr():
        return None
    return first.as_strided((num_tokens, num_all, head_size), (row_stride, head_size, 1))
