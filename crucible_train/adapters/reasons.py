"""What a library says is wrong, in words that can be shown."""

from urllib.parse import urlsplit

from crucible_train.config.redaction import REDACTED, hide_secrets


def in_one_line(error: BaseException, url: str = "") -> str:
    """The text of an error, without line breaks and without the secrets of the URL that it is about."""
    text = " ".join(str(error).split()) or type(error).__name__
    try:
        password = urlsplit(url).password
    except ValueError:  # no URL at all
        password = None
    return hide_secrets(text.replace(password, REDACTED) if password else text)
