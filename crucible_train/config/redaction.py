"""Keeping secrets out of what is printed and stored: by the name a value stands under, and by how it looks."""

import math
import re
from collections.abc import Mapping
from enum import Enum
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

REDACTED = "[redacted]"

_SECRET_WORDS = re.compile(
    r"passwords?|passwd|passphrases?|pwd|secrets?|credentials?|authorization|cookies?|apikeys?|"
    r"accesskey|secretkey|privatekey|accountkey|authtoken|accesstoken|hftoken"
)
_KEY_KINDS = re.compile(r"api|access|secret|private|account|auth|encryption|signing|license|ssh|wandb|neptune")
_TOKEN_KINDS = re.compile(
    r"access|api|auth|bearer|refresh|hub|hf|huggingface|session|id|secret|security|github|gitlab|wandb|write|"
    r"read|user|service|bot|personal"
)
_TEXT_TOKENS = re.compile(
    r"cls|pad|eos|bos|unk|sep|mask|image|video|audio|special|stop|start|end|begin|per|next|first|last|new|"
    r"prefix|suffix|text|turn|extra|boi|eoi|bot|eot|placeholder|think|tool|response|max|min|num|decoder|forced|"
    r"class|vocab|by|each"
)
_POINTERS = re.compile(r"env|variable|name|file|path")
_SIGNED_PARAMETERS = re.compile(
    r"sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential|"
    r"awsaccesskeyid|googleaccessid|key|code|auth|pass|pw"
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_USER_INFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://[^/\s:@]*):[^/\s]+@")
_SLASHED_USER_INFO = re.compile(  # what follows the colon is no port, so a password, though it holds a slash
    r"""(?!file:)\b([A-Za-z][A-Za-z0-9+.-]{0,30}://[^/\s:@\["']{0,100}):(?![0-9]{1,5}/)"""
    r"""[^\s/@"'<>]{0,200}/[^\s@"'<>]{0,200}@"""
)
_LOGIN = re.compile(  # user:password@host, without a scheme
    r"""(?<![\w/@.:%+-])(?!(?:mailto|e-?mail|from|to|cc|bcc|author|by|contact|sip):)([A-Za-z][\w.-]{0,99}):[^\s/@:"'<>]+"""
    r"@(?=[\w.-]+(?::[0-9]{1,5}(?!\w)|/)|[\w-]+\.[\w.-]*\w)"
)
_LONE_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(?=[^/\s:@]*[0-9])[^/\s:@]{16,}@")
_ENCODED_USER_INFO = re.compile(r"(?i)([a-z][a-z0-9+.-]{0,30}%3A%2F%2F[\w.~-]*)%3A(?:(?!%2F)[\w.~%-])+%40")
_ENCODED_ASSIGNMENT = re.compile(r"(?i)((?:%3F|%26|%3B|%23))([a-z][a-z0-9_.-]{0,99})%3D((?:(?!%26|%23|%3B)[\w.~%+-])+)")
_QUOTED = (  # also in JSON within JSON, in a call and in a list; a quote that is never closed ends with its line
    r"""(?P<call>(?:[bBrRuUfF]{1,2}|[A-Za-z_.]+\()?)"""
    r"""(?:(?P<quote>\\*["'])(?P<inside>(?s:(?!(?<!\\)(?P=quote)).)*)(?<!\\)(?P=quote)"""
    r"""|\\*["'][^\r\n]+|\[[^\[\]\r\n]+\])"""
)
_ENDS = r"""(?=[ \t]*(?:$|[\r\n,;)}\]]|["'](?!\w)))"""
_ASSIGNED_NAME = re.compile(r"(?P<mark>[?&;#]?)\b(?P<name>[A-Za-z][\w.-]{0,99})[ \t]*={1,2}[ \t]*")
_ASSIGNED = re.compile(rf"""{_QUOTED}|(?P<plain>(?<=\S=)[^&\s#;,'"]+|[^\s,;(){{}}\[\]"'=<>]+{_ENDS})""")
_NAMED_NAME = re.compile(r"""(?P<mark>(?:\\*["'])?)\b(?P<name>[A-Za-z][\w.-]{0,99})(?P=mark):\s*""")
_NAMED = re.compile(  # without quotes, what ends there or has digits: "hf_token: it is missing" is a remark
    rf"""{_QUOTED}|(?P<plain>[^\s,;}}\]"'\[{{]+{_ENDS}|(?=\S*[A-Za-z])(?=\S*[0-9])[^\s,;}}\]"'\[{{]{{6,}}(?=\s))"""
)
_FLAG_NAME = re.compile(r"""(?<![\w-])--(?P<name>[A-Za-z][\w.-]{0,99})(?:[ \t]+|["'],\s*(?=["']))""")
_FLAG_VALUE = re.compile(
    rf"""{_QUOTED}|(?P<plain>(?!(?:is|are|was|must|may|can|has|needs|and|or|not|with|to|for|from|in|of|as)\b)"""
    r"""[^\s"'-][^\s"',;]*)"""
)
_SHORTEST = 6
"""Characters of a variable's value that is taken for a secret wherever it stands."""
_FOLDERS = ("PWD", "OLDPWD")
"""Variables in which every shell keeps where it is: no passwords."""
_NOTHING = frozenset({"null", "none", "true", "false"})
_COOKIE = re.compile(r"(?i)\b((?:set-)?cookie\s*[:=]\s*)[^\r\n]+")
_WEBHOOK = re.compile(r"(discord(?:app)?\.com/api/(?:v[0-9]+/)?webhooks/[0-9]+/)[\w-]+")
_AUTHORIZATION = re.compile(r"(?i)\b(authorization\s*[:=]\s*)(\w+\s+)?\S+")
_BARE_SECRETS = re.compile(
    r"""
      -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*                    # PEM
    | (?:(?<![A-Za-z0-9])|(?<=\\[nrt]))(?:                      # a line break may be written as \\n
          hf_(?:(?=[A-Za-z]*[0-9])[A-Za-z0-9]{10,}|[A-Za-z0-9]{16,})
        | sk-(?:(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{8,}|[A-Za-z0-9_-]{16,})
        | (?:AKIA|ASIA)[A-Z0-9]{12,}
        | (?:gh[oprsu]_|github_pat_|glpat-|xox[abprs]-|AIza)[A-Za-z0-9_-]{16,}
        | (?:xapp-|wandb_v1_|npm_|pypi-|tml-|ya29\.|[sr]k_live_|gsk_|r8_|xai-|nvapi-|pplx-)
          (?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}
        | SG\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}                 # SendGrid
        | dapi[0-9a-f]{32}(?:-[0-9])?(?![A-Za-z0-9])
        | (?<=hooks\.slack\.com/services/)[A-Za-z0-9/]+
        | eyJ[A-Za-z0-9_-]{32,}={0,2}(?![A-Za-z0-9_.-])             # Neptune: JSON in base 64
        | Basic\s+(?=[A-Za-z]*[0-9=])[A-Za-z0-9+/]{8,}={0,2}
        | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+  # JSON web token
        | [Bb]earer\s+(?:(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{8,}|[A-Za-z0-9._~+/=-]{16,})
      )
    """,
    re.VERBOSE | re.DOTALL,
)
# An older key of W&B is 40 digits in base 16, as the name of a commit is: it is one where it stands alone, unnamed.
_DIGEST_WORDS = re.compile(r"(?:commit|digest|sha[0-9]*|hash|checksum|md5|revision|rev|tree|parent|head|git)(?:s|es)?")
_WORD_BEFORE = r"(?:\b(?P<before>[A-Za-z][A-Za-z0-9]*)[\s:=('\"`]{1,3})?"
_HEX_KEY = re.compile(
    rf"{_WORD_BEFORE}(?:(?<![\w/@.#%+-])|(?<=\\[nrt]))(?P<key>(?:local-)?[0-9a-f]{{40}})(?![\w/@%+-]|\.\w)"
)
_LONG_TOKEN = re.compile(  # 32 letters of both cases and digits, mixed, without a break: no word, no digest
    rf"{_WORD_BEFORE}(?<![\w/@.#%+-])(?P<key>(?=(?:[A-Za-z]*[0-9]+[A-Za-z]+){{2}})(?=[A-Z0-9]*[a-z])(?=[a-z0-9]*[A-Z])"
    r"[A-Za-z0-9]{32,})(?![\w/@%+=-]|\.\w)"
)


def redacted(config_or_dict: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-ready copy in which secrets read ``[redacted]``; null and booleans stay, also under a secret's name."""
    if isinstance(config_or_dict, BaseModel):
        config_or_dict = config_or_dict.model_dump(mode="json")
    shown: dict[str, Any] = {}
    for key, value in config_or_dict.items():
        name = plain = hide_secrets(str(key))
        number = 1
        while name in shown:  # two keys that differ only in their secrets
            number += 1
            name = f"{plain} ({number})"
        shown[name] = _redact(value, str(key))
    return shown


def _redact(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name) and value != "":
        return REDACTED
    if isinstance(value, BaseModel | Mapping):
        return redacted(value)
    if isinstance(value, list | tuple | set | frozenset):
        is_secret = name.lower() == "tokens"
        return [REDACTED if is_secret and _is_token(item) else _redact(item, name) for item in value]
    if isinstance(value, Enum):
        return _redact(value.value, name)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value) if _is_digest(name, str(value)) else hide_in_remark(str(value))


def _is_token(item: Any) -> bool:
    """Whether what a list of tokens holds gives access: no number, and not ``<|im_end|>``."""
    return isinstance(item, str) and item != "" and not re.fullmatch(r"<.*>|\[.*\]|-?[0-9]+", item)


def _is_digest(name: str, value: str) -> bool:
    """Whether a value is the name of a commit and the like: by the name it stands under."""
    is_named = any(_DIGEST_WORDS.fullmatch(word.lower()) for word in _WORD.findall(name))
    return is_named and re.fullmatch("[A-Za-z0-9]{32,}", value) is not None


def is_secret_name(name: str) -> bool:
    """Whether a value of this name is secret: ``hf_token`` is; ``pad_token``, ``num_tokens``, ``sort_key`` are not."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or _POINTERS.fullmatch(words[-1]):
        return False
    kind = words[-2] if len(words) > 1 else ""
    if words[-1] == "token":
        return not _TEXT_TOKENS.fullmatch(kind)
    if words[-1] == "tokens":
        return _TOKEN_KINDS.fullmatch(kind) is not None
    has_key = any(second in ("key", "keys") and _KEY_KINDS.fullmatch(first) for first, second in pairwise(words))
    return has_key or any(_SECRET_WORDS.fullmatch(word) for word in words)


def is_private_name(name: str) -> bool:
    """The wider rule for error lines, where hiding costs nothing: any name that ends in ``key`` as well."""
    return is_secret_name(name) or name.lower().endswith("key")


def hide_secrets(text: str) -> str:
    """``text`` with what looks like a secret replaced: passwords in URLs, signatures, well-known token forms."""
    text = _USER_INFO.sub(rf"\1:{REDACTED}@", text)
    text = _SLASHED_USER_INFO.sub(rf"\1:{REDACTED}@", text)
    text = _LOGIN.sub(rf"\1:{REDACTED}@", text)
    text = _LONE_USER.sub(rf"\1{REDACTED}@", text)
    text = _ENCODED_USER_INFO.sub(rf"\1%3A{REDACTED}%40", text)
    text = _COOKIE.sub(rf"\1{REDACTED}", text)
    text = _AUTHORIZATION.sub(lambda found: f"{found[1]}{REDACTED}", text)
    text = _hide_values(text, _ASSIGNED_NAME, _ASSIGNED)
    text = _ENCODED_ASSIGNMENT.sub(_hide_encoded, text)
    text = _hide_values(text, _NAMED_NAME, _NAMED)
    text = _hide_values(text, _FLAG_NAME, _FLAG_VALUE)
    text = _WEBHOOK.sub(rf"\1{REDACTED}", text)
    text = _BARE_SECRETS.sub(REDACTED, text)
    return _HEX_KEY.sub(_hide_unnamed, text)


def hide_in_remark(text: str) -> str:
    """What a person wrote of a run, without secrets: besides what ``hide_secrets`` knows, any long token."""
    return _LONG_TOKEN.sub(_hide_unnamed, hide_secrets(text))


def hide_in_failure(text: str, environment: Mapping[str, str]) -> str:
    """What a library said of a failure, without secrets: also without the values of variables with a secret's name."""
    names = [name for name in environment if is_secret_name(name) and name not in _FOLDERS]
    known = {environment[name] for name in names if len(environment[name]) >= _SHORTEST}
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, REDACTED)
    return hide_secrets(text)


def _hide_unnamed(found: re.Match[str]) -> str:
    """A token, unless the word before says that it names a commit or a content."""
    before = found["before"] or ""
    if _DIGEST_WORDS.fullmatch(before.lower()):
        return found[0]
    return found[0].removesuffix(found["key"]) + REDACTED


def _hide_encoded(found: re.Match[str]) -> str:
    mark, name, _ = found.groups()
    secret = is_secret_name(name) or _SIGNED_PARAMETERS.fullmatch(name.lower())
    return f"{mark}{name}%3D{REDACTED}" if secret else found[0]


def _hide_values(text: str, names: re.Pattern[str], values: re.Pattern[str]) -> str:
    """``password="x"``, ``"api_key": "x"`` in JSON that stands as a text, ``--token x``: the name and no value."""
    parts, end = [], 0
    for found in names.finditer(text):
        if found.start() < end or not _is_secret_there(found):  # a value that is not secret may hold such names
            continue
        given = values.match(text, found.end())
        if given is None or given["inside"] == "" or (given["plain"] or "").lower() in _NOTHING:
            continue
        quote = given["quote"] or ""
        parts += [text[end : found.end()], given["call"] or "", quote, REDACTED, quote]
        end = given.end()
    return "".join([*parts, text[end:]])


def _is_secret_there(found: re.Match[str]) -> bool:
    """Whether a value is secret by the name before it, and by where that stands."""
    name, at = found["name"], found.start("name")
    # a name after a line break that is written as \\n seems to begin with that letter
    names = [name, name[1:]] if found.string[at - 1 : at] == "\\" and name[0] in "nrt" else [name]
    is_signed = found[0][0] in "?&;#" and found[0][-1] == "=" and _SIGNED_PARAMETERS.fullmatch(name.lower())
    return bool(is_signed) or any(map(is_secret_name, names))
