"""Writes the weights and the tokenizer that all sides of the GRPO speed benchmark begin with.

    python -m benchmarks.grpo_weights SHAPE FOLDER END_SHARE

The weights are random, but for one coordinate of the hidden state, which no layer writes: it is the same at every
position, and the end token's row is longer there than the others by as much as gives it the probability END_SHARE after
random prompts. So answers end alike on every side, by the weights alone. A token is a word, ``w`` and its id.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.rollout_workload import draw_prompts
from benchmarks.sft_weights import random_model
from benchmarks.sft_workload import SHAPES

END_ID = 1
_PAD_ID, _UNKNOWN_ID = 0, 2
# The coordinate's value in every row, and so in every hidden state before the last norm.
_CONSTANT = 1.0
_NUM_PROMPTS, _PROMPT_LENGTH = 8, 128
_NUM_HALVINGS = 40


def main() -> None:
    shape, folder, share = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    model = random_model(shape)
    end_with_probability(model, share, draw_prompts(_NUM_PROMPTS, _PROMPT_LENGTH, SHAPES[shape]["vocab_size"], 1))
    model.save_pretrained(folder)
    word_tokenizer(SHAPES[shape]["vocab_size"]).save_pretrained(folder)


@torch.no_grad()
def end_with_probability(model: PreTrainedModel, share: float, prompts: list[list[int]]) -> None:
    """Give the end token this mean probability after every token of the prompts."""
    rows_VX = model.get_input_embeddings().weight
    rows_VX[:, 0] = _CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    hidden = [model.model(torch.tensor([prompt])).last_hidden_state[0] for prompt in prompts]
    hidden_TX = torch.cat(hidden)
    rows_VX[END_ID, 0] += _longer(hidden_TX @ rows_VX.T, hidden_TX[:, 0], share)


def _longer(logits_TV: Tensor, constant_T: Tensor, share: float) -> float:
    """By how much the end token's row has to be longer."""
    others_T = logits_TV.index_fill(1, torch.tensor([END_ID]), float("-inf")).logsumexp(dim=1)
    low, high = -100.0, 100.0
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        found = torch.sigmoid(logits_TV[:, END_ID] + middle * constant_T - others_T).mean()
        low, high = (middle, high) if found < share else (low, middle)
    return low


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Id 7 is the word ``w7``."""
    special = {"<pad>": _PAD_ID, "<end>": END_ID, "<unknown>": _UNKNOWN_ID}
    words = {f"w{number}": number for number in range(len(special), vocab_size)}
    made = Tokenizer(models.WordLevel({**special, **words}, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", padding_side="left"
    )


if __name__ == "__main__":
    main()
