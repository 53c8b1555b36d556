"""What cannot be loaded is an input error that names the model; a GGUF file gives the model it was made from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from crucible_train.adapters.torch_local import loading
from crucible_train.adapters.torch_local.conversion import convert_gguf
from crucible_train.adapters.torch_local.loading import Lora, load
from crucible_train.errors import ModelError
from crucible_train.types import Hardware

FLOAT32 = Hardware("cpu", "float32", 1)
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("llama, untied"), tmp_path / "model"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_classifier(folder: Path) -> None:
    shutil.rmtree(folder)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    BertForSequenceClassification(config).save_pretrained(folder)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "could not be loaded"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "could not be loaded"),
    "torn weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]), "could not be loaded"),
    "an unknown architecture": (lambda f: change_config(f, model_type="unheard of"), "could not be loaded"),
    "a speech model's config": (lambda f: change_config(f, model_type="wav2vec2"), "could not be loaded"),
    "another width": (lambda f: change_config(f, hidden_size=24), "could not be loaded"),
    "a weight that is missing": (
        lambda f: change_weights(f, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        r"model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "a weight that is no number": (
        lambda f: change_weights(f, lambda w: w["model.norm.weight"].fill_(float("nan"))),
        "not computed correctly",
    ),
    "a classifier": (as_classifier, "weight"),
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_cannot_be_loaded_is_a_model_error(reason: str, folder: Path) -> None:
    change, told = WRONG[reason]
    change(folder)
    with pytest.raises(ModelError, match=told) as caught:
        load(folder, FLOAT32, None)
    assert str(caught.value).startswith("model: ")
    assert "\n" not in str(caught.value)


class Headless(LlamaForCausalLM):
    def get_output_embeddings(self) -> None:
        return None


def test_a_model_without_a_linear_head_is_a_model_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class HeadlessConfig(LlamaConfig):
        model_type = "headless"

    Headless.config_class = HeadlessConfig
    monkeypatch.setattr(loading, "_read", lambda folder, dtype: Headless.from_pretrained(folder).eval())
    with pytest.raises(ModelError, match="Headless has no linear output layer"):
        load(folder, FLOAT32, None)


def test_an_engine_that_computes_something_else_is_a_model_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_plain_logprobs", lambda model: [torch.zeros(28), torch.zeros(25)])
    with pytest.raises(ModelError, match=r"LlamaForCausalLM is not computed correctly by this engine"):
        load(folder, FLOAT32, None)


def test_target_modules_that_are_not_there_are_a_model_error(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"^peft.lora_target_modules: "):
        load(folder, FLOAT32, Lora(2, 4.0, 0.0, ("no_such_proj",)))


def test_the_same_seed_gives_the_same_adapter(folder: Path) -> None:
    def adapter(seed: int) -> torch.Tensor:
        model = load(folder, FLOAT32, Lora(2, 4.0, 0.0, "all-linear"), seed=seed)
        return torch.cat([p.flatten() for n, p in model.causal.named_parameters() if "lora_A" in n])

    torch.manual_seed(5)
    first = adapter(1)
    torch.manual_seed(6)
    assert torch.equal(first, adapter(1))
    assert not torch.equal(first, adapter(2))


HEADS, KEY_HEADS, WIDTH = 4, 2, 8
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """A projection of queries or keys as llama.cpp orders its rows: rotary pairs are neighbours."""
    return weight.reshape(num_heads, 2, WIDTH // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, path: Path, without: str = "nothing") -> None:
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    letters = ["<s>", "</s>", *(chr(33 + n) for n in range(config.vocab_size - 3)), "AB"]
    writer.add_token_list(letters)
    writer.add_token_types([3, 3, *[1] * (config.vocab_size - 2)])
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        if name == without:
            continue
        weight = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = permuted(weight, HEADS if "q_proj" in name else KEY_HEADS)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole or name == "lm_head.weight":
        return whole.get(name, "output.weight")
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


@pytest.fixture
def original() -> LlamaForCausalLM:
    """Weights that bfloat16 holds exactly, so that a conversion may change nothing."""
    config = LlamaConfig(
        hidden_size=HEADS * WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        vocab_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 4 if parameter.ndim > 1 else torch.rand_like(parameter)).bfloat16())
    return model


def test_a_gguf_file_gives_the_logits_of_the_weights_it_was_made_from(
    original: LlamaForCausalLM, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    write_gguf(original, tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", made)
    assert {tensor.dtype for tensor in load_file(made / WEIGHTS).values()} == {torch.bfloat16}
    ids = torch.randint(0, 64, (1, 20))
    with torch.no_grad():
        expected = original(ids).logits
        found = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)(ids).logits
    assert expected.std() > 0.2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    load(made, FLOAT32, None)
    assert (made / "tokenizer.json").is_file()


def test_a_gguf_file_that_lacks_a_weight_is_a_model_error(original: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(original, tmp_path / "tiny.gguf", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"lacks 1 of the model's weights, such as model.layers.1.mlp.up_proj.weight"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "made")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 10], ids=["empty", "a stub", "a text"])
def test_what_is_no_gguf_file_is_a_model_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "wrong.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"^model: .*wrong.gguf: the GGUF file could not be converted: .") as caught:
        convert_gguf(tmp_path / "wrong.gguf", tmp_path / "made")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    """peft itself passes over what it has no place for, and leaves what is missing as it was drawn."""
    lora = Lora(2, 4, 0.0, "all-linear")
    loaded = load(folder, FLOAT32, lora)
    assert loaded.peft is not None
    loaded.peft.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(path)
    load(folder, FLOAT32, lora, tmp_path / "adapter")
    name = next(iter(stored))
    save_file({**stored, name.replace("layers.0", "layers.7"): stored[name].clone()}, path)
    with pytest.raises(ModelError, match="no place for"):
        load(folder, FLOAT32, lora, tmp_path / "adapter")
    save_file({key: value for key, value in stored.items() if key != name}, path)
    with pytest.raises(ModelError, match="holds nothing for"):
        load(folder, FLOAT32, lora, tmp_path / "adapter")
    save_file(stored, path)
    with pytest.raises(ModelError, match="do not fit"):
        load(folder, FLOAT32, Lora(3, 4, 0.0, "all-linear"), tmp_path / "adapter")
