"""Prompts, answers and adapters for the tests of language models."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

COLORS = ("red", "green", "blue", "yellow", "black", "white", "brown", "pink")


THINGS = ("car", "house", "tree", "river", "bird", "stone")


END = "<|im_end|>"


def sentence(place):
    """A prompt and its answer; the lengths differ."""
    color, thing = COLORS[place % len(COLORS)], THINGS[place % len(THINGS)]
    return f"{' very' * (place % 11)} {color} {thing} is", f" {color} and {thing}"


def randomize_adapter(model):
    """Give an adapter values that change the model's outputs."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)


def adapter_of(job):
    return load_file(job.work / "best" / "adapter.safetensors")


def mean_loss(model, examples):
    """The mean loss of target tokens, each example alone, with transformers only."""
    total, count = 0.0, 0
    for example in examples:
        for part in example.parts:
            ids = torch.tensor(part.ids, dtype=torch.long, device=model.device)
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            nats = F.cross_entropy(logits, ids[1:], reduction="none")
            wanted = torch.tensor(part.loss_mask[1:], device=model.device) > 0
            total, count = total + nats[wanted].sum(), count + int(wanted.sum())
    return total / count


def metaspace_tokenizer(prepend: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer like SentencePiece's, in which a line break merges with what follows.

    Args:
        prepend: Where it writes a space before a text: `first` or `always`.
    """
    words = ["<unk>", "</s>", "▁car\nr", "ed", "▁red", "red", "▁car", "▁car\n", "▁", "\n"]
    backend = Tokenizer(Unigram([(word, -1.0 - 0.1 * n) for n, word in enumerate(words)], 0))
    backend.pre_tokenizer = Metaspace(prepend_scheme=prepend)
    backend.decoder = MetaspaceDecoder(prepend_scheme=prepend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
