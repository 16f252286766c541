"""Triton kernels over integer weights in tiles: the product, the sum of its splits, dequantizing, arranging.

A word of a tile (see `quire.ops.tiles`) is read as two 16-bit halves, each with its fields: field j of
half h of word w is input `w * inputs per word + 2 * j + h`. A product over all inputs is the sum of one
matrix product per field, whose inputs are (w, h): so weights go from the word into the registers of the
matrix unit without changing places, and only the activations are picked by field.
"""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl

TILE = tl.constexpr(16)


@triton.constexpr_function
def unpack_assembly(field: int, bits: int, is_bfloat16: bool) -> str:
    """PTX that turns field `field` of two halves ($1) into two floats minus those in $2.

    An integer in the low mantissa bits of 2**7 (bfloat16) or 2**10 (float16) adds itself to that number:
    $2 is that number plus the zero point, negated. Eight bits do not fit bfloat16's seven: their highest
    becomes a 128 of its own, and $2 is the negated zero point alone. Every sum is an exact integer.
    """
    shift = f"shr.b32 v, $1, {bits * field};"
    if bits == 8 and is_bfloat16:
        return (
            "{ .reg .b32 v, low, high, one, offset; mov.b32 one, 0x3f803f80; mov.b32 offset, 0xc300c300; "
            f"{shift} lop3.b32 low, v, 0x007f007f, 0x43004300, 0xea; "
            "and.b32 high, v, 0x00800080; mul.lo.u32 high, high, 0x86; "
            "fma.rn.bf16x2 high, high, one, $2; fma.rn.bf16x2 low, low, one, offset; "
            "fma.rn.bf16x2 $0, low, one, high; }"
        )
    mask = "0x000f000f" if bits == 4 else "0x00ff00ff"
    one, magic, kind = ("0x3f803f80", "0x43004300", "bf16x2")
    if not is_bfloat16:
        one, magic, kind = ("0x3c003c00", "0x64006400", "f16x2")
    return (
        f"{{ .reg .b32 v, one; mov.b32 one, {one}; {shift} lop3.b32 v, v, {mask}, {magic}, 0xea; "
        f"fma.rn.{kind} $0, v, one, $2; }}"
    )


@triton.constexpr_function
def magic_number(bits: int, is_bfloat16: bool) -> int:
    """What `unpack_assembly` wants added to the zero point."""
    if is_bfloat16:
        return 0 if bits == 8 else 128
    return 1024


@triton.jit
def _load(pointer, inside, IS_EVEN: tl.constexpr):
    """What lies there, 0 for words past the last."""
    return tl.load(pointer) if IS_EVEN else tl.load(pointer, mask=inside[None, :], other=0)


@triton.jit
def _entries(table, word, step, steps_per_group, words_per_group, GROUPING: tl.constexpr):
    """Where the scales and zero points of a step are: [outputs, 1], or [outputs, words] of small groups."""
    entries = table[:, None]
    if GROUPING == "steps":
        entries = entries + step // steps_per_group * TILE
    elif GROUPING == "words":
        entries = entries + (word // words_per_group * TILE)[None, :]
    return entries


@triton.jit
def _offsets(zeros, entries, SHAPE: tl.constexpr, BITS: tl.constexpr, IS_PACKED, IS_BFLOAT16):
    """The zero points as `_unpack` takes them; without zeros the middle of the range."""
    zero = tl.full([1, 1], 1 << (BITS - 1), tl.int16)
    if zeros is not None:
        zero = tl.load(zeros + entries).to(tl.int16)
    if IS_PACKED:
        value = -(zero + magic_number(BITS, IS_BFLOAT16)).to(tl.float32)
        zero = value.to(tl.bfloat16) if IS_BFLOAT16 else value.to(tl.float16)
    return tl.broadcast_to(zero, SHAPE)


@triton.jit
def _unpack(halves, offsets, FIELD: tl.constexpr, BITS: tl.constexpr, IS_PACKED, IS_BFLOAT16):
    """The exact integers q - zero of one field, as bfloat16 or float16."""
    if IS_PACKED:
        value = tl.inline_asm_elementwise(
            unpack_assembly(FIELD, BITS, IS_BFLOAT16),
            "=r,r,r",
            [halves, offsets],
            dtype=offsets.dtype,
            is_pure=True,
            pack=2,
        )
    else:
        value = (((halves >> (BITS * FIELD)) & ((1 << BITS) - 1)) - offsets).to(tl.float32)
        if IS_BFLOAT16:  # at most eight bits are set: it is the upper half of the float32
            value = (value.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        else:
            value = value.to(tl.float16)
    return value


@triton.jit(do_not_specialize=["num_rows"])
def tiled_product(
    x,
    weight,
    scales,
    zeros,
    bias,
    out,
    num_rows,
    out_features,
    num_words,
    num_groups,
    steps_per_group,
    words_per_group,
    row_stride,
    field_stride,
    steps_per_split,
    BITS: tl.constexpr,
    GROUPING: tl.constexpr,
    WORD_STRIDE: tl.constexpr,
    IS_EVEN: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    IS_PACKED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """One block of outputs and rows over one split of the words, transposed: weights are the left operand.

    x: field j of half h of word w of row m is at m * row_stride + j * field_stride + w * WORD_STRIDE + h.
    weight, scales, zeros, bias are as the ops take them; zeros and bias may be None.
    out is [rows, out_features] in x's dtype, or with IS_SPLIT float32 [splits, rows, out_features].
    GROUPING: of "one" group of all inputs the sum is scaled at last; of groups of whole "steps" each step's
    sum; of smaller ones, of whole "words", the weights.
    IS_EVEN: num_words is a multiple of BLOCK_WORDS. IS_PACKED: unpack two values at a time, in PTX.
    """
    IS_BFLOAT16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    row_blocks = tl.cdiv(num_rows, BLOCK_ROWS)  # those of the same outputs are neighbours
    rows = tl.program_id(0) % row_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    outputs = tl.program_id(0) // row_blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    split = tl.program_id(1)
    first = split * steps_per_split
    last = tl.minimum(first + steps_per_split, tl.cdiv(num_words, BLOCK_WORDS))

    tile = tl.max_constancy(tl.minimum(outputs // TILE, (out_features - 1) // TILE), 16).to(tl.int64)
    lane = outputs % TILE
    table = tile * (num_groups * TILE) + lane
    word = tl.arange(0, BLOCK_WORDS)
    half = tl.arange(0, 2 * BLOCK_WORDS)
    columns = half if WORD_STRIDE == 2 else half // 2 * WORD_STRIDE + half % 2
    weight += (tile * num_words * TILE + lane)[:, None] + ((first * BLOCK_WORDS + word) * TILE)[None, :]
    x += (tl.minimum(rows, num_rows - 1).to(tl.int64) * row_stride)[:, None]
    x += (first * BLOCK_WORDS * WORD_STRIDE + columns)[None, :]

    total = tl.zeros([BLOCK_OUTPUTS, BLOCK_ROWS], tl.float32)
    for step in range(first, last):
        words = _load(weight, step * BLOCK_WORDS + word < num_words, IS_EVEN)
        halves = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))
        halves = tl.reshape(halves, [BLOCK_OUTPUTS, 2 * BLOCK_WORDS])
        known_word = tl.minimum(step * BLOCK_WORDS + half // 2, num_words - 1)
        entries = _entries(table, known_word, step, steps_per_group, words_per_group, GROUPING)
        offsets = _offsets(zeros, entries, halves.shape, BITS, IS_PACKED, IS_BFLOAT16)
        if GROUPING != "one":
            scale = tl.load(scales + entries).to(tl.float32)
        part = tl.zeros([BLOCK_OUTPUTS, BLOCK_ROWS], tl.float32) if GROUPING == "steps" else total
        for field in tl.static_range(16 // BITS):
            offset = field * 2 if WORD_STRIDE > 2 else field * field_stride
            values = _load(x + offset, step * BLOCK_WORDS + half // 2 < num_words, IS_EVEN)
            matrix = _unpack(halves, offsets, field, BITS, IS_PACKED, IS_BFLOAT16)
            if GROUPING == "words":
                matrix = (matrix.to(tl.float32) * scale).to(values.dtype)
            part = tl.dot(matrix, tl.trans(values), part)
        total = total + part * scale if GROUPING == "steps" else part
        weight += BLOCK_WORDS * TILE
        x += BLOCK_WORDS * WORD_STRIDE

    if GROUPING == "one":
        total *= tl.load(scales + table).to(tl.float32)[:, None]
    inside = outputs < out_features
    place = rows.to(tl.int64)[None, :] * out_features + outputs[:, None]
    if IS_SPLIT:
        place += split.to(tl.int64) * num_rows * out_features
    elif bias is not None:
        total += tl.load(bias + outputs, mask=inside, other=0.0).to(tl.float32)[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside[:, None] & (rows < num_rows)[None, :])


@triton.jit(do_not_specialize=["size"])
def sum_splits(parts, bias, out, size, out_features, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Add the splits of parts, float32 [SPLITS, rows, out_features], always in the same order, and bias.

    size is rows * out_features, of out.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * size.to(tl.int64) + place, mask=inside, other=0.0)
    if bias is not None:
        total += tl.load(bias + place % out_features, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def dequantize(
    weight,
    scales,
    zeros,
    out,
    out_features,
    num_words,
    num_groups,
    words_per_group,
    BITS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """(q - zero) * scale into out, [out_features, inputs]: one tile and one block of words per program."""
    PER_WORD: tl.constexpr = 32 // BITS
    tile = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    word = tl.program_id(1) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    inside = (word < num_words)[None, :]
    words = tl.load(weight + (tile * num_words + word)[None, :] * TILE + lane[:, None], mask=inside, other=0)
    entries = (tile * num_groups + word // words_per_group)[None, :] * TILE + lane[:, None]
    scale = tl.load(scales + entries, mask=inside, other=0.0).to(tl.float32)
    zero = tl.full([TILE, BLOCK_WORDS], 1 << (BITS - 1), tl.int32)
    if zeros is not None:
        zero = tl.load(zeros + entries, mask=inside, other=0).to(tl.int32)
    field = tl.arange(0, PER_WORD)
    shift = field // 2 * BITS + field % 2 * 16
    value = ((words[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1)) - zero[:, :, None]
    value = tl.reshape(value.to(tl.float32) * scale[:, :, None], [TILE, BLOCK_WORDS * PER_WORD])
    output = tile * TILE + lane
    column = tl.program_id(1) * (BLOCK_WORDS * PER_WORD) + tl.arange(0, BLOCK_WORDS * PER_WORD)
    place = output[:, None] * (num_words * PER_WORD) + column[None, :]
    mask = (output < out_features)[:, None] & (column < num_words * PER_WORD)[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def arrange_inputs(x, input_order, out, num_inputs, row_stride, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of x by field, then word, then half; with an input_order, in the order of the weights' inputs.

    x is [rows, num_inputs], rows row_stride apart; input_order int32 [num_inputs] or None; out, contiguous,
    [rows, fields, words, 2].
    """
    PER_WORD: tl.constexpr = 32 // BITS
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_inputs
    per_field = num_inputs // (PER_WORD // 2)
    within = place % per_field
    source = within // 2 * PER_WORD + place // per_field * 2 + within % 2
    if input_order is not None:
        source = tl.load(input_order + source, mask=inside, other=0)
    value = tl.load(x + row * row_stride + source, mask=inside, other=0.0)
    tl.store(out + row * num_inputs + place, value, mask=inside)
