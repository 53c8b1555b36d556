"""What a model in this process says of positions that another one is trained on.

Axes: S scored positions.
"""

from collections.abc import Sequence

import numpy as np
import torch

from crucible_train.adapters.torch_local.attention import FlexLayout, Layout, LoopLayout, compiled_flex_attention
from crucible_train.adapters.torch_local.divergence_head import Rows
from crucible_train.adapters.torch_local.loading import EngineModel, hidden_states
from crucible_train.adapters.torch_local.stream import Scored, TokenStream, build_stream
from crucible_train.types import Datum

POSITIONS = "teacher_positions"


def teacher_items(stream: TokenStream, datums: Sequence[Datum]) -> list[Scored]:
    """What the teacher reads for the scored positions of a stream, sequence by sequence in the order of its scores.

    Raises:
        ValueError: a position lies outside of what the teacher reads.
    """
    items = []
    for index in dict.fromkeys(stream.datum_S.tolist()):
        datum, mine = datums[index], stream.datum_S == index
        places, read = stream.place_S[mine], datum.teacher_input or datum.model_input
        if POSITIONS in datum.loss_fn_inputs:
            places = datum.loss_fn_inputs[POSITIONS].to_numpy()[places].astype(np.int64)
        if places.size and not 0 <= places.min() <= places.max() < read.length:
            raise ValueError(f"datum {index}: a position of {POSITIONS} is none of the {read.length} its teacher reads")
        tokens = read.to_array()[: int(places.max()) + 1].astype(np.int64)
        items.append(Scored(index, tokens, places, stream.targets_S[mine], np.ones(places.size, np.float32)))
    return items


@torch.no_grad()
def teacher_rows(model: EngineModel, items: Sequence[Scored]) -> Rows:
    """The teacher's hidden states at the scored positions of sequences, in their order."""
    streams = [build_stream(items)] if model.joins_segments else [build_stream([item], share=False) for item in items]
    return Rows(torch.cat([_hidden(model, stream) for stream in streams]), model.head)


def _hidden(model: EngineModel, stream: TokenStream) -> torch.Tensor:
    device = model.causal.device
    tokens, positions, rows = (
        torch.from_numpy(x).to(device) for x in (stream.tokens_T, stream.positions_T, stream.rows_S)
    )
    with model.attention.using(layout_of(model, stream)):
        return hidden_states(model, tokens, positions)[rows]


def layout_of(model: EngineModel, stream: TokenStream) -> Layout:
    """How the attention of a stream is computed on the model's device."""
    device = model.causal.device
    if device.type == "cuda":
        return FlexLayout(stream.segments, device, compiled_flex_attention())
    return LoopLayout(stream.segments)
