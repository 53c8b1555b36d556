"""From a model folder to a model the engine can compute, with proof that it computes the same."""

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from crucible_train.adapters.torch_local.attention import LoopLayout, SegmentAttention
from crucible_train.adapters.torch_local.hardware import torch_device, torch_dtype
from crucible_train.adapters.torch_local.loss_head import Head, logprobs
from crucible_train.adapters.torch_local.modules import install
from crucible_train.adapters.torch_local.precision import Precision
from crucible_train.adapters.torch_local.stream import Scored, build_stream
from crucible_train.errors import ModelError
from crucible_train.types import Hardware

# Mean difference of a log-probability on the probe sequences: the engine beside plain transformers, and two sequences
# in one stream beside each alone. Random ids have log-probabilities near -15, where bfloat16 itself is off by a tenth.
_PLAIN_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.3}
_JOIN_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
_ALIGNMENT_BYTES = 64
_BLANK_WEIGHT = 0.02


@dataclass(frozen=True, slots=True)
class Lora:
    """Which adapter to train: rank, scale, dropout and the modules that get one."""

    r: int
    alpha: float
    dropout: float
    target_modules: str | tuple[str, ...]


@dataclass(slots=True)
class EngineModel:
    """A model ready to compute.

    ``causal`` is transformers' own model, adapters injected; ``decoder`` the part that gives hidden states.
    ``joins_segments`` says whether several sequences may stand in one stream: false for a model that mixes tokens in
    other ways than attention.
    """

    causal: PreTrainedModel
    peft: PeftModel | None
    decoder: nn.Module
    head: Head
    attention: SegmentAttention
    precision: Precision
    joins_segments: bool


def load(
    folder: Path,
    hardware: Hardware,
    lora: Lora | None,
    adapter: Path | None = None,
    seed: int = 0,
    *,
    recompute: bool = False,
) -> EngineModel:
    """Load a transformers causal model from a folder, inject an adapter, and prove the engine computes the same.

    Args:
        folder: config.json and safetensors weights.
        hardware: where and in which precision.
        lora: the adapter to train; None trains all weights.
        adapter: a folder with adapter weights to begin from.
        seed: decides the adapter's first values.
        recompute: the backward pass is to compute activations again, so nothing may hold on to them.

    Raises:
        ModelError: the folder holds no such model, or the engine cannot compute it.
    """
    causal = _read(folder, torch.float32 if lora is None else torch_dtype(hardware))
    peft = None
    if lora is not None:
        peft = _inject(causal, lora, seed)
        if adapter is not None:
            _restore(peft, adapter)
    causal.to(torch_device(hardware))
    with torch.no_grad():
        expected = _plain_logprobs(causal)
    model = _assemble(causal, peft, hardware, recompute=recompute)
    _prove(model, expected)
    return model


def _restore(peft: PeftModel, adapter: Path) -> None:
    """Put stored adapter weights in the place of the first ones.

    Raises:
        ModelError: they are those of an adapter of another shape.
    """
    try:
        found = set_peft_model_state_dict(peft, load_file(adapter / "adapter_model.safetensors"))
    except (RuntimeError, KeyError, OSError, SafetensorError) as error:
        raise ModelError(f"{adapter}: its weights do not fit the model: {error}") from error
    if found.unexpected_keys:
        raise ModelError(f"{adapter}: the model has no place for {found.unexpected_keys[0]}")
    if missing := [name for name in found.missing_keys if "lora_" in name]:
        raise ModelError(f"{adapter}: it holds nothing for {missing[0]}")


def blank(config: PreTrainedConfig, hardware: Hardware, lora: Lora | None, *, recompute: bool = False) -> EngineModel:
    """A model of this shape whose weights mean nothing: to find out what one costs."""
    with quiet(), no_init_weights():
        causal = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32 if lora is None else torch_dtype(hardware), attn_implementation="eager"
        )
    with torch.no_grad():
        for parameter in causal.parameters():
            parameter.fill_(_BLANK_WEIGHT)
    causal.tie_weights()
    causal.eval()
    peft = None if lora is None else _inject(causal, lora, 0)
    return _assemble(causal.to(torch_device(hardware)), peft, hardware, recompute=recompute)


def _read(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model: {folder} could not be loaded: {str(error).splitlines()[0]}") from error
    refuse_missing(found["missing_keys"], folder)
    model.eval()
    for parameter in model.parameters():
        if parameter.data_ptr() % _ALIGNMENT_BYTES:
            # equal bits need equal alignment: kernels round differently on memory mapped at odd places
            parameter.data = parameter.data.clone()
    return model


def refuse_missing(names: Collection[str], source: Path) -> None:
    """Refuse a model of which not all weights are stored: transformers fills in random ones.

    Raises:
        ModelError: there are ``names`` of missing weights.
    """
    if names:
        raise ModelError(f"model: {source} lacks {len(names)} of the model's weights, such as {min(names)}")


def _inject(causal: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        bias="none",
    )
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peft = get_peft_model(causal, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise ModelError(f"peft.lora_target_modules: {error}") from error
    peft.eval()
    return peft


def _assemble(causal: PreTrainedModel, peft: PeftModel | None, hardware: Hardware, *, recompute: bool) -> EngineModel:
    precision = Precision(torch_dtype(hardware))
    for module in causal.modules():
        if type(module) not in (nn.Linear, nn.Embedding):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dtype != torch.float32:
                    getattr(module, name).data = parameter.data.float()
    install(causal, precision, remakes=not recompute)
    output = causal.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise ModelError(f"model: {type(causal).__name__} has no linear output layer")
    config = causal.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    head = Head(
        weight=output.weight,
        compute=precision.compute(output.weight),
        bias=output.bias,
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
    )
    return EngineModel(causal, peft, causal.get_decoder(), head, SegmentAttention(causal), precision, True)


def hidden_states(model: EngineModel, tokens_T: Tensor, positions_T: Tensor, cache: object = None) -> Tensor:
    """The last hidden states of a stream, shape (T, X). The layout must be set."""
    output = model.decoder(
        input_ids=tokens_T[None], position_ids=positions_T[None], past_key_values=cache, use_cache=cache is not None
    )
    return output.last_hidden_state[0]


def _probe_sequences(vocab_size: int) -> list[np.ndarray]:
    """Two sequences of ordinary length that share a beginning, so that parents and neighbours are both tried."""
    draw = np.random.default_rng(0)
    beginning = draw.integers(0, vocab_size, 20)
    return [np.concatenate([beginning, draw.integers(0, vocab_size, num)]) for num in (9, 6)]


def _plain_logprobs(causal: PreTrainedModel) -> list[Tensor]:
    device = causal.device
    found = []
    for sequence in _probe_sequences(causal.config.get_text_config().vocab_size):
        ids = torch.from_numpy(sequence).to(device)
        logits = causal(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        found.append(torch.log_softmax(logits, dim=1).gather(1, ids[1:, None]).squeeze(1))
    return found


def _prove(model: EngineModel, expected: Sequence[Tensor]) -> None:
    """Compare the engine with plain transformers on two sequences, one at a time and then in one stream.

    The first as in training, the second as in sampling, since the two are computed in different ways.

    Raises:
        ModelError: the engine does not compute this model.
    """
    sequences = _probe_sequences(model.causal.config.get_text_config().vocab_size)
    items = [
        Scored(i, s[:-1], np.arange(s.size - 1), s[1:], np.ones(s.size - 1, np.float32))
        for i, s in enumerate(sequences)
    ]
    dtype = model.precision.dtype
    with torch.enable_grad():
        alone = torch.cat([_engine_logprobs(model, [item]).detach() for item in items])
    difference = float((alone - torch.cat(list(expected))).abs().mean())
    if not difference <= _PLAIN_TOLERANCE[dtype]:
        raise ModelError(
            f"model: {type(model.causal).__name__} is not computed correctly by this engine: log-probabilities differ "
            f"from transformers' by {difference:.2g}"
        )
    with torch.no_grad():
        together = _engine_logprobs(model, items)
    model.joins_segments = float((alone - together).abs().mean()) <= _JOIN_TOLERANCE[dtype]


def _engine_logprobs(model: EngineModel, items: Sequence[Scored]) -> Tensor:
    stream = build_stream(items)
    device = model.causal.device
    with model.attention.using(LoopLayout(stream.segments)):
        hidden = hidden_states(
            model, torch.from_numpy(stream.tokens_T).to(device), torch.from_numpy(stream.positions_T).to(device)
        )
    rows = torch.from_numpy(stream.rows_S).to(device)
    return logprobs(hidden[rows], model.head, torch.from_numpy(stream.targets_S).to(device))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off a user's terminal."""
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
