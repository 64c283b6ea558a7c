"""Attention by blocks: what torch computes in double precision, but for bf16's rounding."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tasks.kernels import cpu_attention, packed_attention
from tests.tasks.kernels.test_packed_attention import model_of

# Short ones together, as long as a block, several blocks of unequal length, short ones again.
LENGTHS = [7, 1, 256, 300, 700, 90, 30, 100, 3]
# bf16 has 8 bits: 1/256 is a rounding.
ROUNDINGS = 2 / 256


def drawn(heads, groups, lengths=LENGTHS):
    """Queries, keys and values as a layer makes them: heads side by side, seen by heads."""
    draw = torch.Generator().manual_seed(5)
    rows = [
        torch.randn(1, sum(lengths), count, 16, generator=draw) for count in (heads, groups, groups)
    ]
    return [row.bfloat16().transpose(1, 2).requires_grad_() for row in rows]


def distance(one, other):
    one, other = one.detach(), other.detach()
    return float((one - other).norm() / other.norm().clamp(min=1e-9))


def in_double(inputs, lengths, scaling, window, gradient):
    """Attention and gradients, each query with a mask of what it sees."""
    query, key, value = (each.detach().double().requires_grad_() for each in inputs)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(owner))
    behind = place[:, None] - place
    sees = (owner[:, None] == owner) & (behind >= 0)
    if window is not None:
        sees &= behind < window
    each = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(each, 1).transpose(2, 3) * scaling
    chances = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    out = (chances @ value.repeat_interleave(each, 1)).transpose(1, 2)
    out.backward(gradient.double())
    return out, [query.grad, key.grad, value.grad]


@pytest.mark.parametrize("window", [None, 1, 40, 256, 600, 5000])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
def test_values_and_gradients_are_those_of_double_precision(heads, groups, window):
    inputs = drawn(heads, groups)
    ends = packed_attention.segments_of(LENGTHS, "cpu")["cu_seq_lens_q"]
    out = cpu_attention.attend(*inputs, ends, 0.3, window)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(6)).bfloat16()
    out.backward(gradient)
    wanted, gradients = in_double(inputs, LENGTHS, 0.3, window, gradient)
    assert distance(out, wanted) < ROUNDINGS
    if window == 1:
        # Each token sees itself alone: scores change nothing.
        gradients[:2] = [torch.zeros_like(each) for each in gradients[:2]]
    for found, right in zip((each.grad for each in inputs), gradients, strict=True):
        assert found.norm() < 1e-2 if not right.any() else distance(found, right) < ROUNDINGS


def test_torch_is_told_what_the_operations_give():
    ends = packed_attention.segments_of([3, 9], "cpu")["cu_seq_lens_q"]
    found = torch.library.opcheck(
        torch.ops.burnish.attend_blockwise.default, (*drawn(4, 2, [3, 9]), ends, 0.25, None)
    )
    assert set(found.values()) == {"SUCCESS"}


def test_a_layer_is_compiled_in_one_piece():
    packed_attention.register()
    model = model_of("llama", "segments", torch.bfloat16)
    text = torch.arange(12)[None]
    inputs = {"input_ids": text, "use_cache": False, **packed_attention.segments_of([5, 7], "cpu")}
    plain = model(**inputs).logits
    for layer in model.model.layers:
        layer.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    assert torch.equal(model(**inputs).logits, plain)
    model(**inputs).logits.float().sum().backward()


def test_autocast_rounds_what_comes_in():
    query, key, value = (each.detach().float() for each in drawn(4, 2, [3, 9]))
    ends = packed_attention.segments_of([3, 9], "cpu")["cu_seq_lens_q"]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = packed_attention.attend(
            torch.nn.Module(), query, key, value, None, cu_seq_lens_q=ends
        )
    assert found.dtype == torch.bfloat16


def test_full_precision_is_left_to_torch():
    assert cpu_attention.fits(torch.zeros(1, dtype=torch.bfloat16))
    assert not cpu_attention.fits(torch.zeros(1))


@pytest.fixture
def threads():
    """Sets how many torch computes with, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("lengths", [LENGTHS, [40]])
def test_any_number_of_threads_gives_the_same_bits(threads, lengths):
    found = []
    for count in (1, 2, 5):
        threads(count)
        inputs = drawn(6, 2, lengths)
        ends = packed_attention.segments_of(lengths, "cpu")["cu_seq_lens_q"]
        out = cpu_attention.attend(*inputs, ends, 0.3, None)
        out.sum().backward()
        found.append([out, *(each.grad for each in inputs)])
        assert torch.get_num_threads() == count
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


@pytest.mark.parametrize("error", [IndexError, StopIteration, ZeroDivisionError])
def test_what_fails_in_a_thread_is_told(threads, monkeypatch, error):
    def fail(*_):
        raise error

    threads(2)
    inputs = drawn(6, 2)
    ends = packed_attention.segments_of(LENGTHS, "cpu")["cu_seq_lens_q"]
    monkeypatch.setattr(cpu_attention, "_chances", fail)
    with pytest.raises(error):
        cpu_attention.attend(*inputs, ends, 0.3, None)


def test_threads_that_begin_later_have_all_of_torchs(threads):
    threads(2)
    cpu_attention._pool.cache_clear()
    cpu_attention.attend(
        *drawn(6, 2), packed_attention.segments_of(LENGTHS, "cpu")["cu_seq_lens_q"], 0.3, None
    )
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_a_fork_makes_threads_of_its_own(threads):
    threads(2)
    inputs, ends = drawn(6, 2), packed_attention.segments_of(LENGTHS, "cpu")["cu_seq_lens_q"]
    cpu_attention.attend(*inputs, ends, 0.3, None)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        cpu_attention._share_out(lambda *_: None, 2, [[None], [None]])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
