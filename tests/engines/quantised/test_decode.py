"""Quantised matrices decoded, against the library that writes the format or a naive reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import Tensor

from offline.engines.quantised.decode import matrices_of, matrix_of
from offline.engines.quantised.stored_matrix import StoredMatrix
from tests.families.quantised import FORMATS, GROUP
from vllm_moe_prune.errors import PruneError

WEIGHT = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
Parts = dict[str, Tensor]


def decoded(parts: Parts, config: dict[str, Any] | None = None) -> Tensor:
    """The whole matrix, and parts of it as they are asked for: at no word's or block's edge."""
    found = matrix_of(parts, config or {}, "w")
    assert isinstance(found, StoredMatrix)
    whole = found[:]
    assert whole.shape == found.shape and whole.dtype is torch.float32
    for rows in (slice(3, 21), slice(9, 10), slice(16, None), slice(30, 99)):
        assert torch.equal(found[rows], whole[rows])
    return whole


def library(parts: Parts, stored: str, **args: Any) -> Tensor:
    """What compressed-tensors decodes; in float32, as scales are given in it."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=stored)
    compressor = BaseCompressor.get_value_from_registry(stored)
    return torch.as_tensor(compressor.decompress(dict(parts), scheme)["weight"]).float()


def exact(parts: Parts) -> Parts:
    scale = parts["weight_scale"]
    return parts | ({} if scale.itemsize == 1 else {"weight_scale": scale.float()})


INT4 = {"num_bits": 4, "strategy": "group", "group_size": GROUP}


@pytest.mark.parametrize(
    ("name", "stored", "args"),
    [
        ("int8", "int-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("int8-static", "int-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("fp8", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        ("int4", "pack-quantized", INT4),
        ("int4-asymmetric", "pack-quantized", INT4 | {"symmetric": False}),
        (
            "nvfp4",
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        ),
    ],
)
def test_as_compressed_tensors_decodes(name: str, stored: str, args: dict[str, Any]) -> None:
    parts = exact(FORMATS[name](WEIGHT))
    expected = library(parts, stored, **args)
    tolerance = 1e-2 if name == "nvfp4" else 1e-6  # the library rounds its scales to bfloat16
    torch.testing.assert_close(decoded(parts), expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_with_any_bits(bits: int) -> None:
    """Also where a row is no whole number of words."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    middle = 1 << (bits - 1)
    codes = torch.randint(-middle, middle, (32, 120), dtype=torch.int8)
    scale = torch.rand(32, 1)
    parts = {
        "weight_packed": pack_to_int32(codes, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([32, 120]),
    }
    torch.testing.assert_close(decoded(parts), codes.float() * scale)


def test_groups_in_the_order_of_activations() -> None:
    parts = exact(FORMATS["int4-asymmetric"](WEIGHT))
    order = torch.randperm(128).argsort() // GROUP
    parts["weight_g_idx"] = order.int()
    args = INT4 | {"symmetric": False, "actorder": "group"}
    torch.testing.assert_close(decoded(parts), library(parts, "pack-quantized", **args))
    parts["weight_g_idx"] = torch.full((128,), -1, dtype=torch.int32)  # as before calibration
    expected = library(parts, "pack-quantized", **args)
    torch.testing.assert_close(decoded(parts), expected)


def nibble(word: int, place: int, bits: int = 4) -> int:
    return (word >> (bits * place)) & ((1 << bits) - 1)


@pytest.mark.parametrize(("bits", "version"), [(4, 1), (4, 2), (8, 1), (2, 1)])
def test_gptq_against_its_definition(bits: int, version: int) -> None:
    """Codes along the input, the first lowest; zero points along the output, in v1 less one."""
    rows, columns, word = 32, 128, 32 // bits
    parts = {
        "qweight": torch.randint(-(2**31), 2**31, (columns // word, rows), dtype=torch.int32),
        "qzeros": torch.randint(-(2**31), 2**31, (2, rows // word), dtype=torch.int32),
        "scales": torch.rand(2, rows).half(),
        "g_idx": torch.randint(0, 2, (columns,), dtype=torch.int32),
    }
    expected = torch.empty(rows, columns)
    for n in range(rows):
        for k in range(columns):
            group = int(parts["g_idx"][k])
            code = nibble(int(parts["qweight"][k // word, n]), k % word, bits)
            zero = nibble(int(parts["qzeros"][group, n // word]), n % word, bits)
            zero = (zero + 1) % 2**bits if version == 1 else zero
            expected[n, k] = (code - zero) * float(parts["scales"][group, n])
    config = {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    torch.testing.assert_close(decoded(parts, config), expected)
    del parts["g_idx"]
    assert decoded(parts, config).shape == (rows, columns)


def test_awq_against_its_definition() -> None:
    """Eight neighbours along the output lie in a word as 0, 2, 4, 6, 1, 3, 5, 7."""
    parts = FORMATS["awq"](WEIGHT)
    places = [(0, 2, 4, 6, 1, 3, 5, 7).index(n) for n in range(8)]
    expected = torch.empty(32, 128)
    for n in range(32):
        for k in range(128):
            code = nibble(int(parts["qweight"][k, n // 8]), places[n % 8])
            zero = nibble(int(parts["qzeros"][k // GROUP, n // 8]), places[n % 8])
            expected[n, k] = (code - zero) * float(parts["scales"][k // GROUP, n])
    torch.testing.assert_close(decoded(parts), expected)


@pytest.mark.parametrize("name", ["nvfp4", "modelopt-nvfp4", "mxfp4"])
def test_fp4_against_its_definition(name: str) -> None:
    """Two codes to a byte, the first in the lower half; the sign is the highest bit of each."""
    if name == "mxfp4":
        scale = torch.randint(110, 130, (32, 4), dtype=torch.uint8)
        codes = torch.randint(0, 256, (32, 64), dtype=torch.uint8)
        parts = {"weight_packed": codes, "weight_scale": scale}
        factors = 2.0 ** (scale.float() - 127)
    else:
        parts = FORMATS[name](WEIGHT)
        codes = parts["weight_packed" if name == "nvfp4" else "weight"]
        factors = parts["weight_scale"].float()
        if name == "nvfp4":
            factors = factors / parts["weight_global_scale"]
        else:
            factors = factors * parts["weight_scale_2"]
    width = 128 // factors.shape[1]
    expected = torch.empty(32, 128)
    for n in range(32):
        for k in range(128):
            code = nibble(int(codes[n, k // 2]), k % 2)
            number = E2M1[code & 7] * (-1 if code & 8 else 1)
            expected[n, k] = number * float(factors[n, k // width])
    torch.testing.assert_close(decoded(parts), expected)


def test_blocks_are_those_of_the_config() -> None:
    """Of a matrix that is no multiple of them, and with as many scales as it has rows."""
    weight = torch.randn(192, 320).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3)
    wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:192, :320]
    parts = {"weight": weight, "weight_scale_inv": scale}
    expected = weight.float() * wide
    assert torch.equal(decoded(parts, {"weight_block_size": [128, 128]}), expected)
    group = {"weights": {"block_structure": [128, 128]}}
    parts = {"weight": weight, "weight_scale": scale}
    assert torch.equal(decoded(parts, {"config_groups": {"g": group}}), expected)
    with pytest.raises(PruneError, match=r"\(2, 3\) of a matrix \(192, 320\) are of no block"):
        decoded(parts, {"weight_block_size": [64, 64]})
    many = {"weight": weight[:32, :128], "weight_scale_inv": torch.rand(2, 16)}  # 32 scales
    found = decoded(many, {"weight_block_size": [16, 8]})
    wide = many["weight_scale_inv"].repeat_interleave(16, 0).repeat_interleave(8, 1)
    assert torch.equal(found, many["weight"].float() * wide)


def test_one_scale_and_exponents() -> None:
    weight = torch.randn(32, 128).to(torch.float8_e4m3fn)
    for scale in (torch.tensor(0.5), torch.tensor([0.5]), torch.full((32,), 0.5)):
        found = decoded({"weight": weight, "weight_scale": scale})
        assert torch.equal(found, weight.float() / 2)
    exponents = torch.randint(120, 130, (32, 4), dtype=torch.uint8)
    found = decoded({"weight": weight, "weight_scale": exponents})
    factors = (2.0 ** (exponents.float() - 127)).repeat_interleave(32, 1)
    assert torch.equal(found, weight.float() * factors)


@pytest.mark.parametrize(
    "parts",
    [
        {"weight": torch.zeros(8, 8, dtype=torch.float8_e4m3fn)},
        {"qweight": torch.zeros(12, 32, dtype=torch.int32), "scales": torch.ones(1, 32)},
        {
            "qweight": torch.zeros(12, 32, dtype=torch.int32),  # 3 bits lie over words
            "qzeros": torch.zeros(1, 3, dtype=torch.int32),
            "scales": torch.ones(1, 32).half(),
        },
    ],
)
def test_what_is_not_known_is_refused(parts: Parts) -> None:
    with pytest.raises(PruneError, match=r"^w is stored as .*: that format cannot be decoded"):
        matrix_of(parts, {}, "w")


def test_parts_of_all_experts() -> None:
    experts = [FORMATS["int8"](WEIGHT * scale) for scale in (1.0, 2.0, 3.0)]
    parts = {name: torch.stack([one[name] for one in experts]) for name in experts[0]}
    found = matrices_of(parts, {}, "w")
    assert len(found) == 3
    for one, own in zip(found, experts, strict=True):
        assert torch.equal(one[:], decoded(own))


@pytest.mark.parametrize(
    ("name", "part", "value"),
    [
        ("gptq", "g_idx", torch.full((128,), 7, dtype=torch.int32)),  # groups that there are not
        ("gptq", "qzeros", torch.zeros(1, 4, dtype=torch.int32)),
        ("int4", "weight_shape", torch.tensor([2**31 - 1, 2**31 - 1])),  # 16 GB of places
        ("int4", "weight_shape", torch.tensor([-1, 0])),
        ("fp8-blocks", "weight_scale_inv", torch.ones(3, 3, 3)),
        ("awq", "scales", torch.ones(3, 32).half()),
    ],
)
def test_parts_that_do_not_fit_together_are_one_line(name: str, part: str, value: Tensor) -> None:
    parts = {**FORMATS[name](WEIGHT), part: value}
    with pytest.raises(PruneError, match=r"^w |of no block") as caught:
        decoded(parts, {"weight_block_size": [128, 128]})
    assert "\n" not in str(caught.value)
