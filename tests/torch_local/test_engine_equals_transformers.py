"""The engine computes what plain transformers computes: loss and every gradient, however the batch is cut."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.losses import LOSSES
from crucible_train.seeds import fold
from crucible_train.types import AdamParams, CrossEntropy, CustomLoss, Datum, Hardware, ModelInput, TensorData

VOCAB = 97
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": VOCAB}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
CONFIGS: Mapping[str, PretrainedConfig] = {
    "llama, tied": LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True, pad_token_id=0),
    "qwen3, norms on queries and keys": Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=False),
    "mistral, sliding window": MistralConfig(**SIZES, **HEADS, sliding_window=7),
    "gemma2, softcaps": Gemma2Config(**SIZES, **HEADS, sliding_window=7, query_pre_attn_scalar=8),
    "gpt2, biases": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=128, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
    ),
}
FLOAT32 = Hardware("cpu", "float32", 1)
LORA = Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")


def save_model(folder: Path, config: PretrainedConfig, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def sequences(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and unshifted weights; five of nine sequences share a beginning, two of them a longer one."""
    draw = np.random.default_rng(seed)
    shared = draw.integers(1, VOCAB, 30)
    made = []
    for index in range(9):
        own = draw.integers(1, VOCAB, int(draw.integers(3, 40)))
        tokens = np.concatenate([shared[: (30, 30, 22, 18, 18)[index]], own]) if index < 5 else own
        weights = (draw.random(tokens.size) < 0.6) * draw.random(tokens.size).astype(np.float32)
        weights[-1] = 0.5
        made.append((tokens, weights.astype(np.float32)))
    return made


def datum(tokens: np.ndarray, weights: np.ndarray) -> Datum:
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {"target_tokens": TensorData(tokens[1:], "int64"), "weights": TensorData(weights[1:], "float32")},
    )


def plain(folder: Path, lora: Lora | None, randomise: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of transformers' own model, one sequence at a time, full logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if lora is not None:
        torch.manual_seed(0)
        config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM")
        model = get_peft_model(model, config).base_model.model
    if randomise:
        fill_adapters(model)
    total = torch.zeros(())
    for tokens, weights in sequences():
        ids = torch.from_numpy(tokens)
        logits = model(input_ids=ids[None, :-1]).logits[0].float()
        logprobs = torch.log_softmax(logits, 1).gather(1, ids[1:, None]).squeeze(1)
        total = total - (logprobs * torch.from_numpy(weights[1:])).sum()
    total.backward()
    return float(total.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def fill_adapters(model: torch.nn.Module) -> None:
    """Give the adapters' zero matrices values, or half of their gradients would be zero for any engine."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def backend(folder: Path, tmp_path: Path, lora: Lora | None, micro_batch_tokens: int, **settings: bool) -> LocalBackend:
    made = LocalBackend(folder, None, EngineSettings(FLOAT32, tmp_path, micro_batch_tokens, **settings), lora)  # type: ignore[arg-type]
    fill_adapters(made._model.causal)
    return made


def assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], bound: float = 1e-5) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        scale = gradient.norm()
        assert scale > 0 or found[name].norm() == 0, name
        if scale > 0:
            assert (found[name] - gradient).norm() / scale <= bound, name


def gradients(made: LocalBackend) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made._parameters if p.grad is not None}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients(name: str, lora: Lora | None, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", CONFIGS[name])
    expected_loss, expected = plain(folder, lora, randomise=True)
    for micro_batch_tokens in (1, 50, 10_000):
        made = backend(folder, tmp_path, lora, micro_batch_tokens)
        assert made._model.joins_segments
        output = asyncio.run(made.forward_backward([datum(*pair) for pair in sequences()], CrossEntropy()))
        assert output.loss == pytest.approx(expected_loss, rel=1e-5)
        assert_close(gradients(made), expected)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keeping", "recomputing"])
def test_calls_add_up_and_recomputing_changes_nothing(recompute: bool, lora: Lora | None, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", CONFIGS["llama, tied"])
    expected_loss, expected = plain(folder, lora, randomise=True)
    made = backend(folder, tmp_path, lora, 60, activation_checkpointing=recompute)
    datums = [datum(*pair) for pair in sequences()]
    kept: list[bool] = []
    made._model.causal.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda *_: kept.append(True))

    async def several() -> float:
        first = await made.forward_backward(datums[:4], CrossEntropy())
        await made.forward(datums, CrossEntropy())
        return first.loss + (await made.forward_backward(datums[4:], CrossEntropy())).loss

    assert asyncio.run(several()) == pytest.approx(expected_loss, rel=1e-5)
    assert_close(gradients(made), expected)
    asyncio.run(made.forward(datums, CrossEntropy()))
    num_forward = len(kept)
    kept.clear()
    asyncio.run(made.forward_backward(datums, CrossEntropy()))
    num_streams = len(list(made._streams(datums, LOSSES[CrossEntropy])))
    assert len(kept) == num_streams * (2 if recompute else 1)
    assert num_forward > num_streams


def test_adapter_dropout_is_pefts_and_a_function_of_seed_and_step(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", CONFIGS["llama, tied"])
    lora = Lora(r=4, alpha=8.0, dropout=0.3, target_modules="all-linear")
    (tokens, weights), *_ = sequences()
    one = [datum(tokens, weights)]
    made = backend(folder, tmp_path, lora, 0)
    with_dropout = asyncio.run(made.forward_backward(one, CrossEntropy())).loss
    found = gradients(made)

    torch.manual_seed(0)
    reference = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"),
        LoraConfig(r=4, lora_alpha=8.0, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    fill_adapters(reference.base_model.model)
    reference.train()
    torch.manual_seed(fold(0, "dropout", 0, 0))
    logits = reference(input_ids=torch.from_numpy(tokens[None, :-1])).logits[0]
    logprobs = torch.log_softmax(logits, 1).gather(1, torch.from_numpy(tokens[1:, None])).squeeze(1)
    expected = -(logprobs * torch.from_numpy(weights[1:])).sum()
    expected.backward()
    assert with_dropout == pytest.approx(float(expected.detach()), rel=1e-5)
    named = dict(reference.base_model.model.named_parameters())
    assert_close(found, {name: named[name].grad for name in found})

    plain_loss = asyncio.run(made.forward(one, CrossEntropy())).loss
    again = backend(folder, tmp_path, lora, 0)
    assert asyncio.run(again.forward_backward(one, CrossEntropy())).loss == with_dropout != plain_loss
    assert asyncio.run(again.forward_backward(one, CrossEntropy())).loss != with_dropout


def test_a_custom_loss_has_the_gradient_of_the_loss_it_restates(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", CONFIGS["qwen3, norms on queries and keys"])
    _, expected = plain(folder, None, randomise=False)

    def restated(logprobs_D, inputs_D):
        total = sum(-(lp * i["weights"]).sum() for lp, i in zip(logprobs_D, inputs_D, strict=True))
        return total, {"num": float(len(logprobs_D))}

    made = backend(folder, tmp_path, None, 50)
    output = asyncio.run(made.forward_backward([datum(*pair) for pair in sequences()], CustomLoss(restated)))
    assert output.metrics == {"num": 9.0}
    assert_close(gradients(made), expected)


def test_log_probabilities_stand_where_the_weights_do(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", CONFIGS["llama, tied"])
    made = backend(folder, tmp_path, None, 50)
    model = AutoModelForCausalLM.from_pretrained(folder)
    output = asyncio.run(made.forward([datum(*pair) for pair in sequences()], CrossEntropy()))
    for (tokens, weights), found in zip(sequences(), output.logprobs_D, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(tokens[None, :-1])).logits[0]
        expected = torch.log_softmax(logits, 1).gather(1, torch.from_numpy(tokens[1:, None])).squeeze(1).numpy()
        np.testing.assert_allclose(found, np.where(weights[1:] != 0, expected, 0.0), rtol=1e-5, atol=1e-5)


def test_an_optimizer_step_is_torchs(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", CONFIGS["llama, tied"])
    made = backend(folder, tmp_path, None, 100)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    adam = AdamParams(learning_rate=1e-2, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, grad_clip_norm=0.5)
    parameters = dict(reference.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": adam.weight_decay},
            {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=adam.learning_rate,
        betas=(adam.beta1, adam.beta2),
        eps=adam.eps,
    )
    for _ in range(3):
        asyncio.run(made.forward_backward([datum(*pair) for pair in sequences()], CrossEntropy()))
        for name, gradient in gradients(made).items():
            parameters[name].grad = gradient
        expected_norm = torch.nn.utils.clip_grad_norm_(parameters.values(), adam.grad_clip_norm)
        optimizer.step()
        found = asyncio.run(made.optim_step(adam))
        assert found["grad_norm"] == pytest.approx(float(expected_norm), rel=1e-5)
    for name, parameter in made._parameters:
        torch.testing.assert_close(parameter.data, parameters[name].data, rtol=1e-5, atol=1e-6)
