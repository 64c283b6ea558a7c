"""Packed attention: each example of a batch gets the results that it gets alone."""

from copy import deepcopy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from tasks.kernels import packed_attention
from tests.tasks.conftest import DEVICE

LENGTHS = [7, 1, 12, 4]
SHAPES = {
    "llama": LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "qwen3": Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
    ),
    "mistral, which sees 5 tokens": MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=5,
    ),
}


def model_of(shape, attention, dtype=torch.float32):
    # from_config writes the dtype and the attention into the configuration it is given.
    config = deepcopy(SHAPES[shape])
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention
    ).eval()
    for parameter in model.parameters():
        # Large enough for attention to matter.
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return model.to(DEVICE)


def texts():
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(97, (1, length), generator=draw).to(DEVICE) for length in LENGTHS]


def random_like(tensor):
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)).to(tensor)


@pytest.fixture(autouse=True)
def registered():
    packed_attention.register()


@pytest.mark.parametrize("shape", SHAPES)
class TestPackedBatch:
    def both(self, shape):
        """The packed model, a plain one, and the plain logits of each example alone."""
        packed, plain = (model_of(shape, name) for name in ("packed", "eager"))
        alone = torch.cat([plain(input_ids=text, use_cache=False).logits for text in texts()], 1)
        return packed, plain, alone

    def test_gives_the_logits_of_each_example_alone(self, shape):
        packed, _, alone = self.both(shape)
        extra = packed_attention.packed_arguments(LENGTHS, DEVICE)
        together = packed(input_ids=torch.cat(texts(), 1), use_cache=False, **extra).logits
        assert torch.allclose(together, alone, atol=1e-5, rtol=1e-5)

    def test_gives_the_gradients_of_each_example_alone(self, shape):
        packed, plain, alone = self.both(shape)
        weights = random_like(alone)
        extra = packed_attention.packed_arguments(LENGTHS, DEVICE)
        together = packed(input_ids=torch.cat(texts(), 1), use_cache=False, **extra).logits
        (together * weights).sum().backward()
        (alone * weights).sum().backward()
        pairs = zip(packed.named_parameters(), plain.parameters(), strict=True)
        for (name, one), other in pairs:
            scale = 1 + other.grad.abs().max()
            assert (one.grad - other.grad).abs().max() < 1e-5 * scale, name


class TestHalfPrecision:
    """On a GPU this is FlashAttention."""

    @pytest.mark.parametrize("window", [None, 5])
    @pytest.mark.parametrize("shared", [1, 2], ids=["as many keys", "half as many keys"])
    def test_gives_outputs_and_gradients_of_single_precision(self, window, shared):
        draw = torch.Generator().manual_seed(6)
        heads = (4, 4 // shared, 4 // shared)
        inputs = [torch.randn(1, count, sum(LENGTHS), 16, generator=draw) for count in heads]
        extra = packed_attention.packed_arguments(LENGTHS, DEVICE)
        found = []
        for dtype in (torch.float32, torch.bfloat16):
            tensors = [each.to(DEVICE, dtype, copy=True).requires_grad_() for each in inputs]
            out, _ = packed_attention.attend(
                torch.nn.Module(), *tensors, None, sliding_window=window, **extra
            )
            (out * random_like(out)).sum().backward()
            found.append([out, *(each.grad for each in tensors)])
        for exact, rounded in zip(*found, strict=True):
            assert (exact - rounded.float()).norm() < 0.01 * exact.norm()


class TestUnpackedBatch:
    def test_each_row_is_one_example(self):
        packed, plain = (model_of("llama", name) for name in ("packed", "sdpa"))
        rows = torch.randint(97, (3, 9), generator=torch.Generator().manual_seed(4)).to(DEVICE)
        one, other = (model(input_ids=rows, use_cache=False).logits for model in (packed, plain))
        assert torch.allclose(one, other, atol=1e-5)


class TestUnsupportedAttention:
    @pytest.mark.parametrize("option", [{"softcap": 50.0}, {"s_aux": torch.ones(2)}])
    def test_is_refused(self, option):
        query = torch.randn(1, 2, 3, 8)
        with pytest.raises(packed_attention.UnsupportedAttention):
            packed_attention.attend(torch.nn.Module(), query, query, query, None, **option)
