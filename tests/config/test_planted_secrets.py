"""Planted secrets of many kinds: none is left, wherever in a value it stands and however it is written."""

import base64
import json
import urllib.parse
from typing import Any

import pytest

from crucible_train.config.redaction import hide_secrets, redacted

SECRETS = {
    "wandb": "wandb_v1_0123456789abcdefCANARY0123456789",
    "hf": "hf_AbCdEfGhIjKlMnOpQrStUvWx12345CANARY",
    "openai": "sk-proj-AbCd1234CANARY5678",
    "anthropic": "sk-ant-api03-AbCd1234CANARY-xyz",
    "akia": "AKIAIOSFODNN7CANARY0",
    "gcp": '{"type":"account","private_key":"-----BEGIN PRIVATE KEY-----\\nMIICANARY\\n-----END PRIVATE KEY-----"}',
    "aws": "aws_secret_access_key=wJalrXUtnFEMICANARY",
    "azure_conn": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=CANARYabcd12==;EndpointSuffix=x",
    "sas": "https://a.blob.core.windows.net/c?sv=2020&sig=CANARY%2Fx",
    "presigned": "https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA&X-Amz-Signature=CANARY12",
    "url": "https://me:CANARY@h/x",
    "bearer": "Authorization: Bearer CANARY123456",
    "bearer2": "Bearer CANARY123456",
    "basic": "Basic bWU6Q0FOQVJZMTIzNDU2",
    "basichdr": "Authorization: Basic Q0FOQVJZ",
    "github": "ghp_AbCdEfGh1234CANARY567890",
    "github_pat": "github_pat_11AAAA_CANARY1234567890",
    "gitlab": "glpat-CANARY1234567890abcd",
    "slack": "xoxb-123456789012-CANARYabcdef",
    "slackhook": "https://hooks.slack.com/services/T000/B000/CANARYabcdef12345678",
    "xapp": "xapp-1-A111-CANARY1234567890ab",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlCANARY",
    "dsn": "postgresql://u:CANARY@db:5432/x",
    "dsn2": "host=db user=u password=CANARY dbname=x",
    "neptune": base64.b64encode(
        b'{"api_address":"https://app.neptune.ai","api_url":"https://app.neptune.ai","api_key":"CANARY"}'
    ).decode(),
    "mlflow": "MLFLOW_TRACKING_PASSWORD=CANARY",
    "ssh": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BCANARY\n-----END OPENSSH PRIVATE KEY-----",
    "cookie": "Cookie: session=CANARYabcdef; a=b",
    "setcookie": "Set-Cookie: sessionid=CANARYabc",
    "json": '{"api_key": "CANARY", "x": 1}',
    "colon": "password: CANARY",
    "userurl": "https://CANARYhf_token1234567@huggingface.co/x",
    "urlenc": urllib.parse.quote("https://me:CANARY@h/x", safe=""),
    "urlenc2": "next=https%3A%2F%2Fh%2Fx%3Fapi_key%3DCANARY",
    "google": "AIzaSyCANARY1234567890abcdefghijk",
    "npm": "npm_CANARY1234567890abcdefghijklmn",
    "tinker": "tml-CANARY1234567890abcdefgh",
    "pypi": "pypi-AgEIcHlwaS5vcmcCANARY12345",
    "call": 'connect(user="u", password="CANARY1x")',
    "call2": "Settings(api_key='CANARY12')",
    "bytes": "login(password=b'CANARY')",
    "wrapped": "api_key=SecretStr('CANARY')",
    "compared": 'assert password == "CANARY"',
    "quoted env": 'WANDB_API_KEY="CANARY6789abcdef0123456789abcdef01234567"',
    "ini": "[server]\napi_key = CANARYgh1\n",
    "ini2": "password   =   'CANARY with spaces'",
    "unclosed": 'password: "CANARY and no end',
    "header": '"X-Api-Key: CANARY12"',
    "header2": "curl -H 'X-Api-Key: CANARY12' https://h",
    "header3": '{"headers": ["Accept: x", "X-Api-Key: CANARY12"]}',
    "said": "Invalid api_key: CANARY12 was given",
    "comment": "api_key: CANARY12  # an old one",
    "json in json": json.dumps({"body": json.dumps({"api_key": "CANARY12", "n": 1})}),
    "json in json in json": json.dumps(json.dumps({"body": json.dumps({"api_key": "CANARY12"})})),
    "escaped quote": json.dumps({"password": 'a"CANARY'}),
    "line break": repr("first\npassword: CANARY\n"),
    "line break2": repr("first\nhf_AbCdEfGh12345CANARY"),
    "flag": "run --password CANARY --seed 3",
    "flag2": "--api-key CANARY12",
    "flag3": "--token 'CANARY x'",
    "flags": str(["run", "--password", "CANARY"]),
    "list": "passwords: [a, CANARY]",
    "list2": "{'api_keys': ['CANARY']}",
    "cookies": "{'Cookie': 'session=CANARY'}",
    "login": "user:CANARY12@db:5432/x",
    "login2": "DATABASE=user:CANARY12@db.example.com",
    "slash": "https://u:CAN/CANARY@h",
    "slash2": "redis://:CAN/CANARY@h/0",
    "?auth": "https://h/x?auth=CANARY",
    "?pass": "https://h/x?a=1&pass=CANARY",
    "groq": "gsk_AbCdEfGhIjKlMnOpQrSt0123CANARY",
    "replicate": "r8_AbCdEfGhIjKlMnOpQrSt0123CANARY",
    "sendgrid": "SG.AbCdEfGhIjKlMnOpQr.StUvWxYz0123456789CANARY",
    "local wandb": "local-" + b"CANARY".hex() * 3 + "0123",
    "discord": "https://discord.com/api/webhooks/123456789012345678/AbCd-EfGh_CANARY",
    "discord2": "https://discordapp.com/api/v10/webhooks/1234/AbCdCANARY",
}
# what a planted text must not leave behind, plain and in base 64
TRACES = ("CANARY", base64.b64encode(b"me:CANARY").decode(), base64.b64encode(b"CANARY").decode(), "eyJhcGlf",
          b"CANARY".hex())  # fmt: skip
READABLE = [
    "use_cls_token", "num_tokens: 512", "tokenizer: smollm2", "pad_token: x",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "sft-tiny-llama-rows-38f688e1", "runs/sft-tiny/checkpoints/step-00000016/manifest.json", "hf_token: it is missing",
    "Basic arithmetic", "basic understanding", "npm_install", "Donaudampfschifffahrtsgesellschaftskapitaen",
    "git@github.com:a/b.git", "ssh://git@github.com/a/b", "a cookie", "key: value", "https%3A%2F%2Fh%2Fx%3Fpage%3D2",
    '{"num_tokens": 3, "api_key": null}', "api_key_env: OPENAI_API_KEY", "num_tokens=5", "max_tokens: 256",
    "tokens = 1024", "--max-tokens 256", "--api-key is missing", 'eos_token="<|im_end|>"', '{"pad_token": "<pad>"}',
    "password = getpass()", "api_key = os.environ['X']", "api_key=None", "password: must be 8 characters long",
    "hf_token: it's missing", "token: 151645 is the end", "mailto:bob2@x.com", "https://host:8080/path@v2",
    "http://[::1]:8080/a@b", "file:///C:/Users/a@b", "s3://bucket/key:a/b@c", "org/model@main",
    "python:3.11@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "tests.tracking.http_tracker:HttpTracker", "SG.pdf", "r8_short", "step 5 pass=3", 'password=""',
]  # fmt: skip


@pytest.mark.parametrize("kind", SECRETS)
def test_no_trace_is_left(kind: str) -> None:
    text = SECRETS[kind]
    tree: dict[str, Any] = {"text": text, "list": [[text]], "deep": {"a": [{"b": (text, f"see {text}")}]}}
    for shown in (hide_secrets(text), json.dumps(redacted(tree))):
        assert not [trace for trace in TRACES if trace in shown]
    assert hide_secrets(hide_secrets(text)) == hide_secrets(text)


@pytest.mark.parametrize("name", ["wandb_api_key", "WANDB_API_KEY", "NEPTUNE_API_TOKEN", "MLFLOW_TRACKING_PASSWORD"])
def test_under_a_secret_name_any_value_goes(name: str) -> None:
    assert "CANARY" not in json.dumps(redacted({"a": [{"b": {name: ["CANARY", {"c": "CANARY"}]}}]}))


@pytest.mark.parametrize("text", READABLE)
def test_other_text_stays_readable(text: str) -> None:
    assert hide_secrets(text) == text


def test_keys_of_a_mapping_hide_secrets_too_and_stay_apart() -> None:
    given = {"https://u:CANARY1@h": 1, "https://u:CANARY2@h": {"?sig=CANARY": 2}, "num_tokens": 3}
    hidden = "https://u:[redacted]@h"
    assert redacted(given) == {hidden: 1, f"{hidden} (2)": {"?sig=[redacted]": 2}, "num_tokens": 3}


def test_a_list_of_tokens_is_secret_where_they_are_texts() -> None:
    assert redacted({"tokens": ["CANARYabc", "b"]}) == {"tokens": ["[redacted]", "[redacted]"]}
    readable = {
        "tokens": [1, 2.5, "<|im_end|>", "[PAD]", "17", ""],
        "stop_tokens": ["a"],
        "num_tokens": 5,
        "deep": {"max_tokens": 256, "tokens": 9},
    }
    assert redacted(readable) == readable


def test_a_long_text_takes_no_long_time() -> None:
    for part in ("a", "a.b-", "x: 'y ", "password: '", 'password=\\"', "u:p@", "http://u:", "--a ", " "):
        text = part * (60_000 // len(part))
        assert "CANARY" not in hide_secrets(f"{text}\npassword=CANARY")
