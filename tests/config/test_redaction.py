"""Secrets leave no trace, and nothing else is touched."""

import json
from enum import StrEnum
from pathlib import Path

import pytest

from crucible_train.config.base import Section, option
from crucible_train.config.redaction import (
    REDACTED,
    hide_in_failure,
    hide_in_remark,
    hide_secrets,
    is_secret_name,
    redacted,
)
from crucible_train.recipes.sft import SFTConfig


@pytest.mark.parametrize(
    "name",
    [
        "password", "db_password", "PASSWORD", "passwd", "secret", "client_secret", "secret_key",
        "aws_secret_access_key",
        "api_key", "apikey", "apiKey", "OPENAI_API_KEY", "x-api-key", "access_key", "access_key_id", "private_key",
        "token", "hf_token", "HF_TOKEN", "accessToken", "auth_token", "api_tokens", "credential", "credentials",
        "Authorization", "proxy-authorization", "wandb_key", "user.password",
    ],
)  # fmt: skip
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer", "tokens", "num_tokens", "max_new_tokens", "micro_batch_tokens", "use_cls_token", "pad_token",
        "eos_token", "num_token", "token_count", "tokenizer_name", "sort_key", "key", "keyboard", "secretary", "monkey",
        "model", "", "lora_r", "api", "api_key_env", "password_file", "loss_normalisation", "access",
    ],
)  # fmt: skip
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://me:hunter2@host/path", f"https://me:{REDACTED}@host/path"),
        ("redis://:hunter2@host:6379/0", f"redis://:{REDACTED}@host:6379/0"),
        ("postgres://u:p@ss@host/db", f"postgres://u:{REDACTED}@host/db"),
        ("s3://bucket/key?X-Amz-Signature=abc&part=1", f"s3://bucket/key?X-Amz-Signature={REDACTED}&part=1"),
        ("https://h/b?sv=2020&sig=a%2Fb%3D", f"https://h/b?sv=2020&sig={REDACTED}"),
        ("https://h/b?access_token=abc#top", f"https://h/b?access_token={REDACTED}#top"),
        ("https://h/b?key=abc", f"https://h/b?key={REDACTED}"),
        ("hf_abcdefghijklmnopqrstuvwxyz012345", REDACTED),
        ("use hf_AbCdEf123456 here", f"use {REDACTED} here"),
        ("AKIAIOSFODNN7EXAMPLE", REDACTED),
        ("sk-proj-abcdef123456", REDACTED),
        ("Bearer abcdef123456", REDACTED),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: {REDACTED}"),
        ("ghp_abcdefghijklmnopqrst", REDACTED),
        ("password=hunter2 user=me", f"password={REDACTED} user=me"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", REDACTED),
    ],
)
def test_secret_values(text: str, hidden: str) -> None:
    assert hide_secrets(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/path@v2", "s3://bucket/key", "git@github.com:a/b.git", "hf_transfer", "hf_hub/model",
        "sk-learn", "task-0123456789abc", "bearer of news", "HuggingFaceTB/SmolLM2-135M", "key=value", "sort_key=a",
        "num_tokens=512", "https://h/b?page=2&sort=key", "data:train", "token", "AKIA", "",
    ],
)  # fmt: skip
def test_other_values(text: str) -> None:
    assert hide_secrets(text) == text


def test_a_failure_quotes_no_variable_with_the_name_of_a_secret() -> None:
    environment = {
        "SERVICE_API_KEY": "swordfish",
        "OTHER_TOKEN": "swordfish and more",
        "HOME": "/home/me",
        "A_KEY": "aaa",
    }
    environment |= {"SMALL_PASSWORD": "a", "PWD": "/home/me", "OLDPWD": "/home"}
    text = "swordfish and more, or swordfish, in /home/me: aaa; password=x"
    assert hide_in_failure(text, environment) == (f"{REDACTED}, or {REDACTED}, in /home/me: aaa; password={REDACTED}")


_HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("text", ["{}", "local-{}", "my key {}", "(key: {}).", "a\n{}\nb", '"{}"', "commits and {}"])
def test_an_older_key_of_wandb_is_hidden_where_it_stands_alone(text: str) -> None:
    assert hide_secrets(text.format(_HEX)) == text.replace("local-", "").format(REDACTED)


@pytest.mark.parametrize(
    "text",
    [
        "commit {}", "at commit `{}` of main", "revision={}", "models/snapshots/{}/config.json", "org/model@{}",
        "https://github.com/a/b/commit/{}", "SHA1: {}", "v1.2.dev3+g{}", "{}89abcdef0123456789abcdef", "{}0",
    ],
)  # fmt: skip
def test_a_commit_and_a_digest_are_no_keys(text: str) -> None:
    assert hide_secrets(text.format(_HEX)) == text.format(_HEX)
    assert hide_in_remark(text.format(_HEX)) == text.format(_HEX)


def test_a_value_is_a_digest_by_its_name() -> None:
    digests = {"revision": _HEX, "git_commit": _HEX, "sha1": _HEX, "commits": [_HEX], "deep": {"tree_hash": _HEX}}
    assert redacted(digests) == digests
    assert redacted({"notes": _HEX, "tags": ["a", _HEX]}) == {"notes": REDACTED, "tags": ["a", REDACTED]}


@pytest.mark.parametrize("token", ["r8Kf02mQxZ7tVb4LwN1sYd6HcJ9gPe3A", "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8S9t0"])
def test_a_long_token_of_no_known_kind_is_hidden_in_a_remark(token: str) -> None:
    for remark in ("{}", "use {} today", "key={}."):
        assert token not in hide_in_remark(remark.format(token))
    assert hide_secrets(token) == token  # elsewhere it may be anything


@pytest.mark.parametrize(
    "remark",
    ["SmolLM2-135M-Instruct-on-gsm8k-with-lora-r16", "a remark, 3 of 4", "Donaudampfschifffahrtsgesellschaftskapitaen1",
     "my_run_with_A_very_long_name_1_and_2", "digest: r8Kf02mQxZ7tVb4LwN1sYd6HcJ9gPe3A",
     "9f86d081884c7d659a2feaa0c55ad015"],
)  # fmt: skip
def test_a_remark_stays_readable(remark: str) -> None:
    assert hide_in_remark(remark) == remark


class _Colour(StrEnum):
    RED = "red"


def test_nested_values_are_json_ready() -> None:
    given = {
        "api_key": "x",
        "hf_token": None,
        "use_auth_token": True,
        "password": 1234,
        "secret": ["a", "b"],
        "credentials": {"user": "me"},
        "nested": [{"token": "x", "num_tokens": 3}, ("https://a:b@c", 1.5)],
        "path": Path("a/b"),
        "colour": _Colour.RED,
        "nan": float("nan"),
        "empty": {"password": ""},
    }
    assert redacted(given) == {
        "api_key": REDACTED,
        "hf_token": None,
        "use_auth_token": True,
        "password": REDACTED,
        "secret": REDACTED,
        "credentials": REDACTED,
        "nested": [{"token": REDACTED, "num_tokens": 3}, [f"https://a:{REDACTED}@c", 1.5]],
        "path": "a/b",
        "colour": "red",
        "nan": "nan",
        "empty": {"password": ""},
    }
    json.dumps(redacted(given), allow_nan=False)


def test_a_configuration_keeps_nulls_and_booleans() -> None:
    config = SFTConfig(dataset="https://me:hunter2@host/rows.jsonl")
    plain = config.model_dump(mode="json")
    assert redacted(config) == plain | {"dataset": f"https://me:{REDACTED}@host/rows.jsonl"}
    assert redacted(SFTConfig()) == SFTConfig().model_dump(mode="json")


def test_sections_inside_a_dictionary() -> None:
    class Server(Section):
        """A server."""

        url: str = option("https://u:p@h", "where")
        api_key: str | None = option("x", "its key")

    assert redacted({"server": Server()}) == {"server": {"url": f"https://u:{REDACTED}@h", "api_key": REDACTED}}
