"""What a library says is wrong is shown in one line and without the secrets of the URL."""

import pytest

from crucible_train.adapters.reasons import in_one_line


@pytest.mark.parametrize(
    ("error", "url", "text"),
    [
        (OSError("first\n  second"), "", "first second"),
        (TimeoutError(), "", "TimeoutError"),
        (OSError('bucket "me:hunter22@b"'), "s3://me:hunter22@b/c", 'bucket "me:[redacted]@b"'),
        (OSError("at http://me:hunter22@b/c"), "", "at http://me:[redacted]@b/c"),
        (OSError("plain"), "http://[broken", "plain"),
        (OSError("plain"), "/a/folder", "plain"),
    ],
)
def test_in_one_line(error, url, text):
    assert in_one_line(error, url) == text
